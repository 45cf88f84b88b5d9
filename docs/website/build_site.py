# SPDX-License-Identifier: Apache-2.0
"""Builds the site: ``make docs``, or ``python docs/website/build_site.py``.

The pages are written to build/site/source, and the site to build/site/html.
Notebooks run once, until their source changes. Warnings are errors. Arguments
are those of sphinx-build, such as ``-D nb_execution_mode=off``.
"""

import os
import pathlib
import sys

import site_pages
from sphinx.cmd import build

FOLDER = pathlib.Path(__file__).parent
ROOT = FOLDER.parents[1]


def main(
  arguments: list[str], out: pathlib.Path = ROOT / "build" / "site"
) -> int:
  """Builds the site in a folder, with further arguments of sphinx-build."""
  # The kernels of the notebooks use this checkout and no accelerator.
  os.environ["PYTHONPATH"] = str(ROOT)
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  source = out / "source"
  source.mkdir(parents=True, exist_ok=True)
  site_pages.write(source, site_pages.pages())
  code = build.build_main(
    [
      *("-c", str(FOLDER), "-d", str(out / "doctrees"), "-b", "html"),
      *("-j", "2", "--fail-on-warning", *arguments),
      *(str(source), str(out / "html")),
    ]
  )
  if not code:
    print(f"The site is in {out / 'html' / 'index.html'}")
  return code


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
