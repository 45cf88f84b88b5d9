# SPDX-License-Identifier: Apache-2.0
"""Rows for the tests of class sums, and bounds of their errors."""

import numpy as np

from squentropy_jax._core import class_sums as record

ALL = frozenset({*record.SUMS, "max"})
READS = {"all": ALL, "no max": ALL - {"max"}, "no exp": ALL - record.RELATIVE}
WEIGHTS = {
  "target": 0.7,
  "max": 0.3,
  "sum_exp": -1.3,
  "sum_z_exp": 0.4,
  "sum": 1.1,
  "sum_sq": -0.6,
}


def batch(num_classes, rows=4):
  rng = np.random.default_rng(7)
  logits = rng.normal(size=(rows, num_classes)).astype(np.float32)
  labels = rng.integers(0, num_classes, rows).astype(np.int32)
  labels[0], labels[-1] = 0, num_classes - 1
  return logits, labels


def patterns(num_classes):
  """Rows that take every path; each yields logits and labels of one shape."""
  logits, labels = batch(num_classes)
  rows = np.arange(len(labels))
  yield "ordinary", logits, labels
  yield "wide", 12 * logits, labels
  yield "shifted", logits + np.float32(1e4), labels
  yield "negative", logits - np.float32(100), labels
  yield "tied", np.full_like(logits, 3), labels
  confident = logits.copy()
  confident[rows, labels] = 1e4
  yield "confident", confident, labels
  confident[rows, labels] = -np.inf
  yield "impossible target", confident, labels
  if num_classes > 2:
    # Some classes, and all except the target.
    holes = logits.copy()
    holes[0, 1::3] = -np.inf
    holes[1, np.arange(num_classes) != labels[1]] = -np.inf
    yield "impossible classes", holes, labels
    huge = logits.copy()
    huge[0, 1], huge[1, (labels[1] + 1) % num_classes] = 1e18, -2e38
    yield "huge", huge, labels


def others_of(row, label):
  """The ids of the other possible classes, and their logits in float64."""
  ids = np.flatnonzero((np.arange(row.size) != label) & (row > -np.inf))
  return ids, np.float64(row[ids])


def shift_of(largest):
  return 0.0 if largest == -np.inf else float(largest)


def check_sums(sums, logits, labels, reads):
  eps = np.finfo(np.asarray(sums.target).dtype).eps
  for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
    _, z = others_of(row, label)
    got = {name: np.float64(f[i]) for name, f in sums._asdict().items()}
    assert got["target"] == row[label]
    assert got["num_others"] == z.size
    if "max" in reads:
      assert got["max"] == z.max(initial=-np.inf)
    shift = shift_of(got["max"])
    top = z.max(initial=-np.inf)
    gap = np.abs(z - top)
    # The relative error of an exponential is half its gap in ulp; one far
    # below the largest does not count.
    e = np.exp(z - shift)
    error = (6 + np.minimum(gap, 20)) * eps
    if "sum_exp" in reads:
      assert abs(got["sum_exp"] - e.sum()) <= (error * e).sum()
      assert 0.5 <= got["sum_exp"] <= 1.001 * max(z.size, 1) or z.size == 0
    if "sum_z_exp" in reads:
      bound = (error * np.abs(z) * e).sum()
      assert abs(got["sum_z_exp"] - (z * e).sum()) <= bound
    if "sum" in reads:
      assert abs(got["sum"] - z.sum()) <= 4 * eps * np.abs(z).sum()
    if "sum_sq" in reads:
      square = np.square(z).sum()
      if square > np.finfo(np.float32).max:
        assert got["sum_sq"] == np.inf
      else:
        assert abs(got["sum_sq"] - square) <= 4 * eps * square


def check_gradient(gradient, sums, logits, labels, reads):
  eps = np.finfo(gradient.dtype).eps
  for i, (row, label) in enumerate(zip(logits, labels, strict=True)):
    ids, z = others_of(row, label)
    want, bound = np.zeros(row.size), np.zeros(row.size)
    want[label] = WEIGHTS["target"]
    shift = shift_of(sums.max[i])
    e = np.exp(z - shift)
    parts = {
      "sum_exp": e,
      "sum_z_exp": (1 + z) * e,
      "sum": np.ones_like(z),
      "sum_sq": 2 * z,
      "max": np.arange(z.size) == (z.argmax() if z.size else 0),
    }
    gap = np.abs(z - z.max(initial=-np.inf))
    error = {"sum_exp": gap + 6, "sum_z_exp": gap + 6}
    for name in reads:
      part = WEIGHTS[name] * parts[name]
      want[ids] += part
      bound[ids] += (error.get(name, 2) + 2) * eps * np.abs(part)
      if name == "sum_z_exp":
        # 1 + z is rounded.
        bound[ids] += eps * e * (1 + np.abs(z))
    tiny = np.finfo(gradient.dtype).tiny
    bound[label] = eps
    assert (np.abs(np.float64(gradient[i]) - want) <= bound + tiny).all()
