# SPDX-License-Identifier: Apache-2.0
"""Attention without softmax, in the shapes of `jax.nn.dot_product_attention`.

All functions compute in float32 or wider.
"""

from squentropy_jax.attention._newton_schulz import (
  newton_schulz_inverse as newton_schulz_inverse,
)
from squentropy_jax.attention._softmax_free import (
  average_landmarks as average_landmarks,
)
from squentropy_jax.attention._softmax_free import (
  softmax_free_attention as softmax_free_attention,
)
from squentropy_jax.attention._softplus_attention import (
  softplus_attention as softplus_attention,
)
