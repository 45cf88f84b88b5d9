# SPDX-License-Identifier: Apache-2.0
"""Classification losses, one number per example."""

from squentropy_jax.losses._angular import arcface as arcface
from squentropy_jax.losses._angular import combined_margin as combined_margin
from squentropy_jax.losses._angular import cosface as cosface
from squentropy_jax.losses._angular import (
  normalized_softmax as normalized_softmax,
)
from squentropy_jax.losses._angular import sphereface as sphereface
from squentropy_jax.losses._anyloss import anyloss as anyloss
from squentropy_jax.losses._asymmetric import (
  asymmetric_generalized_cross_entropy as asymmetric_generalized_cross_entropy,
)
from squentropy_jax.losses._asymmetric import (
  asymmetric_unhinged as asymmetric_unhinged,
)
from squentropy_jax.losses._asymmetric import jensen_shannon as jensen_shannon
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
from squentropy_jax.losses._confidence import (
  confidence_penalty as confidence_penalty,
)
from squentropy_jax.losses._confidence import (
  logit_norm_cross_entropy as logit_norm_cross_entropy,
)
from squentropy_jax.losses._distillation import discriminator as discriminator
from squentropy_jax.losses._distillation import (
  ensemble_distillation as ensemble_distillation,
)
from squentropy_jax.losses._ensemble import ensloss as ensloss
from squentropy_jax.losses._focal import dual_focal as dual_focal
from squentropy_jax.losses._focal import focal as focal
from squentropy_jax.losses._focal import poly1 as poly1
from squentropy_jax.losses._ldr import aldr_kl as aldr_kl
from squentropy_jax.losses._ldr import ldr_kl as ldr_kl
from squentropy_jax.losses._margin import crammer_singer as crammer_singer
from squentropy_jax.losses._margin import one_vs_rest_hinge as one_vs_rest_hinge
from squentropy_jax.losses._margin import weston_watkins as weston_watkins
from squentropy_jax.losses._overlap import dice as dice
from squentropy_jax.losses._overlap import (
  self_adjusting_dice as self_adjusting_dice,
)
from squentropy_jax.losses._overlap import tversky as tversky
from squentropy_jax.losses._sigmoid import (
  binary_cross_entropy as binary_cross_entropy,
)
from squentropy_jax.losses._sigmoid import (
  binary_squentropy as binary_squentropy,
)
from squentropy_jax.losses._simplex import brier as brier
from squentropy_jax.losses._simplex import (
  continuous_bernoulli as continuous_bernoulli,
)
from squentropy_jax.losses._simplex import (
  continuous_categorical as continuous_categorical,
)
from squentropy_jax.losses._simplex import (
  softmax_regression as softmax_regression,
)
from squentropy_jax.losses._spherical import (
  spherical_softmax as spherical_softmax,
)
from squentropy_jax.losses._spherical import taylor_softmax as taylor_softmax
from squentropy_jax.losses._spherical import zscore as zscore
from squentropy_jax.losses._square import rescaled_square as rescaled_square
from squentropy_jax.losses._squentropy import squentropy as squentropy
from squentropy_jax.losses._symmetric import (
  normalized_cross_entropy as normalized_cross_entropy,
)
from squentropy_jax.losses._symmetric import (
  symmetric_cross_entropy as symmetric_cross_entropy,
)
from squentropy_jax.losses._symmetric import unhinged as unhinged
from squentropy_jax.losses._tempered import (
  bi_tempered_logistic as bi_tempered_logistic,
)
from squentropy_jax.losses._unpg import unpg as unpg
