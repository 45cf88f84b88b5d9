# SPDX-License-Identifier: Apache-2.0
"""Calibration metrics, their definitions in NumPy float64, and data."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import calibration

NUM_BINS = 7


# Programs this small take longer to optimise than to run.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _top(p):
  c = p.max(-1)
  return c.astype(np.float64), p.argmax(-1)


def _bin(x):
  # An edge is the number nearest to it in the type of the computation.
  edges = (np.arange(1, NUM_BINS) / NUM_BINS).astype(x.dtype)
  return (x[..., None] >= edges).sum(-1)


def _gaps(bins, confidence, hit):
  """Rows, mean hit and mean confidence of each bin that has rows."""
  out = []
  for b in np.unique(bins):
    i = bins == b
    out.append((i.sum(), hit[i].mean(), confidence[i].mean()))
  return np.array(out).T


def _ece(p, y, norm=1):
  n, a, c = _gaps(_bin(p.max(-1)), _top(p)[0], _top(p)[1] == y)
  return ((n / n.sum()) @ np.abs(a - c) ** norm) ** (1 / norm)


def _mce(p, y):
  _, a, c = _gaps(_bin(p.max(-1)), _top(p)[0], _top(p)[1] == y)
  return np.abs(a - c).max()


def _debiased(p, y):
  n, a, c = _gaps(_bin(p.max(-1)), _top(p)[0], _top(p)[1] == y)
  i = n >= 2
  terms = (a - c)[i] ** 2 - (a * (1 - a))[i] / (n[i] - 1)
  return math.sqrt(max(0, (n[i] / n.sum()) @ terms))


def _tied_hits(p, y):
  """Confidence and hits by rising confidence, with the mean hit of ties."""
  c, k = _top(p)
  hit = (k == y).astype(np.float64)
  order = np.argsort(c, kind="stable")
  c, hit = c[order], hit[order]
  return c, np.array([hit[c == x].mean() for x in c])


def _adaptive(p, y, norm=1):
  c, hit = _tied_hits(p, y)
  parts = zip(
    np.array_split(c, NUM_BINS), np.array_split(hit, NUM_BINS), strict=True
  )
  total = sum(
    len(a) / len(c) * abs(b.mean() - a.mean()) ** norm
    for a, b in parts
    if len(a)
  )
  return total ** (1 / norm)


def _smooth(p, y):
  """On a fine grid and with 400 waves, without rounding the confidences."""
  c, k = _top(p)
  residual = ((k == y) - c) / len(c)
  t = (np.arange(2000) + 0.5) / 2000
  wave = np.arange(1, 400)
  weight = residual @ np.cos(np.pi * np.outer(c, wave))
  basis = 2 * np.cos(np.pi * np.outer(t, wave))

  def error(width):
    decay = np.exp(-0.5 * (np.pi * width * wave) ** 2)
    return np.abs(residual.sum() + basis @ (decay * weight)).mean()

  low, high = 0.0, 1.0
  for _ in range(40):
    middle = (low + high) / 2
    low, high = (low, middle) if middle >= error(middle) else (middle, high)
  return low


def classwise(p, y, norm=1):
  errors = []
  for k in range(p.shape[-1]):
    n, a, c = _gaps(_bin(p[:, k]), p[:, k].astype(np.float64), y == k)
    errors.append(((n / n.sum()) @ np.abs(a - c) ** norm) ** (1 / norm))
  return np.mean(errors)


def brier(p, y):
  return np.square(p.astype(np.float64) - np.eye(p.shape[-1])[y]).sum(-1).mean()


def _nll(p, y):
  z = np.log(np.maximum(p, 1e-30)).astype(np.float32).astype(np.float64)
  return np.mean(np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y])


def risk(p, y):
  _, hit = _tied_hits(p, y)
  return np.cumsum(1 - hit[::-1]) / np.arange(1, len(hit) + 1)


def _excess(p, y):
  hit = np.sort(_top(p)[1] == y)[::-1]
  best = np.cumsum(1 - hit) / np.arange(1, len(hit) + 1)
  return risk(p, y).mean() - best.mean()


def _auroc(p, y):
  c, k = _top(p)
  right, wrong = c[k == y][:, None], c[k != y]
  return np.mean((right > wrong) + 0.5 * (right == wrong))


def _top_k(p, y):
  order = np.argsort(-p, axis=-1, kind="stable")[:, :2]
  return np.mean((order == y[:, None]).any(-1))


def _of_stats(f, **keywords):
  def metric(p, y, where=None):
    stats = calibration.bin_stats(p, y, num_bins=NUM_BINS, where=where)
    return f(stats, **keywords)

  return metric


def _binned(f, **keywords):
  return functools.partial(f, num_bins=NUM_BINS, **keywords)


def _nll_of_probabilities(p, y, where=None):
  z = jnp.log(jnp.maximum(p, 1e-30))
  return calibration.negative_log_likelihood(z, y, where=where)


ECE = calibration.expected_calibration_error
ADAPTIVE = calibration.adaptive_calibration_error


CLASSWISE = calibration.classwise_calibration_error
METRICS = {
  "ece": (_of_stats(ECE), _ece),
  "rms": (_of_stats(ECE, norm=2), functools.partial(_ece, norm=2)),
  "mce": (_of_stats(calibration.maximum_calibration_error), _mce),
  "debiased": (_of_stats(calibration.debiased_calibration_error), _debiased),
  "adaptive": (_binned(ADAPTIVE), _adaptive),
  "adaptive2": (
    _binned(ADAPTIVE, norm=2),
    functools.partial(_adaptive, norm=2),
  ),
  "smooth": (calibration.smooth_calibration_error, _smooth),
  "classwise": (_binned(CLASSWISE), classwise),
  "classwise2": (
    _binned(CLASSWISE, norm=2),
    functools.partial(classwise, norm=2),
  ),
  "brier": (calibration.brier_score, brier),
  "nll": (_nll_of_probabilities, _nll),
  "aurc": (
    calibration.area_under_risk_coverage,
    lambda p, y: risk(p, y).mean(),
  ),
  "e-aurc": (calibration.excess_area_under_risk_coverage, _excess),
  "auroc": (calibration.confidence_auroc, _auroc),
  "accuracy": (
    calibration.accuracy,
    lambda p, y: np.mean(p.argmax(-1) == y),
  ),
  "top2": (functools.partial(calibration.top_k_accuracy, k=2), _top_k),
}
FUNCTIONS = {name: metric for name, (metric, _) in METRICS.items()}


# One metric of each kind of program.
ONE_OF_EACH_KIND = (
  "ece",
  "adaptive",
  "smooth",
  "classwise",
  "brier",
  "nll",
  "aurc",
)


def every_metric(p, y, where=None, names=tuple(METRICS)):
  """Every metric: under one `jit`, so that tests compile few programs."""
  return {name: FUNCTIONS[name](p, y, where=where) for name in names}


NUM_ROWS = 257


compiled = jit(every_metric)


def evaluate(p, y):
  """Every metric of some rows, among dropped rows that hold NaN."""
  drop = NUM_ROWS - len(p)
  p = np.concatenate([p, np.full((drop, 4), np.nan, np.float32)])
  y = np.concatenate([y, np.full(drop, -100, np.int32)])
  where = np.arange(NUM_ROWS) < NUM_ROWS - drop
  order = np.random.default_rng(1).permutation(NUM_ROWS)
  return compiled(p[order], y[order], where[order])


def assert_close(got, want):
  # Sums in another order: a few ulp.
  for name, value in want.items():
    np.testing.assert_allclose(
      got[name], value, rtol=2e-6, atol=2e-7, err_msg=name
    )


@functools.cache
def data(kind):
  rng = np.random.default_rng(7)
  n, c = 5 if kind == "few" else NUM_ROWS, 4
  z = rng.normal(size=(n, c)) * 2
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  y = np.array([rng.choice(c, p=np.sqrt(q) / np.sqrt(q).sum()) for q in p])
  if kind == "grid":  # On the edges of the bins, and full of ties.
    first = rng.integers(0, NUM_BINS + 1, n) / NUM_BINS
    p = np.stack([first, 1 - first] + [np.zeros(n)] * 2, -1)
  if kind == "saturated":
    p = np.eye(c)[p.argmax(-1)]
  return p.astype(np.float32), y.astype(np.int32)
