# SPDX-License-Identifier: Apache-2.0
"""README and docs/ show code that runs, and name what exists."""

import inspect
import json
import os
import re
import subprocess
import sys

import pytest
from support import source

import squentropy_jax

README = source.ROOT / "README.md"
PAGES = [README, *sorted((source.ROOT / "docs").rglob("*.md"))]
TEXTS = {
  str(page.relative_to(source.ROOT)): page.read_text(encoding="utf-8")
  for page in PAGES
}


def code(text):
  """The Python blocks of a page, in order."""
  return re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)


# Each page in names of its own, and none may leave a setting of jax changed.
RUN_PAGES = """
import json, sys, traceback
import jax
values, errors = dict(jax.config.values), {}
for name, text in json.load(sys.stdin).items():
  errors[name] = ""
  try:
    exec(compile(text, name, "exec"), {"__name__": "__main__"})
    changed = [k for k, v in jax.config.values.items() if values.get(k) != v]
    assert not changed, f"the page changes {changed} for the pages after it"
  except Exception:
    errors[name] = traceback.format_exc()
with open("errors.json", "w") as file:
  json.dump(errors, file)
"""


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
  """The error of each page, or an empty string."""
  # In a new process, with one device and the default settings of jax, except
  # the optimisations that conftest.py leaves out. One process for all pages,
  # because a start of jax takes longer than most of them.
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  pages = {name: "\n".join(code(text)) for name, text in TEXTS.items()}
  folder = tmp_path_factory.mktemp("pages")
  out = subprocess.run(
    [sys.executable, "-W", "error", "-c", RUN_PAGES],
    input=json.dumps(pages),
    cwd=folder,
    env=environment | {"PYTHONPATH": str(source.ROOT)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert out.returncode == 0, out.stderr
  return json.loads((folder / "errors.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", [n for n, text in TEXTS.items() if code(text)])
def test_code_of_a_page_runs_as_pasted(page, errors):
  assert not errors[page], errors[page]


def test_quick_start_is_short():
  assert len(code(TEXTS["README.md"])[0].splitlines()) <= 15


def test_every_public_function_stands_in_the_documentation():
  text = "\n".join(TEXTS.values())
  missing = [
    name
    for name, value in source.public().items()
    if not inspect.isclass(value)
    and not re.search(rf"\b{name.rpartition('.')[2]}\b", text)
  ]
  assert not missing, f"README.md and docs/ do not mention {missing}"


def test_documentation_names_what_exists():
  modules = [n.split(".", 1)[1] for n in source.public_modules() if "." in n]
  # Inline code and code blocks, but not file names such as docs/fused.md.
  pattern = rf"(?<![\w./])({'|'.join(modules)})\.([a-z]\w*)\b(?!/)"
  missing = set()
  for page, text in TEXTS.items():
    for module, name in re.findall(pattern, text):
      found = squentropy_jax
      for part in module.split("."):
        found = getattr(found, part)
      if name not in ("md", "py", "csv", "svg", "png") and not hasattr(
        found, name
      ):
        missing.add(f"{page} names {module}.{name}")
  assert not missing, sorted(missing)
