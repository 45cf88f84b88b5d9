# SPDX-License-Identifier: Apache-2.0
"""Parts of a page: figures, names, legends, bars."""

import base64
from collections.abc import Callable, Iterable, Mapping
from html import escape

from squentropy_study._result_rows import Method
from squentropy_study._results import Results


def picture(draw: Callable[[str], bytes], alt: str, caption: str = "") -> str:
  """Returns a figure in both themes, of which the browser shows one."""
  light, dark = (
    "data:image/png;base64," + base64.b64encode(draw(theme)).decode()
    for theme in ("light", "dark")
  )
  above = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
  return (
    f"<figure>\n{above}<picture>\n"
    f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
    f'<img src="{light}" alt="{escape(alt)}">\n</picture>\n</figure>'
  )


def breakable(label: str) -> str:
  """Returns the label of a method, with places where a line may break."""
  name = escape(label)
  return (
    name.replace(":", ":<wbr>").replace(",", ",<wbr>").replace("_", "_<wbr>")
  )


def name(results: Results, method: Method) -> str:
  """Returns the label of a method of a study for a table."""
  return breakable(results.label(method))


def paragraphs(texts: Iterable[str], kind: str = "") -> str:
  """Returns a paragraph for each text."""
  attribute = f' class="{kind}"' if kind else ""
  return "\n".join(f"<p{attribute}>{escape(text)}</p>" for text in texts)


def line_legend(lines: Iterable[tuple[str, str, str]]) -> str:
  """Returns a legend of lines: color, dashes and text of each."""
  items = "\n".join(
    f'<li><i class="line" style="border-top-color:{color};border-top-style:'
    f'{"solid" if dashes == "-" else "dashed"}"></i>{escape(text)}</li>'
    for color, dashes, text in lines
  )
  return f'<ul class="legend">\n{items}\n</ul>'


def bar_legend(bars: Iterable[tuple[str, str, float, str]]) -> str:
  """Returns a legend of bars: color, hatch, opacity and text of each."""
  items = []
  for color, hatch, opacity, text in bars:
    style = f"color:{color};opacity:{opacity:g}"
    kind = {"": "full", "/": "rising", "\\": "falling"}[hatch[:1]]
    items.append(
      f'<li><i class="bar {kind}" style="{style}"></i>{escape(text)}</li>'
    )
  body = "\n".join(items)
  return f'<ul class="legend">\n{body}\n</ul>'


def rows_bar(rows: Mapping[str, int], roles: Mapping[str, str]) -> str:
  """Draws what the rows are for as one bar.

  Args:
    rows: Number of rows of each part.
    roles: What each part does.

  Returns:
    A bar whose parts have widths in proportion to their rows.
  """
  parts, items = [], []
  for index, (part, count) in enumerate(rows.items()):
    parts.append(f'<span class="part{index}" style="flex:{count}"></span>')
    items.append(
      f'<li><i class="bar full part{index}"></i>{escape(f"{count} {part}")}: '
      f"{escape(roles[part])}</li>"
    )
  return (
    f'<div class="rows" role="img" aria-label="Parts of the rows">'
    f"{''.join(parts)}</div>\n"
    f'<ul class="legend">\n{"".join(items)}\n</ul>'
  )


def definitions(facts: Mapping[str, str]) -> str:
  """Returns a list of terms and what they are."""
  items = "\n".join(
    f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
    for key, value in facts.items()
  )
  return f"<dl>\n{items}\n</dl>"
