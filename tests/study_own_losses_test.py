# SPDX-License-Identifier: Apache-2.0
"""A study of losses that the library does not have."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import study as support

import squentropy_jax
from squentropy_jax import losses, rows
import squentropy_study as study
from squentropy_study import StudyError, _loss_specs, _own_losses, _run_files

RNG = np.random.default_rng(0)
X = RNG.normal(size=(90, 3))
Y = (X + RNG.normal(size=(90, 3))).argmax(axis=1)
HERE = __name__


@squentropy_jax.row_loss(domains={"margin": "[0, inf)", "half": bool})
def margin_loss(stats, *, margin=0.5, half=False):
  value = jax.nn.softplus(stats.log_odds + margin)
  return value / 2 if half else value


@squentropy_jax.row_loss(
  domains={"temperature": "(0, inf)"},
  transform=rows.Transform(divide_by="temperature"),
)
def tempered(stats, *, temperature=2.0):
  return jax.nn.softplus(stats.log_odds)


def plain(logits, labels):
  """Needs the three classes of the data."""
  costs = jnp.eye(3) @ logits.T
  return (
    jax.nn.logsumexp(costs, axis=0) - costs[labels, jnp.arange(labels.size)]
  )


def mean(logits, labels):
  return losses.cross_entropy(logits, labels).mean()


def _compare(trained, **changes):
  settings = {"seeds": 1, "epochs": (), "max_epochs": 30, "model": "linear"}
  settings |= {"baselines": False, "quiet": True, "learning_rate": 0.1}
  return study.compare(X, Y, losses=trained, **{**settings, **changes})


@pytest.mark.parametrize(
  ("loss", "text"),
  [
    ("squentropy:scale=0.5", "squentropy:scale=0.5"),
    (losses.squentropy, "squentropy"),
    (functools.partial(losses.squentropy, scale=2), "squentropy:scale=2"),
    (margin_loss, f"{HERE}.margin_loss"),
    (
      functools.partial(margin_loss, margin=jnp.float32(0.5), half=True),
      f"{HERE}.margin_loss:margin=0.5,half=True",
    ),
    (
      functools.partial(margin_loss, margin=1 / 3),
      f"{HERE}.margin_loss:margin={1 / 3}",
    ),
    (plain, f"{HERE}.plain"),
  ],
)
def test_function_becomes_text_and_is_found_again(loss, text):
  assert _own_losses.text_of(loss) == text
  if isinstance(loss, str):
    return
  logits = RNG.normal(size=(4, 3)).astype(np.float32)
  labels = np.array([0, 2, 1, 1])
  np.testing.assert_array_equal(
    _loss_specs.parse(text)(logits, labels), loss(logits, labels)
  )


def test_losses_of_other_libraries_and_own_ones_are_compared():
  theirs = optax.losses.softmax_cross_entropy_with_integer_labels
  trained = [losses.cross_entropy, theirs, plain, margin_loss, "squentropy"]
  results = _compare(trained)
  nll = results.table().set_index("loss")["nll"]
  assert len(nll) == 5
  reference = nll["cross_entropy"]
  assert nll[f"{HERE}.plain"] == pytest.approx(reference, rel=1e-3)
  assert nll[_own_losses.text_of(theirs)] == pytest.approx(reference, rel=1e-3)
  assert nll[f"{HERE}.margin_loss"] != pytest.approx(reference, rel=1e-3)


def test_own_probabilities_are_ranked_and_predicted(tmp_path, monkeypatch):
  support.skip_figures(monkeypatch)
  out = tmp_path / "out"
  results = _compare([losses.cross_entropy, tempered], out=out)
  maps = [m.probability_map for m in results.methods if "tempered" in m.loss]
  assert maps == ["log_probs", "softmax"]
  found = study.predict(out, X[:4], loss=f"{HERE}.tempered")
  np.testing.assert_allclose(found.iloc[:, 2:].sum(axis=1), 1, rtol=1e-5)
  assert study.load(out).settings == results.settings


def test_label_smoothing_of_an_own_loss():
  spec = _loss_specs.parse(f"{HERE}.margin_loss:smoothing=0.3")
  logits = RNG.normal(size=(2, 3)).astype(np.float32)
  target = 0.7 * np.eye(3, dtype=np.float32)[[1, 0]] + 0.1
  np.testing.assert_allclose(
    spec(logits, jnp.array([1, 0])), margin_loss(logits, target), rtol=1e-6
  )


@pytest.mark.parametrize(
  ("loss", "message"),
  [
    (mean, "must return one number for each row of logits"),
    (lambda z, y: z[:, 0], "define it at the top of a module"),
    (functools.partial(margin_loss, margin=-1), r"margin must be in \[0, inf"),
    (functools.partial(margin_loss, size=1), "unknown hyper-parameter"),
    (functools.partial(margin_loss, X), "binds positional arguments"),
    (3, "got 3"),
    ([margin_loss, None], "got None"),
    (f"{HERE}.nothing", "has no function nothing"),
    (".loss", "is not a name"),
    ("no_such_module.loss", "cannot import no_such_module"),
    (f"{HERE}.plain:smoothing=0.1", "smoothing needs a loss that takes"),
    (losses.dice, "is for one logit per entry"),
  ],
)
def test_loss_that_cannot_be_studied(loss, message):
  with pytest.raises(StudyError, match=message) as raised:
    _compare(loss)
  assert "\n" not in str(raised.value)


def test_results_of_another_formula_are_not_reused(tmp_path, monkeypatch):
  """A notebook defines the loss again under its name."""
  support.skip_figures(monkeypatch)
  out, kept = tmp_path / "out", margin_loss
  first = _compare([margin_loss], out=out)
  text = f"{HERE}.margin_loss"
  before = _run_files.read_run_result(out, text).test_scores

  @squentropy_jax.row_loss(domains={"margin": "[0, inf)", "half": bool})
  def changed(stats, *, margin=0.5, half=False):
    return jax.nn.softplus(2 * stats.log_odds + margin)

  changed.__qualname__ = "margin_loss"
  monkeypatch.setattr(sys.modules[HERE], "margin_loss", changed)
  with pytest.raises(StudyError, match=f"another formula of {text}"):
    _compare([changed], out=out)
  with pytest.raises(StudyError, match="restore that formula"):
    study.predict(out, X)
  _compare([changed], out=out, fresh=True)
  after = _run_files.read_run_result(out, text).test_scores
  assert not np.allclose(before, after)
  monkeypatch.setattr(sys.modules[HERE], "margin_loss", kept)
  again = _compare([margin_loss], out=out, fresh=True)
  assert again.rows == first.rows


def test_digest_is_the_same_in_another_process(tmp_path):
  (tmp_path / "mine.py").write_text(
    "import jax, jax.numpy as jnp\n"
    "@jax.jit\n"
    "def loss(logits, labels):\n"
    "  return jax.nn.softplus(logits * jnp.arange(3.0)).sum(-1)\n"
  )
  code = (
    "from squentropy_study import _loss_specs\n"
    "print(_loss_specs.digests(['mine.loss', 'squentropy'], 3))\n"
  )
  outputs = {
    subprocess.run(
      [sys.executable, "-c", code],
      cwd=tmp_path,
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    for _ in range(2)
  }
  assert len(outputs) == 1
  assert "'mine.loss': '" in outputs.pop()


def test_command_finds_a_loss_in_the_working_folder(tmp_path):
  (tmp_path / "mine.py").write_text(
    "import squentropy_jax\n"
    "@squentropy_jax.row_loss\n"
    "def loss(stats):\n"
    "  return stats.log_z - stats.target\n"
  )
  words = "run iris --losses cross_entropy mine.loss --seeds 1 --epochs none"
  words += " --max-epochs 2 --no-baselines --model linear"
  done = subprocess.run(
    ["squentropy-study", *words.split()],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
    executable=f"{sys.prefix}/bin/squentropy-study",
  )
  assert done.returncode == 0, done.stderr
  assert "mine.loss" in done.stdout
