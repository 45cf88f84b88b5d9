# SPDX-License-Identifier: Apache-2.0
"""``make lint`` finds what it should, and nothing else."""

import pytest
from support import lint


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("a.py", "import jax\n", "1: has no first line '# SPDX"),
    ("a.md", "one\n/home/someone/data\n", "2: names a path of one machine"),
    ("a.cfg", "https://pypi" + ".org/simple", "1: names a package registry"),
    ("a.md", "a\nNot told\napart.", "2: 'Not told apart': write"),
    ("a.md", "It is not told apart.", "write '(not) significantly different'"),
    ("a.py", f"{lint.LICENCE}class_moments = 1\n", "2: 'moments': write"),
    ("a.md", "A recommended, commended amendment; loudness.", ""),
    ("a.csv", "regime\n", ""),
  ],
)
def test_lint_finds(name, text, message):
  found = lint.problems(name, text)
  if not message:
    assert not found
  else:
    (problem,) = found
    assert problem.startswith(f"{name}:")
    assert message in problem
