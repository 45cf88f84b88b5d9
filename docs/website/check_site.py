# SPDX-License-Identifier: Apache-2.0
"""Checks the files of the site after its build, without a browser.

`build_site` runs all checks. Those that need a browser are in `render_site`. It
also sees what scripts load, which is not looked for here.
"""

from collections.abc import Iterator, Mapping, Sequence
import html.parser
import json
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
_CSS_URL = re.compile(
  r"""(?:url\(|@import(?!\s*url\())\s*["']?([^"')\s;]+)""", re.I
)
# An image and its width or density. An address may have commas inside.
_CANDIDATE = re.compile(r"(\S*[^\s,])(?:\s[^,]*)?(?:,|$)")


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
    self.close()

  def handle_starttag(
    self, tag: str, attrs: list[tuple[str, str | None]]
  ) -> None:
    """Notes the anchors, links and files of a tag."""
    values = {key: value for key, value in attrs if value}
    anchors = ("id", "name") if tag == "a" else ("id",)
    self.ids |= {values[key] for key in anchors if key in values}
    self._is_style = tag == "style"
    if tag == "a" and "href" in values:
      self.links.append(values["href"])
    relations = set(values.get("rel", "").split())
    if (key := _LOADS.get(tag)) in values and not relations & _IS_NOT_LOADED:
      self.loads.append(values[key])
    self.loads += _CANDIDATE.findall(values.get("srcset", ""))
    self.loads += _CSS_URL.findall(values.get("style", ""))
    if "srcdoc" in values:
      # A link of an embedded page opens inside its frame.
      self.loads += _Page(values["srcdoc"]).loads

  def handle_endtag(self, tag: str) -> None:
    """Notes the end of a style sheet inside the page."""
    if tag == "style":
      self._is_style = False

  def handle_data(self, data: str) -> None:
    """Notes the files of a style sheet inside the page."""
    if self._is_style:
      self.loads += _CSS_URL.findall(data)


def _is_local(url: str) -> bool:
  return not re.match(r"[a-z]+:|//", url, re.I)


def _broken(
  name: str, page: _Page, site: pathlib.Path, pages: dict[str, _Page]
) -> Iterator[str]:
  """Yields a sentence for each link of one page that leads nowhere."""
  for url in {*page.links, *page.loads}:
    if not _is_local(url):
      continue
    target, _, anchor = urllib.parse.unquote(url).partition("#")
    target = target.partition("?")[0]
    path = ((site / name).parent / target).resolve() if target else site / name
    if not path.is_relative_to(site):
      yield f"{name} links to {url}, which is outside the site"
      continue
    if not path.is_file():
      yield f"{name} links to {url}, which does not exist"
      continue
    found = pages.get(path.relative_to(site).as_posix())
    if anchor and found and anchor not in found.ids:
      yield f"{name} links to {url}, which has no such anchor"


def problems(site: pathlib.Path) -> list[str]:
  """Returns a sentence for each broken link, and each file of another host.

  Args:
    site: The folder with the HTML files.
  """
  site = site.resolve()
  pages = {
    path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8"))
    for path in sorted(site.rglob("*.html"))
  }
  if not pages:
    return [f"{site} has no pages"]
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


def missing_names(
  site: pathlib.Path, symbols: Mapping[str, Sequence[str]]
) -> list[str]:
  """Returns a sentence for each public name that its page does not document.

  Args:
    site: The folder with the HTML files.
    symbols: The public names of each module.
  """
  found = []
  for module, names in symbols.items():
    for full in (f"{module}.{name}" for name in names):
      page = site / "api" / f"{full}.html"
      text = page.read_text(encoding="utf-8") if page.exists() else ""
      if f'id="{full}"' not in text:
        found.append(f"api/{full}.html does not document {full}")
  return found


def missing_results(
  site: pathlib.Path, stem: str, pages: Sequence[str]
) -> list[str]:
  """Returns a sentence for each page that a search must find but does not.

  Args:
    site: The folder with the HTML files and the index of the search.
    stem: The word that is searched for, as Sphinx shortens it.
    pages: The pages, without ``.html``.
  """
  text = (site / "searchindex.js").read_text(encoding="utf-8")
  match = re.fullmatch(r"Search\.setIndex\((.*)\)\s*", text, re.S)
  if match is None:
    return ["searchindex.js does not have the form that is expected"]
  index = json.loads(match[1])
  numbers: set[int] = set()
  for terms in (index["terms"], index["titleterms"]):
    found = terms.get(stem, [])
    # Sphinx writes a list only where there are several pages.
    numbers |= {found} if isinstance(found, int) else {*found}
  names = {index["docnames"][number] for number in numbers}
  return [
    f"a search for {stem!r} does not find {page}"
    for page in pages
    if page not in names
  ]
