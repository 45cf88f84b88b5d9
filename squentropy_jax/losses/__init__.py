# SPDX-License-Identifier: Apache-2.0
"""Classification losses on logits, one number per example."""

from squentropy_jax.losses._comp_sum import cross_entropy as cross_entropy
from squentropy_jax.losses._square import rescaled_square as rescaled_square
from squentropy_jax.losses._squentropy import squentropy as squentropy
from squentropy_jax.losses._squentropy import (
  squentropy_with_integer_labels as squentropy_with_integer_labels,
)
