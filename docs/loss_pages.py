# SPDX-License-Identifier: Apache-2.0
"""Writes the pages of docs/losses from the docstrings of the losses.

``python docs/loss_pages.py`` writes every page, ``python docs/loss_pages.py
focal square`` those of two families. A page is the docstring of the module,
then a section for each loss in the order of the source. The retrieval losses
are one family. A docstring has the
paragraphs "Use when ..." and "Avoid when ...", which come first on the page.
"""

import importlib
import inspect
import pathlib
import re
import sys
from typing import Any, NamedTuple

from squentropy_jax import losses, retrieval

FOLDER = pathlib.Path(__file__).parent / "losses"
# What is said under a figure; CAPTION where a family has no entry.
CAPTION = (
  "The logit of the labelled class varies; the other logits are 0, -1 and -2. "
  "Left: the loss. Right: its derivative in the labelled logit."
)
CAPTIONS = {
  "angular": (
    "The angle between the features and the labelled class vector varies; the "
    "other cosines are 0.2 and -0.1, and the scale is 10. Left: the loss. "
    "Right: its derivative with respect to the angle in degrees."
  ),
  "anyloss": (
    "The score of one positive varies, in a batch of five examples, with an "
    "amplification of 10. With the default, 73, the derivative is one narrow "
    "peak. Left: the loss. Right: its derivative in the score."
  ),
  "comp_sum": f"{CAPTION} The attack lowers the labelled logit by 0.5.",
  "distillation": (
    "One logit of the student varies; its other logits are 0, -1 and -2. The "
    "teachers' logits are 2, 0, -1, -2 and 0.5, 0, -1, -2. Left: the loss. "
    "Right: its derivative in the student's logit."
  ),
  "ensemble": (
    "Three draws for a batch of 41 margins between -5 and 5. Right: the "
    "derivatives. Left: their integrals, the losses that have them."
  ),
  "overlap": (
    "The score of a positive varies, which is a set of its own. Left: the "
    "loss. Right: its derivative in the score."
  ),
  "retrieval": (
    "The similarity of one positive varies. That of another positive is 1, and "
    "those of the negatives are 0, -1 and -2, at temperature 1. Left: the "
    "loss. Right: its derivative in the similarity."
  ),
  "sigmoid": (
    "Left: the loss against the score. Right: its derivative with respect to "
    "the score. The label is 1, except for the loss marked with label 0."
  ),
  "simplex": (
    f"{CAPTION} The continuous Bernoulli loss is that of the label 1, against "
    "its score."
  ),
  "squentropy": (
    "The logit of an incorrect class varies; the labelled logit is 2, the "
    "others are 0 and -1. Left: the loss. Right: its derivative in that logit. "
    "Cross-entropy does not limit a negative logit; the square term pulls it "
    "to 0."
  ),
}
CAPTIONS["unpg"] = CAPTIONS["angular"]
# Arguments that every loss has: docs/losses/README.md explains them, and the
# page of the retrieval losses its own.
COMMON = (
  "logits",
  "cosines",
  "labels",
  "axis",
  "where",
  "similarities",
  "positives",
)
IMPORTS = {
  "jax": "import jax",
  "jnp": "import jax.numpy as jnp",
  "np": "import numpy as np",
  "squentropy_jax": "import squentropy_jax",
  "confusion": "from squentropy_jax import confusion",
  "losses": "from squentropy_jax import losses",
  "retrieval": "from squentropy_jax import retrieval",
}
SECTIONS = ("Args", "Returns", "Raises", "Examples", "References")


class Docstring(NamedTuple):
  """A docstring in its parts, in the markup of the source.

  Attributes:
    opening: The first paragraph.
    use: The paragraph "Use when ...", or "".
    avoid: The paragraph "Avoid when ...", or "".
    body: The other paragraphs before the sections.
    sections: The text of each section by its name, without indentation.
    see_also: What follows ``.. seealso::``, or "".
  """

  opening: str
  use: str
  avoid: str
  body: list[str]
  sections: dict[str, str]
  see_also: str


def families() -> dict[str, list[str]]:
  """The names of the losses of each family, in the order of the source."""
  public = {name for name in vars(losses) if not name.startswith("_")}
  modules = {
    getattr(losses, name).__module__
    for name in public
    if getattr(losses, name).__module__.startswith("squentropy_jax.losses._")
  }
  found = {
    module.rpartition("._")[2]: [
      name
      for name, value in vars(importlib.import_module(module)).items()
      if name in public and getattr(value, "__module__", None) == module
    ]
    for module in sorted(modules)
  }
  found["retrieval"] = [
    name
    for name, value in vars(retrieval).items()
    if not name.startswith("_") and callable(value)
  ]
  return found


def home(name: str) -> Any:
  """The package that has the loss."""
  return losses if hasattr(losses, name) else retrieval


def parse(text: str) -> Docstring:
  """The parts of a Google-style docstring."""
  text = inspect.cleandoc(text)
  text, _, see_also = text.partition(".. seealso::")
  parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", text, flags=re.M)
  sections = {
    name: inspect.cleandoc("\n" + body).strip()
    for name, body in zip(parts[1::2], parts[2::2], strict=True)
  }
  # A formula belongs to the paragraph that introduces it.
  paragraphs = re.split(r"\n\n(?! |\.\. math)", parts[0].strip())
  found = {"Use when": "", "Avoid when": ""}
  body = []
  for paragraph in paragraphs[1:]:
    start = next((s for s in found if paragraph.startswith(s)), None)
    if start is None:
      body.append(paragraph)
    else:
      found[start] = paragraph
  return Docstring(
    paragraphs[0],
    found["Use when"],
    found["Avoid when"],
    body,
    sections,
    " ".join(see_also.split()),
  )


def _link(match: re.Match[str]) -> str:
  name = match.group(1).rpartition(".")[2]
  for family, names in families().items():
    if name in names:
      return f"[`{name}`]({family}.md#{name})"
  return f"`{match.group(1)}`"


def _formula(match: re.Match[str]) -> str:
  return f"$$\n{inspect.cleandoc(chr(10) + match.group(1)).strip()}\n$$\n"


def markdown(text: str) -> str:
  """The markup of docstrings turned into Markdown."""
  # Only the base: an escape must not end a formula that follows.
  text = re.sub(r"^\.\. math::\n((?: +.*\n?|\n)+)", _formula, text, flags=re.M)
  text = re.sub(
    r":math:`([^`]+)`", lambda m: f"${' '.join(m.group(1).split())}$", text
  )
  text = re.sub(r":(?:func|class|mod):`~?([\w.]+)`", _link, text)
  text = re.sub(r"`([^`<]+?)\s+<([^>]+)>`_", _title, text)
  text = re.sub(r"``docs/([\w/]+\.md)``", r"[docs/\1](../\1)", text)
  return re.sub(r"``([^`]+)``", r"`\1`", text).strip()


def _title(match: re.Match[str]) -> str:
  return f"[{' '.join(match.group(1).split())}]({match.group(2)})"


def _bold(paragraph: str) -> str:
  """The paragraph with its first two words in bold."""
  first, second, others = markdown(paragraph).split(None, 2)
  return f"**{first} {second}** {others}"


def entries(text: str) -> dict[str, str]:
  """The entries ``name: text`` of a section."""
  parts = re.split(r"^(\*{0,2}\w+): ", text, flags=re.M)
  return {
    name: " ".join(body.split())
    for name, body in zip(parts[1::2], parts[2::2], strict=True)
  }


def signature(name: str) -> str:
  """The call with its defaults, broken over lines where it is long."""
  parameters = inspect.signature(getattr(home(name), name)).parameters.values()
  shown, keyword_only = [], False
  for p in parameters:
    if p.kind is p.KEYWORD_ONLY and not keyword_only:
      shown.append("*")
      keyword_only = True
    text = f"**{p.name}" if p.kind is p.VAR_KEYWORD else p.name
    shown.append(text if p.default is p.empty else f"{text}={p.default!r}")
  package = home(name).__name__.rpartition(".")[2]
  line = f"{package}.{name}({', '.join(shown)})"
  if len(line) <= 80:
    return line
  inner, row = [], ""
  for item in shown:
    if row and len(f"  {row}, {item},") > 80:
      inner.append(f"  {row},")
      row = item
    else:
      row = f"{row}, {item}" if row else item
  return "\n".join([f"{package}.{name}(", *inner, f"  {row},", ")"])


def example(text: str) -> str:
  """The code of an example, its output as comments."""
  lines = []
  for line in text.splitlines():
    if line.startswith((">>>", "...")):
      lines.append(line[4:])
    else:
      lines.append(f"# {line}" if line else "")
  return "\n".join(lines).strip()


def section(name: str) -> str:
  """The section of one loss."""
  doc = parse(getattr(home(name), name).__doc__ or "")
  parts = [f"## `{name}`", markdown(doc.opening)]
  parts += [_bold(p) for p in (doc.use, doc.avoid) if p]
  parts.append(f"```text\n{signature(name)}\n```")
  parts += [markdown(p) for p in doc.body]
  arguments = entries(doc.sections.get("Args", ""))
  more = [
    f"- `{key}`: {markdown(text)}"
    for key, text in arguments.items()
    if key not in COMMON
  ]
  if more:
    parts.append("\n".join(more))
  if "Examples" in doc.sections:
    parts.append(f"```python\n{example(doc.sections['Examples'])}\n```")
  if "References" in doc.sections:
    parts.append(f"Reference: {markdown(doc.sections['References'])}")
  if doc.see_also:
    parts.append(f"See also: {markdown(doc.see_also)}.")
  return "\n\n".join(parts)


def overview(names: list[str]) -> str:
  """A table of the functions and what each computes."""
  lines = ["| function | |", "| --- | --- |"]
  for name in names:
    opening = parse(getattr(home(name), name).__doc__ or "").opening
    words = " ".join(markdown(opening).split())
    lines.append(f"| [`{name}`](#{name}) | {words} |")
  return "\n".join(lines)


def page(family: str) -> str:
  """The text of a page."""
  is_retrieval = family == "retrieval"
  part = "retrieval" if is_retrieval else f"losses._{family}"
  module: Any = importlib.import_module(f"squentropy_jax.{part}")
  opening, *more = inspect.cleandoc(module.__doc__ or "").split("\n\n")
  title, _, subtitle = " ".join(opening.split()).partition(": ")
  parts = [
    "<!-- Written by docs/loss_pages.py from the docstrings: edit those. -->",
    f"# {title.removesuffix('.')}",
  ]
  if subtitle:
    parts.append(markdown(subtitle[0].upper() + subtitle[1:]))
  parts += [markdown(p) for p in more]
  parts.append(f"![Losses of this family and their derivatives]({family}.svg)")
  parts.append(CAPTIONS.get(family, CAPTION))
  sections = [section(name) for name in families()[family]]
  code = "".join(re.findall(r"```python\n(.*?)```", "".join(sections), re.S))
  needed = [
    line for name, line in IMPORTS.items() if re.search(rf"\b{name}\.", code)
  ]
  if is_retrieval:
    parts += [overview(families()[family]), "The examples need:"]
  else:
    parts.append(
      "[Conventions of all losses](README.md): shapes, soft labels, `axis`, "
      "`where` and\nerrors. The examples need:"
    )
  parts.append("```python\n" + "\n".join(needed) + "\n```")
  return "\n\n".join([*parts, *sections]) + "\n"


def main(names: list[str]) -> None:
  """Writes the pages of some families, of all without names."""
  for family in names or families():
    (FOLDER / f"{family}.md").write_text(page(family), encoding="utf-8")


if __name__ == "__main__":
  main(sys.argv[1:])
