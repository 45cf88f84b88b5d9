# SPDX-License-Identifier: Apache-2.0
"""The kinds of cases in `cases`, by what a loss takes."""

from collections.abc import Callable, Mapping
import types
from typing import Any, NamedTuple


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
      ``reference``: its rounding errors are relative to them. None if the terms
      are no larger than the loss.
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., float]
  single_class: float
  impossible_target: float
  hyperparameters: Mapping[str, float] = types.MappingProxyType({})
  soft_is_expected: bool = True
  size: Callable[..., float] | None = None

  @property
  def predicts(self) -> bool:
    """Whether the loss has ``log_probs``."""
    return hasattr(getattr(self.loss, "func", self.loss), "log_probs")

  def __repr__(self) -> str:
    return self.name


class CosineCase(NamedTuple):
  """One public loss of cosines and classes, for `cosine_test`.

  Attributes:
    name: Its name in ``squentropy_jax.losses``.
    loss: The function, of cosines and labels; other arguments are bound.
    reference: Float64 NumPy loss of one row, ``reference(cosines, label,
      **hyperparameters)``, written from the paper.
    hyperparameters: Values other than the defaults, to test with.
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., float]
  hyperparameters: Mapping[str, float]

  def __repr__(self) -> str:
    return self.name


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


class PairCase(NamedTuple):
  """One public loss of two arrays of scores, without labels, for `pair_test`.

  Attributes:
    name: Its name in ``squentropy_jax.losses``.
    loss: The function, of two arrays of scores of one shape.
    reference: The same in float64 NumPy for one row of each.
    num_scores: The length of the class axis.
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., float]
  num_scores: int

  def __repr__(self) -> str:
    return self.name
