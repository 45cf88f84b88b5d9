# SPDX-License-Identifier: Apache-2.0
"""Class sums of dense logits: values, derivatives, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit
from support.sum_bounds import (
  ALL,
  READS,
  WEIGHTS,
  batch,
  check_gradient,
  check_sums,
  patterns,
)

from squentropy_jax import squentropy
from squentropy_jax._core import class_sums as record
from squentropy_jax._core import dense_sums, strips

# One and two classes, strips of one class and of more, whole vectors and one
# class more, a prime number, strips that repeat classes.
SIZES = [1, 2, 10, 32, 33, 100, 1009, 5000]


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
