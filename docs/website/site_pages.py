# SPDX-License-Identifier: Apache-2.0
"""The pages of the site, and the links between them.

Most pages are files of docs/, README.md, CONTRIBUTING.md and CHANGELOG.md. They
link to each other as files of the repository do. Here they get their places in
the site, and every link is checked.
"""

import os
import pathlib
import re

import api_pages
import benchmark_tables

ROOT = pathlib.Path(__file__).parents[2]
# Files that are pages under another name.
MOVED = {
  "CHANGELOG.md": "changelog.md",
  "CONTRIBUTING.md": "contributing.md",
  "README.md": "index.md",
  "docs/language_model/README.md": "language_model/index.md",
  "docs/losses/README.md": "losses/index.md",
  "docs/replication/README.md": "replication/index.md",
  "docs/website/index.md": "index.md",
}
# What a link to a folder opens.
FOLDERS = {
  "benchmarks/results": "benchmarks.md",
  "docs/language_model": "language_model/index.md",
  "docs/losses": "losses/index.md",
  "docs/replication": "replication/index.md",
  "examples": "examples/index.md",
  "examples/pods": "examples/index.md",
}
# Sections that are pages.
SECTIONS = {"README.md#sharp-edges": "sharp_edges.md"}
IMAGES = (".svg", ".png")
# The notebook compare_losses makes the report, and study_report saves it.
REPORT = """## A report

This is the report of a small study. [A notebook of the
gallery](gallery/compare_losses.py) runs it while the site is built.

<iframe class="report" title="Report of a study" loading="lazy"
src="gallery/report.html"></iframe>
<p><a href="gallery/report.html" download>Download the report</a></p>

"""
# What a script of the gallery says in Jupyter's own format.
HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
# A link whose text is the path of a page in the repository.
_PATH_LINK = re.compile(r"\[docs/[\w/]+\.md\]\(([^)#\s]+)\)")
_CODE = re.compile(r"^(```|~~~).*?^\1[^\n]*$|`[^`\n]+`", re.M | re.S)


def place(path: str) -> str | None:
  """Returns the page that shows a file of the repository, or None."""
  if path in MOVED:
    return MOVED[path]
  if path in FOLDERS:
    return FOLDERS[path]
  if re.fullmatch(r"benchmarks/results/\w+\.csv", path):
    return "benchmarks.md"
  if re.fullmatch(r"examples/[\w/]+\.py", path):
    return f"examples/{path.rpartition('/')[2].removesuffix('.py')}.md"
  inside = path.removeprefix("docs/")
  if inside != path and inside.endswith((".md", *IMAGES)):
    return inside
  if inside != path and re.fullmatch(r"gallery/\w+\.py", inside):
    return inside
  return None


class Pages:
  """Pages by their place in the site, and files that they show or link to.

  Attributes:
    texts: The text of each page.
    files: The file of the repository for each other file of the site.
  """

  def __init__(self) -> None:
    self.texts: dict[str, str] = {}
    self.files: dict[str, pathlib.Path] = {}

  def add(self, path: str, text: str | None = None, to: str = "") -> None:
    """Adds a file of the repository, or a part of it.

    Args:
      path: The path of the file in the repository.
      text: The part; None is the whole file.
      to: The place in the site; empty is that of the file.
    """
    if text is None:
      text = (ROOT / path).read_text(encoding="utf-8")
    page = to or place(path)
    assert page is not None, path
    self.texts[page] = self._relinked(text, path, page)

  def _relinked(self, text: str, path: str, page: str) -> str:
    """Returns the text with its links changed to the places of the site."""
    parts, end = [], 0
    for code in [*_CODE.finditer(text), None]:
      start = code.start() if code else len(text)
      parts.append(
        _LINK.sub(
          lambda m: self._target(m.group(), path, page), text[end:start]
        )
      )
      if code:
        parts.append(code.group())
        end = code.end()
    return "".join(parts)

  def _target(self, link: str, path: str, page: str) -> str:
    if link.startswith(("http://", "https://", "#", "mailto:")):
      return link
    target, _, anchor = link.partition("#")
    folder = os.path.dirname(path)
    file = os.path.normpath(os.path.join(folder, target))
    if not (ROOT / file).exists():
      raise ValueError(
        f"{path} links to {link}, which does not exist. Correct it."
      )
    if f"{file}#{anchor}" in SECTIONS:
      found, anchor = SECTIONS[f"{file}#{anchor}"], ""
    else:
      found = place(file)
    if found is None or found.endswith(IMAGES):
      found = found or f"files/{file}"
      self.files[found] = ROOT / file
    is_source = found.startswith("files/") and found.endswith(".py")
    found = os.path.relpath(found, os.path.dirname(page) or ".")
    if is_source:
      # Without "path:", MyST takes a link to a script for one to a notebook.
      return f"path:{found}"
    return f"{found}#{anchor}" if anchor else found

  def insert(self, page: str, before: str, path: str, text: str) -> None:
    """Inserts text from a file of the repository before words of a page."""
    start, found, end = self.texts[page].partition(before)
    assert found, f"{page} does not have {before!r}"
    self.texts[page] = start + self._relinked(text, path, page) + found + end

  def name_links(self) -> None:
    """Gives links whose text is a path the title of their page instead."""
    for page, text in self.texts.items():

      def named(match: re.Match, page: str = page) -> str:
        target = os.path.join(os.path.dirname(page), match.group(1))
        linked = self.texts.get(os.path.normpath(target), "")
        title = re.search(r"^# (.+)$", linked, re.M)
        return f"[{title[1]}]({match[1]})" if title else match.group()

      self.texts[page] = _PATH_LINK.sub(named, text)


def section(text: str, heading: str) -> str:
  """Returns a section of a page, without its heading."""
  match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
  if match is None:
    raise ValueError(f"There is no section {heading!r}.")
  return match.group(1).strip()


def reasons(readme: str) -> str:
  """Returns the list in the README of what the library is good for."""
  match = re.search(r"^- \*\*.*?(?=^[^-\s])", readme, re.M | re.S)
  assert match is not None
  return match.group()


def picture(readme: str) -> str:
  """Returns the first picture of the README, with the caption below it."""
  match = re.search(r"^!\[[^\n]*\n\n\*.*?\*\n\n", readme, re.M | re.S)
  assert match is not None
  return match.group()


def _toctree(entries: list[str]) -> str:
  names = "\n".join(entry.removesuffix(".md") for entry in entries)
  return f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def _examples(pages: Pages) -> None:
  """Adds a page for each script of examples/, and their list."""
  lines = ["| script | description |", "|---|---|"]
  names = []
  for path in sorted((ROOT / "examples").rglob("*.py")):
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    doc = re.search(r'^"""(.*?)(?:\n|""")', text, re.M)
    assert doc is not None, name
    title = name.removeprefix("examples/")
    pages.texts[place(name) or ""] = (
      f"---\norphan: true\n---\n\n# {title}\n\n````python\n{text}````\n"
    )
    names.append(path.stem)
    opening = doc.group(1).replace("|", "\\|")
    lines.append(f"| [{title}]({path.stem}.md) | {opening} |")
  pages.texts["examples/index.md"] = (
    "# Scripts to copy\n\nThe scripts need no download: their data come with "
    "scikit-learn or Python.\n\n" + "\n".join(lines) + "\n"
  )


def pages() -> Pages:
  """Returns all pages of the site."""
  found = Pages()
  for path in sorted((ROOT / "docs").rglob("*.md")):
    found.add(path.relative_to(ROOT).as_posix())
  for path in sorted((ROOT / "docs" / "gallery").glob("*.py")):
    name = path.relative_to(ROOT).as_posix()
    # The licence in the first line would be a cell.
    text = path.read_text(encoding="utf-8").partition("\n")[2]
    found.add(name, HEADER + text)
  found.add("CONTRIBUTING.md")
  found.add("CHANGELOG.md")
  readme = (ROOT / "README.md").read_text(encoding="utf-8")
  found.insert("index.md", "```python", "README.md", reasons(readme))
  found.insert("index.md", "| Question", "README.md", picture(readme))
  edges = section(readme, "Sharp edges")
  found.add("README.md", f"# Sharp edges\n\n{edges}\n", to="sharp_edges.md")
  families = [p for p in found.texts if p.startswith("losses/")]
  families = [os.path.basename(p) for p in families if p != "losses/index.md"]
  found.texts["losses/index.md"] += _toctree(
    ["table", *sorted(set(families) - {"table.md"})]
  )
  found.texts["replication/index.md"] += _toctree(["plan", "tables"])
  found.texts["language_model/index.md"] += _toctree(["plan", "tables"])
  found.insert("study.md", "## How to read", "docs/study.md", REPORT)
  found.texts["benchmarks.md"] += benchmark_tables.tables()
  _examples(found)
  found.texts |= api_pages.pages()
  found.name_links()
  return found


def write(folder: pathlib.Path, found: Pages) -> None:
  """Writes pages and files; files that did not change keep their dates."""
  wanted = {name: text.encode() for name, text in found.texts.items()}
  wanted |= {name: path.read_bytes() for name, path in found.files.items()}
  for path in sorted(folder.rglob("*")):
    if path.is_file() and path.relative_to(folder).as_posix() not in wanted:
      path.unlink()
  for name, data in wanted.items():
    path = folder / name
    if not path.exists() or path.read_bytes() != data:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(data)
