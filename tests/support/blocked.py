# SPDX-License-Identifier: Apache-2.0
"""A small head in blocks of rows, and the dense loss of its logits."""

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import fused, losses

N, D, V = 7, 4, 6
RNG = np.random.default_rng(3)


def floats(*shape):
  return RNG.normal(size=shape).astype(np.float32)


FEATURES, LABELS = floats(N, D), np.arange(N, dtype=np.int32) % V
PARAMS = {
  "kernel": floats(D, V),
  "scale": 1 + np.abs(floats(1, D)),
  "step": np.int32(3),  # A leaf without a derivative.
}
WEIGHTS = np.linspace(-1, 2, N, dtype=np.float32)
KEEP = np.arange(N) % 4 != 2


def head(params, block):
  """A norm before the head, which has no derivative at zeros."""
  norm = jnp.sqrt(jnp.square(block).sum(-1, keepdims=True))
  return (block / norm * params["scale"]) @ params["kernel"]


def dense_logits():
  norm = np.sqrt(np.square(FEATURES).sum(-1, keepdims=True))
  return (FEATURES / norm * PARAMS["scale"]) @ PARAMS["kernel"]


def blocked(loss, params, features, labels, **keywords):
  keywords = {"block_rows": 3} | keywords
  return fused.blocked_loss_sum(
    loss, head, params, features, labels, **keywords
  )


def gradients(f, *arguments):
  """The value, and the gradients of all arguments; of integers float0."""
  value, vjp = jax.vjp(f, *arguments)
  return value, vjp(jnp.ones_like(value))


def assert_close(found, want, rtol=2e-6):
  for one, other in zip(*map(jax.tree.leaves, (found, want)), strict=True):
    assert one.dtype == other.dtype
    if one.dtype != jax.dtypes.float0:
      size = np.abs(other).max(initial=1e-3)
      np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * size)


def matmul(params, block):
  return block @ params


def loss_sum(kernel, features, labels, block_rows):
  return fused.blocked_loss_sum(
    losses.cross_entropy,
    matmul,
    kernel,
    features,
    labels,
    block_rows=block_rows,
  ).loss
