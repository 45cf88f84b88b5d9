# SPDX-License-Identifier: Apache-2.0
"""Builds the site: ``make docs``, or ``python docs/website/build_site.py``.

The pages are written to build/site/source, and the site to build/site/html.
Notebooks run once, until their source changes. Warnings are errors, and so is
what the checks of `check_site` find. Where Chromium is installed, `render_site`
opens some pages. Arguments are those of sphinx-build, such as
``-D nb_execution_mode=off``.
"""

import os
import pathlib
import sys

import api_pages
import check_site
import render_site
import site_pages
from sphinx.cmd import build
import study_report

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]


def _problems(site: pathlib.Path, *, were_run: bool) -> list[str]:
  """Returns what the checks of the site find.

  Args:
    site: The folder with the HTML files.
    were_run: Whether the notebooks were run.
  """
  found = check_site.problems(site)
  found += check_site.missing_names(site, api_pages.symbols())
  found += check_site.missing_results(
    site, "squentropi", ("index", "losses/squentropy", "get_started")
  )
  if were_run:
    found += study_report.problems(site)
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
  study_report.save(site)
  is_off = any(a.endswith("nb_execution_mode=off") for a in arguments)
  problems = _problems(site, were_run=not is_off)
  print(*problems, f"The site is in {site / 'index.html'}", sep="\n")
  return code or bool(problems)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
