# SPDX-License-Identifier: Apache-2.0
"""The catalogue of losses: what `contract_test` needs to know of each."""

from collections.abc import Callable, Mapping
import types
from typing import Any, NamedTuple

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
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., float]
  single_class: float
  impossible_target: float
  hyperparameters: Mapping[str, float] = types.MappingProxyType({})

  def __repr__(self) -> str:
    return self.name


OTHERS = np.array([0.5, -1.0, 2.0])


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
)
