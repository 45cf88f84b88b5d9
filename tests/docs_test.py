# SPDX-License-Identifier: Apache-2.0
"""The code in the pages under docs/ runs as it stands."""

import pathlib
import re

import pytest

PAGES = sorted((pathlib.Path(__file__).parents[1] / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs(page):
  blocks = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)
  names = {}
  for block in blocks:
    exec(compile(block, str(page), "exec"), names)
