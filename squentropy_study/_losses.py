# SPDX-License-Identifier: Apache-2.0
"""Losses by name, and how probabilities are read from their logits."""

from collections.abc import Callable
import functools
import inspect
import math
from typing import NamedTuple

import jax
import numpy as np

from squentropy_jax import losses as library
from squentropy_jax.losses import _table
from squentropy_study._errors import StudyError, unknown_name

DEFAULT = ("cross_entropy", "squentropy", "rescaled_square:target_value=10")

# Every loss of target distributions can have its labels smoothed.
SMOOTHING = "smoothing"
_SMOOTHING_PARAMETER = inspect.Parameter(
  SMOOTHING, inspect.Parameter.KEYWORD_ONLY, default=0.0
)
_SOFT = frozenset(row.name for row in _table.TABLE if row.soft_labels)


class NamedLoss(NamedTuple):
  """A loss of the library with its hyper-parameters.

  Attributes:
    spec: The text that names it, such as ``rescaled_square:target_value=10``.
    name: Name of the function in :mod:`squentropy_jax.losses`.
    hyperparameters: Pairs of name and value, as given.
    smoothing: Share of the target mass that is spread over all classes.
  """

  spec: str
  name: str
  hyperparameters: tuple[tuple[str, float], ...]
  smoothing: float = 0.0

  def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss per example."""
    function = getattr(library, self.name)
    if self.smoothing:
      classes = logits.shape[-1]
      one_hot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
      labels = (1 - self.smoothing) * one_hot + self.smoothing / classes
    return function(logits, labels, **dict(self.hyperparameters))


def _own_parameters(name: str) -> dict[str, inspect.Parameter]:
  """Keyword-only arguments of a loss which are hyper-parameters."""
  parameters = inspect.signature(getattr(library, name)).parameters
  return {
    key: parameter
    for key, parameter in parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and key not in ("axis", "where")
  }


def names() -> tuple[str, ...]:
  """The losses of the library which take logits and class ids."""
  return tuple(sorted(row.name for row in _table.TABLE if row.class_ids))


def signature(name: str) -> str:
  """The loss with its hyper-parameters and their defaults, as one writes it."""
  own = _own_parameters(name)
  # One without a default must be given.
  defaults = {
    key: "..." if parameter.default is parameter.empty else parameter.default
    for key, parameter in own.items()
  }
  values = ",".join(f"{key}={value}" for key, value in defaults.items())
  return f"{name}:{values}" if values else name


def _value(text: str, default: object) -> float | None:
  """Reads a value of the default's type; None where it is not one."""
  if isinstance(default, bool):
    return {"true": True, "false": False}.get(text.lower())
  try:
    value = int(text) if isinstance(default, int) else float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def parse(spec: str) -> NamedLoss:
  """Reads ``name`` or ``name:key=value,key=value``.

  Args:
    spec: The loss as typed.

  Returns:
    The loss, its hyper-parameters checked by the loss itself.

  Raises:
    StudyError: The name, a hyper-parameter or a value is not one.
  """
  name, colon, rest = spec.partition(":")
  if colon and not rest:
    raise StudyError(f"loss {spec!r}: hyper-parameters follow the colon")
  if name not in names():
    raise unknown_name("loss", name, names())
  own = _own_parameters(name)
  if name in _SOFT:
    own = {**own, SMOOTHING: _SMOOTHING_PARAMETER}
  values = {}
  for item in filter(None, rest.split(",")):
    key, _, text = item.partition("=")
    if key in values:
      raise StudyError(f"loss {spec!r} has {key} twice")
    if key not in own:
      if not own:
        raise StudyError(f"loss {name!r} has no hyper-parameter, got {item!r}")
      raise unknown_name(f"hyper-parameter of {name}", key, own)
    default = own[key].default
    value = _value(text, default)
    if value is None:
      kind = "true or false" if isinstance(default, bool) else "a number"
      raise StudyError(f"loss {spec!r}: {key} needs {kind}, got {text!r}")
    values[key] = value
  missing = [
    key
    for key, parameter in own.items()
    if parameter.default is parameter.empty and key not in values
  ]
  if missing:
    given = ",".join(f"{key}=..." for key in missing)
    raise StudyError(
      f"loss {spec!r} needs {' and '.join(missing)}: write {name}:{given}"
    )
  smoothing = values.pop(SMOOTHING, 0.0)
  if not 0 <= smoothing < 1:
    raise StudyError(f"loss {spec!r}: smoothing must be in [0, 1)")
  loss = NamedLoss(spec, name, tuple(values.items()), smoothing)
  try:
    # The loss checks its hyper-parameters while it is traced.
    logits, labels = np.zeros((1, 2), np.float32), np.zeros(1, np.int32)
    jax.eval_shape(lambda z, y: loss(z, y), logits, labels)
  except (TypeError, ValueError) as error:
    raise StudyError(f"loss {spec!r}: {str(error).splitlines()[0]}") from None
  return loss


_Readouts = dict[str, Callable[[jax.Array], jax.Array]]


def _softmax(logits: jax.Array) -> jax.Array:
  return logits


def readouts(loss: NamedLoss) -> _Readouts:
  """How to read probabilities from logits trained with a loss.

  Each readout maps logits to scores whose softmax is the probability, so
  that everything later (likelihood, bins, temperature) is written once.

  Args:
    loss: The loss the logits were trained with.

  Returns:
    Readouts by name, the one to speak of first: the loss's own link, or
    ``softmax`` where it has none. The square loss has both, ``softmax``, as is
    usual, and ``linear``.
  """
  link = getattr(getattr(library, loss.name), "link", None)
  if link is None:
    return {"softmax": _softmax}
  given = dict(loss.hyperparameters)
  own: _Readouts = {link.__name__: functools.partial(link, **given)}
  if loss.name != "rescaled_square":
    return own
  # Without a weight or a target the minimiser is 0 for all probabilities.
  has_link = all(value > 0 for value in given.values())
  return {"softmax": _softmax} | (own if has_link else {})
