# SPDX-License-Identifier: Apache-2.0
"""Output layers.

The module has functions for the cosines of features and class vectors, for the
logits of ordered bins, and for a layer of very many classes that exact SGD
updates without a pass over all classes.
"""

from squentropy_jax.heads._cosine import cosine_logits as cosine_logits
from squentropy_jax.heads._cosine import extend_classes as extend_classes
from squentropy_jax.heads._cosine import normalize as normalize
from squentropy_jax.heads._cosine import unit_columns as unit_columns
from squentropy_jax.heads._factored import factored_forward as factored_forward
from squentropy_jax.heads._factored import factored_init as factored_init
from squentropy_jax.heads._factored import factored_kernel as factored_kernel
from squentropy_jax.heads._factored import (
  factored_stabilize as factored_stabilize,
)
from squentropy_jax.heads._factored import factored_update as factored_update
from squentropy_jax.heads._factored_step import FactoredOutput as FactoredOutput
from squentropy_jax.heads._fourier import (
  fourier_coefficients as fourier_coefficients,
)
from squentropy_jax.heads._fourier import fourier_logits as fourier_logits
from squentropy_jax.heads._fourier import (
  fourier_smoothness as fourier_smoothness,
)
