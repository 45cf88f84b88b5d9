# SPDX-License-Identifier: Apache-2.0
"""Modules for Flax Linen."""

from flax import linen
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax import heads
from squentropy_jax._core import checks
from squentropy_jax.heads._fourier import num_outputs


class CosineHead(linen.Module):
  r"""Computes the cosines of features and learned class vectors, times a scale.

  Use it as :class:`squentropy_jax.nn.nnx.CosineHead`, in Linen.

  .. math::
    z_k = \text{scale} \, \frac{h \cdot w_k}{\lVert h \rVert \, \lVert w_k
      \rVert}

  Attributes:
    num_classes: The number of classes :math:`C`.
    scale: Multiplies the cosines.

  Examples:
    >>> from squentropy_jax.nn.linen import CosineHead
    >>> head = CosineHead(3)
    >>> z, _ = head.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    >>> z.shape
    (2, 3)
  """

  num_classes: int
  scale: float = 10.0

  @linen.compact
  def __call__(self, features: ArrayLike) -> Array:
    """Returns the logits ``[..., C]`` of features ``[..., d]``."""
    shape = (jnp.shape(features)[-1], self.num_classes)
    init = linen.initializers.normal(1.0)
    kernel = self.param("kernel", init, shape)
    return self.scale * heads.cosine_logits(features, kernel)


class FourierHead(linen.Module):
  r"""Computes logits of ordered bins whose probabilities form a smooth density.

  Use it as :class:`squentropy_jax.nn.nnx.FourierHead`, in Linen. The
  coefficients of the density are sown as ``coefficients`` into the collection
  ``intermediates``, for :func:`squentropy_jax.heads.fourier_smoothness`.

  Attributes:
    num_bins: The number of bins.
    num_frequencies: The number of frequencies, below half of ``num_bins``.
    epsilon: Added to the probability of each bin.

  Examples:
    >>> from squentropy_jax.nn.linen import FourierHead
    >>> head = FourierHead(10, num_frequencies=3)
    >>> z, _ = head.init_with_output(jax.random.key(0), jnp.ones((2, 4)))
    >>> z.shape
    (2, 10)
  """

  num_bins: int
  num_frequencies: int
  epsilon: float = 1e-5

  @linen.compact
  def __call__(self, features: ArrayLike) -> Array:
    """Returns the logits ``[..., num_bins]`` of features ``[..., d]``."""
    size = num_outputs(self.num_frequencies)
    x = checks.as_floats(features, "features")

    def small(
      init: jax.nn.initializers.Initializer,
    ) -> jax.nn.initializers.Initializer:
      return lambda *arguments: 0.01 * init(*arguments)

    # The bias is not 0, where features of 0 would have no gradient.
    layer = linen.Dense(
      size,
      kernel_init=small(linen.initializers.lecun_normal()),
      bias_init=small(linen.initializers.normal(1.0)),
    )
    with jax.numpy_dtype_promotion("standard"):
      a = layer(x)
    real, imag = jnp.split(a, 2, axis=-1)
    coefficients = heads.fourier_coefficients(jax.lax.complex(real, imag))
    self.sow("intermediates", "coefficients", coefficients)
    return heads.fourier_logits(
      coefficients, self.num_bins, epsilon=self.epsilon
    )
