# SPDX-License-Identifier: Apache-2.0
"""The reference: a page for each public module and for each public name."""

from collections.abc import Mapping
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
from types import ModuleType

# This checkout, and docs/, which has the converter of docstrings.
sys.path[:0] = map(str, (pathlib.Path(__file__).parents[i] for i in (2, 1)))

import loss_pages

import squentropy_jax

STUDY = "squentropy_study"


def modules() -> list[str]:
  """Returns the public modules of the library, then the study."""
  found = ["squentropy_jax"]
  for item in pkgutil.walk_packages(squentropy_jax.__path__, "squentropy_jax."):
    if not any(part[0] == "_" for part in item.name.split(".")):
      found.append(item.name)
  return [*sorted(found), STUDY]


def _exports(module: ModuleType) -> list[str]:
  """Returns names that a module defines or exports, in the source's order."""
  if module.__name__ == STUDY:
    return sorted(module.__all__)
  text = pathlib.Path(module.__file__ or "").read_text(encoding="utf-8")
  exported = set(re.findall(r"\b(\w+) as \1\b", text))
  return [
    name
    for name, value in vars(module).items()
    if name[0] != "_"
    and (
      getattr(value, "__module__", None) == module.__name__ or name in exported
    )
    and not inspect.ismodule(value)
  ]


@functools.cache
def symbols() -> Mapping[str, tuple[str, ...]]:
  """Returns the public names of each module."""
  found = {}
  for name in modules():
    module = importlib.import_module(name)
    found[name] = tuple(
      key for key in _exports(module) if callable(getattr(module, key))
    )
  return found


@functools.cache
def _pages() -> Mapping[str, str]:
  """Returns the page of each name, in all forms that a text may use."""
  found: dict[str, str] = {}
  for module, names in symbols().items():
    for name in names:
      full = f"{module}.{name}"
      page = f"api/{full}"
      found[full] = page
      short = full.partition(".")[2]
      if module == STUDY:
        found[f"study.{name}"] = page
      elif "." in short or name in ("row_loss", "squentropy"):
        found[short] = page
      elif module == "squentropy_jax":
        found[name] = page
      # Losses and fits are often written without their module.
      if module == "squentropy_jax.losses" or name.startswith("fit_"):
        found.setdefault(name, page)
    if module.count("."):
      found[module] = f"api/{module}"
  return found


def page_of(text: str) -> str | None:
  """Returns the page of a name such as ``losses.focal``, or None."""
  return _pages().get(text.removesuffix("()"))


def _opening(value: object) -> str:
  """Returns the first paragraph of a docstring, in one line of Markdown."""
  doc = inspect.cleandoc(getattr(value, "__doc__", None) or "")
  text = " ".join(doc.partition("\n\n")[0].split())
  text = re.sub(r":(?:func|class|mod):`~?([\w.]+)`", r"``\1``", text)
  return loss_pages.markdown(text).replace("|", "\\|")


def _module_page(name: str, names: tuple[str, ...]) -> str:
  module = importlib.import_module(name)
  parts = [f"# {name}", f"```{{eval-rst}}\n.. automodule:: {name}\n```"]
  if names:
    lines = ["| name | description |", "|---|---|"]
    for key in names:
      link = f"[`{key}`]({name}.{key}.md)"
      lines.append(f"| {link} | {_opening(getattr(module, key))} |")
    parts.append("\n".join(lines))
  return "\n\n".join(parts) + "\n"


def _members(value: type) -> str:
  """Returns autodoc's option for methods and properties with docstrings."""
  fields = {*getattr(value, "_fields", ())}
  fields |= {*getattr(value, "__dataclass_fields__", ())}
  own = [
    key
    for key, item in vars(value).items()
    if key[0] != "_"
    and key not in fields
    and (inspect.isroutine(item) or isinstance(item, property))
    and getattr(item, "__doc__", None)
  ]
  return f"\n   :members: {', '.join(own)}" if own else ""


def _symbol_page(module: str, name: str) -> str:
  value = getattr(importlib.import_module(module), name)
  full = f"{module}.{name}"
  is_class = isinstance(value, type)
  kind = "autoclass" if is_class else "autofunction"
  members = _members(value) if is_class else ""
  short = full.partition(".")[2]
  parts = [
    "---\norphan: true\n---",
    f"[Reference](index.md) / [{module}]({module}.md)",
    f"# {short}",
    f"```{{eval-rst}}\n.. {kind}:: {full}{members}\n```",
  ]
  family = getattr(value, "__module__", "").partition(".losses._")[2]
  if name in loss_pages.families().get(family, ()):
    page = f"../losses/{family}.md#{name}"
    parts.append(
      f"The [page of its family]({page}) compares this loss with related ones, "
      "and [the conventions](../losses/index.md) explain the arguments that "
      "all losses share."
    )
  return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
  """Returns the text of each page below ``api``."""
  found = {}
  lines = ["| module | description |", "|---|---|"]
  for module, names in symbols().items():
    found[f"api/{module}.md"] = _module_page(module, names)
    opening = _opening(importlib.import_module(module))
    lines.append(f"| [`{module}`]({module}.md) | {opening} |")
    for name in names:
      found[f"api/{module}.{name}.md"] = _symbol_page(module, name)
  toctree = "\n".join(symbols())
  found["api/index.md"] = (
    "# Reference\n\nEach public function and class has a page, which is its "
    "docstring.\n\n"
    + "\n".join(lines)
    + f"\n\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n"
  )
  return found
