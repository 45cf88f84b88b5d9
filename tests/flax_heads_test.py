# SPDX-License-Identifier: Apache-2.0
"""The heads as modules of Flax NNX and Linen: equal, and they learn."""

from flax import linen, nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squentropy_jax import heads, losses, nn

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(2, 8, 5)).astype(np.float32)
LABELS = RNG.integers(0, 6, (2, 8))


def nnx_head(kind):
  if kind == "cosine":
    return nn.nnx.CosineHead(5, 6, scale=4.0, rngs=nnx.Rngs(0))
  return nn.nnx.FourierHead(5, 6, num_frequencies=2, rngs=nnx.Rngs(0))


def linen_head(kind):
  if kind == "cosine":
    return nn.linen.CosineHead(6, scale=4.0)
  return nn.linen.FourierHead(6, num_frequencies=2)


@pytest.mark.parametrize("kind", ["cosine", "fourier"])
def test_both_apis_compute_the_same(kind):
  module, layer = nnx_head(kind), linen_head(kind)
  found = module(FEATURES)
  assert found.shape == (2, 8, 6)
  assert found.dtype == jnp.float32
  if kind == "cosine":
    params = {"kernel": module.kernel[...]}
    np.testing.assert_allclose(
      found, 4.0 * heads.cosine_logits(FEATURES, module.kernel[...]), rtol=1e-6
    )
  else:
    dense = {"kernel": module.kernel[...], "bias": module.bias[...]}
    params = {"Dense_0": dense}
    # A hundredth of the usual size.
    assert np.abs(dense["kernel"]).max() < 0.02
    assert np.abs(dense["bias"]).max() < 0.05
  z, more = layer.apply({"params": params}, FEATURES, mutable=["intermediates"])
  np.testing.assert_allclose(z, found, rtol=1e-5, atol=1e-5)
  if kind == "fourier":
    (sown,) = more["intermediates"]["coefficients"]
    np.testing.assert_allclose(sown, module.coefficients(FEATURES), rtol=1e-5)
  own = layer.init(jax.random.key(0), FEATURES)["params"]
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, params)
  assert isinstance(layer, linen.Module)


def test_bfloat16_features_and_features_that_do_not_fit():
  for kind in ("cosine", "fourier"):
    module, layer = nnx_head(kind), linen_head(kind)
    narrow = jnp.asarray(FEATURES, jnp.bfloat16)
    wide = module(narrow.astype(jnp.float32))
    assert module(narrow).dtype == jnp.float32
    np.testing.assert_allclose(module(narrow), wide, rtol=0.02, atol=0.02)
    z, params = layer.init_with_output(jax.random.key(0), narrow)
    assert z.dtype == jnp.float32
    with pytest.raises(TypeError, match="features must be floating"):
      module(np.ones((2, 5), int))
    with pytest.raises(TypeError, match="features must be floating"):
      layer.apply(params, np.ones((2, 5), int))
    with pytest.raises(ValueError, match=r"features must have the .*5"):
      module(FEATURES[..., :4])
  # Constants have no frequency.
  flat = nn.nnx.FourierHead(5, 6, num_frequencies=0, rngs=nnx.Rngs(0))
  np.testing.assert_allclose(flat(FEATURES), np.log(1 / 6 + 1e-5), rtol=1e-5)
  with pytest.raises(ValueError, match="num_frequencies"):
    nn.nnx.FourierHead(5, 6, num_frequencies=-1, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("kind", ["cosine", "fourier"])
def test_a_head_learns_in_an_nnx_loop(kind):
  module = nnx_head(kind)
  optimizer = nnx.Optimizer(module, optax.sgd(0.5), wrt=nnx.Param)

  @nnx.jit
  def step(module, optimizer):
    def mean_loss(module):
      return losses.cross_entropy(module(FEATURES), LABELS).mean()

    loss, gradient = nnx.value_and_grad(mean_loss)(module)
    optimizer.update(module, gradient)
    return loss

  found = [float(step(module, optimizer)) for _ in range(40)]
  assert found[-1] < found[0] - 0.1
