# SPDX-License-Identifier: Apache-2.0
"""Every metric against its definition in NumPy float64, and its edges."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from squentropy_jax import calibration
from squentropy_jax.calibration import _adaptive as _adaptive_module
from squentropy_jax.calibration import _bins, _scores
from squentropy_jax.calibration import _classwise as _classwise_module

_BINS = 7
# Programs this small take longer to optimise than to run.
_jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


def _top(p):
  c = p.max(-1)
  return c.astype(np.float64), p.argmax(-1)


def _bin(x):
  # An edge is the number nearest to it in the type of the computation.
  edges = (np.arange(1, _BINS) / _BINS).astype(x.dtype)
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
  """Confidence and hits by rising confidence; ties share their hits."""
  c, k = _top(p)
  hit = (k == y).astype(np.float64)
  order = np.argsort(c, kind="stable")
  c, hit = c[order], hit[order]
  return c, np.array([hit[c == x].mean() for x in c])


def _adaptive(p, y, norm=1):
  c, hit = _tied_hits(p, y)
  parts = zip(np.array_split(c, _BINS), np.array_split(hit, _BINS), strict=True)
  total = sum(
    len(a) / len(c) * abs(b.mean() - a.mean()) ** norm
    for a, b in parts
    if len(a)
  )
  return total ** (1 / norm)


def _smooth(p, y):
  """On a fine grid and with 400 waves, without any cell to round to."""
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


def _classwise(p, y, norm=1):
  errors = []
  for k in range(p.shape[-1]):
    n, a, c = _gaps(_bin(p[:, k]), p[:, k].astype(np.float64), y == k)
    errors.append(((n / n.sum()) @ np.abs(a - c) ** norm) ** (1 / norm))
  return np.mean(errors)


def _brier(p, y):
  return np.square(p.astype(np.float64) - np.eye(p.shape[-1])[y]).sum(-1).mean()


def _nll(p, y):
  z = np.log(np.maximum(p, 1e-30)).astype(np.float32).astype(np.float64)
  return np.mean(np.log(np.exp(z).sum(-1)) - z[np.arange(len(y)), y])


def _risk(p, y):
  _, hit = _tied_hits(p, y)
  return np.cumsum(1 - hit[::-1]) / np.arange(1, len(hit) + 1)


def _excess(p, y):
  hit = np.sort(_top(p)[1] == y)[::-1]
  best = np.cumsum(1 - hit) / np.arange(1, len(hit) + 1)
  return _risk(p, y).mean() - best.mean()


def _auroc(p, y):
  c, k = _top(p)
  right, wrong = c[k == y][:, None], c[k != y]
  return np.mean((right > wrong) + 0.5 * (right == wrong))


def _top_k(p, y):
  order = np.argsort(-p, axis=-1, kind="stable")[:, :2]
  return np.mean((order == y[:, None]).any(-1))


def _of_stats(f, **keywords):
  def metric(p, y, where=None):
    stats = calibration.bin_stats(p, y, num_bins=_BINS, where=where)
    return f(stats, **keywords)

  return metric


def _binned(f, **keywords):
  return functools.partial(f, num_bins=_BINS, **keywords)


def _nll_of_probabilities(p, y, where=None):
  z = jnp.log(jnp.maximum(p, 1e-30))
  return calibration.negative_log_likelihood(z, y, where=where)


_ECE = calibration.expected_calibration_error
_ACE = calibration.adaptive_calibration_error
_CCE = calibration.classwise_calibration_error
METRICS = {
  "ece": (_of_stats(_ECE), _ece),
  "rms": (_of_stats(_ECE, norm=2), functools.partial(_ece, norm=2)),
  "mce": (_of_stats(calibration.maximum_calibration_error), _mce),
  "debiased": (_of_stats(calibration.debiased_calibration_error), _debiased),
  "adaptive": (_binned(_ACE), _adaptive),
  "adaptive2": (_binned(_ACE, norm=2), functools.partial(_adaptive, norm=2)),
  "smooth": (calibration.smooth_calibration_error, _smooth),
  "classwise": (_binned(_CCE), _classwise),
  "classwise2": (_binned(_CCE, norm=2), functools.partial(_classwise, norm=2)),
  "brier": (calibration.brier_score, _brier),
  "nll": (_nll_of_probabilities, _nll),
  "aurc": (
    calibration.area_under_risk_coverage,
    lambda p, y: _risk(p, y).mean(),
  ),
  "e-aurc": (calibration.excess_area_under_risk_coverage, _excess),
  "auroc": (calibration.confidence_auroc, _auroc),
  "accuracy": (
    calibration.accuracy,
    lambda p, y: np.mean(p.argmax(-1) == y),
  ),
  "top2": (functools.partial(calibration.top_k_accuracy, k=2), _top_k),
}
_SCALARS = {name: metric for name, (metric, _) in METRICS.items()}


# One of each kind of program.
_SOME = ("ece", "adaptive", "smooth", "classwise", "brier", "nll", "aurc")


def _all(p, y, where=None, names=tuple(METRICS)):
  """Every metric; under one `jit` the tests compile a few programs only."""
  return {name: _SCALARS[name](p, y, where=where) for name in names}


_ROWS = 257
_compiled = _jit(_all)


def _evaluate(p, y):
  """Every metric of some rows, filled up with dropped ones that hold NaN."""
  drop = _ROWS - len(p)
  p = np.concatenate([p, np.full((drop, 4), np.nan, np.float32)])
  y = np.concatenate([y, np.full(drop, -100, np.int32)])
  where = np.arange(_ROWS) < _ROWS - drop
  order = np.random.default_rng(1).permutation(_ROWS)
  return _compiled(p[order], y[order], where[order])


def _assert_close(got, want):
  # Sums in another grouping: a few units in the last place.
  for name, value in want.items():
    np.testing.assert_allclose(
      got[name], value, rtol=2e-6, atol=2e-7, err_msg=name
    )


@functools.cache
def _data(kind):
  rng = np.random.default_rng(7)
  n, c = 5 if kind == "few" else _ROWS, 4
  z = rng.normal(size=(n, c)) * 2
  p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
  y = np.array([rng.choice(c, p=np.sqrt(q) / np.sqrt(q).sum()) for q in p])
  if kind == "grid":  # On the edges of the bins, and full of ties.
    first = rng.integers(0, _BINS + 1, n) / _BINS
    p = np.stack([first, 1 - first] + [np.zeros(n)] * 2, -1)
  if kind == "saturated":
    p = np.eye(c)[p.argmax(-1)]
  return p.astype(np.float32), y.astype(np.int32)


@pytest.mark.parametrize("kind", ["random", "grid", "saturated", "few"])
def test_metrics_meet_their_definitions(kind):
  p, y = _data(kind)
  got = _evaluate(p, y)
  for name, (_, definition) in METRICS.items():
    # Some tens of roundings of numbers of at most 1 (the NLL: 70). The smooth
    # error is exact to the shape of one cell, see its docstring.
    atol = {"smooth": 1e-4, "nll": 7e-5}.get(name, 2e-6)
    np.testing.assert_allclose(
      got[name], definition(p, y), atol=atol, rtol=0, err_msg=name
    )


@pytest.mark.x64
def test_metrics_in_float64():
  p, y = _data("random")
  # Past a block of rows and of classes too.
  wide = np.asarray(p[np.arange(1500) % 257], np.float64)
  wide = np.concatenate([wide, np.zeros((1500, 1100))], -1)
  labels = y[np.arange(1500) % 257]
  for x, ids in ((p.astype(np.float64), y), (wide, labels)):
    for name, value in _compiled(x, ids).items():
      assert value.dtype == np.float64
      atol = {"smooth": 1e-4, "nll": 1e-6}.get(name, 1e-12)
      want = METRICS[name][1](x, ids)
      np.testing.assert_allclose(value, want, atol=atol, err_msg=name)


def test_dropped_rows_and_the_order_of_rows_leave_no_trace():
  p, y = _data("random")
  _assert_close(_compiled(p, y), _evaluate(p, y))
  p, y = _data("grid")  # Full of ties.
  order = np.random.default_rng(0).permutation(len(p))
  _assert_close(_evaluate(p[order], y[order]), _evaluate(p, y))


def test_without_a_row_the_value_is_nan():
  empty = np.zeros((0, 4), np.float32), np.zeros((0,), np.int32)
  for value in (_evaluate(*empty), _jit(_all)(*empty)):
    for name in METRICS:
      assert np.isnan(value[name]), name


def test_bad_rows_are_loud():
  p, y = _data("few")
  for bad in (4, -1):
    labels = np.array([0, 1, bad, 0, 1], np.int32)
    for name, metric in _SCALARS.items():
      with pytest.raises(ValueError, match=r"labels\[2\]"):
        metric(p, labels)
      assert np.isnan(_evaluate(p, labels)[name]), name
  for row in (
    [0.5, np.nan, 0.2, 0.3],
    [-3, 0.5, 0.2, 0.1],  # Logits, negative or not.
    [0.9, 0.1, 0.3, 0.5],
    [0.9, 0.9, 0, 0],
    [0, 0, 0, 0],
  ):
    bad = p.copy()
    bad[3] = row
    value = _evaluate(bad, y)
    for name in set(METRICS) - {"nll"}:  # There the test clips.
      if name not in ("accuracy", "top2") or np.isnan(row[1]):
        assert np.isnan(value[name]), name
      else:  # These take any score.
        assert np.isfinite(value[name]), name


def test_labels_of_every_integer_type():
  z = np.zeros((3, 300), np.float32)
  z[:, 200] = 1
  for dtype in (np.int8, np.uint8, np.int16, np.uint32):
    labels = np.array([0, 100, 127], dtype)
    assert _jit(calibration.accuracy)(z, labels) == 0
  # Wider ones are not narrowed before they are checked, whatever is traced.
  for label in (2**32 + 200, 2**32, -(2**32)):
    labels = np.array([label, 0, 0], np.int64)
    for where in (None, np.ones(3, bool)):
      if where is not None:
        traced = _jit(
          lambda w, labels=labels: calibration.accuracy(z, labels, where=w)
        )
        assert np.isnan(traced(where))
      with pytest.raises(ValueError, match=r"labels\[0\]"):
        calibration.accuracy(z, labels, where=where)
  labels = np.array([200, 0, 200], np.uint8)
  np.testing.assert_allclose(calibration.accuracy(z, labels), 2 / 3)


def test_arguments_are_checked():
  p, y = _data("few")
  bin_stats = calibration.bin_stats
  with pytest.raises(TypeError, match="labels must be integer"):
    bin_stats(p, y.astype(np.float32))
  with pytest.raises(ValueError, match="batch shape"):
    bin_stats(p, y[:3])
  with pytest.raises(ValueError, match="where must"):
    bin_stats(p, y, where=np.ones(p.shape, bool))
  with pytest.raises(TypeError, match="where must be boolean"):
    bin_stats(p, y, where=np.ones(y.shape, np.int32))
  with pytest.raises(TypeError, match="probabilities must be floating"):
    bin_stats(p > 0.5, y)
  with pytest.raises(ValueError, match="num_bins"):
    bin_stats(p, y, num_bins=0)
  with pytest.raises(TypeError, match="num_bins"):
    bin_stats(p, y, num_bins=10.0)
  with pytest.raises(ValueError, match="norm"):
    _ACE(p, y, norm=0.5)
  with pytest.raises(ValueError, match="k must"):
    calibration.top_k_accuracy(p, y, k=5)
  with pytest.raises(ValueError, match="as many bins"):
    calibration.merge(bin_stats(p, y), bin_stats(p, y, num_bins=3))
  stats = bin_stats(p, y)
  stacked = jax.tree.map(lambda x: jnp.stack([x, x]), stats)
  with pytest.raises(ValueError, match=r"\(2, 15\) and \(15,\)"):
    calibration.merge(stacked, stats)
  for f in (
    _ECE,
    calibration.maximum_calibration_error,
    calibration.debiased_calibration_error,
    calibration.plots.reliability_diagram,
  ):
    with pytest.raises(TypeError, match="stats must be a BinStats"):
      f(p)
  with pytest.raises(TypeError, match="a must be a BinStats"):
    calibration.merge(p, p)
  with pytest.raises(TypeError, match="b must be a BinStats"):
    calibration.merge(stats, p)
  with pytest.raises(TypeError, match="curve must be a RiskCoverage"):
    calibration.plots.risk_coverage(p)


def test_all_right_all_wrong_and_one_class():
  p = np.zeros((3, 4), np.float32)
  p[:, 0], p[:, 1] = [0.9, 0.8, 0.7], [0.1, 0.2, 0.3]
  # The gap is 1 - c for hits and c for misses: means of .1 .2 .3, .9 .8 .7.
  value = _evaluate(p, np.zeros(3, np.int32))
  for name in ("ece", "adaptive", "smooth"):
    np.testing.assert_allclose(value[name], 0.2, atol=1e-6)
  np.testing.assert_allclose(value["mce"], 0.3, atol=1e-6)
  assert value["aurc"] == 0
  assert value["accuracy"] == 1
  assert np.isnan(value["auroc"])
  value = _evaluate(p, np.ones(3, np.int32))
  for name in ("ece", "adaptive", "smooth"):
    np.testing.assert_allclose(value[name], 0.8, atol=1e-6)
  assert value["aurc"] == 1
  assert value["e-aurc"] == 0
  assert np.isnan(value["auroc"])
  one = np.ones((3, 1), np.float32), np.zeros(3, np.int32)
  stats = calibration.bin_stats(*one)
  assert _ECE(stats) == 0
  for metric in (_CCE, calibration.brier_score, calibration.accuracy):
    assert float(metric(*one)) == (metric is calibration.accuracy)


def test_narrow_types_are_computed_as_their_widened_values():
  p, y = _data("random")
  # Probabilities of bfloat16 add to 1 only roughly; none is refused.
  narrow = jnp.asarray(p, jnp.bfloat16)
  want = _compiled(np.asarray(narrow.astype(jnp.float32)), y)
  names = [name for name in _SOME if name != "nll"]  # There the test rounds.
  got = _jit(functools.partial(_all, names=names))(narrow, y)
  for name in names:
    assert got[name].dtype == jnp.float32, name
    np.testing.assert_array_equal(got[name], want[name], err_msg=name)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_rounded_probabilities_are_not_refused(dtype):
  # As a network gives them: exponentials, sum and quotient in a narrow type.
  for c, scale in ((3, 0.0), (3, 4.0), (1000, 0.1), (100_000, 1.0)):
    z = scale * jax.random.normal(jax.random.key(c), (4, c))
    z = (z - z.max(-1, keepdims=True)).astype(dtype)
    p = jnp.exp(z)
    p = p / jnp.sum(p, axis=-1, keepdims=True).astype(dtype)
    y = np.zeros(4, np.int32)
    assert int(calibration.bin_stats(p, y).invalid) == 0, (c, scale)
    assert int(calibration.bin_stats(jax.nn.softmax(z), y).invalid) == 0


def test_vmap_over_seeds_is_a_loop():
  p, y = _data("random")
  seeds = np.stack([p, p[::-1] ** 1]), np.stack([y, (y[::-1] + 1) % 4])
  got = _jit(jax.vmap(functools.partial(_all, names=_SOME)))(*seeds)
  for i in range(2):
    want = _evaluate(seeds[0][i], seeds[1][i])
    one = {name: value[i] for name, value in got.items()}
    _assert_close(one, {name: want[name] for name in _SOME})


def test_leading_axes_are_rows():
  p, y = _data("random")
  stats = calibration.bin_stats(
    p[:256].reshape(8, 32, 4), y[:256].reshape(8, 32)
  )
  want = calibration.bin_stats(p[:256], y[:256])
  jax.tree.map(np.testing.assert_array_equal, stats, want)


def test_statistics_add_across_devices():
  p, y = _data("random")
  p, y = p[:256], y[:256]
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

  @_jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data")), out_specs=P()
  )
  def stats(p, y):
    return jax.lax.psum(calibration.bin_stats(p, y), "data")

  whole = calibration.bin_stats(p, y)
  total = calibration.merge(
    stats(p, y), jax.tree.map(jnp.zeros_like, whole)
  )  # psum does not carry the digits; merge and the errors do.
  jax.tree.map(np.testing.assert_array_equal, total, whole)
  np.testing.assert_array_equal(_ECE(stats(p, y)), _ECE(whole))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_sharded_arrays(kind):
  p, y = _data("random")
  p, y = p[:256], y[:256]
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind,) * 2)
  sharded = (
    jax.device_put(p, NamedSharding(mesh, P("data", "model"))),
    jax.device_put(y, NamedSharding(mesh, P("data"))),
  )
  got = _jit(functools.partial(_all, names=_SOME))(*sharded)
  want = _evaluate(p, y)
  _assert_close(got, {name: want[name] for name in _SOME})


def test_metrics_run_on_the_rows_of_a_device():
  # Large inputs take loops, whose carry must vary over the mesh too.
  mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
  n = 2 * 9000
  p = np.tile(np.float32([[0.1, 0.6, 0.3] + [0] * 30]), (n, 1))
  y = np.tile(np.int32([1, 2]), n // 2)

  @_jit
  @functools.partial(
    jax.shard_map, mesh=mesh, in_specs=P("data"), out_specs=P("data")
  )
  def metrics(p, y):
    return jax.tree.map(lambda x: x[None], _all(p, y, names=_SOME))

  got = metrics(p, y)
  # The same rows over and over: every mean is that of six of them.
  rows = p[:6], y[:6]
  for name in _SOME:
    atol = {"smooth": 1e-4, "nll": 7e-5}.get(name, 2e-6)
    want = np.full(2, METRICS[name][1](*rows))
    if name == "aurc":  # Ties share their hits: the risk is flat.
      want = np.full(2, 1 - np.mean(p[:6].argmax(-1) == y[:6]))
    np.testing.assert_allclose(got[name], want, atol=atol, err_msg=name)


def test_blocks_of_rows_and_classes_change_nothing():
  # More rows and classes than one block holds, and neither a multiple of it.
  n, c = 1031, 2100
  z = jax.random.normal(jax.random.key(0), (n, c)) * 3
  p, y = np.asarray(jax.nn.softmax(z)), np.arange(n) % c
  y[::2] = p.argmax(-1)[::2]
  names = ("ece", "classwise", "brier", "accuracy", "top2", "nll")
  got = _jit(lambda p, y: {k: _SCALARS[k](p, y) for k in names})(p, y)
  for name in names:
    want = METRICS[name][1](p, y)
    np.testing.assert_allclose(got[name], want, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_metrics_lower_for_accelerators(platform):
  p = jax.ShapeDtypeStruct((300, 40), jnp.float32)
  y = jax.ShapeDtypeStruct((300,), jnp.int32)
  assert jax.jit(_all).trace(p, y).lower(lowering_platforms=(platform,))


def test_brier_decomposition_adds_up():
  for kind in ("random", "grid", "saturated", "few"):
    p, y = _data(kind)
    parts = calibration.brier_decomposition(p, y, num_bins=_BINS)
    np.testing.assert_allclose(parts.score, _brier(p, y), atol=1e-6)
    # The reliability is the squared class-wise error, summed over classes.
    squares = [
      _classwise(np.stack([1 - q, q], -1), (y == k) * 1, norm=2) ** 2
      for k, q in enumerate(p.T)
    ]
    if kind != "grid":  # There 1 - q may round to the other side of an edge.
      np.testing.assert_allclose(parts.reliability, np.sum(squares), atol=1e-6)
    frequency = np.bincount(y) / len(y)
    np.testing.assert_allclose(
      parts.uncertainty, 1 - np.square(frequency).sum(), atol=1e-6
    )


def test_curve_repeats_its_last_point_for_dropped_rows():
  p, y = _data("random")
  keep = np.arange(len(p)) % 3 > 0
  curve = calibration.risk_coverage_curve(p, y, where=keep)
  k = keep.sum()
  np.testing.assert_allclose(curve.risk[:k], _risk(p[keep], y[keep]), rtol=1e-6)
  np.testing.assert_array_equal(curve.risk[k:], curve.risk[k - 1])
  assert np.all(curve.coverage[k - 1 :] == 1)


@pytest.mark.parametrize("name", ["ece", "classwise", "brier", "nll", "top2"])
def test_no_intermediate_array_of_the_size_of_the_input(name):
  p = jax.ShapeDtypeStruct((3000, 100_000), jnp.float32)
  y = jax.ShapeDtypeStruct((3000,), jnp.int32)
  metric = _SCALARS[name]
  if name == "nll":
    metric = calibration.negative_log_likelihood
  memory = jax.jit(metric).lower(p, y).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 0.06 * 4 * 3000 * 100_000


def test_a_second_call_does_not_trace_again():
  rows = np.full((19, 4), 0.25, np.float32), np.zeros(19, np.int32)
  for metric, compiled in (
    (calibration.bin_stats, _bins._bin_stats),
    (_ACE, _adaptive_module._adaptive),
    (_CCE, _classwise_module._classwise),
    (calibration.brier_score, _scores._brier_score),
  ):
    size = compiled._cache_size()
    metric(*rows)
    metric(*rows)
    assert compiled._cache_size() == size + 1, metric
