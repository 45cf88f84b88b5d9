# SPDX-License-Identifier: Apache-2.0
"""Opens pages of the site in headless Chromium, as narrow as a telephone.

It finds pages that are too wide, searches without a result, files that do not
exist or are on other hosts, and errors of scripts.
"""

from collections.abc import Iterator, Sequence
import contextlib
import functools
import html
from http import server
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
from typing import Any
import urllib.parse

PAGES = (
  "index.html",
  "study.html",
  "gallery/compare_losses.html",
  "losses/squentropy.html",
  "benchmarks.html",
  "replication/index.html",
  "api/squentropy_jax.losses.focal.html",
  "search.html?q=squentropy",
)
WIDTH = 390
# The browser writes to its console what it may not load: all of other hosts.
_POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
# One frame for each page, because a window cannot be as narrow as a frame.
_FRAMES = """<!doctype html><meta charset="utf-8">
<link rel="icon" href="data:,">
<style>iframe {{ width: {width}px; height: 900px; border: 0 }}</style><body>
<script>
// The theme lets the whole article scroll, which is what is looked for.
const scrolls = (e) => {{
  for (; e.localName !== "article"; e = e.parentElement)
    if (/auto|scroll/.test(getComputedStyle(e).overflowX)) return true;
  return false;
}};
const wide = (page) => {{
  const width = page.documentElement.clientWidth;
  const found = new Set();
  if (page.documentElement.scrollWidth > width) found.add("the page");
  for (const e of page.querySelectorAll("article *"))
    if (e.getBoundingClientRect().right > width + 1
        && !scrolls(e))
      found.add(`<${{e.localName}} class="${{e.getAttribute("class")}}">`);
  return [...found].slice(0, 3);
}};
const open = (name) => new Promise((done) => {{
  const frame = document.createElement("iframe");
  frame.src = "/" + name;
  frame.onload = () => setTimeout(() => {{
    // A page that has gone to another host cannot be read.
    const page = frame.contentDocument ?? new Document();
    done({{ wide: page.documentElement ? wide(page) : [],
            results: page.querySelectorAll("#search-results li").length }});
    frame.remove();
  }}, 1000);
  document.body.append(frame);
}});
(async () => {{
  const found = {{}};
  for (const name of {names}) found[name] = await open(name);
  document.title = "done";
  document.body.textContent = JSON.stringify(found);
}})();
</script>"""


def chromium() -> str | None:
  """Returns the command of Chromium or Chrome, or None."""
  names = ("chromium", "chromium-browser", "google-chrome")
  return next(filter(None, map(shutil.which, names)), None)


class _Handler(server.SimpleHTTPRequestHandler):
  """Serves the site, and the page of frames at ``/frames``.

  Attributes:
    frames: The page of frames.
    failed: The requests that were answered with an error, in words.
  """

  frames: str
  failed: list[str]

  def do_GET(self) -> None:
    """Answers a request."""
    if self.path != "/frames":
      super().do_GET()
      return
    data = self.frames.encode()
    self.send_response(200)
    self.send_header("Content-Type", "text/html; charset=utf-8")
    self.send_header("Content-Length", str(len(data)))
    self.end_headers()
    self.wfile.write(data)

  def send_response(self, code: int, message: str | None = None) -> None:
    """Begins an answer, and records errors."""
    super().send_response(code, message)
    if code >= 400:
      answer = f"{self.path[1:]}: error {code}"
      page = urllib.parse.urlsplit(self.headers.get("Referer", "")).path
      is_file = page not in ("", "/frames")
      self.failed.append(f"{page[1:]} loads {answer}" if is_file else answer)

  def end_headers(self) -> None:
    """Ends the headers with the policy."""
    self.send_header("Content-Security-Policy", _POLICY)
    super().end_headers()

  def log_message(self, *_: Any) -> None:
    """Prints nothing."""


@contextlib.contextmanager
def _served(site: pathlib.Path, frames: str) -> Iterator[tuple[str, list[str]]]:
  """Yields the address of a local server, and the list of failed requests."""
  failed: list[str] = []
  handler = type("Handler", (_Handler,), {"frames": frames, "failed": failed})
  with server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(handler, directory=str(site))
  ) as running:
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{running.server_port}", failed
    finally:
      running.shutdown()
      thread.join()


def _rendered(
  site: pathlib.Path, names: Sequence[str], width: int
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """Opens pages in a browser.

  Args:
    site: The folder with the HTML files.
    names: The pages, each with its query, such as ``"search.html?q=focal"``.
    width: The width of the window in pixels.

  Returns:
    For each page the ``wide`` elements, which do not fit into the window, and
    the number of search ``results``. Then the errors: requests that failed, and
    the lines of the console.
  """
  command = chromium()
  if command is None:
    raise RuntimeError("Found no Chromium and no Chrome: install one of them.")
  frames = _FRAMES.format(width=width, names=json.dumps(list(names)))
  with (
    _served(site, frames) as (address, failed),
    tempfile.TemporaryDirectory() as profile,
  ):
    done = subprocess.run(
      [
        command,
        *("--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
        # The user's own profile may be in use by another window.
        *(f"--user-data-dir={profile}", "--no-first-run"),
        *("--disable-background-networking", "--disable-sync"),
        # A page that needs another host fails instead of waiting.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        *("--enable-logging=stderr", "--log-level=0"),
        f"--virtual-time-budget={20_000 + 5_000 * len(names)}",
        f"{address}/frames",
      ],
      capture_output=True,
      text=True,
      timeout=300,
      check=True,
    )
  body = re.search(r"<body>(\{.*\})</body>", done.stdout, re.S)
  if body is None:
    raise RuntimeError(f"Chromium did not open the pages: {done.stderr}")
  console = re.findall(r"CONSOLE[^\]]*\] (.*)", done.stderr)
  errors = failed + [f"console: {line}" for line in console]
  return json.loads(html.unescape(body.group(1))), errors


def problems(
  site: pathlib.Path, names: Sequence[str] = PAGES, width: int = WIDTH
) -> list[str]:
  """Opens pages in a browser, and returns what is wrong with them.

  Args:
    site: The folder with the HTML files.
    names: The pages, each with its query, such as ``"search.html?q=focal"``.
    width: The width of the window in pixels.

  Returns:
    A sentence for each page that is wider than the window, for each search
    without a result, for each page or file that does not exist, for each
    request to another host, and for each error of a script.
  """
  pages, errors = _rendered(site, names, width)
  found = []
  for name, page in pages.items():
    if page["wide"]:
      wide = ", ".join(page["wide"])
      found.append(f"{name} is wider than {width} pixels: {wide}")
    if name.startswith("search.html") and not page["results"]:
      found.append(f"{name} shows no result")
  return found + errors
