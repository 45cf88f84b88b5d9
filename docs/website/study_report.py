# SPDX-License-Identifier: Apache-2.0
"""The report of a study, which a notebook of the gallery embeds."""

import html
import pathlib
import re

_NOT_RUN = "<p>The notebooks were not run, so there is no report.</p>"
_DOWNLOAD = '<p><a href="report.html" download>Download the report</a></p>'


def save(site: pathlib.Path) -> None:
  """Moves the report from the page of its notebook to a file of its own.

  Other pages show it too, and readers can download it.

  Args:
    site: The folder with the HTML files.
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
    text = text.replace("</iframe>", f"</iframe>{_DOWNLOAD}")
    page.write_text(text, encoding="utf-8")
  elif not report.exists():
    report.write_text(_NOT_RUN, encoding="utf-8")


def problems(site: pathlib.Path) -> list[str]:
  """Returns a sentence for each page that should show the report but does not.

  Args:
    site: The folder with the HTML files, from notebooks that were run.
  """
  report = site / "gallery" / "report.html"
  found = []
  if "<h1" not in report.read_text(encoding="utf-8"):
    found.append("gallery/report.html has no report")
  for name in ("gallery/compare_losses.html", "study.html"):
    text = (site / name).read_text(encoding="utf-8")
    for attribute, use in (("src", "show"), ("href", "link to")):
      links = re.findall(rf'\b{attribute}="([^"]*report\.html)"', text)
      targets = [(site / name).parent.joinpath(link) for link in links]
      if report.resolve() not in [target.resolve() for target in targets]:
        found.append(f"{name} does not {use} gallery/report.html")
  return found
