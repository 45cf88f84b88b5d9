# SPDX-License-Identifier: Apache-2.0
"""Each example runs as a user runs it, and trains something."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path, tmp_path):
  # Elsewhere, with one device and the default settings of jax, except the
  # optimisations that conftest.py leaves out.
  environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  out = subprocess.run(
    [sys.executable, "-W", "error", path],
    cwd=tmp_path,
    env=environment | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert out.returncode == 0, out.stderr
  recalls = re.findall(r"recall@1 ([01]\.\d+)", out.stdout)
  if recalls:
    before, after = map(float, recalls)
    assert after > before + 0.15, out.stdout
    return
  accuracies = re.findall(r"accuracy ([01]\.\d+)", out.stdout)
  assert accuracies, out.stdout
  assert all(float(accuracy) > 0.88 for accuracy in accuracies), out.stdout
