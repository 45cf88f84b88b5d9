# SPDX-License-Identifier: Apache-2.0
"""Builds and tries what a release publishes: ``make release-check``.

It takes the last commit, compares the version with the changelog, the citation
and the tag, renders the README as a package index does and the recipe as
conda-forge does, builds the source distribution and the wheel in a temporary
folder, and compares their files with those that belong there. Then it installs
the wheel into an empty environment, runs the quick start of the README, adds
the extra ``study``, and runs a small study.

With ``--out`` it keeps the two files, to publish them. Then it also requires
the tag of the version, a commit of ``origin/main``, a recent date in the
changelog, and pages that do not say how to install a checkout.
"""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import release_rules as rules

ROOT = pathlib.Path(__file__).parents[1]
PROGRAMS = pathlib.Path(sys.executable).parent
# The links of the README are checked with this address if none is given.
EXAMPLE = "https://example.org/squentropy_jax"
# The pages that say how to install the package. docs/pods.md needs a checkout.
INSTALL = ("README.md", "docs/get_started.md", "docs/study.md")
# Prints the distributions of an environment, and the requirements of each.
LISTED = """
import json
from importlib import metadata
print(json.dumps({
  d.name: [d.version, d.requires or []] for d in metadata.distributions()
}))
"""
# The same command as make demo, with fewer rows, seeds and epochs.
DEMO = (
  *("run", "digits", "--rows", "300", "--seeds", "2", "--max-epochs", "3"),
  *("--epochs", "none", "--losses", "cross_entropy", "squentropy"),
  *("--no-baselines", "--quiet"),
)


class ReleaseError(Exception):
  """A problem that ends the check, with its fix."""


def run(
  command: Sequence[str | os.PathLike[str]], folder: pathlib.Path, fix: str
) -> str:
  """Runs a command in a folder.

  Args:
    command: The program and its arguments.
    folder: The folder to run it in.
    fix: What to do if the command fails.

  Returns:
    What it prints.

  Raises:
    ReleaseError: The command fails. The message has its output and the fix.
  """
  # The checkout must not be importable, and pip must not ask for its update.
  environment = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "VIRTUAL_ENV")
  }
  done = subprocess.run(
    [str(part) for part in command],
    cwd=folder,
    env=environment,
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    shown = " ".join(str(part) for part in command)
    raise ReleaseError(f"{shown}\n{done.stdout}{done.stderr}\n{fix}")
  return done.stdout


def git(*arguments: str) -> str:
  """Returns what git prints about this checkout."""
  fix = "The check needs git, and a checkout made with it."
  return run(["git", *arguments], ROOT, fix)


def report(problems: Sequence[str], fine: str) -> None:
  """Prints what is fine, or raises ReleaseError with the problems."""
  if problems:
    raise ReleaseError("\n".join(problems))
  print(fine, flush=True)


def check_checkout(publishing: bool) -> tuple[list[str], str]:
  """Checks the tree, the version, the tags and the workflows.

  Args:
    publishing: Whether the commit is published.

  Returns:
    The tracked files, and the tag or the commit.
  """
  changed = git("status", "--porcelain")
  if changed:
    raise ReleaseError(
      "Files differ from the last commit, which is what is released:\n"
      f"{changed}Commit them, or put them aside (git stash -u)."
    )
  current = rules.version(ROOT)
  at_head = git("tag", "--points-at", "HEAD").split()
  elsewhere = set(git("tag").split()) - set(at_head)
  problems = rules.metadata_problems(ROOT, publishing=publishing)
  problems += rules.tag_problems(current, at_head, elsewhere, publishing)
  if publishing:
    pages = {name: (ROOT / name).read_text("utf-8") for name in INSTALL}
    problems += rules.install_problems(pages)
  tagged = f"v{current}" in at_head
  tag = f"the tag v{current}" if tagged else "no tag yet"
  report(problems, f"version {current}: changelog, citation, {tag}")
  if publishing:
    run(
      ["git", "merge-base", "--is-ancestor", "HEAD", "origin/main"],
      ROOT,
      "Only commits of origin/main are published. Fetch it, and tag one.",
    )
  run(
    [PROGRAMS / "cffconvert", "--validate"],
    ROOT,
    "Correct CITATION.cff.",
  )
  run(
    [PROGRAMS / "zizmor", "--offline", "--quiet", "."],
    ROOT,
    "Correct the workflows in .github/workflows.",
  )
  print("citation and workflows are valid", flush=True)
  revision = git("rev-parse", "HEAD").strip()
  tracked = git("ls-files", "-z").split("\0")
  return tracked, f"v{current}" if tagged else revision


def check_readme(url: str | None, revision: str) -> str:
  """Checks the README as an index shows it.

  Args:
    url: The address of the repository, or None.
    revision: The tag or the commit.

  Returns:
    The README with the links that the index shows.
  """
  from readme_renderer import markdown

  text = (ROOT / "README.md").read_text(encoding="utf-8")
  linked = rules.absolute_links(text, url or EXAMPLE, revision)
  problems = rules.readme_problems(linked, markdown.render)
  report(problems, "README.md renders as at an index")
  if url is None:
    print(
      "  Its links lead to files of the repository. They work at an index only "
      "in a build\n  with --url and the address of the repository."
    )
    return text
  return linked


def check_recipe(text: str) -> None:
  """Renders the recipe for conda-forge, as its tool does.

  Args:
    text: The recipe.

  Raises:
    ReleaseError: The tool does not accept the recipe.
  """
  import rattler_build

  try:
    rattler_build.Stage0Recipe.from_yaml(text).render()
  except rattler_build.RattlerBuildError as error:
    fix = "Correct packaging/recipe.yaml."
    raise ReleaseError(f"{error}\n{fix}") from error
  print("packaging/recipe.yaml renders as at conda-forge", flush=True)


def build(
  folder: pathlib.Path, readme: str, tracked: Sequence[str]
) -> pathlib.Path:
  """Builds both distributions from the last commit, and checks their files.

  Args:
    folder: A temporary folder.
    readme: The text of the README.
    tracked: The tracked files.

  Returns:
    The folder with the two files.
  """
  archive, source, out = folder / "a.tar", folder / "source", folder / "dist"
  git("archive", "--format=tar", f"--output={archive}", "HEAD")
  with tarfile.open(archive) as tar:
    tar.extractall(source, filter="data")
  (source / "README.md").write_text(readme, encoding="utf-8")
  # The pinned setuptools of this environment builds, as in make test.
  command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out]
  run([*command, source], folder, "Correct setup.cfg or pyproject.toml.")
  current = rules.version(ROOT)
  (wheel,) = out.glob("*.whl")
  (sdist,) = out.glob("*.tar.gz")
  with zipfile.ZipFile(wheel) as opened:
    in_wheel = [name for name in opened.namelist() if name[-1] != "/"]
  with tarfile.open(sdist) as opened:
    files = [member.name for member in opened if member.isfile()]
    in_sdist = [name.partition("/")[2] for name in files]
  for path, kind, names, wanted in (
    (wheel, "wheel", in_wheel, rules.wheel_files(tracked, current)),
    (sdist, "source distribution", in_sdist, rules.sdist_files(tracked)),
  ):
    size = path.stat().st_size / 1024
    print(f"{path.name}, {size:.0f} kB, {len(names)} files:")
    print(rules.listing(names))
    problems = rules.content_problems(kind, names, wanted)
    report(problems, f"  the {kind} has the files that belong there")
  run(
    [PROGRAMS / "twine", "check", "--strict", wheel, sdist],
    folder,
    "Correct the metadata in setup.cfg.",
  )
  print("twine accepts both", flush=True)
  return out


def check_use(folder: pathlib.Path, wheel: pathlib.Path, readme: str) -> None:
  """Installs the wheel alone, runs the quick start, and then a small study.

  Args:
    folder: A temporary folder.
    wheel: The file to install.
    readme: The README with the quick start.
  """
  environment = folder / "environment"
  python = environment / "bin" / "python"
  no_python = "Pass PYTHON=/path/to/python3 to make."
  if _has_uv():
    make = ["uv", "venv", "--quiet", "--python", sys.executable, environment]
    install = ["uv", "pip", "install", "--quiet", "--python", python]
  else:
    make = [sys.executable, "-m", "venv", environment]
    install = [python, "-m", "pip", "install", "--quiet"]
  failed = "The wheel cannot be installed. See whether a registry is reachable."
  run(make, folder, no_python)
  run([*install, wheel], folder, failed)
  fix = "Its environment has no working Python. Run make release-check again."
  found = json.loads(run([python, "-c", LISTED], folder, fix))
  names = ", ".join(sorted(f"{name} {found[name][0]}" for name in found))
  requires = {name: lines for name, (_, lines) in found.items()}
  other = set(rules.unrequired(requires, ["jax", "numpy"]))
  # The package itself, and what venv installs without uv.
  other -= {rules.PACKAGES[0], "pip", "setuptools"}
  report(
    [f"The wheel installs {name}. See setup.cfg." for name in sorted(other)],
    f"installed alone: {names}",
  )
  code, wanted = rules.quick_start(readme)
  printed = run(
    [python, "-W", "error", "-c", code],
    folder,
    "The quick start in README.md does not run with jax and numpy alone.",
  ).splitlines()
  different = [
    f"README.md: the quick start prints {printed}, and its comments say "
    f"{wanted}. Correct the comments."
  ]
  report(
    different if printed != wanted else [],
    "the quick start prints what its comments say",
  )
  run([*install, f"{wheel}[study]"], folder, failed)
  run(
    [environment / "bin" / "squentropy-study", *DEMO, "--out", "demo"],
    folder,
    "The command does not run with the extra study alone. See setup.cfg.",
  )
  missing = [
    f"The study wrote no {name}."
    for name in ("report.html", "results.csv")
    if not (folder / "demo" / name).is_file()
  ]
  report(missing, "with the extra study, squentropy-study writes a report")


def _has_uv() -> bool:
  # A version manager's placeholder is found, and does not run.
  if shutil.which("uv") is None:
    return False
  done = subprocess.run(["uv", "--version"], capture_output=True, check=False)
  return done.returncode == 0


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs all checks, and returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
  parser.add_argument(
    "--url", help="address of the repository, for the links of the README"
  )
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    help="keep the two files in this folder, to publish them",
  )
  given = parser.parse_args(arguments)
  try:
    tracked, revision = check_checkout(publishing=given.out is not None)
    readme = check_readme(given.url, revision)
    check_recipe((ROOT / "packaging" / "recipe.yaml").read_text("utf-8"))
    with tempfile.TemporaryDirectory() as temporary:
      folder = pathlib.Path(temporary)
      dist = build(folder, readme, tracked)
      check_use(folder, next(dist.glob("*.whl")), readme)
      if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        for path in dist.iterdir():
          shutil.copy2(path, given.out)
  except ReleaseError as error:
    print(f"\n{error}\nThe release check failed.", file=sys.stderr)
    return 1
  print("The release check passed.")
  return 0


if __name__ == "__main__":
  sys.exit(main())
