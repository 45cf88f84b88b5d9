# SPDX-License-Identifier: Apache-2.0
"""Losses by name, and how probabilities are read from their logits."""

from collections.abc import Callable
import functools
import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import losses as library
from squentropy_jax.losses import _table
from squentropy_jax.study._errors import StudyError, unknown_name

DEFAULT = ("cross_entropy", "squentropy", "rescaled_square:target_value=10")

# Every loss of target distributions can have its labels smoothed.
SMOOTHING = "smoothing"
_SMOOTHING_PARAMETER = inspect.Parameter(
  SMOOTHING, inspect.Parameter.KEYWORD_ONLY, default=0.0
)
_SOFT = frozenset(row.name for row in _table.TABLE if row.soft_labels)

# Below this a linear readout counts as "impossible"; a 0 would make one
# surprised row's negative log-likelihood, and so the mean, infinite.
_PROBABILITY_FLOOR = 1e-6


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


def _is_loss(value: object) -> bool:
  """Whether it is a function of logits and labels, one loss per example.

  A keyword-only ``axis`` tells a loss from its drop-in twin for callers who
  pass the axis by position.
  """
  if not inspect.isfunction(value):
    return False
  parameters = inspect.signature(value).parameters
  required = [
    key
    for key, parameter in parameters.items()
    if parameter.default is parameter.empty
  ]
  axis = parameters.get("axis")
  keyword_only = axis is not None and axis.kind is axis.KEYWORD_ONLY
  return required == ["logits", "labels"] and keyword_only


def names() -> tuple[str, ...]:
  """The losses of the library which take logits and class ids."""
  return tuple(
    sorted(name for name, value in vars(library).items() if _is_loss(value))
  )


def signature(name: str) -> str:
  """The loss with its hyper-parameters and their defaults, as one writes it."""
  own = _own_parameters(name)
  values = ",".join(f"{key}={own[key].default}" for key in own)
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


def _softmax(logits: jax.Array) -> jax.Array:
  return logits


def _linear(
  logits: jax.Array, *, target_weight: float, target_value: float
) -> jax.Array:
  """Inverts the minimiser of the rescaled square loss.

  At the optimum a logit is ``k M p / (k p + 1 - p)`` for the class
  probability ``p``, weight ``k`` and target value ``M``.
  """
  share = jnp.clip(logits / target_value, 0.0, 1.0)
  probability = share / (target_weight + (1.0 - target_weight) * share)
  return jnp.log(jnp.maximum(probability, _PROBABILITY_FLOOR))


def readouts(loss: NamedLoss) -> dict[str, Callable[[jax.Array], jax.Array]]:
  """How to read probabilities from logits trained with a loss.

  Each readout maps logits to scores whose softmax is the probability, so
  that everything later (likelihood, bins, temperature) is written once.

  Args:
    loss: The loss the logits were trained with.

  Returns:
    Readouts by name. Every loss has ``softmax``; the square loss also has
    ``linear``, the logits divided by their target value, clipped and
    normalised.
  """
  result: dict[str, Callable[[jax.Array], jax.Array]] = {"softmax": _softmax}
  if loss.name == "rescaled_square":
    own = _own_parameters(loss.name)
    given = dict(loss.hyperparameters)
    values = {key: given.get(key, own[key].default) for key in own}
    # Without a weight or a target the minimiser is 0 for all probabilities.
    if all(value > 0 for value in values.values()):
      result["linear"] = functools.partial(_linear, **values)
  return result
