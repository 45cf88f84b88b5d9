# SPDX-License-Identifier: Apache-2.0
"""What a program sends between devices, and how much it multiplies."""

from collections.abc import Callable, Iterator
import re
from typing import Any

import jax
from jax.extend import core
import numpy as np

_KINDS = (
  "(?:all|ragged-all)-(?:gather|reduce|to-all)|reduce-scatter|"
  "collective-(?:permute|broadcast)"
)
_NAMES = {"all_gather": "all-gather", "psum_scatter": "reduce-scatter"}
Sent = tuple[str, int]


def collectives(text: str) -> list[Sent]:
  """Kinds and sizes, in numbers, of what the compiled program sends."""
  found = []
  # The types of a long tuple have comments such as /*index=5*/ in them.
  for shapes, kind in re.findall(rf" = (.*?) ({_KINDS})(?:-start)?\(", text):
    sizes = re.findall(r"\w+\[([\d,]*)\]", shapes)
    numbers = [np.prod([int(n) for n in s.split(",") if n]) for s in sizes]
    found.append((kind, int(sum(numbers))))
  return found


def _equations(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, int]]:
  for eqn in jaxpr.eqns:
    yield eqn, times
    length = eqn.params["length"] if eqn.primitive.name == "scan" else 1
    for inner in core.jaxprs_in_params(eqn.params):
      yield from _equations(inner, times * length)


def products(function: Callable[..., Any], *arguments: Any) -> int:
  """Multiplications in the matrix products of one device."""
  total = 0
  for eqn, times in _equations(jax.make_jaxpr(function)(*arguments).jaxpr):
    if eqn.primitive.name == "dot_general":
      a, (out,) = eqn.invars[0].aval, eqn.outvars
      ((contracted, _), _) = eqn.params["dimension_numbers"]
      inner = np.prod([a.shape[i] for i in contracted])
      total += times * int(inner * np.prod(out.aval.shape))
  return total


def dtypes_sent(
  function: Callable[..., Any], *arguments: Any
) -> set[tuple[str, str]]:
  """What is gathered and scattered, and in which dtypes."""
  return {
    (_NAMES.get(eqn.primitive.name, eqn.primitive.name), x.aval.dtype.name)
    for eqn, _ in _equations(jax.make_jaxpr(function)(*arguments).jaxpr)
    if eqn.primitive.name in ("all_gather", "reduce_scatter", "psum_scatter")
    for x in eqn.invars
  }
