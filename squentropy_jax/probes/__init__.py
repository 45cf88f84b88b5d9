# SPDX-License-Identifier: Apache-2.0
"""Classifiers on frozen features, in closed form or convex.

The functions ``fit_*`` return parameters, named tuples of arrays, and other
functions compute logits or scores from them.
"""

from squentropy_jax.probes._activations import (
  dual_activation as dual_activation,
)
from squentropy_jax.probes._activations import (
  infinite_depth_limit as infinite_depth_limit,
)
from squentropy_jax.probes._activations import (
  optimal_activation as optimal_activation,
)
from squentropy_jax.probes._gaussian import ExtendedGaussian as ExtendedGaussian
from squentropy_jax.probes._gaussian import TiedGaussian as TiedGaussian
from squentropy_jax.probes._gaussian import add_class as add_class
from squentropy_jax.probes._gaussian import fit_gaussian as fit_gaussian
from squentropy_jax.probes._gaussian import merge_gaussians as merge_gaussians
from squentropy_jax.probes._gaussian_scores import (
  gaussian_logits as gaussian_logits,
)
from squentropy_jax.probes._gaussian_scores import (
  mahalanobis_score as mahalanobis_score,
)
from squentropy_jax.probes._gaussian_scores import (
  perturbed_inputs as perturbed_inputs,
)
from squentropy_jax.probes._logistic import LinearProbe as LinearProbe
from squentropy_jax.probes._logistic import fit_logistic as fit_logistic
from squentropy_jax.probes._logistic import linear_logits as linear_logits
from squentropy_jax.probes._singular_kernel import (
  singular_kernel_log_probs as singular_kernel_log_probs,
)
