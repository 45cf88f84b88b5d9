# SPDX-License-Identifier: Apache-2.0
"""The project as a whole: places of a loss, files, metadata, the wheel."""

import ast
import collections
import datetime
import re
import sys
import zipfile

import cases
import pytest
from support import source

import squentropy_jax
from squentropy_jax import losses
from squentropy_jax.losses import _catalogue

rules = source.script("packaging", "release_rules")

# Where the name to import is not the name to install.
DISTRIBUTIONS = {
  "absl": "absl_py",
  "orbax": "orbax_checkpoint",
  "sklearn": "scikit_learn",
}


# The extras whose lowest versions make test-oldest installs.
OLDEST = ("pods", "replication", "study", "tables", "test")


# The five places of a loss.


def test_every_loss_stands_in_its_five_places():
  exported = {
    name.rpartition(".")[2]
    for name in source.public()
    if name.startswith("squentropy_jax.losses.")
  }
  # The same loss as squentropy, with optax's order of arguments.
  exported.discard("squentropy_with_integer_labels")
  places = {
    "an export line in squentropy_jax/losses/__init__.py": exported,
    "a case in tests/cases.py": {case.name for case in cases.CASES},
    "a line in squentropy_jax/losses/_catalogue.py": {
      entry.name for entry in _catalogue.CATALOGUE
    },
  }
  everywhere = set.union(*places.values())
  missing = [
    f"{name} needs {place}"
    for name in sorted(everywhere)
    for place, names in places.items()
    if name not in names
  ]
  for name in sorted(exported):
    family = getattr(losses, name).__module__.rpartition(".")[2].lstrip("_")
    test = source.ROOT / "tests" / f"{family}_test.py"
    text = test.read_text(encoding="utf-8") if test.exists() else ""
    if not re.search(rf"\b{name}\b", text):
      missing.append(f"{name} needs values and limits in tests/{test.name}")
  assert not missing, "; ".join(missing)


# Files.


def test_a_file_name_occurs_once():
  folders = ("tests", "examples", "benchmarks", "docs")
  paths = [
    path
    for folder in (source.LIBRARY, source.STUDY, source.REPLICATION)
    for path in source.files(folder)
  ]
  paths += [p for f in folders for p in source.files(source.ROOT / f)]
  names = collections.Counter(path.name for path in paths)
  twice = {name for name, count in names.items() if count > 1}
  # squentropy_jax.rows has formulas, and _core.rows what evaluates them.
  assert twice <= {"__init__.py", "__main__.py", "rows.py"}


@pytest.mark.parametrize(
  "folder", [source.LIBRARY, source.STUDY, source.REPLICATION]
)
def test_files_are_short(folder):
  lines = {p: len(p.read_text().splitlines()) for p in source.files(folder)}
  long = {str(p.relative_to(source.ROOT)): n for p, n in lines.items()}
  assert not {p: n for p, n in long.items() if n > 450}, "split by subject"


# Metadata.


def _distributions(requirements: str) -> set[str]:
  lines = [line for line in requirements.splitlines() if line.strip()]
  return {re.match(r"[\w-]+", line).group().replace("-", "_") for line in lines}


def _dependencies(*folders: str) -> set[str]:
  """The deps in BUILD of the files of some folders, from what they import."""
  siblings = ("tests", "examples/pods")  # Scripts that import each other.
  own = {p.stem for x in siblings for p in (source.ROOT / x).glob("*.py")}
  packages = {p.parent.name for p in source.ROOT.glob("*/__init__.py")}
  tops = {
    target.name.split(".")[0]
    for folder in folders
    for path in source.files(source.ROOT / folder)
    for target in source.imports(path)
  }
  tops -= own | {"support", *folders} | sys.stdlib_module_names
  return {
    f":{top}" if top in packages else DISTRIBUTIONS.get(top, top)
    for top in tops
  }


def _build_labels() -> dict[str, set[str]]:
  """Deps by target, as _dependencies has them. BUILD parses as Python."""
  labels = {}
  for node in ast.walk(ast.parse((source.ROOT / "BUILD").read_text())):
    if isinstance(node, ast.Call):
      keywords = {k.arg: k.value for k in node.keywords}
      if "deps" in keywords and isinstance(keywords["name"], ast.Constant):
        deps = ast.literal_eval(keywords["deps"])
        labels[keywords["name"].value] = {
          dep.removeprefix("@pypi//") for dep in deps
        }
  return labels


def test_imports_match_build_labels_and_setup():
  config = source.setup()
  extras = config["options.extras_require"]
  asked = {name: _distributions(extras[name]) for name in extras}
  core = _distributions(config["options"]["install_requires"])
  assert core == {"jax", "numpy"}
  labels = _build_labels()
  packages = {path.parent.name for path in source.ROOT.glob("*/__init__.py")}
  used = {package: _dependencies(package) for package in packages}
  for package in packages:
    assert used[package] == labels.get(package), f"BUILD: {package}"
  tests = _dependencies("tests", "examples")
  ours = {label for label in tests if label[0] == ":"}
  assert ours == {label for label in labels["testing"] if label[0] == ":"}
  # Those who use squentropy_jax.nn have flax, and of transforms optax.
  assert used["squentropy_jax"] - {"flax", "optax"} == core | asked["plots"]
  # pandas imports openpyxl and pyarrow.
  study = core | asked["study"] | asked["tables"]
  found = used["squentropy_study"] - {":squentropy_jax"}
  assert found | {"jax"} == study - {"openpyxl", "pyarrow"}
  replication = used["replication"] - study - ours
  assert replication == asked["replication"]
  run = {"pytest_xdist", "setuptools"}  # Programs, not modules.
  tests -= study | replication | ours
  assert tests == labels["testing"] - run - ours, "BUILD: testing"
  wanted = (asked["test"] | asked["pods"]) - run - replication
  assert tests == wanted, "setup.cfg: the extras test and pods"


def _pins(name: str) -> set[str]:
  text = (source.ROOT / "requirements" / name).read_text(encoding="utf-8")
  return set(re.findall(r"^(\w.*?) *\\?$", text, re.M))


def _version(pin: str) -> str:
  """A pin without its marker."""
  return pin.partition(";")[0].strip()


def test_pins_cover_what_setup_asks_for():
  extras = dict(source.setup()["options.extras_require"])
  del extras["peers"]  # Only a generator and the benchmarks use them.
  oldest = [extras[name] for name in OLDEST]
  wanted = {
    "compile.txt": _distributions(extras.pop("compile") + extras["test"]),
    "docs.txt": _distributions(extras.pop("docs") + extras["study"]),
    "study.txt": _distributions(extras["study"]) | {"setuptools"},
    "test.txt": _distributions("\n".join(extras.values())),
    "oldest.txt": _distributions("\n".join(oldest)),
    # Not an extra, because it needs no jax.
    "release.txt": _distributions("\n".join(_pins("release.in"))),
  }
  for name, names in wanted.items():
    missing = names - _distributions("\n".join(_pins(name)))
    assert not missing, f"requirements/{name} lacks {missing}: make pins"
  # All go into one environment. Their markers may differ.
  tested = {_version(pin) for pin in _pins("test.txt")}
  names = {pin.partition("==")[0] for pin in tested}
  docs = {_version(pin) for pin in _pins("docs.txt")}
  shared = {pin for pin in docs if pin.partition("==")[0] in names}
  assert shared <= tested, "make pins"
  assert _pins("study.txt") <= _pins("test.txt"), "make pins"


def test_oldest_pins_are_the_bounds_of_setup():
  config = source.setup()
  extras = [config["options.extras_require"][name] for name in OLDEST]
  lines = "\n".join([config["options"]["install_requires"], *extras])
  pins = {_version(pin) for pin in _pins("oldest.txt")}
  for line in lines.split():
    name, _, bound = line.partition(",")[0].partition(">=")
    # setuptools>=77 is setuptools 77.0.1, because 77.0.0 is not to be had.
    pattern = rf"{re.escape(name)}=={re.escape(bound)}(\.\d+)*"
    found = [pin for pin in pins if re.fullmatch(pattern, pin)]
    assert found, f"{line} cannot be installed: raise it, and run make pins"


def test_xdist_sees_the_groups_of_tests(request):
  if not getattr(request.config.option, "loadgroup", False):
    pytest.skip("there are groups with --dist loadgroup only, as in make test")
  # Without it, what tests of a file share is made in each process.
  assert request.node.nodeid.endswith("@package_test")


def test_workflow_and_metadata_name_the_same_versions_of_python():
  text = (source.ROOT / ".github/workflows/tests.yml").read_text("utf-8")
  matrix = re.findall(r'"(3\.\d+)"', re.search(r"python: \[.*\]", text).group())
  config = source.setup()
  classifiers = config["metadata"]["classifiers"]
  assert re.findall(r"Python :: (3\.\d+)", classifiers) == matrix
  assert config["options"]["python_requires"] == f">={matrix[0]}"


def test_version_changelog_and_citation_agree():
  # On a day far ahead, because the test must not depend on the clock.
  today = datetime.date(2100, 1, 1)
  assert not rules.metadata_problems(source.ROOT, today)


def test_wheel_has_the_files_that_the_release_check_expects(tmp_path):
  # A copy, because setuptools writes next to what it builds.
  paths = [*source.LIBRARY.rglob("*"), *source.STUDY.rglob("*")]
  paths += [*source.ROOT.glob("*.*"), source.ROOT / "LICENSE"]
  copied = []
  for path in paths:
    if path.is_file() and "__pycache__" not in path.parts:
      copy = tmp_path / path.relative_to(source.ROOT)
      copy.parent.mkdir(parents=True, exist_ok=True)
      copy.write_bytes(path.read_bytes())
      copied.append(path.relative_to(source.ROOT).as_posix())
  for stray in ("tests", "examples", "replication"):
    (tmp_path / stray).mkdir()
    (tmp_path / stray / "__init__.py").write_text("")
  code = "from setuptools import build_meta; build_meta.build_wheel('.')"
  source.run(code, cwd=tmp_path)
  (wheel,) = tmp_path.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    names = archive.namelist()
    metadata = next(n for n in names if n.endswith("/METADATA"))
    text = archive.read(metadata).decode()
    entry = metadata.replace("METADATA", "entry_points.txt")
    scripts = archive.read(entry).decode()
  wanted = rules.wheel_files(copied, squentropy_jax.__version__)
  assert "squentropy_jax/py.typed" in wanted
  assert not rules.content_problems("wheel", names, wanted)
  assert "squentropy-study = squentropy_study.__main__:main" in scripts
  assert "License-Expression: Apache-2.0" in text
  assert f"Version: {squentropy_jax.__version__}" in text
