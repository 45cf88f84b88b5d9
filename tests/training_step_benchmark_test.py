# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a training step, and the table that quotes it."""

import csv
import re

import jax
import pytest
from support import source

from benchmarks import runner, training_step


def test_both_heads_are_measured_and_the_fused_one_takes_less_memory():
  shape = training_step.Shape(32_768, width=16, layers=1, heads=2)
  # Flax and optax promote ranks and dtypes.
  with (
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    fused, full = training_step.measure(
      shape._replace(batch=8, length=64), repeats=1
    )
  assert (fused["head"], full["head"]) == ("fused head", "full logits")
  assert fused["tokens"] == full["tokens"] == 512
  # One repeat: the ratio of the times is that of the speeds, inverted.
  speeds = [float(row["tokens_per_second"]) for row in (full, fused)]
  expected = speeds[0] / speeds[1]
  rounding = 0.0005 + expected * sum(0.51 / speed for speed in speeds)
  found = float(fused["ratio_to_full_logits"])
  assert found == pytest.approx(expected, abs=rounding)
  assert float(fused["temporary_mib"]) < float(full["temporary_mib"])


def test_page_quotes_the_measured_rows():
  page = (source.ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
  found = re.findall(
    r"^\| ([\d,]+) \| (fused|full logits) \| (\d+) \| (\d+) MiB \|$", page, re.M
  )
  path = runner.RESULTS / "training_step.csv"
  with path.open(newline="", encoding="utf-8") as file:
    rows = [
      (
        f"{int(row['classes']):,}",
        row["head"].removesuffix(" head"),
        row["tokens_per_second"],
        row["temporary_mib"],
      )
      for row in csv.DictReader(file)
    ]
  assert found == rows
