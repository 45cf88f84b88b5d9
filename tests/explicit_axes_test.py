# SPDX-License-Identifier: Apache-2.0
"""Arrays on a mesh with explicit axes give the values of whole arrays."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import attention, heads, probes, special

RNG = np.random.default_rng(6)
X = RNG.normal(size=(8, 3)).astype(np.float32)
Y = np.arange(8) % 3
KEEP = np.arange(8) != 5
POINTS = RNG.normal(size=(6, 3)).astype(np.float32)
PARAMS = probes.TiedGaussian(
  *map(jnp.asarray, (POINTS[:3], 2 * np.eye(3, dtype=np.float32))),
  jnp.array([2, 3, 3]),
  jnp.float32(0.1),
)
TOKENS = RNG.normal(size=(4, 6, 2, 4)).astype(np.float32)
STATE = heads.factored_init(RNG.normal(size=(3, 10)).astype(np.float32))


@functools.cache
def mesh():
  return jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)


def score(x):
  return probes.mahalanobis_score(PARAMS, x)


def update(x, y):
  ones = jnp.ones_like(x[:, 0])
  return heads.factored_update(
    STATE, x, y[:, None], ones[:, None], ones, 0.1 * ones, 0.01
  )


# What the values are computed from, and the axes of the result; None where it
# is the same on all devices.
OF_ROWS = {
  "fit_gaussian": (lambda x, y, w: probes.fit_gaussian(x, y, 3, where=w), None),
  "fit_diagonal": (
    lambda x, y, w: probes.fit_gaussian(
      x, y, 3, covariance="diagonal", where=w
    ),
    None,
  ),
  "fit_logistic": (lambda x, y, w: probes.fit_logistic(x, y, 3, where=w), None),
  "add_class": (lambda x, y, w: probes.add_class(PARAMS, x), None),
  "gaussian_logits": (
    lambda x, y, w: probes.gaussian_logits(PARAMS, x),
    P("data", None),
  ),
  "mahalanobis_score": (lambda x, y, w: score(x), P("data")),
  "perturbed_inputs": (
    lambda x, y, w: probes.perturbed_inputs(score, x, epsilon=0.1),
    P("data", None),
  ),
  "queries": (
    lambda x, y, w: probes.singular_kernel_log_probs(
      x, POINTS, np.arange(6) % 3, 3, exponent=2.0
    ),
    P("data", None),
  ),
  "points": (
    lambda x, y, w: probes.singular_kernel_log_probs(
      POINTS, x, y, 3, exponent=2.0, where=w
    ),
    None,
  ),
  "two_pass_softmax": (
    lambda x, y, w: special.two_pass_softmax(x),
    P("data", None),
  ),
  "factored_forward": (
    lambda x, y, w: heads.factored_forward(STATE, x, y[:, None])[0],
    P("data", None),
  ),
  "factored_update": (lambda x, y, w: update(x, y)[1], None),
}


def on_mesh(x, spec):
  return jax.device_put(x, NamedSharding(mesh(), spec))


@pytest.mark.parametrize("name", OF_ROWS)
def test_rows_on_the_devices_of_an_axis(name):
  function, spec = OF_ROWS[name]
  expected = function(X, Y, KEEP)
  arrays = [on_mesh(X, P("data", None))]
  arrays += [on_mesh(x, P("data")) for x in (Y.astype(np.int32), KEEP)]
  with jax.set_mesh(mesh()):
    found = jit(function)(*arrays)
    types = jax.eval_shape(function, *arrays)
  for leaf in jax.tree.leaves(types):
    if leaf.sharding is not None:
      axes = P(*(None,) * leaf.ndim) if spec is None else spec
      assert leaf.sharding.spec == axes
  for a, b in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def softplus(x, where):
  return attention.softplus_attention(
    x, x, x, power=3.0, mask=where[:, None, None, :]
  )


def softmax_free(x, where):
  landmarks = attention.average_landmarks(x, 2, where=where)
  return attention.softmax_free_attention(
    x, x, landmarks=landmarks, where=where, ridge=0.1
  )


def landmarks_of_all(x, where):
  del where
  return attention.average_landmarks(x, 2)


@pytest.mark.parametrize("function", [softplus, softmax_free, landmarks_of_all])
@pytest.mark.parametrize(
  "axes", [("data", None, None, None), ("data", None, "model", None)]
)
def test_attention_of_sequences_and_heads_on_devices(function, axes):
  keep = np.arange(6) < np.array([[6], [4], [5], [6]])
  arrays = on_mesh(TOKENS, P(*axes)), on_mesh(keep, P("data", None))

  def total(x, where):
    out = function(x, where)
    return (out**2).sum(), out

  def both(x, where):
    gradient, out = jax.grad(total, has_aux=True)(x, where)
    return out, gradient

  expected = jit(both)(TOKENS, keep)
  with jax.set_mesh(mesh()):
    found = jit(both)(*arrays)
    for leaf in jax.eval_shape(both, *arrays):
      assert leaf.sharding.spec == P(*axes)
  for a, b in zip(found, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
