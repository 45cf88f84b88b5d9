# SPDX-License-Identifier: Apache-2.0
"""AUROC and ROC curves of binary scores, against scikit-learn."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from sklearn import metrics
from support import contract

from squentropy_jax import calibration

NUM_ROWS = 64


@pytest.fixture(autouse=True, scope="module")
def _no_optimizations():
  # Programs this small take longer to optimise than to run.
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, True)
  yield
  jax.config.update(name, before)


@contract.jit
def both(scores, labels, where):
  return (
    calibration.auroc(scores, labels, where=where),
    calibration.roc_curve(scores, labels, where=where),
    calibration.average_precision(scores, labels, where=where),
  )


def _rows(kind):
  rng = np.random.default_rng(3)
  labels = rng.integers(0, 2, 50)
  scores = rng.normal(size=50) + labels
  if kind == "ties":
    scores = np.round(scores)
  if kind == "equal":
    scores = np.zeros(50)
  if kind == "infinite":
    scores[:6] = [np.inf, np.inf, -np.inf, -np.inf, np.inf, -np.inf]
    labels[:6] = [1, 0, 1, 0, 1, 0]
  return scores.astype(np.float32), labels.astype(np.int32)


def _among_dropped(scores, labels):
  """The rows among others, which hold invalid numbers."""
  where = np.arange(NUM_ROWS) < len(scores)
  more = NUM_ROWS - len(scores)
  fill = np.array([np.nan, np.inf] * more, scores.dtype)[:more]
  scores = np.append(scores, fill)
  labels = np.append(labels, np.full(more, -100, labels.dtype))
  order = np.random.default_rng(1).permutation(NUM_ROWS)
  return scores[order], labels[order], where[order]


def _check(kind, dtype, rtol):
  scores, labels = _rows(kind)
  scores = scores.astype(dtype)
  area, curve, precision = both(*_among_dropped(scores, labels))
  assert area.dtype == dtype
  # scikit-learn refuses infinite scores; their ranks give the same curve.
  ranks = np.unique(scores, return_inverse=True)[1].astype(float)
  want = metrics.roc_curve(labels, ranks, drop_intermediate=False)
  np.testing.assert_allclose(area, metrics.auc(*want[:2]), rtol=rtol)
  np.testing.assert_allclose(
    area, metrics.roc_auc_score(labels, ranks), rtol=rtol
  )
  np.testing.assert_allclose(
    precision, metrics.average_precision_score(labels, ranks), rtol=rtol
  )
  got = np.stack(curve[:2])
  assert got.shape == (2, NUM_ROWS + 1)
  distinct = np.append(True, (np.diff(got) != 0).any(0))
  np.testing.assert_allclose(got[:, distinct], want[:2], rtol=rtol)
  thresholds = np.asarray(curve.thresholds)
  assert thresholds[0] == np.inf
  np.testing.assert_array_equal(
    thresholds[1:][distinct[1:]], np.unique(scores)[::-1]
  )
  np.testing.assert_array_equal(np.sort(thresholds)[::-1], thresholds)
  np.testing.assert_allclose(np.trapezoid(got[1], got[0]), area, rtol=1e-6)


KINDS = ["random", "ties", "equal", "infinite"]


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_with_scikit_learn(kind):
  _check(kind, np.float32, 3e-7)


@pytest.mark.x64
@pytest.mark.parametrize("kind", KINDS)
def test_agreement_with_scikit_learn_in_float64(kind):
  _check(kind, np.float64, 1e-14)


def test_confidence_auroc_is_that_of_confidence_and_hits():
  rng = np.random.default_rng(0)
  p = np.round(rng.dirichlet(np.ones(3), 40).astype(np.float32) * 16) / 16
  p[:, 0] += 1 - p.sum(-1)
  labels = rng.integers(0, 3, 40)
  want = calibration.confidence_auroc(p, labels)
  got = calibration.auroc(p.max(-1), p.argmax(-1) == labels)
  np.testing.assert_array_equal(got, want)


def test_kinds_of_labels_shapes_and_dtypes():
  scores, labels = _rows("random")
  want = calibration.auroc(scores, labels)
  for same in (labels.astype(bool), labels.astype(np.int64), labels.tolist()):
    np.testing.assert_array_equal(calibration.auroc(scores, same), want)
  folded = calibration.auroc(scores.reshape(5, 10), labels.reshape(5, 10))
  np.testing.assert_array_equal(folded, want)
  narrow = calibration.auroc(jnp.bfloat16(scores), labels)
  assert narrow.dtype == jnp.float32
  batches = jax.vmap(calibration.auroc)(
    np.stack([scores, -scores]), np.stack([labels, labels])
  )
  np.testing.assert_allclose(batches, [want, 1 - want], rtol=1e-6)


def test_limits():
  labels = np.array([0, 0, 1, 1])
  assert calibration.auroc(np.float32([1, 2, 3, 4]), labels) == 1
  assert calibration.auroc(np.float32([4, 3, 2, 1]), labels) == 0
  one = np.float32([1, 2]), np.ones(2, np.int32)
  assert np.isnan(calibration.auroc(*one))
  curve = calibration.roc_curve(*one)
  assert np.isnan(curve.false_positive_rate).all()
  np.testing.assert_array_equal(curve.true_positive_rate, [0, 0.5, 1])
  empty = np.zeros(0, np.float32), np.zeros(0, bool)
  assert np.isnan(calibration.auroc(*empty))
  assert np.isnan(calibration.average_precision(*empty))
  assert calibration.average_precision(*one) == 1
  assert np.isnan(calibration.roc_curve(*empty).thresholds).all()
  none = both(*_among_dropped(np.zeros(0, np.float32), np.zeros(0, np.int32)))
  assert all(np.isnan(x).all() for x in jax.tree.leaves(none))


def test_invalid_rows_give_nan():
  scores, labels = _rows("random")
  for bad_scores, bad_labels in (
    (np.append(scores[1:], np.float32(np.nan)), labels),
    (scores, np.append(labels[1:], np.int32(2))),
    (scores, np.append(labels[1:], np.int32(-1))),
  ):
    results = both(*_among_dropped(bad_scores, bad_labels))
    assert all(np.isnan(x).all() for x in jax.tree.leaves(results))


def test_sharded_scores():
  scores, labels, where = _among_dropped(*_rows("ties"))
  mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
  over = NamedSharding(mesh, P("data"))
  got = both(*(jax.device_put(x, over) for x in (scores, labels, where)))
  want = both(scores, labels, where)
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_errors_name_the_argument():
  scores, labels = _rows("random")
  for f in (
    calibration.auroc,
    calibration.average_precision,
    calibration.roc_curve,
    calibration.roc_stats,
  ):
    with pytest.raises(ValueError, match=r"labels\[2\] = 3 is .* \[0, 2\)"):
      f(scores[:3], np.array([0, 1, 3]))
    with pytest.raises(TypeError, match="labels must be booleans"):
      f(scores, labels.astype(np.float32))
    with pytest.raises(ValueError, match=r"labels must have the shape \(50,\)"):
      f(scores, labels[:, None])
    with pytest.raises(TypeError, match="scores must be floating point"):
      f(labels, labels)
    with pytest.raises(TypeError, match="where must be boolean"):
      f(scores, labels, where=labels)
    with pytest.raises(ValueError, match="where must have the batch shape"):
      f(scores, labels, where=np.ones(3, bool))
