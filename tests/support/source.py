# SPDX-License-Identifier: Apache-2.0
"""What tests of the project itself read: its files, imports, public names."""

import ast
import configparser
import functools
import importlib
import pathlib
import subprocess
import sys
import types
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
LIBRARY = ROOT / "squentropy_jax"
STUDY = ROOT / "squentropy_study"
REPLICATION = ROOT / "replication"


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The Python files below a folder."""
  return sorted(folder.rglob("*.py"))


def dotted(path: pathlib.Path) -> str:
  """The module of a file, such as ``squentropy_jax.losses._square``."""
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


class Import(NamedTuple):
  """One imported module, or one name imported from a module.

  Attributes:
    name: With all its dots, such as ``squentropy_jax.losses.focal``.
    alias: The name that it has in the importing file.
    lazy: Whether it is imported only when a function runs, or for types only.
    exported: Whether it is written ``import x as x``, which exports the name.
  """

  name: str
  alias: str
  lazy: bool
  exported: bool


@functools.cache
def imports(path: pathlib.Path) -> list[Import]:
  """Everything that a file imports."""
  found = []

  def visit(node: ast.AST, lazy: bool) -> None:
    if isinstance(node, ast.Import):
      for alias in node.names:
        name = alias.asname or alias.name.partition(".")[0]
        found.append(Import(alias.name, name, lazy, False))
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: write imports in full."
      for alias in node.names:
        name = alias.asname or alias.name
        exported = alias.asname == alias.name
        target = f"{node.module}.{alias.name}"
        found.append(Import(target, name, lazy, exported))
    lazy |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    lazy |= isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    for child in ast.iter_child_nodes(node):
      visit(child, lazy)

  visit(ast.parse(path.read_text(encoding="utf-8")), False)
  return found


def setup() -> configparser.ConfigParser:
  """Returns what setup.cfg says."""
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg", encoding="utf-8")
  return config


def script(folder: str, name: str) -> types.ModuleType:
  """Imports a script of a folder that is no package.

  Args:
    folder: The folder, such as ``"docs"``.
    name: The script without its suffix. It may import files next to it.
  """
  path = list(sys.path)
  sys.path.insert(0, str(ROOT / folder))
  try:
    return importlib.import_module(name)
  finally:
    sys.path[:] = path


def public_modules() -> list[str]:
  """The modules of the library in which a user finds something."""
  names = map(dotted, files(LIBRARY))
  return [n for n in names if not any(p[0] == "_" for p in n.split("."))]


@functools.cache
def public() -> dict[str, object]:
  """Public functions, losses and classes, by the names that a user writes."""
  found = {}
  for name in public_modules():
    module = importlib.import_module(name)
    path = pathlib.Path(module.__file__)
    exported = {target.alias for target in imports(path) if target.exported}
    exported |= set(getattr(module, "__all__", ()))
    for key, value in vars(module).items():
      home = getattr(value, "__module__", None) or ""
      own = home == name or key in exported
      if key[0] != "_" and own and home.startswith("squentropy_jax"):
        found[f"{name}.{key}"] = value
  return found


def run(code: str, cwd: pathlib.Path = ROOT) -> str:
  """Runs Python code in a new process, and returns what it prints."""
  out = subprocess.run(
    [sys.executable, "-B", "-W", "error", "-c", code],
    capture_output=True,
    text=True,
    cwd=cwd,
  )
  assert out.returncode == 0, out.stderr
  return out.stdout
