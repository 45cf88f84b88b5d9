# SPDX-License-Identifier: Apache-2.0
"""The catalogue of losses: what `contract_test` needs to know of each."""

from collections.abc import Callable, Mapping
import functools
import types
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mpmath
import numpy as np

from squentropy_jax import losses


class LossCase(NamedTuple):
  """One public loss.

  Attributes:
    name: Its name in ``squentropy_jax.losses``.
    loss: The function.
    reference: Float64 NumPy loss of one row, ``reference(logits, label,
      **hyperparameters)``, all classes possible, written from the paper.
    single_class: The loss of a row whose only possible class is the target,
      with logit 0.5.
    impossible_target: The limit for a target logit going to ``-inf``, the other
      logits being ``OTHERS``.
    hyperparameters: Values other than the defaults, to test with.
    soft_is_expected: Whether soft labels mean the expected loss; else the paper
      has a meaning of its own.
    size: Of the terms whose difference the loss is, with the arguments of
      ``reference``: its roundings are relative to them. None if the terms are
      no larger than the loss.
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., float]
  single_class: float
  impossible_target: float
  hyperparameters: Mapping[str, float] = types.MappingProxyType({})
  soft_is_expected: bool = True
  size: Callable[..., float] | None = None

  def __repr__(self) -> str:
    return self.name


OTHERS = np.array([0.5, -1.0, 2.0])
EXP_SUM = np.exp(OTHERS).sum()


def log_odds(logits: np.ndarray, label: int) -> float:
  """``log((1 - p) / p)`` of the labelled class."""
  rest = np.delete(logits, label) - logits[label]
  if not rest.size:
    return -np.inf
  top = rest.max()
  return top + np.log(np.exp(rest - top).sum())


def cross_entropy(logits: np.ndarray, label: int) -> float:
  return np.logaddexp(0.0, log_odds(logits, label))


def squentropy(logits: np.ndarray, label: int, scale: float = 1.0) -> float:
  rest = np.delete(logits, label)
  square = np.square(rest).mean() if rest.size else 0.0
  return cross_entropy(logits, label) + scale * square


def rescaled_square(
  logits: np.ndarray,
  label: int,
  target_weight: float = 1.0,
  target_value: float = 1.0,
) -> float:
  weights = np.where(np.arange(logits.size) == label, target_weight, 1.0)
  targets = np.where(np.arange(logits.size) == label, target_value, 0.0)
  return (weights * np.square(logits - targets)).mean()


def comp_sum(logits: np.ndarray, label: int, tau: float = 1.0) -> float:
  loss = cross_entropy(logits, label)
  return loss if tau == 1 else np.expm1((1 - tau) * loss) / (1 - tau)


def generalized_cross_entropy(
  logits: np.ndarray, label: int, q: float = 0.7
) -> float:
  return -np.expm1(-q * cross_entropy(logits, label)) / q


def mean_absolute_error(logits: np.ndarray, label: int) -> float:
  return -np.expm1(-cross_entropy(logits, label))


def halfway(logits: Any, labels: Any, **arguments: Any) -> Any:
  """The adversarial loss where the attack halves the logits, exactly."""
  z = jnp.asarray(logits)
  if jnp.issubdtype(z.dtype, jnp.floating):
    # Their two gradients are added before they are rounded to a narrow dtype.
    z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)
  return losses.smooth_adversarial_comp_sum(z, z / 2, labels, **arguments)


def smooth_adversarial_comp_sum(
  logits: np.ndarray,
  label: int,
  tau: float = 1.0,
  rho: float = 1.0,
  nu: float = 1.0,
) -> float:
  margins = logits[label] - np.delete(logits, label)
  return comp_sum(logits / rho, label, tau) + nu * np.linalg.norm(margins / 2)


def continuous_categorical(logits: np.ndarray, label: int) -> float:
  """The integral as a sum over nodes, in digits enough for its cancellation."""
  with mpmath.workdps(80):
    nodes = [mpmath.mpf(float(z)) for z in logits]
    integral = mpmath.fsum(
      mpmath.exp(a - nodes[label])
      / mpmath.fprod(a - b for b in nodes if b is not a)
      for a in nodes
    )
    return float(mpmath.log(integral))


def brier(logits: np.ndarray, label: int) -> float:
  p = np.exp(logits - logits.max())
  p /= p.sum()
  miss = -np.expm1(-cross_entropy(logits, label))
  return miss**2 + np.square(np.delete(p, label)).sum()


CASES = (
  LossCase(
    name="cross_entropy",
    loss=losses.cross_entropy,
    reference=cross_entropy,
    single_class=0.0,
    impossible_target=np.inf,
  ),
  LossCase(
    name="rescaled_square",
    loss=losses.rescaled_square,
    reference=rescaled_square,
    single_class=0.25,
    impossible_target=np.inf,
    hyperparameters={"target_weight": 15.0, "target_value": 3.0},
  ),
  LossCase(
    name="squentropy",
    loss=losses.squentropy,
    reference=squentropy,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"scale": 0.3},
  ),
  LossCase(
    name="comp_sum",
    loss=losses.comp_sum,
    reference=comp_sum,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"tau": 1.4},
  ),
  LossCase(
    name="generalized_cross_entropy",
    loss=losses.generalized_cross_entropy,
    reference=generalized_cross_entropy,
    single_class=0.0,
    impossible_target=1 / 0.7,
    hyperparameters={"q": 0.3},
  ),
  LossCase(
    name="mean_absolute_error",
    loss=losses.mean_absolute_error,
    reference=mean_absolute_error,
    single_class=0.0,
    impossible_target=1.0,
  ),
  LossCase(
    name="smooth_adversarial_comp_sum",
    loss=halfway,
    reference=smooth_adversarial_comp_sum,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"tau": 1.4, "rho": 2.0, "nu": 0.3},
  ),
  LossCase(
    name="brier",
    loss=losses.brier,
    reference=brier,
    single_class=0.0,
    impossible_target=1.0 + np.square(np.exp(OTHERS)).sum() / EXP_SUM**2,
    soft_is_expected=False,
  ),
  LossCase(
    name="softmax_regression",
    loss=losses.softmax_regression,
    reference=brier,
    single_class=0.0,
    impossible_target=1.0 + np.square(np.exp(OTHERS)).sum() / EXP_SUM**2,
    soft_is_expected=False,
  ),
  LossCase(
    name="continuous_categorical",
    loss=losses.continuous_categorical,
    reference=continuous_categorical,
    single_class=0.0,
    impossible_target=np.inf,
    size=lambda logits, label: (
      abs(continuous_categorical(logits, label)) + 2 * np.abs(logits).max()
    ),
  ),
)


class BinaryCase(NamedTuple):
  """One public loss of binary labels, with no class axis, for `binary_test`.

  Attributes:
    name: Its name in ``squentropy_jax.losses``.
    loss: The function, of logits and labels of one shape.
    reference: The same in float64 NumPy, ``reference(logits, labels)``; None
      for a random one.
    of_set: Whether it is one number for the whole set, not one per entry.
    soft_labels: Whether labels between 0 and 1 have a meaning.
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., Any] | None
  of_set: bool = False
  soft_labels: bool = True

  def __repr__(self) -> str:
    return self.name


def continuous_bernoulli(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  size = np.where(logits == 0, 1.0, logits)
  return np.where(
    logits == 0, 0.0, np.log(np.expm1(size) / size) - logits * labels
  )


def of_sets(miss: np.ndarray, mass: np.ndarray) -> np.ndarray:
  """One less (mass - miss + 1) over (mass + 1), the smoothing being 1."""
  return 1.0 - (mass - miss + 1.0) / (mass + 1.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  return 1.0 / (1.0 + np.exp(-logits))


def dice(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  p = sigmoid(logits)
  return of_sets(p + labels - 2 * p * labels, p + labels)


def tversky(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  p = sigmoid(logits)
  miss = (p * (1 - labels) + (1 - p) * labels) / 2
  return of_sets(miss, p * labels + miss)


def self_adjusting_dice(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  p = sigmoid(logits)
  q = (1 - p) * p
  return of_sets(q + labels - 2 * q * labels, q + labels)


def soft_f1(logits: np.ndarray, labels: np.ndarray) -> float:
  predicted = sigmoid(73 * (sigmoid(logits) - 0.5))
  return 1.0 - 2 * (labels * predicted).sum() / (labels.sum() + predicted.sum())


BINARY_CASES = (
  BinaryCase(
    name="continuous_bernoulli",
    loss=losses.continuous_bernoulli,
    reference=continuous_bernoulli,
  ),
  BinaryCase(name="dice", loss=losses.dice, reference=dice),
  BinaryCase(name="tversky", loss=losses.tversky, reference=tversky),
  BinaryCase(
    name="self_adjusting_dice",
    loss=losses.self_adjusting_dice,
    reference=self_adjusting_dice,
  ),
  BinaryCase(
    name="anyloss",
    loss=functools.partial(losses.anyloss, metric=losses.f_beta),
    reference=soft_f1,
    of_set=True,
  ),
  BinaryCase(
    name="ensloss",
    loss=functools.partial(losses.ensloss, jax.random.key(0)),
    reference=None,
    soft_labels=False,
  ),
)

# Losses with arguments of their own, tested by their family alone.
OWN_ARGUMENTS = (
  "assistive_distillation",
  "discriminator",
  "ensemble_distillation",
)
