# SPDX-License-Identifier: Apache-2.0
"""A Sphinx extension that writes formulas as MathML.

Browsers draw MathML themselves. The pages load no script and no font for it.
"""

import re
from typing import Any

from docutils import nodes
from latex2mathml import converter

# Names that stand close to what follows without a space of their own.
_FUNCTIONS = (
  "arccos|cos|exp|log|sin|tanh|min|max|softmax|sigmoid|softplus|arg|sg"
)
_SPACE = '<mspace width="0.167em" />'
# What a space separates from the name of a function: neither a bracket nor an
# index.
_NEXT = r"(?=<m(?:i|n|frac|sqrt|sub|sup|subsup|mover|mrow))"


def convert(latex: str, display: str) -> str:
  """Returns the MathML of a formula.

  Args:
    latex: The formula.
    display: ``"inline"`` or ``"block"``.

  Raises:
    ValueError: The formula has a command that is not converted.
  """
  latex = latex.replace(r"\arg", r"\operatorname{arg}")
  try:
    text = converter.convert(latex.strip(), display=display)
  except Exception as error:
    raise ValueError(f"Cannot convert the formula {latex!r}.") from error
  if match := re.search(r"<m[iot]\w*>\\(?!_)[^<]*", text):
    raise ValueError(f"The formula {latex!r} leaves {match.group()!r}.")
  text = text.replace(r"\_", "_")
  function = rf"<mi>(?:{_FUNCTIONS})</mi>"
  text = re.sub(rf"({function}){_NEXT}", rf"\1{_SPACE}", text)
  text = re.sub(
    rf"(</m(?:i|n|sub|sup|frac)>)(?={function})", rf"\1{_SPACE}", text
  )
  return text


def _inline(translator: Any, node: nodes.math) -> None:
  translator.body.append(convert(node.astext(), "inline"))
  raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
  translator.body.append(convert(node.astext(), "block"))
  raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
  """Makes this the renderer of formulas."""
  app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
  app.config.html_math_renderer = "mathml"
  return {"parallel_read_safe": True, "parallel_write_safe": True}
