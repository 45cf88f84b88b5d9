# SPDX-License-Identifier: Apache-2.0
"""Checks the site after its build: links, external files, and how it renders.

`build_site` runs all checks. The last one needs Chromium, and is left out where
that is not installed.
"""

from collections.abc import Iterator
import html.parser
import pathlib
import re
import urllib.parse

# What a browser loads by itself, by tag.
_LOADS = {
  "audio": "src",
  "embed": "src",
  "iframe": "src",
  "img": "src",
  "input": "src",
  "link": "href",
  "object": "data",
  "script": "src",
  "source": "src",
  "track": "src",
  "video": "src",
}
# Relations of a <link> that a browser does not load.
_IS_NOT_LOADED = {"canonical", "next", "prev", "index", "search", "author"}
_EXTERNAL = re.compile(r"(?:https?:)?//", re.I)
_CSS_URL = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""")


class _Page(html.parser.HTMLParser):
  """What a page has and asks for.

  Attributes:
    ids: The anchors.
    links: Targets of links and of files that the page shows.
    loads: Files that the browser loads with the page.
  """

  def __init__(self, text: str) -> None:
    super().__init__()
    self.ids: set[str] = set()
    self.links: list[str] = []
    self.loads: list[str] = []
    self._is_style = False
    self.feed(text)

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    """Notes the anchors, links and files of a tag."""
    values = {key: value for key, value in attrs if value}
    self.ids |= {values[key] for key in ("id", "name") if key in values}
    self._is_style = tag == "style"
    if tag == "a" and "href" in values:
      self.links.append(values["href"])
    relations = set(values.get("rel", "").split())
    if (key := _LOADS.get(tag)) in values and not relations & _IS_NOT_LOADED:
      self.loads.append(values[key])
    self.loads += _CSS_URL.findall(values.get("style", ""))
    if "srcdoc" in values:
      # A link of an embedded page opens inside its frame.
      self.loads += _Page(values["srcdoc"]).loads

  def handle_data(self, data: str) -> None:
    """Notes the files of a style sheet inside the page."""
    if self._is_style:
      self.loads += _CSS_URL.findall(data)


def _is_local(url: str) -> bool:
  return not re.match(r"[a-z]+:|//", url, re.I)


def _broken(
  name: str, page: _Page, site: pathlib.Path, pages: dict[str, _Page]
) -> Iterator[str]:
  """The links of one page that lead nowhere."""
  for url in {*page.links, *page.loads}:
    if not _is_local(url):
      continue
    target, _, anchor = urllib.parse.unquote(url).partition("#")
    target = target.partition("?")[0]
    path = ((site / name).parent / target).resolve() if target else site / name
    if not path.is_file():
      yield f"{name} links to {url}, which does not exist"
      continue
    found = pages.get(path.relative_to(site).as_posix())
    if anchor and found and anchor not in found.ids:
      yield f"{name} links to {url}, which has no such anchor"


def problems(site: pathlib.Path) -> list[str]:
  """Broken links, and files that pages load from other hosts.

  Args:
    site: The folder with the HTML files.
  """
  site = site.resolve()
  pages = {
    path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8"))
    for path in sorted(site.rglob("*.html"))
  }
  found = []
  for name, page in pages.items():
    found += sorted(_broken(name, page, site, pages))
    found += [
      f"{name} loads {url} from another host"
      for url in page.loads
      if _EXTERNAL.match(url)
    ]
  for path in sorted(site.rglob("*.css")):
    found += [
      f"{path.relative_to(site)} loads {url} from another host"
      for url in _CSS_URL.findall(path.read_text(encoding="utf-8"))
      if _EXTERNAL.match(url)
    ]
  return found
