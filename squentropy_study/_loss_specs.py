# SPDX-License-Identifier: Apache-2.0
"""Losses as text, and the probabilities that a trained model predicts."""

from collections.abc import Callable, Iterable
import functools
import inspect
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import losses as library
from squentropy_study import _loss_words, _own_losses
from squentropy_study._study_error import StudyError, unknown_name

DEFAULT = ("cross_entropy", "squentropy", "rescaled_square:target_value=10")

# What every loss takes in addition to its hyper-parameters: label smoothing,
# because it takes target distributions, and a bias of the logits in training.
MODIFIERS = {
  name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=0.0)
  for name in ("smoothing", "adjustment")
}

# A probability of 0 counts as the relative precision of float32.
LOG_FLOOR = -23 * math.log(2)

# Maps logits to log-probabilities, which stay the same under log_softmax.
ProbabilityMap = Callable[[Any], Any]


class LossSpec(NamedTuple):
  """A loss with its hyper-parameters.

  Attributes:
    text: As the user typed it, such as ``rescaled_square:target_value=10``.
    name: Name in :mod:`squentropy_jax.losses`, or after a module, such as
      ``my_losses.margin_loss``.
    loss: The function with this name. A notebook can define it again.
    hyperparameters: Pairs of name and value, in the order typed.
    smoothing: Share of the target distribution that is spread over all
      classes.
    adjustment: Factor on the logarithms of the class frequencies, which the
      training adds to the logits in the loss and predictions leave out
      (logit adjustment, arXiv 2007.07314).
  """

  text: str
  name: str
  loss: Callable[..., Any]
  hyperparameters: tuple[tuple[str, float | str], ...]
  smoothing: float = 0.0
  adjustment: float = 0.0

  def __call__(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss of each example."""
    if self.smoothing:
      classes = logits.shape[-1]
      one_hot = jax.nn.one_hot(labels, classes, dtype=logits.dtype)
      labels = (1 - self.smoothing) * one_hot + self.smoothing / classes
    return self.loss(logits, labels, **dict(self.hyperparameters))

  def probability_maps(self) -> dict[str, ProbabilityMap]:
    """Returns the maps from logits to the predicted probabilities.

    Each map returns scores whose softmax is the predicted distribution, so
    that metrics and temperature scaling are written once.

    Returns:
      ``log_probs``, the probabilities that the loss defines, and ``softmax``,
      the usual ones. A loss that can define a probability of 0 has the floor
      ``2 ** -23``. A loss that predicts the softmax has ``softmax`` alone, and
      so has one that defines no probabilities at its hyper-parameters.
    """
    maps: dict[str, ProbabilityMap] = {}
    if _defines_probabilities(self):
      maps["log_probs"] = functools.partial(_own_log_probs, self)
    return {**maps, "softmax": _identity}


def _own_log_probs(spec: LossSpec, logits: Any) -> Any:
  """Returns the log-probabilities of a loss, with a floor if some are -inf.

  A row whose label has the probability 0 would make the NLL infinite at any
  temperature.
  """
  scores = _log_probs(spec, logits)
  return jnp.maximum(scores, LOG_FLOOR) if _gives_zeros(spec) else scores


def _log_probs(spec: LossSpec, logits: Any) -> Any:
  loss: Any = spec.loss
  return loss.log_probs(logits, **dict(spec.hyperparameters))


@functools.cache
def _gives_zeros(spec: LossSpec) -> bool:
  """Returns whether a finite logit can have the probability 0."""
  far = np.array([[0.0, 1e9]], np.float32)
  # The first call may be inside a trace.
  with jax.ensure_compile_time_eval():
    return bool(np.isneginf(_log_probs(spec, far)).any())


def _identity(logits: Any) -> Any:
  return logits


@functools.cache
def _defines_probabilities(spec: LossSpec) -> bool:
  """Returns whether a loss has probabilities other than the softmax."""
  # An ordinary function does not say what it predicts.
  if getattr(spec.loss, "predicts_softmax", True):
    return False
  # A target of 0, for example, has no inverse.
  logits = np.array([[0.0, 1.0]], np.float32)
  return not np.isnan(_log_probs(spec, logits)).any()


def _parameters(loss: Callable[..., Any]) -> dict[str, inspect.Parameter]:
  """Returns the hyper-parameters of a loss."""
  parameters = inspect.signature(loss).parameters
  return {
    key: parameter
    for key, parameter in parameters.items()
    if parameter.kind is parameter.KEYWORD_ONLY and key not in ("axis", "where")
  }


def is_own(name: str) -> bool:
  """Returns whether a name is that of a loss outside of the library."""
  return "." in name


def names() -> tuple[str, ...]:
  """Returns the losses of logits and labels that predict probabilities.

  Losses of cosines are not among them, because the models return logits.
  """
  public = (name for name in dir(library) if not name.startswith("_"))
  return tuple(
    name
    for name in public
    if hasattr(loss := getattr(library, name), "log_probs")
    and "logits" in inspect.signature(loss).parameters
  )


def signature(name: str) -> str:
  """Returns a loss with its default hyper-parameters, as a user types it."""
  # A hyper-parameter without a default is required.
  defaults = {
    key: "..." if parameter.default is parameter.empty else parameter.default
    for key, parameter in _parameters(getattr(library, name)).items()
  }
  values = ",".join(f"{key}={value}" for key, value in defaults.items())
  return f"{name}:{values}" if values else name


def _value(text: str, default: object) -> float | str | None:
  """Reads a value of the default's type; returns None if it is not one."""
  if isinstance(default, str):
    return text
  if isinstance(default, bool):
    return {"true": True, "false": False}.get(text.lower())
  try:
    value = int(text) if isinstance(default, int) else float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


def _values(text: str, loss: Callable[..., Any], rest: str) -> dict[str, Any]:
  """Reads ``key=value,key=value``."""
  name = text.partition(":")[0]
  known = {**_parameters(loss), **MODIFIERS}
  values: dict[str, Any] = {}
  for item in filter(None, rest.split(",")):
    key, _, number = item.partition("=")
    if key in values:
      raise StudyError(f"loss {text!r} sets {key} twice; remove one of them")
    if key not in known:
      raise unknown_name(f"hyper-parameter of {name}", key, known)
    default = known[key].default
    value = _value(number, default)
    if value is None:
      kind = "true or false" if isinstance(default, bool) else "a number"
      if type(default) is int:
        kind = "an integer"
      raise StudyError(
        f"loss {text!r}: {key} must be {kind}, got {number!r}; write "
        f"{key}={default if default is not inspect.Parameter.empty else 1.0}"
      )
    values[key] = value
  missing = [
    key
    for key, parameter in known.items()
    if parameter.default is parameter.empty and key not in values
  ]
  if missing:
    example = ",".join(f"{key}=..." for key in missing)
    raise StudyError(
      f"loss {text!r} needs {' and '.join(missing)}; write {name}:{example}"
    )
  return values


def parse(text: str) -> LossSpec:
  """Reads ``name`` or ``name:key=value,key=value``.

  Args:
    text: The loss as the user typed it.

  Returns:
    The loss. The library has checked its hyper-parameters.

  Raises:
    StudyError: The name, a hyper-parameter or a value is not valid.
  """
  name, colon, rest = text.partition(":")
  if colon and not rest:
    raise StudyError(
      f"loss {text!r} has no hyper-parameter after the colon; add one, or "
      "remove the colon"
    )
  if is_own(name):
    loss = _own_losses.find(name)
  elif name in names():
    loss = getattr(library, name)
  else:
    raise _loss_words.unknown_loss(name, names())
  values = _values(text, loss, rest)
  modifiers = {key: values.pop(key, 0.0) for key in MODIFIERS}
  smoothing, adjustment = modifiers.values()
  if not 0 <= smoothing < 1:
    raise StudyError(
      f"loss {text!r}: smoothing must be in [0, 1), got {smoothing}"
    )
  if adjustment < 0:
    raise StudyError(
      f"loss {text!r}: adjustment must be 0 or more, got {adjustment}"
    )
  if smoothing and not hasattr(loss, "predicts_softmax"):
    raise StudyError(
      f"loss {text!r}: smoothing needs a loss that takes distributions, such "
      "as one made by squentropy_jax.row_loss"
    )
  spec = LossSpec(text, name, loss, tuple(values.items()), **modifiers)
  # The loss checks its hyper-parameters while it is traced. A function may need
  # the number of classes of the data, which is not known here.
  if hasattr(loss, "predicts_softmax"):
    _own_losses.check_rows(text, lambda z, y: spec(z, y), classes=2)
  return spec


def digests(losses: Iterable[str], classes: int) -> dict[str, str]:
  """Returns a digest of the formula of each loss outside of the library.

  Args:
    losses: Losses as text.
    classes: The number of classes of the data.

  Raises:
    StudyError: A loss does not return a number for each row.
  """
  result = {}
  for text in losses:
    spec = parse(text)
    if is_own(spec.name):
      result[text] = _own_losses.digest(
        text,
        lambda z, y, spec=spec: spec(z, y),
        list(spec.probability_maps().values()),
        classes,
      )
  return result
