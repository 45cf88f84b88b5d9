# SPDX-License-Identifier: Apache-2.0
"""The hyper-parameters of a loss: their names, domains and defaults."""

from collections.abc import Callable, Mapping
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks

# An interval, a kind of static setting, or the names of a static choice.
Domain = str | type | tuple[str, ...]
# ``prepare(values)`` returns the hyper-parameters, see `Hyperparameters`.
Prepare = Callable[[dict[str, Any]], dict[str, Any]]
Static = tuple[tuple[str, Any], ...]
_REAL = "(-inf, inf)"
_ARGUMENTS = ("axis", "where")


class Hyperparameters(NamedTuple):
  """The hyper-parameters that a loss declares.

  Attributes:
    domains: An interval such as ``"[0, inf)"`` for each number, and ``bool``,
      ``int`` or a tuple of names for each static setting, in the order of the
      formula's arguments.
    defaults: The default values of those that have one.
    prepare: Replaces arguments of a call that are neither, such as arrays that
      all rows share, by hyper-parameters. It returns the values unchanged if
      it finds its own results. None if there are no such arguments.
  """

  domains: dict[str, Domain]
  defaults: dict[str, Any]
  prepare: Prepare | None = None

  def split(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], Static]:
    """Splits ``values`` into numbers and checked static settings."""
    numbers: dict[str, Any] = {}
    static: list[tuple[str, Any]] = []
    for name, domain in self.domains.items():
      if domain is bool:
        static.append((name, checks.as_flag(name, values[name])))
      elif domain is int:
        static.append((name, checks.as_count(name, values[name])))
      elif isinstance(domain, tuple):
        static.append((name, checks.as_choice(name, values[name], domain)))
      else:
        numbers[name] = values[name]
    return numbers, tuple(static)

  def default_settings(self) -> Static:
    """Returns the static settings of a call without keyword arguments.

    A setting without a default has the first of its values.
    """
    first: dict[str, Any] = {}
    for name, domain in self.domains.items():
      if isinstance(domain, tuple):
        first[name] = domain[0]
      elif not isinstance(domain, str):
        first[name] = False if domain is bool else 1
    return tuple((n, self.defaults.get(n, value)) for n, value in first.items())

  def allows_zero(self, name: str) -> bool:
    """Whether 0 is in the domain of a number."""
    return bool(checks.in_interval(np.zeros(()), str(self.domains[name])))

  def complete(self, given: Mapping[str, Any], loss: str) -> dict[str, Any]:
    """Adds the defaults; raises TypeError for unknown or missing names."""
    values = {**self.defaults, **given}
    if self.prepare is not None:
      values = self.prepare(values)
    unknown = [name for name in values if name not in self.domains]
    if unknown:
      known = ", ".join(self.domains) or "none"
      raise TypeError(
        f"{loss} has no hyper-parameter {', '.join(unknown)}. It has {known}."
      )
    missing = [name for name in self.domains if name not in values]
    if missing:
      raise TypeError(f"{loss} needs the hyper-parameter {missing[0]}=.")
    return {name: values[name] for name in self.domains}

  def as_arrays(
    self,
    numbers: Mapping[str, Any],
    dtype: np.dtype,
    batch: tuple[int, ...],
    rows: np.ndarray | None = None,
  ) -> dict[str, jax.Array]:
    """Converts numbers to arrays of ``dtype``, scalars or of the batch shape.

    ``rows`` are the rows whose values must be in the domain, by default all: a
    value in a dropped row may be anything.
    """
    return {
      name: _as_number(name, value, dtype, str(self.domains[name]), batch, rows)
      for name, value in numbers.items()
    }

  def placeholders(
    self, numbers: Mapping[str, jax.Array], keep: jax.Array
  ) -> dict[str, jax.Array]:
    """Replaces the numbers of dropped rows by one inside the domain."""
    return {
      name: value
      if value.ndim == 0
      else jnp.where(keep, value, _inside(str(self.domains[name])))
      for name, value in numbers.items()
    }


def _as_number(
  name: str,
  value: Any,
  dtype: np.dtype,
  interval: str,
  batch: tuple[int, ...],
  rows: np.ndarray | None,
) -> jax.Array:
  value = checks.as_array(value, name) if np.ndim(value) else value
  shape = np.shape(value)
  if shape and not batch:
    raise ValueError(f"{name} must be a scalar, got shape {shape}.")
  if shape not in ((), batch):
    fits = len(shape) <= len(batch) and all(
      n in (1, m) for n, m in zip(shape[::-1], batch[::-1], strict=False)
    )
    advice = f" Pass jnp.broadcast_to({name}, {batch})." if fits else ""
    raise ValueError(
      f"{name} must be a scalar or have the batch shape {batch}, one value for "
      f"each example, got shape {shape}. Nothing else is broadcast.{advice}"
    )
  if shape and rows is not None and checks.is_concrete(value):
    checks.check_interval(name, np.asarray(value)[rows], interval, dtype)
  else:
    checks.check_interval(name, value, interval, dtype)
  return checks.as_jax(value, dtype)


def _inside(interval: str) -> float:
  """Returns a number inside an interval."""
  low, high = (float(end) for end in interval[1:-1].split(","))
  if np.isinf(low):
    return 1.0 if np.isinf(high) else high - 1.0
  return low + 1.0 if np.isinf(high) else (low + high) / 2.0


def expanded(numbers: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """Adds a class axis of length 1 to all numbers that are not scalars."""
  return {n: x[..., None] if x.ndim else x for n, x in numbers.items()}


def declared(
  formula: Callable[..., Any],
  domains: Mapping[str, Domain] | None,
  num_positional: int | None = None,
) -> Hyperparameters:
  """Reads hyper-parameters from the keyword-only arguments of a formula.

  With ``num_positional`` the formula must have so many other arguments.
  """
  every = inspect.signature(formula).parameters
  parameters = {n: p for n, p in every.items() if p.kind is p.KEYWORD_ONLY}
  others = [n for n in every if n not in parameters]
  if num_positional is not None and len(others) != num_positional:
    raise TypeError(
      f"the number of the formula's positional arguments must be "
      f"{num_positional}, got {len(others)}: {', '.join(others) or 'none'}. "
      "Hyper-parameters are keyword-only: put a * before them, as in "
      "lambda stats, *, scale=1.0: ..."
    )
  reserved = [name for name in _ARGUMENTS if name in parameters]
  if reserved:
    raise TypeError(
      f"{reserved[0]} must not be a hyper-parameter of a formula: it is an "
      "argument of every loss."
    )
  domains = dict(domains or {})
  for name, domain in domains.items():
    if name not in parameters:
      raise TypeError(
        f"domains names {name!r}, which is not a keyword-only argument of the "
        f"formula. The formula has {', '.join(parameters) or 'none'}."
      )
    if domain not in (bool, int) and not isinstance(domain, tuple):
      _check_interval_text(name, domain)
  return Hyperparameters(
    {name: domains.get(name, _REAL) for name in parameters},
    _defaults(parameters),
  )


def _check_interval_text(name: str, domain: Domain) -> None:
  try:
    text = str(domain)
    low, high = (float(end) for end in text[1:-1].split(","))
    if text[0] in "[(" and text[-1] in "])" and low < high:
      return
  except ValueError:
    pass
  raise ValueError(
    f"domains[{name!r}] must be an interval such as '[0, inf)', or bool or int "
    f"for a static setting, got {domain!r}."
  )


def _defaults(parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
  return {
    name: p.default
    for name, p in parameters.items()
    if p.default is not p.empty
  }


def with_defaults_of(
  hyperparameters: Hyperparameters, function: Callable[..., Any]
) -> Hyperparameters:
  """Adds the defaults in the signature of a public function."""
  parameters = {
    name: p
    for name, p in inspect.signature(function).parameters.items()
    if p.kind is p.KEYWORD_ONLY and name not in _ARGUMENTS
  }
  known = hyperparameters.domains
  if set(parameters) - set(known) or hyperparameters.defaults:
    raise TypeError(
      f"{function.__name__} must have the hyper-parameters {list(known)} of "
      f"its formula, got {list(parameters)}. The formula must have no defaults."
    )
  return hyperparameters._replace(defaults=_defaults(parameters))
