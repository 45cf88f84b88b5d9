# SPDX-License-Identifier: Apache-2.0
"""Imports point down, and importing the library is cheap."""

import ast
import sys

import pytest
from support import source

# A part imports from the layers above it in this list, and from itself.
# Every module that is not named here belongs to the layer before the last.
LAYERS = (
  ("_core",),
  # Small public modules that import `_core` only.
  (
    "attention",
    "confusion",
    "masking",
    "regression",
    "reweighting",
    "rows",
    "special",
  ),
  ("losses", "retrieval", "calibration"),
  (),
  ("nn",),
)
# Other packages that a module may import, in addition to jax and numpy.
OTHERS = {"nn": {"flax"}, "transforms": {"optax"}}
# The same, inside functions only.
INSIDE_FUNCTIONS = {"squentropy_jax.calibration.plots": {"matplotlib"}}
# What NamedTuple documents for users in spite of the underscore.
NAMED_TUPLE = {"_asdict", "_fields", "_make", "_replace"}
# Packages of this project that others may import, by their public names only.
MAY_USE = {
  "squentropy_study": {"squentropy_jax"},
  "replication": {"squentropy_jax", "squentropy_study"},
}


def layer(part):
  for number, parts in enumerate(LAYERS):
    if part in parts:
      return number
  return len(LAYERS) - 2


def part_of(name):
  """``losses`` for ``squentropy_jax.losses._focal``; empty for the package."""
  return (name.split(".") + [""])[1]


@pytest.mark.parametrize(
  "path", source.files(source.LIBRARY), ids=source.dotted
)
def test_imports_point_down(path):
  name = source.dotted(path)
  part = part_of(name)
  if not part:
    return  # The package itself makes its parts available.
  for target in source.imports(path):
    where = f"{path.relative_to(source.ROOT)} imports {target.name}"
    top = target.name.split(".")[0]
    if top == "squentropy_jax":
      other = part_of(target.name)
      assert (source.LIBRARY / other).is_dir() or (
        source.LIBRARY / f"{other}.py"
      ).exists(), f"{where}: import it from the module that defines it."
      below = other == part or layer(other) < layer(part)
      assert below, f"{where}: {other} is not below {part}."
      assert part != "losses" or other != "losses" or name.count(".") == 1, (
        f"{where}: a family of losses does not import another one. Move what "
        "they share to squentropy_jax/_core."
      )
    elif top not in sys.stdlib_module_names:
      allowed = {"jax", "numpy"} | OTHERS.get(part, set())
      if target.lazy:
        allowed |= INSIDE_FUNCTIONS.get(name, set())
      assert top in allowed, f"{where}: only {sorted(allowed)} are allowed."


@pytest.mark.parametrize("package", MAY_USE)
def test_applications_use_public_names_only(package):
  private = []
  for path in source.files(source.ROOT / package):
    borrowed = set()
    for target in source.imports(path):
      top, *rest = target.name.split(".")
      if top in ("squentropy_jax", "squentropy_study", "replication", "tests"):
        assert top == package or top in MAY_USE[package], (
          f"{path.relative_to(source.ROOT)} imports {target.name}"
        )
      if top in MAY_USE[package]:
        borrowed.add(target.alias)
        private += [(path.name, target.name)] * any(p[0] == "_" for p in rest)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if not isinstance(node, ast.Attribute) or node.attr[0] != "_":
        continue
      if node.attr in NAMED_TUPLE:
        continue
      root = node.value
      while isinstance(root, ast.Attribute):
        root = root.value
      # A dunder such as __version__ is public.
      if isinstance(root, ast.Name) and root.id in borrowed:
        private += [(path.name, node.attr)] * (not node.attr.endswith("__"))
  assert not private, f"{package} uses private names: {private}"


def test_import_is_cheap_and_makes_every_module_available():
  parts = [n.split(".", 1)[1] for n in source.public_modules() if "." in n]
  # nn and transforms come last, because they may import flax and optax.
  parts.sort(key=lambda name: name.startswith(("nn", "transforms")))
  code = f"""
import sys
events = []
def hook(event, args):
  writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set(
      "wax+")
  if writes or event.startswith(("socket.", "subprocess.")):
    events.append((event, args))
sys.addaudithook(hook)
import jax
before = set(sys.modules)
import squentropy_jax
from jax._src import xla_bridge
tops = {{name.partition(".")[0] for name in set(sys.modules) - before}}
own = {{"jax", "squentropy_jax"}}
print("more than jax", tops - own - sys.stdlib_module_names)
heavy = {{"absl", "chex", "flax", "jax.extend", "matplotlib", "optax", "rich"}}
print("modules", heavy & set(sys.modules))
for name in {parts}:
  if name == "nn":
    print("modules before nn", heavy & set(sys.modules))
  module = squentropy_jax
  for part in name.split("."):
    module = getattr(module, part)
  assert module.__name__ == f"squentropy_jax.{{name}}"
print("backends", xla_bridge.backends_are_initialized())
print("events", events)
"""
  assert source.run(code).splitlines() == [
    "more than jax set()",
    "modules set()",
    "modules before nn set()",
    "backends False",
    "events []",
  ]


def test_modules_are_listed_for_completion():
  code = "import squentropy_jax; print(*dir(squentropy_jax))"
  parts = {n.split(".")[1] for n in source.public_modules() if "." in n}
  assert parts <= set(source.run(code).split())
