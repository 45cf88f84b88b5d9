# SPDX-License-Identifier: Apache-2.0
"""A Sphinx extension that links the public names in the text of a page.

`losses.focal` and ``squentropy_jax.losses.focal`` become links to the page of
the function. Signatures show the names of types that a user writes.
"""

import re
from typing import Any

import api_pages
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

_LOGGER = logging.getLogger(__name__)
# The parts of `jax.typing.ArrayLike`, which Python shows instead of its name.
_PARTS = [
  *("Array", "ndarray", "bool", "number", "bool", "int", "float", "complex")
]
_TYPES = (
  (r" \| ".join(rf"~?(?:[\w.]+\.)?{part}\b" for part in _PARTS), "ArrayLike"),
  (r" \| (?:~?[\w.]+\.)?TypedNdArray\b", ""),
  (
    r"\bstr \| type\[~?(?:typing\.)?Any\] \| ~?(?:numpy\.)?dtype"
    r" \| ~?(?:[\w.]+\.)?SupportsDType\b",
    "DTypeLike",
  ),
  (r"~?(?:jax\.)?jaxlib\._jax\.Array\b", "Array"),
  (r"~?squentropy_(?:jax|study)\.(?:\w+\.)*(?=[A-Z])", ""),
  (r"~?(?:collections\.abc|typing|pathlib(?:\._local)?)\.(?=[A-Z])", ""),
)


class SymbolLinks(SphinxPostTransform):
  """Turns literals that are public names into links."""

  default_priority = 500

  def run(self, **_: Any) -> None:
    """Links the names on one page."""
    here = self.env.docname
    for node in list(self.document.findall(nodes.literal)):
      page = api_pages.page_of(node.astext())
      of_link = (nodes.reference, nodes.title, nodes.Inline)
      parent = node.parent
      if page is None or page == here or isinstance(parent, of_link):
        continue
      if any(isinstance(p, nodes.reference) for p in _parents(node)):
        continue
      link = make_refnode(
        self.app.builder, here, page, None, node.deepcopy(), node.astext()
      )
      parent.replace(node, link)


def _parents(node: nodes.Node) -> Any:
  while node.parent is not None:
    node = node.parent
    yield node


def short_types(text: str) -> str:
  """Returns a signature with its types as users write them."""
  for pattern, name in _TYPES:
    text = re.sub(pattern, name, text)
  return text


def _signature(
  app: Any, what: str, name: str, value: Any, options: Any, *both: str | None
) -> tuple[str | None, str | None]:
  del app, what, name, value, options
  arguments, returned = (text and short_types(text) for text in both)
  return arguments, returned


def _docstring(
  app: Any, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
  """Links the pages of docs/ that a docstring names."""
  del app, what, name, value, options
  for number, line in enumerate(lines):
    lines[number] = re.sub(
      r"``docs/([\w/]+)\.md``",
      lambda m: f":doc:`/{m.group(1).replace('/README', '/index')}`",
      line,
    )


def _missing(app: Any, env: Any, node: Any, content: Any) -> None:
  """Warns of names of this project that have no page; others are text."""
  del app, env, content
  target = node.get("reftarget", "")
  if node.get("refdomain") == "py" and node.get("refexplicit") is not None:
    public = target.startswith(("squentropy_jax.", "squentropy_study."))
    if public and not re.search(r"\._", target):
      _LOGGER.warning("no page has %s", target, location=node)


def setup(app: Any) -> dict[str, bool]:
  """Adds the links and the short types."""
  app.add_post_transform(SymbolLinks)
  app.connect("autodoc-process-signature", _signature)
  app.connect("autodoc-process-docstring", _docstring)
  app.connect("missing-reference", _missing)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
