# SPDX-License-Identifier: Apache-2.0
"""The links between the pages of the repository."""

import re

import pytest
from support import source

PAGES = [
  *(
    source.ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
  ),
  *sorted((source.ROOT / "docs").rglob("*.md")),
]


def prose(text):
  """Returns Markdown without its code."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  return re.sub(r"`[^`\n]*`", "", text)


def anchors(text):
  """Returns the anchors of the headings, as the host of a repository does."""
  text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
  found = set()
  for heading in re.findall(r"^#+ (.*)$", text, re.M):
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    found.add(re.sub(r"[^\w\- ]", "", plain).replace(" ", "-"))
  return found


def dead_links(page):
  """Returns the relative links of a page that lead to no file or heading."""
  text = page.read_text(encoding="utf-8")
  dead = []
  for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
    if re.match(r"\w+:", link):
      continue
    name, _, anchor = link.partition("#")
    path = page.parent / name if name else page
    found = path.exists()
    if found and anchor:
      found = anchor in anchors(path.read_text(encoding="utf-8"))
    if not found:
      dead.append(link)
  return dead


@pytest.mark.parametrize(
  "page", PAGES, ids=lambda page: str(page.relative_to(source.ROOT))
)
def test_relative_links_lead_somewhere(page):
  assert not dead_links(page)


def test_dead_links_are_found(tmp_path):
  (tmp_path / "b.md").write_text("# A `b`: c\n")
  page = tmp_path / "a.md"
  page.write_text(
    "## Here\n[1](b.md#a-b-c) [2](#here) [3](https://a.example) `[4](c.md)`\n"
    "[5](c.md) ![6](docs/c.png) [7](b.md#b) [8](#there)\n"
  )
  assert dead_links(page) == ["c.md", "docs/c.png", "b.md#b", "#there"]
