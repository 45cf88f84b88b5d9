# SPDX-License-Identifier: Apache-2.0
"""Opens pages of the site in headless Chromium, as narrow as a telephone."""

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

PAGES = (
  "index.html",
  "study.html",
  "gallery/compare_losses.html",
  "losses/squentropy.html",
  "benchmarks.html",
  "replication/index.html",
  "api/squentropy_jax.losses.focal.html",
)
WIDTH = 390
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
    const page = frame.contentDocument;
    done({{ title: page.title, wide: wide(page),
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
  """The command of Chromium or Chrome, or None."""
  names = ("chromium", "chromium-browser", "google-chrome")
  return next(filter(None, map(shutil.which, names)), None)


class _Handler(server.SimpleHTTPRequestHandler):
  """Serves the site, and the page of frames at ``/frames``."""

  frames = ""

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

  def log_message(self, *_: Any) -> None:
    """Prints nothing."""


@contextlib.contextmanager
def _served(site: pathlib.Path, frames: str) -> Iterator[str]:
  """The address of a local server of the site."""
  handler = type("Handler", (_Handler,), {"frames": frames})
  with server.ThreadingHTTPServer(
    ("127.0.0.1", 0), functools.partial(handler, directory=str(site))
  ) as running:
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
      yield f"http://127.0.0.1:{running.server_port}"
    finally:
      running.shutdown()
      thread.join()


def rendered(
  site: pathlib.Path, names: Sequence[str], width: int = WIDTH
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """What a browser finds on pages, and what it writes to its console.

  Args:
    site: The folder with the HTML files.
    names: The pages, each with its query, such as ``"search.html?q=focal"``.
    width: The width of the window in pixels.

  Returns:
    For each page its ``title``, the elements that are ``wide``r than the
    window, and the number of search ``results``; and the lines of the console,
    which also has each file that was not found.
  """
  command = chromium()
  if command is None:
    raise RuntimeError("Found no Chromium and no Chrome: install one of them.")
  frames = _FRAMES.format(width=width, names=json.dumps(list(names)))
  with (
    _served(site, frames) as address,
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
  return json.loads(html.unescape(body.group(1))), console


def problems(
  site: pathlib.Path, names: Sequence[str] = PAGES, width: int = WIDTH
) -> list[str]:
  """What is wider than the window, and all errors of the console."""
  pages, console = rendered(site, names, width)
  found = [
    f"{name} is wider than {width} pixels: {', '.join(page['wide'])}"
    for name, page in pages.items()
    if page["wide"]
  ]
  return found + [f"console: {line}" for line in console]
