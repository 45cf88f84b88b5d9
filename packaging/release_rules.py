# SPDX-License-Identifier: Apache-2.0
"""Checks what a release must satisfy, without building it.

``packaging/release_check.py`` calls these functions, which read files and names
only. Most return a list of problems, each with its fix.
"""

import collections
from collections.abc import Callable, Iterable, Mapping
import datetime
import pathlib
import re

PACKAGES = ("squentropy_jax", "squentropy_study")
_LINK = re.compile(r"(?<=\]\()(?!https?://|#)([^)\s]+)(?=\))")
_IMAGES = (".png", ".svg", ".jpg", ".gif")
_CHECKOUT = re.compile(r"pip install '?\.|\bcheckout\b")


def version(root: pathlib.Path) -> str:
  """Returns the version of the package, without importing it."""
  text = (root / PACKAGES[0] / "__init__.py").read_text(encoding="utf-8")
  return re.search(r'^__version__ = "(.*)"$', text, re.M).group(1)


def metadata_problems(
  root: pathlib.Path,
  today: datetime.date | None = None,
  publishing: bool = False,
) -> list[str]:
  """Returns how the version, the changelog and the citation disagree.

  Args:
    root: The folder with the files.
    today: The day of the check.
    publishing: Whether the version is published, which requires a recent date.

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
  today = today or datetime.date.today()
  # The clock of another time zone may be a day ahead.
  if date is not None and date > today + datetime.timedelta(days=1):
    found.append(
      f"CHANGELOG.md: the date {day} of the newest heading is in the future. "
      "Write the day of the release."
    )
  elif publishing and date is not None and (today - date).days > 2:
    found.append(
      f"CHANGELOG.md: the date {day} of the newest heading is more than two "
      f"days before {today}, the day of publishing. Write {today} there and in "
      "CITATION.cff, commit, and move the tag."
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
  current: str,
  at_head: Iterable[str],
  elsewhere: Iterable[str],
  publishing: bool = False,
) -> list[str]:
  """Returns how the version and the tags of versions disagree.

  Args:
    current: The version of the package.
    at_head: The tags of the commit that is checked.
    elsewhere: All other tags.
    publishing: Whether the commit is published, which requires its tag.

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
  elif publishing and wanted not in at_head:
    found.append(
      f"The commit does not have the tag {wanted}, which publishing requires. "
      f"Make the tag: git tag {wanted}"
    )
  return found


def install_problems(pages: Mapping[str, str]) -> list[str]:
  """Returns where pages say how to install a checkout instead of a release.

  Args:
    pages: Markdown by the name of its file.

  Returns:
    One sentence for each line, with its fix.
  """
  return [
    f"{name}:{number}: {line.strip()!r} is about a checkout. Write how to "
    f"install the published package: pip install {PACKAGES[0]}"
    for name, text in pages.items()
    for number, line in enumerate(text.splitlines(), 1)
    if _CHECKOUT.search(line)
  ]


def unrequired(
  installed: Mapping[str, Iterable[str]], roots: Iterable[str]
) -> list[str]:
  """Returns the installed distributions that no root needs.

  Args:
    installed: The requirements of each distribution, with their markers.
    roots: Distributions that are wanted with all that they require.

  Returns:
    Their names, sorted. Optional requirements of extras count as not needed.
  """
  requirements = {_normal(name): installed[name] for name in installed}
  wanted, queue = set(), [_normal(root) for root in roots]
  while queue:
    name = queue.pop()
    if name not in wanted:
      wanted.add(name)
      lines = requirements.get(name, ())
      queue += [_normal(line) for line in lines if "extra ==" not in line]
  return sorted(name for name in installed if _normal(name) not in wanted)


def _normal(requirement: str) -> str:
  """Returns the name of a requirement, as an index compares names."""
  name = re.match(r"[\w.-]+", requirement).group()
  return re.sub(r"[-_.]+", "-", name).lower()


def _in_packages(name: str) -> bool:
  return name.startswith(tuple(f"{package}/" for package in PACKAGES))


def _package_files(tracked: Iterable[str]) -> set[str]:
  """Returns all Python files, and the mark that the package has types."""
  return {f"{PACKAGES[0]}/py.typed"} | {
    name
    for name in tracked
    if _in_packages(name) and name.endswith((".py", "/py.typed"))
  }


def wheel_files(tracked: Iterable[str], current: str) -> set[str]:
  """Returns the names of all files that the wheel must have."""
  info = f"{PACKAGES[0]}-{current}.dist-info"
  names = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")
  files = {f"{info}/{name}" for name in (*names, "licenses/LICENSE")}
  return files | _package_files(tracked)


def sdist_files(tracked: Iterable[str]) -> set[str]:
  """Returns the names of all files of the source distribution."""
  info = f"{PACKAGES[0]}.egg-info"
  names = ("PKG-INFO", "SOURCES.txt", "dependency_links.txt", "requires.txt")
  names += ("entry_points.txt", "top_level.txt")
  top = {"LICENSE", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg"}
  return _package_files(tracked) | top | {f"{info}/{name}" for name in names}


def content_problems(
  kind: str, names: Iterable[str], wanted: Iterable[str]
) -> list[str]:
  """Returns what a distribution lacks, and what does not belong in it.

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
  """Returns how many files the packages have, and the names of all others."""
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
  """Returns a page with links that work at a package index.

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
  """Returns what an index does not show of a README.

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
  """Returns the first code of a README, and the lines that it must print.

  Args:
    readme: Markdown.

  Returns:
    The code, and the comments at the end of its calls of ``print``.
  """
  code = re.search(r"^```python\n(.*?)^```", readme, re.M | re.S).group(1)
  return code, re.findall(r"^print\(.*\)  # (.*)$", code, re.M)
