# SPDX-License-Identifier: Apache-2.0
"""Heads, losses and calibration over two processes of four devices each."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parent
SECONDS = 240


@pytest.fixture(scope="module")
def found():
  """What each of the two processes printed."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = str(free.getsockname()[1])
  environment = os.environ | {
    "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
    "XLA_FLAGS": "",
  }
  environment.pop("JAX_ENABLE_X64", None)
  processes = [
    subprocess.Popen(
      [sys.executable, str(TESTS / "support" / "process.py"), str(i), port],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      env=environment,
      text=True,
    )
    for i in (0, 1)
  ]
  try:
    # A process that waits in vain is a failure of this test.
    outputs = [p.communicate(timeout=SECONDS) for p in processes]
  finally:
    for process in processes:
      process.kill()
  for process, (_, errors) in zip(processes, outputs, strict=True):
    assert process.returncode == 0, errors[-4000:]
  return [json.loads(out.splitlines()[-1]) for out, _ in outputs]


def test_value_and_gradients_of_heads(found):
  for process in found:
    errors = {k: v for k, v in process.items() if isinstance(v, list)}
    assert len(errors) == 8
    for name, each in errors.items():
      assert max(each) <= 1e-6, name


def test_invalid_label_of_one_process_stops_no_process(found):
  """It gives NaN where that process computes, and no error on it alone."""
  valid, invalid = found
  names = [name for name in valid if name.startswith("nan of")]
  assert len(names) == 3
  for name in names:
    assert valid[name] == 0, name
    assert invalid[name] > 0, name
  # A sum over the rows of both.
  assert valid["invalid of bins"] == invalid["invalid of bins"] == 1
