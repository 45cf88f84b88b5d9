# SPDX-License-Identifier: Apache-2.0
"""What holds for every recalibrator: batches, types, meshes, invalid rows."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.calibration_recalibrators import (
  EVERY,
  FAST,
  FITS,
  apply,
  data,
  fit,
  fitted,
  log_softmax,
)

from squentropy_jax import calibration


@EVERY
def test_impossible_classes_stay_impossible(name):
  z, y = data(name)
  holed = z.copy()
  rows = np.arange(len(y)) % 3
  for k in (0, z.shape[-1] - 1):
    holed[(rows == (k > 0)) & (y != k), k] = -np.inf
  params = fit(name, holed, y)
  assert all(np.all(np.isfinite(x)) for x in params)
  new = np.asarray(apply(params, holed))
  assert np.all(new[holed == -np.inf] == -np.inf)
  # Two of them give probabilities of exactly 0 and 1, as documented.
  if name not in ("histogram", "isotonic"):
    assert np.all(np.isfinite(new[holed > -np.inf]))
  np.testing.assert_allclose(
    np.exp(log_softmax(new)).sum(-1), 1, rtol=1e-6, err_msg=name
  )


@pytest.mark.parametrize("name", ["histogram", "isotonic"])
def test_other_classes_keep_their_proportions(name):
  z, _ = data(name)
  new = np.exp(apply(fitted(name), z), dtype=np.float64)
  np.testing.assert_allclose(new.sum(-1), 1, rtol=2e-6)
  old, k = np.exp(log_softmax(z)), z.argmax(-1)[:, None]
  np.put_along_axis(old, k, 0, -1)
  top = np.take_along_axis(new, k, -1)
  np.put_along_axis(new, k, 0, -1)
  share = old / old.sum(-1, keepdims=True)
  np.testing.assert_allclose(new, share * (1 - top), atol=1e-6)
  # The only possible class has probability 1.
  z[:, 1:] = -np.inf
  np.testing.assert_array_equal(apply(fitted(name), z)[:, 0], 0)


@EVERY
def test_invalid_rows_give_nan(name):
  # `fit` adds dropped rows with NaN and invalid labels to every fit.
  z, y = data(name)
  holed, labels = z.copy(), y.copy()
  holed[3, 1], labels[3] = np.nan, 9
  for logits, ids in ((holed, y), (z, labels), (z[:0], y[:0])):
    params = fit(name, logits, ids)
    assert all(np.all(np.isnan(x)) for x in params)
    assert np.all(np.isnan(log_softmax(np.asarray(apply(params, z)))))


@EVERY
def test_apply_takes_any_batch_any_type_and_transformations(name):
  z, _ = data(name)
  params = fitted(name)
  new = apply(params, z)
  assert new.dtype == jnp.float32
  shaped = apply(params, z.reshape(2, 20, -1))
  np.testing.assert_allclose(shaped.reshape(z.shape), new, atol=2e-6)
  # One row at a time, and parameters of two seeds.
  seeds = jax.tree.map(lambda x: jnp.stack([x, x]), params)
  rows = jax.vmap(calibration.apply, in_axes=(None, 0))
  both = jax.jit(jax.vmap(rows, in_axes=(0, None)), compiler_options=FAST)
  np.testing.assert_allclose(both(seeds, z)[1], new, atol=2e-6)
  narrow = jax.eval_shape(apply, params, jnp.asarray(z, jnp.bfloat16))
  assert narrow.dtype == jnp.float32

  @functools.partial(jax.jit, compiler_options=FAST)
  @jax.grad
  def grad(z):
    return jnp.square(jax.nn.softmax(calibration.apply(params, z))).sum()

  assert np.all(np.isfinite(grad(z)))


@pytest.mark.parametrize("name", ["temperature", "vector", "isotonic"])
def test_fits_over_seeds_at_once(name):
  z, y = data(name)
  seeds = np.stack([z, 2 * z]), np.stack([y, y])
  got = jax.jit(jax.vmap(FITS[name]), compiler_options=FAST)(*seeds)
  one = jax.tree.map(lambda x: x[0], got)
  want = apply(fitted(name), z)
  np.testing.assert_allclose(apply(one, z), want, rtol=2e-5, atol=2e-5)


_SHARDED = ("vector", "isotonic")


def _recalibrated(z, y):
  return {name: calibration.apply(FITS[name](z, y), z) for name in _SHARDED}


@pytest.mark.parametrize("kind", ["Explicit", "shard_map"])
def test_sharded_rows(kind):
  z, y = data("vector")
  axis_type = AxisType.Explicit if kind == "Explicit" else AxisType.Auto
  mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
  program = _recalibrated
  if kind == "shard_map":  # Each device fits the same rows by itself.
    z, y = np.tile(z, (4, 1)), np.tile(y, 4)
    program = jax.shard_map(
      program, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
  with jax.set_mesh(mesh):
    got = jax.jit(program, compiler_options=FAST)(
      jax.device_put(z, NamedSharding(mesh, P("data", "model"))),
      jax.device_put(y, NamedSharding(mesh, P("data"))),
    )
  for name in _SHARDED:
    want = apply(fitted(name), z[:40])
    # Sums in another order: a fit changes by some ulp.
    np.testing.assert_allclose(got[name][:40], want, rtol=2e-5, atol=2e-5)
    np.testing.assert_array_equal(got[name][-40:], got[name][:40])


def test_arguments_are_checked():
  z, y = data("temperature")
  with pytest.raises(TypeError, match=r"calibration\.fit_\* .* got tuple"):
    calibration.apply((1.0,), z)
  # Parameters of four seeds do not broadcast over four classes.
  for name in FITS:
    params, logits = fitted(name), data(name)[0]
    stacked = jax.tree.map(lambda x: jnp.stack([x] * 4), params)
    with pytest.raises(ValueError, match=r"params\.\w+ must .*jax\.vmap"):
      calibration.apply(stacked, logits)
  one = calibration.VectorScaling(jnp.ones(1), jnp.ones(1))
  for params, logits in (
    (one, z),
    (fitted("vector"), z[:, :3]),
    (fitted("matrix"), z[:, :1]),
  ):
    with pytest.raises(ValueError, match=r"params\.weight must have shape"):
      calibration.apply(params, logits)
  with pytest.raises(ValueError, match="two classes"):
    calibration.fit_beta_calibration(z, y)
  with pytest.raises(ValueError, match="penalty must be in"):
    calibration.fit_vector_scaling(z, y, penalty=-1.0)
  with pytest.raises(ValueError, match="off_diagonal_penalty must be a scalar"):
    calibration.fit_matrix_scaling(z, y, off_diagonal_penalty=np.ones(2))
  with pytest.raises(ValueError, match=r"labels\[1\] = 9"):
    calibration.fit_temperature(z[:2], np.array([0, 9]))
  with pytest.raises(TypeError, match="num_bins"):
    calibration.fit_histogram_binning(z, y, num_bins=2.0)
