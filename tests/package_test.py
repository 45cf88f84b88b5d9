# SPDX-License-Identifier: Apache-2.0
"""The package as a whole: layers, metadata, documentation, what is shipped."""

import ast
import configparser
import doctest
import functools
import importlib
import inspect
import pathlib
import re
import subprocess
import sys
import types
import zipfile

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import squentropy_jax
from squentropy_jax import calibration, fused, losses
from squentropy_jax.losses import _table
import squentropy_jax.nn.nnx

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "squentropy_jax"
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What each part of the package may import of the others. A private module of
# the top level, such as _rows, may import other private ones only.
BELOW = {
  "losses": set(),
  "calibration": {"losses"},
  "reweighting": set(),
  "fused": {"losses", "calibration", "reweighting"},
  "nn": {"losses", "calibration", "reweighting", "fused"},
  "study": {"losses", "calibration", "reweighting", "fused", "nn"},
}
# What each part may import of others' work, beside jax and numpy.
FOREIGN = {
  "nn": {"flax"},
  "study": {
    "flax",
    "matplotlib",
    "optax",
    "orbax",
    "pandas",
    "rich",
    "scipy",
    "sklearn",
  },
}
# The same, but only inside a function: `import squentropy_jax` stays light.
LAZY = {"calibration.plots": {"matplotlib"}, "study._readers": {"pyreadr"}}
# Where the name to import is not the name to install.
DISTRIBUTIONS = {
  "absl": "absl_py",
  "orbax": "orbax_checkpoint",
  "sklearn": "scikit_learn",
}


def _sources(folder: pathlib.Path) -> list[pathlib.Path]:
  return sorted(p for p in folder.rglob("*.py"))


def _dotted(path: pathlib.Path) -> str:
  """``losses._square`` for squentropy_jax/losses/_square.py."""
  parts = path.relative_to(PACKAGE).with_suffix("").parts
  return ".".join(p for p in parts if p != "__init__")


def _run(code: str, cwd: pathlib.Path = ROOT) -> str:
  """Runs Python code in a process of its own, and returns what it prints."""
  out = subprocess.run(
    [sys.executable, "-B", "-W", "error", "-c", code],
    capture_output=True,
    text=True,
    cwd=cwd,
  )
  assert out.returncode == 0, out.stderr
  return out.stdout


@functools.cache
def _imports(path: pathlib.Path) -> list[tuple[str, bool]]:
  """Each module a file imports, and whether only when a function runs."""
  found = []

  def visit(node: ast.AST, lazy: bool) -> None:
    if isinstance(node, ast.Import):
      found.extend((alias.name, lazy) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: imports are written in full."
      # A name of a package may be a module of it.
      found.extend((f"{node.module}.{a.name}", lazy) for a in node.names)
    typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(
      node.test
    )
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
      visit(child, lazy or inside or typing_only)

  visit(ast.parse(path.read_text(encoding="utf-8")), False)
  return found


def _third_party(paths: list[pathlib.Path]) -> set[str]:
  """Distributions that files import, spelt as in BUILD."""
  own = {p.stem for p in (ROOT / "tests").glob("*.py")}
  own |= {"squentropy_jax", "replication"}
  tops = {name.split(".")[0] for path in paths for name, _ in _imports(path)}
  tops -= own | sys.stdlib_module_names
  return {DISTRIBUTIONS.get(top, top) for top in tops}


def _may_import(part: str, other: str) -> bool:
  """Whether top-level part ``part`` may import top-level part ``other``."""
  if part == other or other.startswith("_"):
    return True
  return other in BELOW.get(part, set())


@pytest.mark.parametrize("path", _sources(PACKAGE), ids=_dotted)
def test_imports_point_down(path):
  name = _dotted(path)
  part = name.split(".")[0]
  if not name:
    return  # The package itself shows its parts.
  assert part.startswith("_") or part in BELOW, (
    f"{part} is no part that tests/package_test.py knows: say in BELOW what "
    "it may import."
  )
  for target, lazy in _imports(path):
    top, *rest = target.split(".")
    where = f"{path.relative_to(ROOT)} imports {target}"
    if top in sys.stdlib_module_names:
      continue
    if top != "squentropy_jax":
      allowed = {"jax", "numpy"} | FOREIGN.get(part, set())
      if lazy:
        allowed |= LAZY.get(name, set())
      assert top in allowed, f"{where}: only {sorted(allowed)} may be."
      continue
    other = rest[0] if rest else ""
    is_part = other in BELOW or other.startswith("_")
    assert is_part or part in ("nn", "study"), (
      f"{where}: the package itself is above {part}."
    )
    if is_part:
      assert _may_import(part, other), f"{where}: {other} is not below {part}."
    assert not (part == other == "losses" and name != "losses"), (
      f"{where}: families never import each other; move what they share down "
      "to _rows."
    )


def test_import_is_light():
  code = """
import sys
seen = []
def hook(event, args):
  writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set(
      "wax+")
  if writes or event.startswith(("socket.", "subprocess.")):
    seen.append((event, args))
sys.addaudithook(hook)
import squentropy_jax
from jax._src import xla_bridge
print("backends", xla_bridge.backends_are_initialized())
heavy = {"absl", "chex", "flax", "matplotlib", "optax", "rich", "sklearn"}
print("modules", sorted(heavy & set(sys.modules)))
print("events", seen)
"""
  expected = ["backends False", "modules []", "events []"]
  assert _run(code).splitlines() == expected


# The five places of a loss.

# Public beside the losses: another signature of one, or what belongs to one.
NOT_LOSSES = {
  "SoftConfusionMatrix",
  "accuracy",
  "aldr_kl_temperature",
  "balanced_accuracy",
  "calibrated_loss_derivatives",
  "continuous_categorical_mean",
  "f_beta",
  "geometric_mean",
  "soft_confusion_matrix",
  "squentropy_with_integer_labels",
}


def _public_names(module: types.ModuleType) -> list[str]:
  return [
    name
    for name, value in vars(module).items()
    if not name.startswith("_")
    and not name.isupper()
    and getattr(value, "__module__", "").startswith("squentropy_jax")
  ]


def _readme_table() -> str:
  match = re.search(
    r"<!-- loss table -->\n(.*?)<!-- end of loss table -->", README, re.S
  )
  assert match, "README.md has no loss table between its two comments."
  return match.group(1).strip()


def test_every_loss_stands_in_its_five_places():
  public = set(_public_names(losses)) - NOT_LOSSES
  places = {
    "squentropy_jax/losses/__init__.py": public,
    "TABLE of squentropy_jax/losses/_table.py": {
      row.name for row in _table.TABLE
    },
    "the loss table of README.md": set(
      re.findall(r"^\| `(\w+)`", _readme_table(), re.M)
    ),
    "the catalogue of tests/cases.py": {
      *(case.name for case in cases.CASES + cases.BINARY_CASES),
      *cases.OWN_ARGUMENTS,
    },
  }
  everywhere = set.union(*places.values())
  missing = [
    f"the loss {name} is missing in {place}"
    for name in sorted(everywhere)
    for place, names in places.items()
    if name not in names
  ]
  for name in sorted(everywhere & public):
    family = getattr(losses, name).__module__.rpartition(".")[2].lstrip("_")
    test = ROOT / "tests" / f"{family}_test.py"
    text = test.read_text(encoding="utf-8") if test.exists() else ""
    if not re.search(rf"\b{name}\b", text):
      missing.append(f"the loss {name} is missing in tests/{test.name}")
  assert not missing, "; ".join(missing)


def test_readme_table_is_the_generated_one():
  assert _readme_table() == _table.markdown().strip(), (
    "Paste the output of `python -m squentropy_jax.losses._table` between the "
    "two comments of README.md."
  )


# Documentation.


def _public_objects(module: types.ModuleType) -> dict[str, object]:
  """Public functions and classes, by the names a user writes."""
  found = {
    f"{module.__name__}.{name}": getattr(module, name)
    for name in _public_names(module)
  }
  for name, value in vars(module).items():
    # Another test may have imported the study, which is an application.
    if name == "study":
      continue
    below = f"{module.__name__}.{name}"
    if (
      not name.startswith("_")
      and isinstance(value, types.ModuleType)
      and value.__name__ == below
    ):
      found |= _public_objects(value)
  return found


PUBLIC = _public_objects(squentropy_jax)
FUNCTIONS = [n for n, value in PUBLIC.items() if not inspect.isclass(value)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_its_sections(name):
  text = inspect.getdoc(PUBLIC[name]) or ""
  parameters = inspect.signature(PUBLIC[name]).parameters
  sections = ["Args:", "Returns:", "Examples:", "References:"]
  if "labels" in parameters:  # Labels are checked.
    sections.insert(2, "Raises:")
  at = [text.find(f"\n{section}\n") for section in sections]
  missing = [s for s, i in zip(sections, at, strict=True) if i < 0]
  assert not missing, f"{name} has no {' and no '.join(missing)}"
  assert at == sorted(at), f"{name}: the order is {' '.join(sections)}"
  assert ".. math::" in text, f"{name} has no formula."
  assert ">>> " in text[at[-2] :], f"{name} has no example that runs."
  arguments = text[at[0] : at[1]]
  for parameter in parameters:
    assert re.search(rf"^ +\**{parameter}\b.*:", arguments, re.M), (
      f"{name}: Args does not tell of {parameter}."
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_has_its_types(name):
  signature = inspect.signature(PUBLIC[name])
  annotations = [p.annotation for p in signature.parameters.values()]
  assert inspect.Signature.empty not in [
    *annotations,
    signature.return_annotation,
  ]


@pytest.mark.parametrize("path", _sources(PACKAGE), ids=_dotted)
def test_examples_in_docstrings(path):
  """Reads the source: doctest's own finder passes decorated functions by."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  module = importlib.import_module(f"squentropy_jax.{_dotted(path)}".strip("."))
  names = vars(module) | {
    "calibration": calibration,
    "fused": fused,
    "jax": jax,
    "jnp": jnp,
    "losses": losses,
    "np": np,
    "squentropy_jax": squentropy_jax,
  }
  documented = ast.Module | ast.ClassDef | ast.FunctionDef
  runner = doctest.DocTestRunner(
    optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
  )
  for node in ast.walk(tree):
    text = isinstance(node, documented) and ast.get_docstring(node)
    if not text or ">>>" not in text:
      continue
    test = doctest.DocTestParser().get_doctest(
      text, dict(names), getattr(node, "name", path.stem), str(path), 0
    )
    with np.printoptions(precision=4):
      runner.run(test)
  assert runner.summarize(verbose=False).failed == 0


def test_readme_quick_start_runs_as_pasted():
  code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
  assert len(code.splitlines()) <= 15
  _run(code)


# Metadata.


def _setup() -> configparser.ConfigParser:
  config = configparser.ConfigParser()
  config.read(ROOT / "setup.cfg", encoding="utf-8")
  return config


def _names(requirements: str) -> set[str]:
  lines = [line for line in requirements.splitlines() if line.strip()]
  return {re.match(r"[\w-]+", line).group().replace("-", "_") for line in lines}


def _build_labels() -> dict[str, set[str]]:
  """Third-party labels by target. A BUILD file parses as Python."""
  labels = {}
  for node in ast.walk(ast.parse((ROOT / "BUILD").read_text())):
    if isinstance(node, ast.Call):
      keywords = {k.arg: k.value for k in node.keywords}
      if "deps" in keywords and isinstance(keywords["name"], ast.Constant):
        deps = ast.literal_eval(keywords["deps"])
        labels[keywords["name"].value] = {
          d.removeprefix("@pypi//") for d in deps if d.startswith("@pypi//")
        }
  return labels


def test_imports_match_build_labels_and_setup():
  config = _setup()
  extras = config["options.extras_require"]
  core = _names(config["options"]["install_requires"])
  assert core == {"jax", "numpy"}
  used = _third_party(_sources(PACKAGE))
  assert used == _build_labels()["squentropy_jax"], "BUILD: squentropy_jax"
  asked = core.union(*(_names(extras[e]) for e in ("plots", "study", "tables")))
  # pandas imports it.
  assert used == asked - {"pyarrow"}, (
    "setup.cfg: install_requires and the extras plots, study and tables"
  )
  run = {"pytest_xdist", "setuptools"}  # Programs, not modules.
  tests = _third_party(_sources(ROOT / "tests") + _sources(ROOT / "examples"))
  assert tests - used == _build_labels()["testing"] - run, "BUILD: testing"
  assert tests - used == _names(extras["test"]) - run, (
    "setup.cfg: the extra test"
  )


def _pins(name: str) -> set[str]:
  text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
  return set(re.findall(r"^(\w.*?) *\\?$", text, re.M))


def test_pins_cover_what_setup_asks_for():
  extras = dict(_setup()["options.extras_require"])
  del extras["peers"]  # Of a generator and the benchmarks, not of the tests.
  wanted = {
    "compile.txt": _names(extras.pop("compile") + extras["test"]),
    "study.txt": _names(extras["study"]) | {"setuptools"},
    "test.txt": _names("\n".join(extras.values())),
  }
  for name, names in wanted.items():
    missing = names - _names("\n".join(_pins(name)))
    assert not missing, f"requirements/{name} lacks {missing}: make pins"
  assert _pins("study.txt") <= _pins("test.txt"), "make pins"


def test_version_is_the_newest_of_the_changelog():
  text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
  newest = re.search(r"^## \[(\d[^\]]*)\]", text, re.M).group(1)
  assert squentropy_jax.__version__ == newest


def test_wheel_holds_the_package_and_nothing_else(tmp_path):
  # A copy, because setuptools writes beside what it builds.
  for path in [*PACKAGE.rglob("*"), *ROOT.glob("*.*"), ROOT / "LICENSE"]:
    if path.is_file() and "__pycache__" not in path.parts:
      copy = tmp_path / path.relative_to(ROOT)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(path.read_bytes())
  for stray in ("tests/__init__.py", "examples/__init__.py"):
    (tmp_path / stray).parent.mkdir()
    (tmp_path / stray).write_text("")
  code = "from setuptools import build_meta; build_meta.build_wheel('.')"
  _run(code, cwd=tmp_path)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    metadata = next(n for n in names if n.endswith("/METADATA"))
    text = archive.read(metadata).decode()
  tops = {name.partition("/")[0] for name in names}
  assert tops == {"squentropy_jax", metadata.partition("/")[0]}
  assert "squentropy_jax/py.typed" in names
  assert "License-Expression: Apache-2.0" in text
  assert f"Version: {squentropy_jax.__version__}" in text


# The repository.


def _tracked() -> list[pathlib.Path]:
  out = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True
  )
  if out.returncode:
    pytest.skip("not a git checkout")
  paths = [ROOT / name for name in out.stdout.split("\0") if name]
  return [path for path in paths if path.exists()]


def test_tracked_files_name_no_machine_and_no_registry():
  unwanted = re.compile(
    r"(?:^|[^\w.-])/(?:work|root|home|Users)/"
    r"|pypi\.org|pythonhosted\.org|registry\.npmjs",
    re.M,
  )
  for path in _tracked():
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue  # A picture or an array.
    found = unwanted.search(text)
    assert not found, f"{path.relative_to(ROOT)} has {found.group()!r}."


def test_source_files_name_their_licence():
  folders = ("squentropy_jax", "tests", "examples", "benchmarks", "replication")
  for folder in folders:
    for path in _sources(ROOT / folder):
      text = path.read_text(encoding="utf-8")
      licence = "# SPDX-License-Identifier: Apache-2.0\n"
      assert not text or text.startswith(licence), path
