# SPDX-License-Identifier: Apache-2.0
"""The layouts of linear heads that are tested, each on eight devices."""

import functools
from typing import NamedTuple

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P


class Case(NamedTuple):
  """A mesh, and how features ``[B, S, d]`` and a kernel are sharded over it."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  features_spec: P
  kernel_spec: P

  @property
  def row_spec(self) -> P:
    """How labels and weights ``[B, S]`` are sharded."""
    return P(*self.features_spec[:2])

  @property
  def row_axes(self) -> tuple[str, ...]:
    """The mesh axes that shard the rows."""
    entries = [e for e in self.row_spec if e is not None]
    return tuple(
      a for e in entries for a in ((e,) if isinstance(e, str) else e)
    )

  @property
  def specs(self) -> dict[str, P]:
    """The arguments of a head."""
    return {
      "features_spec": self.features_spec,
      "kernel_spec": self.kernel_spec,
    }

  def mesh(self, kind: AxisType = AxisType.Auto) -> jax.sharding.Mesh:
    """The mesh, of axes of one kind."""
    return _mesh(self.shape, self.axes, kind)


@functools.cache
def _mesh(
  shape: tuple[int, ...], axes: tuple[str, ...], kind: AxisType
) -> jax.sharding.Mesh:
  return jax.make_mesh(shape, axes, axis_types=(kind,) * len(shape))


THREE = ((2, 2, 2), ("data", "fsdp", "vocab"))
LAYOUTS = {
  "rows": Case((8, 1), ("data", "vocab"), P(None, "data"), P(None, "vocab")),
  "classes": Case((1, 8), ("data", "vocab"), P("data"), P(None, "vocab")),
  "rows, classes": Case((2, 4), ("data", "vocab"), P("data"), P(None, "vocab")),
  "batch, sequence, classes": Case(
    (2, 2, 2),
    ("data", "context", "vocab"),
    P("data", "context"),
    P(None, "vocab"),
  ),
  "width of the kernel": Case(
    (2, 4), ("data", "fsdp"), P("data", "fsdp"), P("fsdp", None)
  ),
  "width of the kernel only": Case(
    (2, 4), ("data", "fsdp"), P("data"), P("fsdp", None)
  ),
  "width of the kernel, classes": Case(
    *THREE, P(("data", "fsdp")), P("fsdp", "vocab")
  ),
  "rows and classes on one axis": Case(
    (2, 4), ("data", "fsdp"), P("data", "fsdp"), P(None, "fsdp")
  ),
  "rows and some classes on one axis": Case(
    *THREE, P(("data", "fsdp")), P(None, ("vocab", "fsdp"))
  ),
  "width of the features, classes": Case(
    (2, 4), ("data", "vocab"), P("data", None, "vocab"), P(None, "vocab")
  ),
  "both widths": Case(
    (2, 4), ("data", "model"), P("data", None, "model"), P("model", None)
  ),
  "every axis twice": Case(
    *THREE, P("data", "vocab", "fsdp"), P("fsdp", "vocab")
  ),
}
