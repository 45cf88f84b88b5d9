# SPDX-License-Identifier: Apache-2.0
"""What a rule is differentiated by, and how its two passes agree on it."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from squentropy_jax.fused._tiles import Arrays, Gradient


def may_ask() -> bool:
  """Whether a rule can ask what is differentiated: not inside a shard_map."""
  return not jax.sharding.get_abstract_mesh().manual_axes


def wanted_of(arrays: Arrays, symbolic: bool) -> frozenset[str]:
  """The names of what is differentiated, of what may be if it is unknown."""
  return frozenset(
    name
    for name, x in arrays._asdict().items()
    if x is not None and (not symbolic or x.perturbed)
  )


# JAX keeps one tree for the residuals of a rule, whatever is differentiated. So
# the tree is always the same, and what was decided for a call stands in the
# shapes of arrays without elements.


def note(chosen: frozenset[str], names: Iterable[str]) -> dict[str, jax.Array]:
  """Which of the names were chosen, as residuals."""
  return {name: jnp.zeros((int(name in chosen), 0)) for name in names}


def noted(notes: dict[str, jax.Array]) -> frozenset[str]:
  """The names that `note` was given."""
  return frozenset(name for name, x in notes.items() if x.shape[0])


def filled(
  found: dict[str, jax.Array], names: Iterable[str]
) -> dict[str, jax.Array]:
  """What was found by name, and an array without elements for the others."""
  return {name: found.get(name, jnp.zeros((0,))) for name in names}


def values(tree: Any) -> Any:
  """The arrays in what ``symbolic_zeros`` gives to a rule."""
  return jax.tree.map(
    lambda x: x.value, tree, is_leaf=lambda x: hasattr(x, "perturbed")
  )


def as_cotangent(gradient: Gradient) -> Arrays:
  """The gradient in the structure of its primals, None for no gradient."""
  return Arrays._make(gradient.get(name) for name in Arrays._fields)
