# SPDX-License-Identifier: Apache-2.0
"""Classification losses on logits, one number per example."""

from squentropy_jax.losses._comp_sum import comp_sum as comp_sum
from squentropy_jax.losses._comp_sum import cross_entropy as cross_entropy
from squentropy_jax.losses._comp_sum import (
  generalized_cross_entropy as generalized_cross_entropy,
)
from squentropy_jax.losses._comp_sum import (
  mean_absolute_error as mean_absolute_error,
)
from squentropy_jax.losses._comp_sum import (
  smooth_adversarial_comp_sum as smooth_adversarial_comp_sum,
)
from squentropy_jax.losses._simplex import brier as brier
from squentropy_jax.losses._simplex import (
  continuous_bernoulli as continuous_bernoulli,
)
from squentropy_jax.losses._simplex import (
  continuous_categorical as continuous_categorical,
)
from squentropy_jax.losses._simplex import (
  continuous_categorical_mean as continuous_categorical_mean,
)
from squentropy_jax.losses._simplex import (
  softmax_regression as softmax_regression,
)
from squentropy_jax.losses._square import rescaled_square as rescaled_square
from squentropy_jax.losses._squentropy import squentropy as squentropy
from squentropy_jax.losses._squentropy import (
  squentropy_with_integer_labels as squentropy_with_integer_labels,
)
