# SPDX-License-Identifier: Apache-2.0
"""Strict settings for every test, set before jax starts.

As a program it runs pytest on the files it is given: the main of every Bazel
test target.
"""

import gc
import os
import sys

import pytest

# Traces make many small objects that live long: collecting them takes time.
gc.set_threshold(100_000, 20, 100)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
if "xla_force_host_platform_device_count" not in os.environ.get(
  "XLA_FLAGS", ""
):
  os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
  ).strip()

# XLA makes the same program, of the same memory and the same collectives, but
# LLVM does not optimise it: that would take longer than the tests save by it.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# These bound errors in ulp or compile for other devices: they run first, and
# with all optimisations.
OPTIMIZED = ("accuracy_test", "compile_test", "dense_sums_test")
# How many tests a worker has finished.
FINISHED = pytest.StashKey[int]()

if __name__ == "__main__":
  # Before the imports below: pytest wants to be the first to see its plugins.
  status = pytest.main(sys.argv[1:])
  # A file may have tests of one leg only.
  sys.exit(0 if status == pytest.ExitCode.NO_TESTS_COLLECTED else status)

import hypothesis
import jax

pytest_plugins = ["support.study"]

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every run, and no time limit on a busy machine.
hypothesis.settings.register_profile(
  "suite", derandomize=True, deadline=None, database=None, max_examples=50
)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
  config.addinivalue_line(
    "markers", "x64: runs only with JAX_ENABLE_X64=1, in a process of its own"
  )
  config.addinivalue_line(
    "markers", "xdist_group: tests of one group run in one process of xdist"
  )
  config.addinivalue_line(
    "markers", "full: a full cross of settings, run by `make test-full` only"
  )


def _group(item: pytest.Item) -> str:
  """The tests that share what they compile, or the study that they read."""
  callspec = getattr(item, "callspec", None)
  name = getattr(callspec and callspec.params.get("case"), "name", None)
  if name is not None:
    return name
  stem = item.path.stem
  return "study" if stem.startswith("study") else stem


def pytest_runtest_setup(item: pytest.Item) -> None:
  quick = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
  jax.config.update(
    "jax_disable_most_optimizations",
    quick and item.path.stem not in OPTIMIZED,
  )


def pytest_runtest_teardown(item: pytest.Item) -> None:
  """Drops the compiled programs now and then: all take several gigabytes."""
  count = item.config.stash.get(FINISHED, 0) + 1
  item.config.stash[FINISHED] = count
  if count % 250 == 0:
    jax.clear_caches()


# First, because xdist reads the groups in its own hook of this name.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(
  config: pytest.Config, items: list[pytest.Item]
) -> None:
  """Leaves the tests of the other legs out, seen in the closing line."""
  x64 = bool(jax.config.jax_enable_x64)
  full = "full" in config.getoption("markexpr")
  chosen, others = [], []
  for item in items:
    has = {mark.name for mark in item.iter_markers()}
    of_leg = ("x64" in has) == x64 and (full or "full" not in has)
    (chosen if of_leg else others).append(item)
    item.add_marker(pytest.mark.xdist_group(_group(item)))
  # Functions keep the programs that earlier tests have compiled.
  items[:] = sorted(chosen, key=lambda item: item.path.stem not in OPTIMIZED)
  if others:
    config.hook.pytest_deselected(items=others)
