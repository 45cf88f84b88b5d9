# SPDX-License-Identifier: Apache-2.0
"""What ``make release-check`` finds, without a build and without a network."""

import datetime
import subprocess
import sys

import pytest
from support import source

LOG = "# Changelog\n\n## [1.2.0] - 2026-03-01\n\n## [1.1.0] - 2026-01-01\n"
CITATION = "title: x\nversion: 1.2.0\ndate-released: 2026-03-01\n"
TODAY = datetime.date(2026, 3, 1)
TRACKED = [
  "LICENSE",
  "README.md",
  "squentropy_jax/__init__.py",
  "squentropy_jax/losses/_square.py",
  "squentropy_study/__init__.py",
  "tests/square_test.py",
]
README = """# Title

## First

[a](docs/a.md#b), [c](#first), [d](https://example.org) ![e](docs/e.png)

| x |
|---|
| 1 |
"""


rules = source.script("packaging", "release_rules")
check = source.script("packaging", "release_check")


def project(folder, number="1.2.0", log=LOG, citation=CITATION):
  package = folder / "squentropy_jax"
  package.mkdir()
  (package / "__init__.py").write_text(f'import a\n__version__ = "{number}"\n')
  (folder / "CHANGELOG.md").write_text(log)
  (folder / "CITATION.cff").write_text(citation)
  return folder


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({}, []),
    (
      {"number": "1.3.0"},
      [
        "newest heading is of version 1.2.0, but squentropy_jax.__version__ is "
        "1.3.0",
        "CITATION.cff: version is 1.2.0",
      ],
    ),
    (
      {"log": LOG.replace("2026-03-01", "Unreleased")},
      ["date Unreleased. Write the day"],
    ),
    ({"log": LOG.replace("2026-03-01", "2026-02-30")}, ["date 2026-02-30"]),
    ({"log": LOG.replace(" - 2026-03-01", "")}, ["date None. Write the day"]),
    (
      {"log": LOG.replace("2026-03-01", "2026-02-28")},
      ["date-released is 2026-03-01, but CHANGELOG.md"],
    ),
    (
      {
        "log": LOG.replace("2026", "2062"),
        "citation": CITATION.replace("2026", "2062"),
      },
      ["2062-03-01 of the newest heading is in the future"],
    ),
    ({"log": "# Changelog\n"}, ["is of version None", "date None"]),
    (
      {"citation": "title: x\n"},
      ["Write version: 1.2.0", "Write date-released: 2026-03-01"],
    ),
  ],
)
def test_version_changelog_and_citation_agree(tmp_path, changes, expected):
  found = rules.metadata_problems(project(tmp_path, **changes), TODAY)
  assert len(found) == len(expected), found
  for problem, part in zip(found, expected, strict=True):
    assert part in problem


@pytest.mark.parametrize(("days", "fine"), [(-1, 1), (0, 1), (2, 1), (3, 0)])
def test_the_day_of_a_published_version_is_recent(tmp_path, days, fine):
  today = TODAY + datetime.timedelta(days)
  found = rules.metadata_problems(project(tmp_path), today, publishing=True)
  assert len(found) == 1 - fine
  assert fine or "2026-03-01 of the newest heading is more than" in found[0]


def test_tags_agree_with_the_version():
  assert not rules.tag_problems("1.2.0", ["v1.2.0", "nightly"], ["v1.1.0"])
  assert not rules.tag_problems("1.2.0", [], ["v1.1.0"])
  (wrong,) = rules.tag_problems("1.2.0", ["v1.3.0"], [])
  assert "has the tag v1.3.0, but its version is 1.2.0" in wrong
  (again,) = rules.tag_problems("1.2.0", [], ["v1.2.0"])
  assert "v1.2.0 is on another commit" in again
  assert not rules.tag_problems("1.2.0", ["v1.2.0"], ["v1.1.0"], True)
  for at_head in ([], ["vnext"], ["1.2.0"]):
    (missing,) = rules.tag_problems("1.2.0", at_head, [], publishing=True)
    assert "does not have the tag v1.2.0" in missing
  assert len(rules.tag_problems("1.2.0", [], ["v1.2.0"], True)) == 1


def test_published_pages_do_not_install_a_checkout():
  text = "Text\npip install .\npip install '.[study]'\nIn a checkout\n"
  found = rules.install_problems({"a.md": text, "b.md": "pip install a.b\n"})
  assert [problem.partition(" ")[0] for problem in found] == [
    f"a.md:{number}:" for number in (2, 3, 4)
  ]


def test_distributions_that_jax_does_not_need_are_found():
  installed = {
    "jax": ["ml_dtypes>=0.5", "numpy", 'kernel; extra == "x"'],
    "ml-dtypes": ['numpy; python_version >= "3.13"'],
    "numpy": [],
    "squentropy_jax": ["jax", "flax"],
    "flax": ["jax"],
    "kernel": [],
  }
  found = rules.unrequired(installed, ["jax", "numpy"])
  assert found == ["flax", "kernel", "squentropy_jax"]


def test_distributions_have_what_belongs_there():
  wheel = rules.wheel_files(TRACKED, "1.2.0")
  assert not rules.content_problems("wheel", wheel, wheel)
  assert "squentropy_jax-1.2.0.dist-info/licenses/LICENSE" in wheel
  sdist = rules.sdist_files(TRACKED)
  assert not {name for name in wheel | sdist if name.startswith("tests/")}
  assert {name for name in TRACKED if "test" not in name} <= sdist
  # It belongs there even if it is no longer tracked.
  assert "squentropy_jax/py.typed" in wheel & sdist
  found = rules.content_problems(
    "wheel",
    wheel - {"squentropy_jax/py.typed"} | {"tests/square_test.py"},
    wheel,
  )
  assert [problem.partition(". ")[0] for problem in found] == [
    "The wheel lacks squentropy_jax/py.typed",
    "The wheel has tests/square_test.py, which does not belong there",
  ]
  lines = rules.listing(["squentropy_jax/a.py", "squentropy_jax/b.py", "c"])
  assert lines == "  squentropy_jax/: 2 files\n  c"


def test_links_of_the_readme_work_at_an_index():
  linked = rules.absolute_links(README, "https://a.example/b", "v1")
  assert "[a](https://a.example/b/blob/v1/docs/a.md#b)" in linked
  assert "![e](https://a.example/b/raw/v1/docs/e.png)" in linked
  assert "[c](#first), [d](https://example.org)" in linked
  html = '<h1></h1><h2></h2><table><img src="https://a"><a href="#b">'
  assert not rules.readme_problems(linked, lambda _: html)
  (relative,) = rules.readme_problems(
    README, lambda _: html.replace("https://a", "docs/e.png")
  )
  assert "the link docs/e.png does not work at an index" in relative
  (table,) = rules.readme_problems(
    README, lambda _: html.replace("<table>", "")
  )
  assert "shows 0 of 1 tables" in table
  assert "returns no page" in rules.readme_problems(README, lambda _: None)[0]


def test_every_link_of_our_readme_is_made_absolute():
  text = (source.ROOT / "README.md").read_text(encoding="utf-8")
  linked = rules.absolute_links(text, "https://a.example", "v1")
  assert "](docs/" in text
  assert "](docs/" not in linked
  assert linked.count("](https://a.example/raw/v1/") == text.count("![")


def test_quick_start_is_the_first_code_of_the_readme():
  text = (source.ROOT / "README.md").read_text(encoding="utf-8")
  code, printed = rules.quick_start(text)
  compile(code, "README.md", "exec")
  assert code.count("print(") == len(printed) > 0


def repository(folder):
  for command in (
    ["init", "--quiet"],
    ["add", "--all"],
    ["-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "-m", "c"],
  ):
    subprocess.run(["git", *command], cwd=folder, check=True)


def test_a_changed_tree_is_not_released(tmp_path, monkeypatch, capsys):
  repository(project(tmp_path))
  monkeypatch.setattr(check, "ROOT", tmp_path)
  (tmp_path / "CITATION.cff").write_text("changed")
  assert check.main([]) == 1
  error = capsys.readouterr().err
  assert "Files differ from the last commit" in error
  assert "M CITATION.cff" in error


def test_only_tagged_commits_of_main_are_published(
  tmp_path, monkeypatch, capsys
):
  """Publishing stops at the tag, at the pages, and then at the branch."""
  today = datetime.date.today().isoformat()
  log, citation = (x.replace("2026-03-01", today) for x in (LOG, CITATION))
  project(tmp_path, log=log, citation=citation)
  (tmp_path / "docs").mkdir()
  for name in check.INSTALL:
    (tmp_path / name).write_text("pip install squentropy_jax\n")
  (tmp_path / "README.md").write_text("pip install .\n")
  repository(tmp_path)
  monkeypatch.setattr(check, "ROOT", tmp_path)

  def errors():
    assert check.main(["--out", str(tmp_path / "dist")]) == 1
    return capsys.readouterr().err

  found = errors()
  assert "does not have the tag v1.2.0" in found
  assert "README.md:1: 'pip install .' is about a checkout" in found
  (tmp_path / "README.md").write_text("")
  repository(tmp_path)
  subprocess.run(["git", "tag", "v1.2.0"], cwd=tmp_path, check=True)
  assert "Only commits of origin/main are published" in errors()
  reference = ["update-ref", "refs/remotes/origin/main", "HEAD"]
  subprocess.run(["git", *reference], cwd=tmp_path, check=True)
  monkeypatch.setattr(check, "PROGRAMS", tmp_path)
  with pytest.raises(FileNotFoundError, match="cffconvert"):
    check.main(["--out", str(tmp_path / "dist")])


RECIPE = """
import pathlib, sys
sys.path.insert(0, "packaging")
import release_check
try:
  release_check.check_recipe(sys.stdin.read())
except release_check.ReleaseError as error:
  print(error)
"""


def test_a_wrong_recipe_is_not_rendered():
  python = source.ROOT / ".venv-release" / "bin" / "python"
  text = (source.ROOT / "packaging" / "recipe.yaml").read_text("utf-8")

  def rendered(recipe):
    done = subprocess.run(
      [python, "-c", RECIPE],
      input=recipe,
      cwd=source.ROOT,
      capture_output=True,
      text=True,
      check=False,
    )
    return done.stdout + done.stderr

  if not python.exists() or "No module named 'rattler_build'" in rendered(text):
    pytest.skip("make .venv-release/.made installs what renders the recipe")
  assert "renders as at conda-forge" in rendered(text)
  for key, wrong in (("run_constraints:", "run_constraint:"), ("url }", "a }")):
    assert "Correct packaging/recipe.yaml" in rendered(text.replace(key, wrong))


def test_a_failed_command_names_itself_and_the_fix(tmp_path):
  command = [sys.executable, "-c", "print('shown'); raise SystemExit(3)"]
  with pytest.raises(check.ReleaseError, match=r"(?s)SystemExit.*shown.*Do it"):
    check.run(command, tmp_path, "Do it again.")
