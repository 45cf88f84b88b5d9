# SPDX-License-Identifier: Apache-2.0
"""What a release must satisfy, as functions that return lists of problems.

``packaging/release_check.py`` applies them. They read files and names only.
"""

import collections
from collections.abc import Callable, Iterable
import datetime
import pathlib
import re

PACKAGES = ("squentropy_jax", "squentropy_study")
_LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)\s]+)(?=\))")
_IMAGES = (".png", ".svg", ".jpg", ".gif")


def version(root: pathlib.Path) -> str:
  """The version of the package, without importing it."""
  text = (root / PACKAGES[0] / "__init__.py").read_text(encoding="utf-8")
  return re.search(r'^__version__ = "(.*)"$', text, re.M).group(1)


def metadata_problems(
  root: pathlib.Path, today: datetime.date | None = None
) -> list[str]:
  """How the version, the changelog and the citation disagree.

  Args:
    root: The folder with the files.
    today: The day of the check.

  Returns:
    One sentence for each problem, with its fix.
  """
  found = []
  current = version(root)
  log = (root / "CHANGELOG.md").read_text(encoding="utf-8")
  heading = re.search(r"^## \[(.*?)\](?: - (.*))?$", log, re.M)
  newest, day = heading.groups() if heading else (None, None)
  if newest != current:
    found.append(
      f"CHANGELOG.md: the newest heading is of version {newest}, but "
      f"squentropy_jax.__version__ is {current}. Change one of them."
    )
  try:
    date = datetime.date.fromisoformat(day or "")
  except ValueError:
    date = None
    found.append(
      f"CHANGELOG.md: the newest heading has the date {day}. Write the day of "
      f"the release, as in: ## [{current}] - 2026-01-31"
    )
  # The clock of another time zone may be a day ahead.
  limit = (today or datetime.date.today()) + datetime.timedelta(days=1)
  if date is not None and date > limit:
    found.append(
      f"CHANGELOG.md: the date {day} of the newest heading is in the future. "
      "Write the day of the release."
    )
  citation = (root / "CITATION.cff").read_text(encoding="utf-8")
  wanted = {"version": current, "date-released": date and date.isoformat()}
  for key, value in wanted.items():
    match = re.search(rf"^{key}: *[\"']?([^\"'\n]*)", citation, re.M)
    stated = match.group(1).strip() if match else None
    if value is not None and stated != value:
      found.append(
        f"CITATION.cff: {key} is {stated}, but CHANGELOG.md and "
        f"squentropy_jax.__version__ say {value}. Write {key}: {value}"
      )
  return found


def tag_problems(
  current: str, at_head: Iterable[str], elsewhere: Iterable[str]
) -> list[str]:
  """How the version and the tags of versions disagree.

  Args:
    current: The version of the package.
    at_head: The tags of the commit that is checked.
    elsewhere: All other tags.

  Returns:
    One sentence for each problem, with its fix.
  """
  wanted = f"v{current}"
  found = [
    f"The commit has the tag {tag}, but its version is {current}. Remove the "
    f"tag (git tag -d {tag}), or change squentropy_jax.__version__."
    for tag in at_head
    if re.match(r"v\d", tag) and tag != wanted
  ]
  if wanted in elsewhere:
    found.append(
      f"The tag {wanted} is on another commit, so version {current} was "
      "released before. Raise squentropy_jax.__version__."
    )
  return found


def _in_packages(name: str) -> bool:
  return name.startswith(tuple(f"{package}/" for package in PACKAGES))


def _package_files(tracked: Iterable[str]) -> set[str]:
  """All Python files, and the mark that the package has types."""
  return {
    name
    for name in tracked
    if _in_packages(name) and name.endswith((".py", "/py.typed"))
  }


def wheel_files(tracked: Iterable[str], current: str) -> set[str]:
  """The names of the files that the wheel must have, and no others."""
  info = f"{PACKAGES[0]}-{current}.dist-info"
  names = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")
  files = {f"{info}/{name}" for name in (*names, "licenses/LICENSE")}
  return files | _package_files(tracked)


def sdist_files(tracked: Iterable[str]) -> set[str]:
  """The names of the files that the source distribution must have."""
  info = f"{PACKAGES[0]}.egg-info"
  names = ("PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt")
  names += ("entry_points.txt", "top_level.txt")
  top = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
  return _package_files(tracked) | top | {f"{info}/{name}" for name in names}


def content_problems(
  kind: str, names: Iterable[str], wanted: Iterable[str]
) -> list[str]:
  """What a distribution lacks, and what does not belong in it.

  Args:
    kind: ``"wheel"`` or ``"source distribution"``.
    names: Its files.
    wanted: The files that it should have.

  Returns:
    One sentence for each file.
  """
  names, wanted = set(names), set(wanted)
  return [
    *(
      f"The {kind} lacks {name}. Add it to [options.packages.find] or "
      "[options.package_data] in setup.cfg."
      for name in sorted(wanted - names)
    ),
    *(
      f"The {kind} has {name}, which does not belong there. Exclude it in "
      "setup.cfg, or add it to packaging/release_rules.py."
      for name in sorted(names - wanted)
    ),
  ]


def listing(names: Iterable[str]) -> str:
  """The files by folder: those of the packages counted, all others named."""
  lines, counts = [], collections.Counter()
  for name in sorted(names):
    folder, _, _ = name.rpartition("/")
    if _in_packages(name):
      counts[folder] += 1
    else:
      lines.append(f"  {name}")
  counted = (f"  {folder}/: {n} files" for folder, n in sorted(counts.items()))
  return "\n".join([*counted, *lines])


def absolute_links(text: str, repository: str, revision: str) -> str:
  """A page of the repository with links that work at a package index.

  Args:
    text: Markdown.
    repository: The address of the repository.
    revision: The tag or the commit that the links lead to.

  Returns:
    The text. Links to headings of the same page stay.
  """

  def link(match: re.Match[str]) -> str:
    kind = "raw" if match.group().endswith(_IMAGES) else "blob"
    return f"{repository}/{kind}/{revision}/{match.group()}"

  return _LINK.sub(link, text)


def readme_problems(
  text: str, render: Callable[[str], str | None]
) -> list[str]:
  """What an index does not show of a README.

  Args:
    text: Markdown, with the links that the index will show.
    render: The renderer of the index. It returns HTML, or None.

  Returns:
    One sentence for each problem, with its fix.
  """
  html = render(text)
  if not html:
    return [
      "README.md: the renderer of the index returns no page. Look for "
      "HTML that the index does not accept."
    ]
  found = []
  for name, tag, mark in (
    ("heading", "<h2", r"^## "),
    ("table", "<table", r"^\|-"),
    ("picture", "<img", r"!\["),
  ):
    shown, written = html.count(tag), len(re.findall(mark, text, re.M))
    if shown != written:
      found.append(
        f"README.md: the index shows {shown} of {written} {name}s. Look at "
        "the Markdown around those that are missing."
      )
  for link in re.findall(r'(?:href|src)="([^"]*)"', html):
    if not link.startswith(("http://", "https://", "#", "mailto:")):
      found.append(
        f"README.md: the link {link} does not work at an index. Pass "
        "--url with the address of the repository."
      )
  return found


def quick_start(readme: str) -> tuple[str, list[str]]:
  """The first Python code of a README, and the lines that it must print.

  Args:
    readme: Markdown.

  Returns:
    The code, and the comments at the end of its calls of ``print``.
  """
  code = re.search(r"^```python\n(.*?)^```", readme, re.M | re.S).group(1)
  return code, re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
