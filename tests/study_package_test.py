# SPDX-License-Identifier: Apache-2.0
"""What the study imports, and what it says where its extra is missing."""

import ast
import doctest
import importlib
import re
import subprocess
import sys

import pytest
from support import source

import squentropy_study
from squentropy_study import _extra

SOURCES = source.files(source.STUDY)
LIBRARY = "squentropy_jax"


def _private_names(tree: ast.AST) -> list[str]:
  """Private names of the library that a file imports or reads."""
  found, aliases = [], set()
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [(alias.name, alias.asname) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [(f"{node.module}.{a.name}", a.asname) for a in node.names]
    else:
      continue
    for name, alias in names:
      top, *rest = name.split(".")
      if top == LIBRARY:
        aliases.add(alias or (rest[-1] if rest else top))
        if any(part.startswith("_") and part[:2] != "__" for part in rest):
          found.append(name)
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and re.match("_(?!_)", node.attr):
      base = node.value
      while isinstance(base, ast.Attribute):
        base = base.value
      if isinstance(base, ast.Name) and base.id in aliases:
        found.append(f"{base.id}.{node.attr}")
  return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_only_public_names_of_the_library_are_used(path):
  text = path.read_text(encoding="utf-8")
  assert _private_names(ast.parse(text)) == []


@pytest.mark.parametrize(
  "code",
  [
    "from squentropy_jax import _core",
    "from squentropy_jax._core import rows",
    "import squentropy_jax.losses._catalogue",
    "import squentropy_jax\nsquentropy_jax._core",
    "from squentropy_jax import losses as x\nx.squentropy._rows",
  ],
)
def test_private_names_are_found(code):
  assert len(_private_names(ast.parse(code))) == 1


def test_names_of_losses_stand_in_the_defaults_only():
  """The study asks each loss what it needs; cross-entropy is the baseline."""
  from squentropy_study import _loss_specs, _loss_words

  allowed = {
    "_loss_specs": set(_loss_specs.DEFAULT),
    "_loss_words": {*_loss_words._ABBREVIATIONS} - {"brier"},
    "_result_rows": {"cross_entropy"},
  }
  names = re.compile(rf"({'|'.join(_loss_specs.names())})(:.*)?")
  for path in SOURCES:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    texts = {
      node.value
      for node in ast.walk(tree)
      if isinstance(node, ast.Constant)
      and isinstance(node.value, str)
      and names.fullmatch(node.value)
    }
    # The Brier score is a metric of the study as well.
    texts.discard("brier")
    assert texts == allowed.get(path.stem, set()), path.name


def test_public_names_are_those_of_their_modules():
  names = [n for names in squentropy_study._MODULES.values() for n in names]
  assert sorted(names) == sorted(squentropy_study.__all__)
  for module, names in squentropy_study._MODULES.items():
    home = importlib.import_module(f"squentropy_study.{module}")
    for name in names:
      assert getattr(squentropy_study, name) is getattr(home, name)
      assert name == "REFERENCE" or getattr(home, name).__doc__
  assert set(squentropy_study.__all__) <= set(dir(squentropy_study))
  with pytest.raises(AttributeError, match="has no attribute 'runn'"):
    _ = squentropy_study.runn


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
  name = "squentropy_study" + f".{path.stem}" * (path.stem[:2] != "__")
  assert doctest.testmod(importlib.import_module(name)).failed == 0


def _extra_of_setup() -> set[str]:
  lines = source.setup()["options.extras_require"]["study"].split("\n")
  return {re.match(r"[\w-]*", line).group() for line in lines} - {""}


def test_extra_is_what_the_study_imports():
  modules = {"orbax-checkpoint": "orbax", "scikit-learn": "sklearn"}
  assert {modules.get(x, x) for x in _extra_of_setup()} == _extra.MODULES
  imported = set()
  for path in SOURCES:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        imported |= {alias.name.partition(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom):
        imported.add(node.module.partition(".")[0])
  core = {"jax", "numpy", LIBRARY, "squentropy_study"}
  assert imported - core - sys.stdlib_module_names == _extra.MODULES


def _run_without(modules: list[str], code: str) -> subprocess.CompletedProcess:
  """Runs code in a process in which modules are not installed."""
  # None in sys.modules makes an import raise ModuleNotFoundError.
  block = f"import sys; sys.modules.update(dict.fromkeys({modules}))\n"
  return subprocess.run(
    [sys.executable, "-c", block + code],
    cwd=source.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.parametrize("modules", [sorted(_extra.MODULES), ["scipy"]])
def test_command_without_its_extra_says_what_to_install(modules):
  code = "from squentropy_study._cli import main; sys.exit(main(['data']))"
  done = _run_without(modules, code)
  assert done.returncode == 2, done.stderr
  assert done.stdout == ""
  assert done.stderr.count("\n") == 1
  assert done.stderr.startswith("squentropy-study: error: ")
  assert "pip install 'squentropy_jax[study]'" in done.stderr


@pytest.mark.parametrize("module", sorted(_extra.MODULES))
def test_error_names_the_extra_of_each_package(module):
  for name in (module, f"{module}.part"):
    with (
      pytest.raises(ModuleNotFoundError, match=rf"needs .*{name}.*\[study\]"),
      _extra.required(),
    ):
      raise ModuleNotFoundError(name=name)


def test_package_without_its_extra_can_be_imported():
  code = (
    "import squentropy_study\n"
    "try: squentropy_study.run\n"
    "except ModuleNotFoundError as error: print(error)\n"
  )
  done = _run_without(sorted(_extra.MODULES), code)
  assert done.returncode == 0, done.stderr
  assert "pip install 'squentropy_jax[study]'" in done.stdout
