# SPDX-License-Identifier: Apache-2.0
"""Classification losses for JAX, Flax and optax, squentropy first."""

from squentropy_jax import losses as losses
from squentropy_jax._core.rows import RowStats as RowStats
from squentropy_jax.losses._squentropy import squentropy as squentropy
from squentropy_jax.losses._squentropy import (
  squentropy_with_integer_labels as squentropy_with_integer_labels,
)

__version__ = "0.1.0"
