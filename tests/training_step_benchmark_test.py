# SPDX-License-Identifier: Apache-2.0
"""The benchmark of a training step, and the table that quotes it."""

import csv
import re

import jax
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
  assert float(full["ratio_to_full_logits"]) == 1
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
