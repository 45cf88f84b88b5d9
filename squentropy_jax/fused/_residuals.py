# SPDX-License-Identifier: Apache-2.0
"""What the rules of differentiation save, and what is differentiated."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax.fused._head import Arrays, Gradient


def names_wanted(arrays: Arrays, symbolic: bool) -> frozenset[str]:
  """The names of what is differentiated, of what may be if it is unknown."""
  return frozenset(
    name
    for name, x in arrays.differentiated.items()
    if not symbolic or x.perturbed
  )


def values_of(tree: Any) -> Any:
  """The arrays in what ``symbolic_zeros`` gives to a rule."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, "perturbed")
  )


# JAX keeps one tree for the residuals of a rule, whatever is differentiated. So
# the tree is always the same, and what was decided for a call stands in the
# shapes of arrays without elements.


def as_notes(chosen: frozenset[str], names: Iterable[str]) -> dict[str, Any]:
  """Which of the names were chosen, as residuals."""
  return {name: jnp.zeros((int(name in chosen), 0)) for name in names}


def read_notes(notes: dict[str, jax.Array]) -> frozenset[str]:
  """The names that `as_notes` was given."""
  return frozenset(name for name, x in notes.items() if x.shape[0])


def filled(found: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
  """What was found by name, and an array without elements for the others."""
  return {name: found.get(name, jnp.zeros((0,))) for name in names}


def as_cotangent(gradient: Gradient) -> Arrays:
  """The gradient in the structure of its primals, None for no gradient."""
  return Arrays._make(gradient.get(name) for name in Arrays._fields)


def with_symbolic_zeros(rule: Callable[[bool], Any]) -> Callable[..., Any]:
  """A rule that asks what is differentiated, where JAX can say so."""
  rules = {symbolic: rule(symbolic) for symbolic in (False, True)}

  def chosen(*arguments: Any) -> Any:
    inside = jax.sharding.get_abstract_mesh().manual_axes
    return rules[not inside](*arguments)

  return chosen
