# SPDX-License-Identifier: Apache-2.0
"""The language model experiment: plan, runs, verdicts and page."""

from concurrent import futures
import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from support import source

from replication.language_model import (
  __main__ as command,
)
from replication.language_model import (
  glosses,
  grid,
  grid_page,
  grid_plots,
  one_run,
  transformer,
  verdicts,
)

PLAN = (source.ROOT / "docs" / "language_model" / "plan.md").read_text()
TINY = grid.Setup(
  width=16,
  layers=1,
  heads=2,
  length=8,
  batch=2,
  steps=9,
  warm_up=2,
  cooldown=3,
  block=4,
  blocks=2,
)
VOCAB = 280


def test_plan_has_the_losses_and_rates_of_the_code():
  rows = re.findall(r"^\| `(\w.*?)` \| (\S+) \| (\S+) \| (\S+) \|$", PLAN, re.M)
  found = {name: grid.Scales(*map(float, scales)) for name, *scales in rows}
  assert list(found.items()) == list(grid.LOSSES.items())
  rates = re.search(r"^Learning rates: (.*)\.$", PLAN, re.M).group(1)
  assert tuple(map(float, rates.split(", "))) == grid.RATES
  setup = grid.PLAN
  for words in (
    f"A decoder of {setup.layers} layers, width {setup.width}, "
    f"{setup.heads} heads, and feed-forward layers of width {4 * setup.width}",
    f"sequences of {setup.length} tokens",
    f"A step has {setup.batch} sequences",
    f"{setup.steps} steps are {setup.steps * setup.batch * setup.length:,} ",
    f"in the first {setup.warm_up} steps",
    f"in the last {setup.cooldown} steps",
    f"On {setup.blocks * setup.block * setup.length:,} tokens of the eval",
    f"to {setup.block * setup.length:,} other tokens",
    f"{grid.HOURS:g} hours of processor time",
    f"{grid.VOCAB:,} classes, seed 0: all losses",
    f"{grid.LARGE_VOCAB:,} classes, seed 0: ",
  ):
    assert words in " ".join(PLAN.split()), words


def test_runs_are_in_the_order_of_the_plan():
  assert len(set(grid.RUNS)) == len(grid.RUNS) == 3 * 63 + 8
  assert grid.RUNS[0] == grid.Run(grid.VOCAB, "cross_entropy", 3e-4, 0)
  assert grid.RUNS[63] == grid.Run(grid.VOCAB, "cross_entropy", 3e-4, 1)
  assert {run.vocab for run in grid.RUNS[126:134]} == {grid.LARGE_VOCAB}
  assert grid.RUNS[-1] == grid.Run(grid.VOCAB, "square_1", 3e-1, 2)
  rates = [grid.rate_at(step, grid.PLAN) for step in range(600)]
  assert (rates[0], rates[59], rates[480]) == (1 / 60, 1.0, 1.0)
  assert (rates[481], rates[599]) == (119 / 120, 1 / 120)


def test_loss_of_a_token_is_the_formula_of_the_plan():
  logits = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
  labels = np.array([0, 3, 6])
  z = logits.astype(np.float64)
  log_z = np.log(np.exp(z).sum(axis=1))
  target = z[np.arange(3), labels]
  others = (z**2).sum(axis=1) - target**2
  scales = grid.Scales(0.3, 0.2, 0.1)
  expected = log_z - target + 0.3 * log_z**2 + 0.2 * z.mean(axis=1) ** 2
  expected += 0.1 * others / 6
  loss = one_run.token_loss(scales)(jnp.asarray(logits), jnp.asarray(labels))
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
  """A folder with a WordNet of 400 entries of made-up words."""
  folder = tmp_path_factory.mktemp("text")
  data = folder / "raw" / "wordnet-base" / "usr" / "share" / "wordnet"
  data.mkdir(parents=True)
  words = np.array(["stone", "river", "cloud", "table", "green", "small"])
  draw = np.random.default_rng(0)
  for part in ("noun", "verb", "adj", "adv"):
    lines = ["  1 This line is the licence."]
    for number in range(100):
      gloss = " ".join(words[draw.integers(0, len(words), 12)])
      fields = f"{number:08} 03 n 02 river_bed 0 galore(ip) 0 000"
      lines.append(f'{fields} | {gloss}; "an example"  ')
    (data / f"data.{part}").write_text("\n".join(lines))
  return folder


def test_entries_are_words_and_meanings(text):
  entries = list(glosses._entries(text / "raw" / "wordnet-base"))
  assert len(entries) == 400
  pattern = r'river bed, galore: (\w+ ){11}\w+; "an example"'
  assert all(re.fullmatch(pattern, entry) for entry in entries)


def test_tokens_are_split_and_too_many_classes_are_named(text):
  path = glosses.prepare(text, VOCAB)
  tokens = glosses.load(path)
  # Each entry starts with the token 0.
  counts = [(part == 0).sum() for part in tokens]
  assert counts == [380, 20]
  cut = glosses.sequences(np.arange(10), 4)
  np.testing.assert_array_equal(cut, [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]])
  with pytest.raises(ValueError, match="or less for this text, got 100000"):
    glosses.prepare(text, 100_000)
  assert glosses.prepare(text, VOCAB) == path


def test_attention_is_causal():
  params, _ = one_run._shared(VOCAB, TINY)[0](jax.random.key(0))
  tokens = np.arange(16).reshape(2, 8)
  changed = tokens.copy()
  changed[:, 5] = 200
  features = jax.jit(transformer.features, static_argnums=2)
  before, after = (features(params, x, 2) for x in (tokens, changed))
  np.testing.assert_array_equal(before[:, :5], after[:, :5])
  assert (np.abs(before - after)[:, 5:].max(axis=-1) > 1e-4).all()


def test_measures_are_those_of_the_logits():
  initial, measure = one_run._shared(VOCAB, TINY)
  params, _ = initial(jax.random.key(1))
  params["head"] = params["head"] * 20
  text = np.random.default_rng(1).integers(0, VOCAB, (3, 4, 9), np.int32)
  found = measure(params, text)
  features = transformer.features(params, text[1:, :, :-1].reshape(8, 8), 2)
  logits = np.asarray(features @ params["head"].T, np.float64)
  labels = text[1:, :, 1:].reshape(8, 8)
  target = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
  log_z = np.log(np.exp(logits).sum(axis=-1))
  expected = {
    "nll": (log_z - target).mean(),
    "accuracy": (logits.argmax(-1) == labels).mean(),
    "mean_logit": logits.mean(),
    "std_logit": np.sqrt(logits.var(axis=-1).mean()),
    "max_abs_logit": np.abs(logits).max(),
    "log_z": log_z.mean(),
    "head_norm": np.linalg.norm(params["head"]),
    "mean_row_norm": np.linalg.norm(np.mean(params["head"], axis=0)),
    "final_norm": 4.0,
  }
  scaled = logits / float(found["temperature"])
  log_probs = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
  expected["nll_scaled"] = -np.take_along_axis(
    log_probs, labels[..., None], -1
  ).mean()
  for name, value in expected.items():
    np.testing.assert_allclose(found[name], value, rtol=2e-5, err_msg=name)
  # Random labels are guessed best with equal probabilities.
  assert found["nll_scaled"] < found["nll"]
  assert found["ece_scaled"] < found["ece"] <= 1


@pytest.fixture
def small(text, tmp_path, monkeypatch):
  """The command with a small grid, in this process."""
  runs = [
    grid.Run(VOCAB, loss, rate, 0)
    for loss in ("cross_entropy", "square_1")
    for rate in (1e-2, 1e6)
  ]
  monkeypatch.setattr(grid, "RUNS", runs)
  monkeypatch.setattr(grid, "RATES", (1e-2, 1e6))
  monkeypatch.setattr(grid, "VOCAB", VOCAB)
  monkeypatch.setattr(grid, "PLAN", TINY)
  monkeypatch.setattr(grid_page, "DOCS", tmp_path)
  monkeypatch.setattr(grid_page, "RESULTS", tmp_path / "results.csv.gz")
  # test_page_needs_only_the_rows draws the figures.
  monkeypatch.setattr(grid_plots, "by_rate", lambda *_: b"")
  monkeypatch.setattr(grid_plots, "differences", lambda *_: b"")
  monkeypatch.setattr(command, "_pool", lambda _: futures.ThreadPoolExecutor(1))

  def run(*words):
    words = ["replicate-lm", "--folder", str(text), "--processes=1", *words]
    monkeypatch.setattr(sys, "argv", words)
    command.main()

  return run


def test_command_resumes_and_writes_the_page(small, tmp_path, monkeypatch):
  small("--runs=1")
  rows = grid_page.read(grid_page.RESULTS)
  assert tuple(rows.columns) == one_run.COLUMNS
  (first,) = rows.to_dict("records")
  assert first["nll"] < first["initial_nll"] < 1.1 * np.log(VOCAB)
  assert (first["steps"], first["diverged"]) == (9, False)
  small()
  rows = grid_page.read(grid_page.RESULTS)
  assert rows.iloc[0].to_dict() == first
  assert len(rows) == 4
  # The same weights and batches, and another loss.
  assert rows["initial_nll"].nunique() == 1
  assert rows["nll"].iloc[0] != rows["nll"].iloc[2]
  assert list(rows["diverged"]) == [False, True, False, True]
  # The square term makes the logits smaller.
  assert rows["std_logit"].iloc[2] < rows["std_logit"].iloc[0]
  text = (tmp_path / "tables.md").read_text()
  assert "which has 4 of the 4 runs" in text
  assert "| `square_1` | 1 | " in text
  # Nothing is left to train, and no run starts after the time of the plan.
  monkeypatch.setattr(one_run, "train", None)
  small()
  grid_page.RESULTS.unlink()
  monkeypatch.setattr(grid, "HOURS", 0.0)
  small()
  assert not grid_page.RESULTS.exists()


def test_a_failed_run_is_named_and_the_others_are_trained(small, monkeypatch):
  def train(run, setup, path):
    if run.loss == "cross_entropy" and run.learning_rate == 1e-2:
      raise RuntimeError("no memory")
    row = dict.fromkeys(one_run.COLUMNS, 1.0)
    return row | run._asdict() | {"diverged": False, "code": "abc"}

  monkeypatch.setattr(one_run, "train", train)
  with pytest.raises(SystemExit, match="failed: cross_entropy"):
    small()
  assert len(grid_page.read(grid_page.RESULTS)) == 3


def test_steps_and_text_that_do_not_fit(text):
  path = glosses.prepare(text, VOCAB)
  run = grid.Run(VOCAB, "cross_entropy", 1e-2, 0)
  with pytest.raises(ValueError, match="steps must be a multiple of cooldown"):
    one_run.train(run, TINY._replace(steps=8), path)
  with pytest.raises(ValueError, match="training text must have"):
    one_run._text(path, TINY._replace(steps=9_000))


def _rows(seeds=3):
  """Results in which the NLL follows from loss, rate and seed."""
  noise = np.random.default_rng(0).normal(scale=1e-3, size=(9, 7, seeds))
  lines = []
  for (i, loss), (j, rate), seed in itertools.product(
    enumerate(grid.LOSSES), enumerate(grid.RATES), range(seeds)
  ):
    nll = 6 + 0.1 * abs(j - 3) + noise[i, j, seed]
    if loss == "z_loss":  # Half as sensitive.
      nll -= 0.05 * abs(j - 3)
    if loss == "square_1":  # Worse at every rate.
      nll += 1
    if loss == "square_1e-1" and (j, seed) == (6, 0):
      nll = np.nan
    row = dict.fromkeys(one_run.COLUMNS, 0.5)
    row |= grid.Run(grid.VOCAB, loss, rate, seed)._asdict()
    row |= {"nll": nll, "initial_nll": 9.7, "code": "abc", "steps": 600}
    lines.append(row | {"diverged": not nll < 9.7})
  large = row | grid.Run(grid.LARGE_VOCAB, "z_loss", 1e-2, 0)._asdict()
  return pd.DataFrame([*lines, large])


def test_verdicts_follow_from_the_rows():
  rows = _rows()
  table = verdicts.by_seed(rows)
  exact = table.loc["cross_entropy"].mean()
  assert exact["sensitivity"] == pytest.approx(0.1 * 12 / 7, abs=5e-3)
  assert exact["regret"] == exact["sensitivity"]
  assert set(table["best_rate"]) == {1e-2}
  assert table.loc["square_1"]["regret"].mean() == pytest.approx(
    1 + 0.1 * 12 / 7, abs=5e-3
  )
  # A run that diverged counts as the NLL before the first step.
  lost = table.loc["square_1e-1", "sensitivity"]
  assert lost[0] - lost[1] == pytest.approx((9.7 - 6.3) / 7, abs=5e-3)
  found = {c.loss: c for c in verdicts.compare(rows, grid.CROSS_ENTROPY)}
  assert list(found) == list(grid.LOSSES)[1:]
  assert found["z_loss"].verdict == "useful"
  assert found["z_loss"].sensitivity.mean == pytest.approx(-0.6 / 7, abs=2e-3)
  assert (found["square_1e-1"].diverged, found["square_1e-1"].verdict) == (
    1,
    "harmful",
  )
  assert found["square_1"].verdict == "harmful"
  assert found["square_1"].nll.mean == pytest.approx(1, abs=5e-3)
  assert found["mean_logit"].verdict == "useless"
  against = verdicts.compare(rows, grid.Z_LOSS)
  assert [c.loss for c in against] == list(grid.LOSSES)[3:]
  assert {c.verdict for c in against} == {"harmful"}


def test_a_part_of_the_grid_is_undecided():
  one = _rows(seeds=1)
  assert {c.verdict for c in verdicts.compare(one, "cross_entropy")} == {
    "undecided"
  }
  rows = _rows(seeds=2)
  missing = (rows["loss"] == "z_loss") & (rows["seed"] == 1)
  rows = rows[~(missing & (rows["learning_rate"] == 3e-1))]
  assert list(verdicts.by_seed(rows).loc["z_loss"].index) == [0]
  assert not verdicts.compare(rows[rows["loss"] == "z_loss"], "cross_entropy")


def test_means_are_over_the_seeds_that_all_losses_have(tmp_path):
  rows = _rows()
  part = rows[(rows["seed"] < 2) | (rows["loss"] == "z_loss")]
  means = verdicts.shared_seeds(part[part["vocab"] == grid.VOCAB])
  assert set(means["seed"]) == {0, 1}
  assert set(means["loss"]) == set(grid.LOSSES)
  # No seed is complete: all rows are better than none.
  one = part[part["loss"] == "z_loss"]
  assert verdicts.shared_seeds(one) is one
  # A difference needs both losses, but not the others.
  three = rows[(rows["seed"] < 2) | rows["loss"].isin(["z_loss", "square_1"])]
  found = {c.loss: c.seeds for c in verdicts.compare(three, "z_loss")}
  assert (found["square_1"], found["square_1e-4"]) == (3, 2)


def test_advice_is_the_rule_of_the_plan():
  def found(loss, against, verdict):
    zero = verdicts.Interval(0.0, 0.0, 0.0)
    return verdicts.Comparison(loss, against, 3, zero, zero, 0, verdict)

  table = verdicts.by_seed(_rows())
  useful = [found("z_loss", "cross_entropy", "useful")]
  assert verdicts.advice(table, useful, []).startswith("do not use")
  useful += [
    found(loss, "cross_entropy", "useful")
    for loss in ("square_1", "square_1e-2")
  ]
  # Scale 1 is worse by 1 at every rate.
  text = "use the square term of scale 0.01"
  assert verdicts.advice(table, useful, []) == f"{text}."
  other = [found("square_1", "z_loss", "useful")]
  assert verdicts.advice(table, useful, other) == f"{text}."
  other = [found("square_1e-2", "z_loss", "useful")]
  assert (
    verdicts.advice(table, useful, other) == f"{text} instead of the z-loss."
  )


def test_rates_can_be_left_out():
  found = verdicts.compare(_rows(), "cross_entropy", grid.RATES[:-1])
  found = {c.loss: c for c in found}
  # The only run that diverged has the largest rate.
  assert found["square_1e-1"].diverged == 0
  assert found["z_loss"].sensitivity.mean == pytest.approx(-0.45 / 6, abs=2e-3)


@pytest.mark.parametrize(
  ("sensitivity", "nll", "diverged", "expected"),
  [
    ((-0.2, -0.1), (-0.01, 0.02), 0, "useful"),
    ((-0.2, -0.1), (-0.01, 0.04), 0, "useless"),
    ((-0.2, 0.1), (-0.04, -0.02), 0, "useful"),
    ((-0.2, 0.1), (-0.01, -0.001), 0, "useless"),
    ((-0.2, -0.1), (0.02, 0.04), 0, "harmful"),
    ((-0.2, -0.1), (0.001, 0.009), 0, "useful"),
    ((0.1, 0.2), (-0.04, -0.02), 0, "harmful"),
    ((-0.2, -0.1), (-0.04, -0.02), 1, "harmful"),
    ((np.nan, np.nan), (-0.04, -0.02), 1, "undecided"),
  ],
)
def test_verdict_is_the_rule_of_the_plan(sensitivity, nll, diverged, expected):
  pair = (verdicts.Interval(sum(x) / 2, *x) for x in (sensitivity, nll))
  assert verdicts.verdict(*pair, diverged) == expected


def test_interval_is_that_of_student():
  found = verdicts.interval(np.array([1.0, 2.0, 3.0]))
  # 4.303 is the quantile for two degrees of freedom.
  expected = (2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5)
  np.testing.assert_allclose(found, expected, rtol=1e-3)
  assert np.isnan(verdicts.interval(np.array([1.0])).low)


def test_a_temperature_without_bound_is_named():
  rows = _rows()
  rows.loc[
    (rows["loss"] == "square_1") & (rows["seed"] == 1), "temperature"
  ] = 2.0**100
  assert "| unbounded |" in grid_page.tables(rows)
  assert "e+" not in grid_page.tables(rows)


def test_page_needs_only_the_rows(tmp_path):
  grid_page.write(tmp_path, _rows())
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {
    "tables.md",
    "differences.png",
    "nll_by_rate.png",
    "logits_by_rate.png",
  }
  text = (tmp_path / "tables.md").read_text()
  for line in (
    "which has 190 of the 197 runs",
    "| `z_loss` | 3 | -0.08",
    # A run without a number is not left out of a mean.
    "| `square_1e-1` | 0.3 | 3 | - | 0.5 |",
    "| loss | 0.0003 | 0.001 | 0.003 | 0.01 | 0.03 | 0.1 | 0.3 |",
    "## 49,152 classes",
  ):
    assert line in text
  assert re.search(r"^\| `square_1` \| 3 \| 0.01 \| (7.00|6.99)", text, re.M)
  assert "nan" not in text
  # Without the runs of the large vocabulary and of a single loss.
  rows = _rows(seeds=1)
  rows = rows[(rows["vocab"] == grid.VOCAB) & (rows["loss"] != "z_loss")]
  # One that diverged has no number at all.
  rows["nll"] = rows["nll"].where(rows["loss"] != "square_1")
  grid_page.write(tmp_path, rows)
  text = (tmp_path / "tables.md").read_text()
  assert "These runs are not finished yet." in text


def test_committed_rows_are_runs_of_the_plan():
  if not grid_page.RESULTS.exists():
    readme = (grid_page.DOCS / "README.md").read_text()
    assert "not run yet" in readme
    return
  rows = grid_page.read(grid_page.RESULTS)
  assert tuple(rows.columns) == one_run.COLUMNS
  keys = rows[list(grid.Run._fields)].itertuples(index=False, name=None)
  keys = [grid.Run(*key) for key in keys]
  assert len(set(keys)) == len(keys)
  assert set(keys) <= set(grid.RUNS)
  text = (grid_page.DOCS / "tables.md").read_text()
  assert text == grid_page.tables(rows), "run make figures"
