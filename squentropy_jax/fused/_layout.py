# SPDX-License-Identifier: Apache-2.0
"""The layout of a call, from its mesh and the specs of features and kernel."""

import difflib
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

from squentropy_jax._core import checks, varying
from squentropy_jax.fused._mesh import Axes, Layout, shards

GATHERS = ("auto", "kernel", "rows", "tile")


def _entries(
  name: str, spec: Any, array: Any, axis_names: Axes, where: str
) -> tuple[Axes, ...]:
  """The mesh axes of each axis of an array, as its spec names them."""
  if not isinstance(spec, PartitionSpec):
    raise TypeError(
      f"{name} must be a jax.sharding.PartitionSpec, got {spec!r}. Pass "
      'jax.P("data", None), or jax.P() for an array that is the same on every '
      "device."
    )
  if len(spec) > array.ndim:
    raise ValueError(
      f"{name} {spec} has {len(spec)} entries for an array of shape "
      f"{array.shape}. Pass one entry for each of its {array.ndim} axes, or "
      "fewer."
    )
  found: list[Axes] = []
  for entry in spec:
    if entry is PartitionSpec.UNCONSTRAINED:
      raise ValueError(
        f"{name} must name mesh axes or None for each axis of the array, got "
        f"{spec}. Replace UNCONSTRAINED by None."
      )
    found.append((entry,) if isinstance(entry, str) else tuple(entry or ()))
  for axis in (a for axes in found for a in axes):
    if axis not in axis_names:
      close = difflib.get_close_matches(str(axis), axis_names, 1)
      hint = f" Did you mean {close[0]!r}?" if close else ""
      raise ValueError(
        f"{name} {spec} names {axis!r}, which is no axis of {where}: "
        f"{tuple(axis_names)}.{hint}"
      )
  flat = [a for axes in found for a in axes]
  if len(set(flat)) < len(flat):
    raise ValueError(
      f"{name} {spec} names a mesh axis twice. Each axis can shard one axis of "
      "an array."
    )
  return (*found, *((),) * (array.ndim - len(found)))


def _typed_mesh(*arrays: Any) -> AbstractMesh | None:
  """The mesh of explicit axes in the type of an array."""
  for array in arrays:
    mesh = getattr(jax.typeof(array).sharding, "mesh", None)
    if mesh is not None and AxisType.Explicit in mesh.axis_types:
      return mesh
  return None


def _visible_mesh(
  mesh: Any, features: Any, kernel: Any
) -> Mesh | AbstractMesh | None:
  """The mesh of the call, or that of `jax.set_mesh`, or that of the types."""
  if not isinstance(mesh, Mesh | AbstractMesh | None):
    raise TypeError(
      f"mesh must be a jax.sharding.Mesh or AbstractMesh, got {mesh!r}. Make "
      "one with jax.make_mesh."
    )
  context = jax.sharding.get_abstract_mesh()
  around = None if context.empty else context
  typed = _typed_mesh(features, kernel)
  if mesh is not None:
    abstract = mesh.abstract_mesh
    for other, origin in ((around, "jax.set_mesh"), (typed, "the arrays")):
      if other is not None and other != abstract:
        raise ValueError(
          f"mesh must be the mesh of {origin}, {other}, got {abstract}. Leave "
          "mesh= out."
        )
    for name, array in (("features", features), ("kernel", kernel)):
      sharding = _concrete_sharding(array)
      if sharding is not None and sharding.mesh.shape != mesh.shape:
        raise ValueError(
          f"{name} is sharded over a mesh of {dict(sharding.mesh.shape)}, but "
          f"mesh= has {dict(mesh.shape)}, and the whole array would be sent. "
          "Pass the mesh that the arrays are sharded over."
        )
  found = mesh if mesh is not None else around if around is not None else typed
  if found is not None and len(set(found.axis_types)) > 1:
    raise ValueError(
      f"mesh must have axes of one type, Auto or Explicit, got {found}. Make "
      "it with jax.make_mesh(..., axis_types=...)."
    )
  return found


def _concrete_sharding(array: Any) -> Any:
  """The sharding over a mesh of an array that is no tracer, or None."""
  if isinstance(array, jax.core.Tracer):
    return None
  sharding: Any = getattr(array, "sharding", None)
  named = isinstance(sharding, jax.sharding.NamedSharding)
  return sharding if named and not sharding.is_fully_replicated else None


def _explicit(
  name: str, spec: Any, array: Any, mesh: Mesh | AbstractMesh
) -> tuple[Axes, ...]:
  """The entries of an array whose type says how it is sharded."""
  where = "the mesh"
  typed = jax.typeof(array).sharding.spec
  entries = _entries("a type", typed, array, mesh.axis_names, where)
  if spec is None:
    return entries
  given = _entries(name, spec, array, mesh.axis_names, where)
  for size, has, axes in zip(array.shape, entries, given, strict=True):
    # Nothing is sent to shard what is the same everywhere, and what does not
    # divide cannot be sharded before.
    divides = size % shards(mesh, axes) == 0
    if has != axes and (has or (any(entries) and divides)):
      argument = name.removesuffix("_spec")
      raise ValueError(
        f"{name} {spec} contradicts the type of {argument}, "
        f"{jax.typeof(array)}. Leave {name} out, or pass "
        f"jax.sharding.reshard({argument}, {spec})."
      )
  return given


def _both(
  features_spec: Any,
  kernel_spec: Any,
  features: Any,
  kernel: Any,
  mesh: Mesh | AbstractMesh,
) -> tuple[tuple[Axes, ...], tuple[Axes, ...]]:
  """The entries of features and kernel on a mesh."""
  if AxisType.Explicit in mesh.axis_types:
    return (
      _explicit("features_spec", features_spec, features, mesh),
      _explicit("kernel_spec", kernel_spec, kernel, mesh),
    )
  if features_spec is None or kernel_spec is None:
    raise ValueError(
      f"features_spec and kernel_spec must be passed on a mesh of Auto axes, "
      f"{dict(mesh.shape)}: the types of the arrays do not say how they are "
      "sharded, and a wrong guess gathers the kernel on every device. Pass "
      "jax.P() for an array that is the same on every device."
    )
  names = mesh.axis_names
  return (
    _entries("features_spec", features_spec, features, names, "the mesh"),
    _entries("kernel_spec", kernel_spec, kernel, names, "the mesh"),
  )


def _gathered(gather: str, layout: Layout, rows: int, classes: int) -> Layout:
  """The layout with what is gathered over axes of rows and classes both."""
  shared = layout.shared
  # Only blocks of the last axes are neighbours, and ids count from the first.
  last = layout.classes[len(layout.classes) - len(shared) :] == shared
  if gather == "kernel" and not last:
    raise ValueError(
      f"gather='kernel' needs {shared}, which shard rows and classes both, as "
      f"the last axes of the classes, got {layout.classes}. Reorder "
      "kernel_spec, or pass gather='rows'."
    )
  if gather == "auto":
    gather = "kernel" if last and rows >= classes else "rows"
  return layout._replace(gather="kernel" if gather == "kernel" else "rows")


def resolved(
  mesh: Any,
  features_spec: Any,
  kernel_spec: Any,
  gather: Any,
  features: Any,
  kernel: Any,
  class_axis: int,
) -> Layout:
  """The layout of a call, or an error that says what is wrong.

  An axis that shards only the width of an array shards the rows instead, so
  that no two devices do the same work.
  """
  if gather not in GATHERS:
    raise ValueError(
      f"gather must be one of {GATHERS}, got {gather!r}. 'auto' chooses by the "
      "sizes."
    )
  if jax.sharding.get_abstract_mesh().manual_axes:
    return _inside(
      mesh, features_spec, kernel_spec, gather, features, kernel, class_axis
    )
  mesh = _visible_mesh(mesh, features, kernel)
  if mesh is None:
    for name, array in (("features", features), ("kernel", kernel)):
      if (sharding := _concrete_sharding(array)) is not None:
        raise ValueError(
          f"{name} is sharded over a mesh of {dict(sharding.mesh.shape)}, and "
          "each device would gather it. Pass mesh=, features_spec= and "
          "kernel_spec=."
        )
    if features_spec is not None or kernel_spec is not None:
      raise ValueError(
        "features_spec and kernel_spec need a mesh, and there is none. Pass "
        "mesh=, or call jax.set_mesh."
      )
    return Layout()
  explicit = AxisType.Explicit in mesh.axis_types
  no_specs = features_spec is None and kernel_spec is None
  if mesh.size == 1 and no_specs and not explicit:
    return Layout()
  (*rows, width), of_kernel = _both(
    features_spec, kernel_spec, features, kernel, mesh
  )
  batch = features.shape[:-1]
  divides = [n % shards(mesh, a) == 0 for n, a in zip(batch, rows, strict=True)]
  result = PartitionSpec(
    *(a or None if d else None for a, d in zip(rows, divides, strict=True))
  )
  classes, kernel_width = of_kernel[class_axis], of_kernel[1 - class_axis]
  named = {a for axes in rows for a in axes} | set(classes)
  extra = tuple(
    dict.fromkeys(a for a in (*width, *kernel_width) if a not in named)
  )
  if extra:
    if not batch:
      raise ValueError(
        f"features of shape {features.shape} have no rows that the mesh axes "
        f"{extra} could shard. Pass features[None]."
      )
    more = shards(mesh, extra)
    here = [-(-n // shards(mesh, a)) for n, a in zip(batch, rows, strict=True)]
    best = max(
      range(len(batch)), key=lambda i: (here[i] % more == 0, here[i], -i)
    )
    rows[best] = (*rows[best], *extra)
  layout = Layout(
    mesh,
    tuple(rows),
    tuple(a for a in width if a in classes),
    kernel_width,
    classes,
    result=result,
  )
  count = 1
  for n, axes in zip(batch, rows, strict=True):
    count *= -(-n // shards(mesh, axes))
  here = -(-kernel.shape[class_axis] // shards(mesh, classes))
  return _gathered(gather, layout, count, here)


def _inside(
  mesh: Any,
  features_spec: Any,
  kernel_spec: Any,
  gather: str,
  features: Any,
  kernel: Any,
  class_axis: int,
) -> Layout:
  """The layout inside a shard_map of the user."""
  if mesh is not None:
    raise ValueError(
      "mesh must be left out inside a jax.shard_map, got "
      f"{dict(mesh.shape)}. Name its manual axes in features_spec and "
      "kernel_spec."
    )
  manual = tuple(sorted(jax.sharding.get_abstract_mesh().manual_axes))
  where = "the jax.shard_map around the call"
  for name, array in (("features", features), ("kernel", kernel)):
    if checks.explicit_sharding(array) is not None:
      raise ValueError(
        f"{name} is sharded over explicit axes inside a jax.shard_map, "
        f"{jax.typeof(array)}, and each device would gather it. Make these "
        "axes manual too, or call the function outside the shard_map."
      )
  *rows, width = _entries(
    "features_spec",
    PartitionSpec() if features_spec is None else features_spec,
    features,
    manual,
    where,
  )
  of_kernel = _entries(
    "kernel_spec",
    PartitionSpec() if kernel_spec is None else kernel_spec,
    kernel,
    manual,
    where,
  )
  classes, kernel_width = of_kernel[class_axis], of_kernel[1 - class_axis]
  layout = Layout(None, tuple(rows), width, kernel_width, classes)
  for name, spec, array, axes in (
    ("features", features_spec, features, {*layout.row_axes, *width}),
    ("kernel", kernel_spec, kernel, {*classes, *kernel_width}),
  ):
    if not axes <= varying.axes_of(array):
      raise ValueError(
        f"{name} must be split over the axes of {name}_spec {spec} inside "
        f"jax.shard_map, got {jax.typeof(array)}. Leave check_vma on: without "
        "it JAX does not know how arrays are split, and gradients are wrong."
      )
  _check_pair_inside(layout, features, kernel)
  # Parts of a sum over shared rows have different cotangents: they are not
  # added up in the forward pass. So the kernel is gathered where it can be.
  rows_of_auto = 1 if gather == "auto" else 0
  return _gathered(gather, layout, rows_of_auto, rows_of_auto)


def _check_pair_inside(layout: Layout, features: Any, kernel: Any) -> None:
  """Raises where features and kernel do not fit each other in a shard_map."""
  named = {*layout.classes, *layout.kernel_width}
  rows, of_features = layout.row_axes, varying.axes_of(features)
  forgotten = varying.axes_of(kernel) - named - of_features
  if forgotten:
    raise ValueError(
      f"kernel_spec must name {sorted(forgotten)} too: inside jax.shard_map "
      "the kernel is split over these axes and the features are not, so that "
      "each device would take its own classes for all classes. Pass "
      "kernel_spec=jax.P(None, 'vocab') for an axis 'vocab' of the classes."
    )
  extra = (of_features & set(layout.classes)) - {*rows, *layout.width}
  if extra:
    raise ValueError(
      f"features_spec must name {sorted(extra)} too: inside jax.shard_map the "
      "features are split over these axes, which kernel_spec names for the "
      "classes. Name the axes in features_spec, or pass features that are the "
      "same on all their devices."
    )
  for name, axes, others, other in (
    ("kernel_spec", layout.kernel_width, rows, "a batch axis of features_spec"),
    ("features_spec", layout.width, layout.classes, "the classes' kernel_spec"),
  ):
    alone = [a for a in axes if a not in others]
    if alone:
      raise ValueError(
        f"{name} shards the width over {alone}, which must stand in {other} "
        "too inside jax.shard_map: the devices would do the same work twice. "
        "Call the function outside the shard_map to have it resharded."
      )
