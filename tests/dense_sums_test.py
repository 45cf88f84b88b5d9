# SPDX-License-Identifier: Apache-2.0
"""Class sums of dense logits: values, derivatives, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import squentropy
from squentropy_jax._core import class_sums as record
from squentropy_jax._core import dense_sums, strips

ALL = frozenset({*record.SUMS, "max"})
READS = {"all": ALL, "no max": ALL - {"max"}, "no exp": ALL - record.RELATIVE}
# One and two classes, strips of one class and of more, whole vectors and one
# class more, a prime number, strips that repeat classes.
SIZES = [1, 2, 10, 32, 33, 100, 1009, 5000]
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


@functools.cache
def weighted(reads, axis=1, jit=jit):
  """Class sums, and the gradient of a weighted sum of them, as one program."""

  def total(z, y, keep=None):
    sums = dense_sums.class_sums(z, y, axis=axis, keep=keep, reads=reads)
    terms = [
      w * getattr(sums, name)
      for name, w in WEIGHTS.items()
      if name in reads | {"target"}
    ]
    return sum(t.sum() for t in terms), sums

  return jit(jax.grad(total, has_aux=True))


@functools.cache
def plain(reads):
  return jax.jit(
    lambda z, y: dense_sums.class_sums(z, y, axis=1, keep=None, reads=reads)
  )


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


@pytest.mark.parametrize(
  ("reads", "num_classes"),
  [("all", size) for size in SIZES]
  + [("no max", size) for size in (1, 10, 33, 1009)]
  + [("no exp", size) for size in (10, 100)],
)
def test_sums_and_gradient(reads, num_classes):
  fields = READS[reads]
  # Accuracy is that of programs compiled as users compile them.
  value, gradient = plain(fields), weighted(fields, jit=jax.jit)
  for name, logits, labels in patterns(num_classes):
    if name == "huge" and "sum_z_exp" in fields:
      continue  # The product of two huge logits is infinite.
    check_sums(value(logits, labels), logits, labels, fields)
    found, sums = gradient(logits, labels)
    check_sums(sums, logits, labels, fields)
    check_gradient(found, sums, logits, labels, fields)


@pytest.mark.x64
@pytest.mark.parametrize("num_classes", [10, 100])
def test_float64(num_classes):
  value = plain(READS["no max"])
  gradient = weighted(READS["no max"], jit=jax.jit)
  for name, logits, labels in patterns(num_classes):
    if name == "huge":
      continue
    logits = logits.astype(np.float64)
    check_sums(value(logits, labels), logits, labels, READS["no max"])
    found, sums = gradient(logits, labels)
    check_sums(sums, logits, labels, READS["no max"])
    check_gradient(found, sums, logits, labels, READS["no max"])


@pytest.mark.parametrize("num_classes", [10, 1009])
def test_the_form_of_accelerators(num_classes):
  run = jit(functools.partial(dense_sums._masked, axis=1, reads=ALL, save=True))
  ours = jit(functools.partial(strips.class_sums, axis=1, reads=ALL, save=True))
  for name, logits, labels in patterns(num_classes):
    sums, saved = run(logits, labels, None)
    if name != "huge":
      check_sums(sums, logits, labels, ALL)
    _, (exps, scale) = ours(logits, labels, None)
    np.testing.assert_allclose(
      saved.exps * saved.scale[:, None],
      exps * scale[:, None],
      rtol=1e-5,
      atol=1e-37,
    )


def test_the_exponential():
  z = np.linspace(-22, 44, 100_001, dtype=np.float32)
  truth = np.exp(np.float64(z)) * 2.0**strips._POWER
  actual = np.asarray(jax.jit(strips.exp_times_power)(z))
  error = np.abs(actual - truth) / np.spacing(np.float32(truth))
  assert error.max() <= 1.01
  # Below, 0 is reached late enough; nothing is ever in range by mistake.
  z = np.float32([-108.0, -109.0, -140.0, -1e4, -1e30, -np.inf, np.nan])
  actual = np.asarray(jax.jit(strips.exp_times_power)(z))
  np.testing.assert_allclose(
    actual[:2], np.exp(np.float64(z[:2])) * 2.0**strips._POWER, rtol=2e-7
  )
  np.testing.assert_array_equal(actual[2:4], 0)
  assert np.isnan(actual[5:]).all()
  out = jax.jit(strips.exp_times_power)(np.float32([90.0, 1e4, 1e30, np.inf]))
  assert not (np.asarray(out) <= 2.0 ** (strips._POWER + strips._HIGHEST)).any()


@pytest.mark.parametrize(
  ("shape", "axis"),
  [((7, 10), 0), ((40, 6), 0), ((2, 21, 3, 4), 1), ((3, 100, 5), 1)],
  ids=str,
)
def test_any_axis(shape, axis):
  size, rng = shape[axis], np.random.default_rng(7)
  logits = jnp.asarray(rng.normal(size=shape).astype(np.float32))
  labels = rng.integers(0, size, shape[:axis] + shape[axis + 1 :])
  labels = labels.astype(np.int32)
  for z in (logits, logits.at[0, 0].set(-jnp.inf), logits + 100):
    rows = jnp.moveaxis(z, axis, -1).reshape(-1, size)
    found, sums = weighted(ALL, axis)(z, labels)
    want_found, want = weighted(ALL)(rows, labels.reshape(-1))
    for a, b in zip(sums, want, strict=True):
      np.testing.assert_allclose(a.reshape(-1), b, rtol=1e-5, atol=1e-5)
    found = jnp.moveaxis(found, axis, -1).reshape(-1, size)
    np.testing.assert_allclose(found, want_found, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("num_classes", [10, 100])
def test_narrow_logits_are_widened(num_classes, dtype):
  run = weighted(ALL, jit=jax.jit)
  for name, logits, labels in patterns(num_classes):
    if name == "huge":
      continue
    narrow = jnp.asarray(logits).astype(dtype)
    found, sums = run(narrow, labels)
    wide_found, wide = run(narrow.astype(jnp.float32), labels)
    assert sums.sum_exp.dtype == jnp.float32
    assert found.dtype == dtype
    for a, b in zip(sums, wide, strict=True):
      np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(found, wide_found.astype(dtype))


@pytest.mark.parametrize(
  ("reads", "num_classes"),
  [("all", 10), ("no max", 10), ("no exp", 10), ("all", 100)],
)
def test_dropped_rows_are_not_seen(reads, num_classes):
  logits, labels = batch(num_classes)
  keep = np.arange(4) != 2
  keep = jnp.asarray(keep)
  run = weighted(READS[reads])
  clean_found, clean = run(logits, labels, keep)
  for value in (np.nan, np.inf, -np.inf, 3e38):
    dirty = logits.copy()
    dirty[2] = value
    with jax.debug_nans(True), jax.checking_leaks():
      found, sums = run(dirty, labels, keep)
    for a, b in zip(sums, clean, strict=True):
      np.testing.assert_array_equal(a, b)
      assert np.isfinite(a[2])
    np.testing.assert_array_equal(found, clean_found)
    np.testing.assert_array_equal(found[2], 0)


@pytest.mark.parametrize("num_classes", [10, 1009])
def test_nan_and_infinity_are_never_lost(num_classes):
  run = weighted(READS["no max"])
  for invalid in (np.nan, np.inf):
    logits, labels = batch(num_classes)
    logits[1, 5 if labels[1] != 5 else 6] = invalid
    found, sums = run(logits, labels)
    assert np.isnan(sums.sum_exp[1])
    assert not np.isfinite(sums.sum_sq[1])
    assert np.isnan(found[1]).any()
    clean = np.delete(np.arange(4), 1)
    part = record.ClassSums(*(f[clean] for f in sums))
    check_sums(part, logits[clean], labels[clean], READS["no max"])


def test_a_dominant_target_does_not_make_the_others_inaccurate():
  for num_classes in (10, 1000, 4096):
    logits = jnp.full((1, num_classes), 1e-2).at[0, 3].set(1e4)
    out = plain(ALL)(logits, jnp.array([3]))
    want = (num_classes - 1) * np.float64(np.float32(1e-2)) ** 2
    np.testing.assert_allclose(out.sum_sq, want, rtol=4e-7)


@pytest.mark.parametrize("num_classes", [6, 40])
def test_every_order_and_mode(num_classes):
  logits, labels = batch(num_classes, rows=3)
  logits[1, 2 if labels[1] != 2 else 3] = -np.inf
  possible = jnp.asarray(logits > -np.inf)

  def ours(z):
    z = jnp.where(possible, z, -jnp.inf)
    sums = dense_sums.class_sums(
      z, labels, axis=1, keep=None, reads=READS["no max"]
    )
    # The reference is a constant only where it cancels.
    shift = record.shift_of(sums.max)
    lse = shift + jnp.log(sums.sum_exp)
    mean = sums.sum_z_exp / sums.sum_exp
    return (jnp.tanh(lse) * mean + sums.sum * sums.target + sums.sum_sq).sum()

  def simple(z):
    ids = jnp.arange(num_classes)[None] == labels[:, None]
    other = possible & ~ids
    lse = jax.nn.logsumexp(z, -1, where=other)
    p = jnp.where(other, jnp.exp(z - lse[:, None]), 0.0)
    rest, target = jnp.where(other, z, 0.0), jnp.where(ids, z, 0.0).sum(-1)
    return (
      jnp.tanh(lse) * (p * rest).sum(-1)
      + rest.sum(-1) * target
      + jnp.square(rest).sum(-1)
    ).sum()

  z = jnp.where(possible, logits, 0.0)
  rng = np.random.default_rng(8)
  v = jnp.asarray(rng.normal(size=z.shape).astype(np.float32))

  @functools.partial(jit, static_argnums=0)
  def derivatives(f, z):
    def along(f):
      return lambda z: jax.jvp(f, (z,), (v,))[1]

    def dotted(f):
      return lambda z: jnp.vdot(f(z), v)

    gradient = jax.grad(f)
    return {
      "value": f(z),
      "reverse": gradient(z),
      "forward": along(f)(z),
      "forward over forward": along(along(f))(z),
      "forward over reverse": along(gradient)(z),
      "reverse over forward": jax.grad(along(f))(z),
      "reverse over reverse": jax.grad(dotted(gradient))(z),
      "third": jax.grad(dotted(along(gradient)))(z),
    }

  expected = derivatives(simple, z)
  for name, found in derivatives(ours, z).items():
    np.testing.assert_allclose(
      found, expected[name], rtol=1e-4, atol=1e-4, err_msg=name
    )


@pytest.mark.parametrize("num_classes", [10, 40])
def test_vmap_equals_one_batch(num_classes):
  logits, labels = batch(num_classes, rows=6)
  logits[4, 1] = -np.inf
  keep = jnp.arange(6) != 2

  def total(z, y, w):
    sums = dense_sums.class_sums(z, y, axis=z.ndim - 1, keep=w, reads=ALL)
    return (sums.sum_exp + sums.sum_sq + sums.max).sum(), sums

  def gradient(axis):
    grad = jax.grad(total, has_aux=True)
    return jit(grad if axis is None else jax.vmap(grad, in_axes=axis))

  found, sums = gradient(None)(logits, labels, keep)
  v_found, v_sums = gradient(0)(logits, labels, keep)
  np.testing.assert_allclose(v_found, found, rtol=1e-6)
  for a, b in zip(v_sums, sums, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  # One row, all labels; two batch axes; a class axis that is batched last.
  found, sums = gradient((None, 0, None))(logits[0], labels, keep[0])
  want, _ = gradient(0)(
    jnp.broadcast_to(logits[0], logits.shape), labels, jnp.ones(6, bool)
  )
  np.testing.assert_allclose(found, want, rtol=1e-6)
  text = gradient(0).lower(logits, labels, keep).as_text()
  assert "while" in text


# Memory, of the compiled program.


@pytest.mark.parametrize(
  "shape", [(1024, 32768), (256, 131072), (512, 50257)], ids=str
)
def test_value_and_gradient_take_little_memory(shape):
  logits = jax.ShapeDtypeStruct(shape, jnp.float32)
  labels = jax.ShapeDtypeStruct(shape[:1], jnp.int32)
  keep = jax.ShapeDtypeStruct(shape[:1], jnp.bool_)

  def mean(z, y, w):
    return squentropy(z, y, where=w).mean()

  run = jax.jit(jax.value_and_grad(mean))
  for where in (None, keep) if shape[1] == 50257 else (keep,):
    analysis = run.lower(logits, labels, where).compile().memory_analysis()
    assert analysis.temp_size_in_bytes <= 0.08 * 4 * shape[0] * shape[1]
