# SPDX-License-Identifier: Apache-2.0
"""Builds the site: ``make docs``, or ``python docs/website/build_site.py``.

The pages are written to build/site/source, and the site to build/site/html.
Notebooks run once, until their source changes. Warnings are errors, and so are
broken links and files from other hosts. Where Chromium is installed, it opens
some pages. Arguments are those of sphinx-build, such as
``-D nb_execution_mode=off``.
"""

import html
import os
import pathlib
import re
import sys

import check_site
import render_site
import site_pages
from sphinx.cmd import build

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]
NOT_RUN = "<p>The notebooks were not run, so there is no report.</p>"
DOWNLOAD = '<p><a href="report.html" download>Download the report</a></p>'


def _save_report(site: pathlib.Path) -> None:
  """Moves the report that a notebook embeds to a file of its own.

  Other pages show it too, and readers can download it.
  """
  page, report = (
    site / "gallery" / name for name in ("compare_losses.html", "report.html")
  )
  text = page.read_text(encoding="utf-8")
  # The code of the notebook, which the page shows, has the same words.
  if embedded := re.search(r'(<iframe [^>]*)srcdoc="([^"]*)"', text):
    report.write_text(html.unescape(embedded.group(2)), encoding="utf-8")
    frame = f'{embedded.group(1)}src="report.html"'
    text = text.replace(embedded.group(), frame)
    text = text.replace("</iframe>", f"</iframe>{DOWNLOAD}")
    page.write_text(text, encoding="utf-8")
  elif not report.exists():
    report.write_text(NOT_RUN, encoding="utf-8")


def _problems(site: pathlib.Path) -> list[str]:
  """What the checks of the site find."""
  found = check_site.problems(site)
  if render_site.chromium():
    found += render_site.problems(site)
  else:
    print("Chromium is not installed, so no page was opened in a browser.")
  return found


def main(
  arguments: list[str], out: pathlib.Path = ROOT / "build" / "site"
) -> int:
  """Builds the site in a folder, with further arguments of sphinx-build."""
  # The kernels of the notebooks use this checkout and no accelerator.
  os.environ["PYTHONPATH"] = str(ROOT)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  # On a busy machine, XLA would write into the pages that it compiles slowly.
  os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
  source = out / "source"
  source.mkdir(parents=True, exist_ok=True)
  site_pages.write(source, site_pages.pages())
  site = out / "html"
  code = build.build_main(
    [
      *("-c", str(FOLDER), "-d", str(out / "doctrees"), "-b", "html"),
      *("-j", "2", "--fail-on-warning", *arguments, str(source), str(site)),
    ]
  )
  # 2 is an error, after which the pages are old. Other builders of Sphinx, such
  # as that of the tests, write no pages.
  if code > 1 or not (site / "index.html").exists():
    return code
  _save_report(site)
  problems = _problems(site)
  print(*problems, f"The site is in {site / 'index.html'}", sep="\n")
  return code or bool(problems)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
