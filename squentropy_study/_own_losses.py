# SPDX-License-Identifier: Apache-2.0
"""Losses that the library does not have: named by module, such as ``my.loss``.

The name is the one that pickle stores for a function. So another process finds
the loss again, and reports and predictions do not need the object.
"""

from collections.abc import Callable, Sequence
import functools
import hashlib
import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import losses as library
from squentropy_study._study_error import StudyError

# Number of rows with which a loss is traced.
_ROWS = 3


def find(name: str) -> Callable[..., Any]:
  """Imports a loss by its module and name.

  Args:
    name: Such as ``my_losses.margin_loss``.

  Returns:
    The loss.

  Raises:
    StudyError: There is no such module, or no such function in it.
  """
  home, _, attribute = name.rpartition(".")
  if not all(map(str.isidentifier, name.split("."))):
    raise StudyError(
      f"loss {name!r} is not a name; write a loss of your own as "
      "my_losses.margin_loss, with the name of its module"
    )
  try:
    module = importlib.import_module(home)
  except ImportError as error:
    raise StudyError(
      f"loss {name!r}: cannot import {home} ({error}); run this in the folder "
      "with this module, or install it"
    ) from None
  loss = getattr(module, attribute, None)
  if callable(loss):
    return loss
  where = "this program" if home == "__main__" else home
  raise StudyError(
    f"loss {name!r}: {where} has no function {attribute}; define it at the top "
    "of a module that can be imported"
  )


def text_of(loss: Any) -> str:
  """Returns a loss as text, from which it is found again.

  Args:
    loss: Text, a function of logits and labels such as one made by `row_loss`,
      or a `functools.partial` of one.

  Returns:
    Such as ``squentropy:scale=0.5`` or ``my_losses.margin_loss:margin=0.3``.

  Raises:
    StudyError: It is none of these, or no module has it.
  """
  if isinstance(loss, str):
    return loss
  values: dict[str, Any] = {}
  if isinstance(loss, functools.partial):
    if loss.args:
      raise StudyError(
        f"a partial of {loss.func!r} binds positional arguments; bind "
        "hyper-parameters by name, as in functools.partial(losses.squentropy, "
        "scale=0.5)"
      )
    loss, values = loss.func, loss.keywords
  name = getattr(loss, "__qualname__", None)
  if not callable(loss) or name is None:
    raise StudyError(
      "losses must be names such as 'squentropy', or functions of logits and "
      f"labels, got {loss!r}"
    )
  if getattr(library, name, None) is not loss:
    home = sys.modules.get(loss.__module__)
    if getattr(home, name, None) is not loss:
      raise StudyError(
        f"the loss {name} is not the one that the module {loss.__module__} has "
        "under this name; define it at the top of a module, not inside a "
        "function, and not as a lambda"
      )
    name = f"{loss.__module__}.{name}"
  pairs = ",".join(f"{key}={_number(value)}" for key, value in values.items())
  return f"{name}:{pairs}" if pairs else name


def _number(value: Any) -> str:
  """Returns a number, a flag or a choice as text."""
  return str(np.asarray(value).item() if np.ndim(value) == 0 else value)


def check_rows(text: str, loss: Callable[..., Any], classes: int) -> None:
  """Raises unless a loss returns a number for each row.

  Args:
    text: The loss as text.
    loss: The loss, with its hyper-parameters.
    classes: The number of classes of the data.

  Raises:
    StudyError: It returns something else, or raises TypeError or ValueError.
  """
  try:
    found = jax.eval_shape(loss, *_example(classes))
  except (TypeError, ValueError) as error:
    raise StudyError(f"loss {text!r}: {str(error).splitlines()[0]}") from None
  shape = getattr(found, "shape", None)
  if shape != (_ROWS,):
    raise StudyError(
      f"loss {text!r} must return one number for each row of logits, of shape "
      f"({_ROWS},) for {_ROWS} rows, got {shape}; leave out the mean over rows"
    )


def digest(
  text: str,
  loss: Callable[..., Any],
  maps: Sequence[Callable[..., Any]],
  classes: int,
) -> str:
  """Returns a digest of what a loss computes, with all that it calls.

  Args:
    text: The loss as text.
    loss: The loss, with its hyper-parameters.
    maps: Its maps from logits to scores.
    classes: The number of classes of the data.

  Returns:
    The SHA-256 digest of the compiled programs, before optimisation.

  Raises:
    StudyError: The loss does not return a number for each row.
  """
  check_rows(text, loss, classes)
  logits, labels = _example(classes)
  value = jax.value_and_grad(lambda z, y: jnp.sum(loss(z, y)))
  programs = [jax.jit(value).lower(logits, labels)]
  programs += [jax.jit(scores).lower(logits) for scores in maps]
  texts = "".join(program.as_text() for program in programs)
  return hashlib.sha256(texts.encode()).hexdigest()


def _example(classes: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns logits and labels of a few rows."""
  return np.zeros((_ROWS, classes), np.float32), np.zeros(_ROWS, np.int32)
