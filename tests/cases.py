# SPDX-License-Identifier: Apache-2.0
"""A case for each public loss: what the contract tests need to know of it.

There are four kinds. `contract_test` runs the losses of logits and classes,
`cosine_test` those of cosines and classes, `binary_test` those of binary
labels, `pair_test` those of two arrays of scores.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from support.formulas import (
  EXP_SUM,
  NEGATIVES,
  OTHERS,
  aldr_kl,
  arcface,
  asymmetric_generalized_cross_entropy,
  asymmetric_unhinged,
  bi_tempered_logistic,
  binary_cross_entropy,
  binary_squentropy,
  brier,
  combined_margin,
  comp_sum,
  confidence_penalty,
  continuous_bernoulli,
  continuous_categorical,
  cosface,
  crammer_singer,
  cross_entropy,
  dice,
  discriminator,
  distillation,
  dual_focal,
  entropy,
  focal,
  generalized_cross_entropy,
  jensen_shannon,
  ldr_kl,
  logit_norm_cross_entropy,
  mean_absolute_error,
  normalized_cross_entropy,
  normalized_softmax,
  one_vs_rest_hinge,
  poly1,
  rescaled_square,
  self_adjusting_dice,
  smooth_adversarial_comp_sum,
  soft_f1,
  sphereface,
  spherical_softmax,
  squentropy,
  symmetric_cross_entropy,
  taylor_softmax,
  tempered_softmax,
  tversky,
  unhinged,
  unpg,
  weston_watkins,
  zscore,
)
from support.kinds import BinaryCase, CosineCase, LossCase, PairCase

from squentropy_jax import confusion, losses


def halfway(logits: Any, labels: Any, **arguments: Any) -> Any:
  """The adversarial loss where the attack halves the logits, exactly."""
  z = jnp.asarray(logits)
  if jnp.issubdtype(z.dtype, jnp.floating):
    # Their two gradients are added before they are rounded to a narrow dtype.
    z = z.astype(jnp.float64 if z.dtype == jnp.float64 else jnp.float32)
  return losses.smooth_adversarial_comp_sum(z, z / 2, labels, **arguments)


CLASS_CASES = (
  LossCase(
    name="cross_entropy",
    loss=losses.cross_entropy,
    reference=cross_entropy,
    single_class=0.0,
    impossible_target=np.inf,
  ),
  LossCase(
    name="rescaled_square",
    loss=losses.rescaled_square,
    reference=rescaled_square,
    single_class=0.25,
    impossible_target=np.inf,
    hyperparameters={"target_weight": 15.0, "target_value": 3.0},
  ),
  LossCase(
    name="squentropy",
    loss=losses.squentropy,
    reference=squentropy,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"scale": 0.3},
  ),
  LossCase(
    name="comp_sum",
    loss=losses.comp_sum,
    reference=comp_sum,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"tau": 1.4},
  ),
  LossCase(
    name="generalized_cross_entropy",
    loss=losses.generalized_cross_entropy,
    reference=generalized_cross_entropy,
    single_class=0.0,
    impossible_target=1 / 0.7,
    hyperparameters={"q": 0.3},
  ),
  LossCase(
    name="mean_absolute_error",
    loss=losses.mean_absolute_error,
    reference=mean_absolute_error,
    single_class=0.0,
    impossible_target=1.0,
  ),
  LossCase(
    name="smooth_adversarial_comp_sum",
    loss=halfway,
    reference=smooth_adversarial_comp_sum,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"tau": 1.4, "rho": 2.0, "nu": 0.3},
  ),
  LossCase(
    name="focal",
    loss=losses.focal,
    reference=focal,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"gamma": 0.7},
  ),
  LossCase(
    name="dual_focal",
    loss=losses.dual_focal,
    reference=dual_focal,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"gamma": 0.7},
  ),
  LossCase(
    name="poly1",
    loss=losses.poly1,
    reference=poly1,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"epsilon": 2.0},
  ),
  LossCase(
    name="symmetric_cross_entropy",
    loss=losses.symmetric_cross_entropy,
    reference=symmetric_cross_entropy,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"alpha": 6.0, "beta": 0.1, "log_clip": -9.0},
  ),
  LossCase(
    name="normalized_cross_entropy",
    loss=losses.normalized_cross_entropy,
    reference=normalized_cross_entropy,
    single_class=0.0,
    impossible_target=1.0,
  ),
  LossCase(
    name="asymmetric_generalized_cross_entropy",
    loss=losses.asymmetric_generalized_cross_entropy,
    reference=asymmetric_generalized_cross_entropy,
    single_class=0.0,
    impossible_target=1.5,
    hyperparameters={"a": 3.0, "q": 1.5},
  ),
  LossCase(
    name="asymmetric_unhinged",
    loss=losses.asymmetric_unhinged,
    reference=asymmetric_unhinged,
    single_class=0.0,
    impossible_target=(1.5**0.9 - 0.5**0.9) / 0.9,
    hyperparameters={"a": 6.0, "q": 1.5},
  ),
  LossCase(
    name="jensen_shannon",
    loss=losses.jensen_shannon,
    reference=jensen_shannon,
    single_class=0.0,
    impossible_target=2.0,
    hyperparameters={"pi": 0.1},
  ),
  LossCase(
    name="bi_tempered_logistic",
    loss=functools.partial(losses.bi_tempered_logistic, t1=0.8, t2=1.2),
    reference=bi_tempered_logistic,
    single_class=0.0,
    impossible_target=(
      5.0 - (1 - (tempered_softmax(OTHERS, 1.2) ** 1.2).sum()) / 1.2
    ),
    hyperparameters={"t1": 0.5, "t2": 1.5},
  ),
  LossCase(
    name="unhinged",
    loss=losses.unhinged,
    reference=unhinged,
    single_class=0.0,
    impossible_target=np.inf,
    size=lambda logits, label: 2 * np.abs(logits).max(),
  ),
  LossCase(
    name="logit_norm_cross_entropy",
    loss=losses.logit_norm_cross_entropy,
    reference=logit_norm_cross_entropy,
    single_class=0.0,
    impossible_target=np.log1p(3 * np.e),
    hyperparameters={"temperature": 0.04},
  ),
  LossCase(
    name="confidence_penalty",
    loss=losses.confidence_penalty,
    reference=confidence_penalty,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"beta": 0.3},
    size=lambda logits, label, beta=0.1: (
      cross_entropy(logits, label) + beta * entropy(logits)
    ),
  ),
  LossCase(
    name="one_vs_rest_hinge",
    loss=losses.one_vs_rest_hinge,
    reference=one_vs_rest_hinge,
    single_class=0.25,
    impossible_target=np.inf,
    hyperparameters={"margin": 2.0},
    size=lambda logits, label, margin=1.0: (
      logits.size * (margin + np.abs(logits).max()) ** 2
    ),
  ),
  LossCase(
    name="crammer_singer",
    loss=losses.crammer_singer,
    reference=crammer_singer,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"margin": 0.7},
    size=lambda logits, label, margin=1.0: margin + 2 * np.abs(logits).max(),
  ),
  LossCase(
    name="weston_watkins",
    loss=losses.weston_watkins,
    reference=weston_watkins,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"margin": 0.7},
    size=lambda logits, label, margin=1.0: (
      logits.size * (margin + 2 * np.abs(logits).max())
    ),
  ),
  LossCase(
    name="ldr_kl",
    loss=losses.ldr_kl,
    reference=ldr_kl,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"temperature": 2.0, "margin": 0.5},
    size=lambda logits, label, temperature=1.0, margin=0.0: (
      abs(ldr_kl(logits, label, temperature, margin))
      + temperature * np.log(logits.size)
    ),
  ),
  LossCase(
    name="aldr_kl",
    loss=losses.aldr_kl,
    reference=aldr_kl,
    single_class=0.0,
    impossible_target=np.inf,
    hyperparameters={"base_temperature": 2.0, "alpha": 3.0, "margin": 0.5},
    size=lambda logits, label, base_temperature=1.0, alpha=2.0, margin=0.0: (
      margin + 2 * np.abs(logits).max() + alpha * base_temperature * np.log(5)
    ),
  ),
  LossCase(
    name="zscore",
    loss=losses.zscore,
    reference=zscore,
    single_class=np.log(2),
    impossible_target=np.log1p(np.exp(np.sqrt(3))),
    hyperparameters={"sharpness": 2.0, "location": 1.0},
  ),
  LossCase(
    name="taylor_softmax",
    loss=losses.taylor_softmax,
    reference=taylor_softmax,
    single_class=0.0,
    impossible_target=0.0,
  ),
  LossCase(
    name="spherical_softmax",
    loss=losses.spherical_softmax,
    reference=spherical_softmax,
    single_class=0.0,
    impossible_target=0.0,
    hyperparameters={"epsilon": 0.3},
  ),
  LossCase(
    name="brier",
    loss=losses.brier,
    reference=brier,
    single_class=0.0,
    impossible_target=1.0 + np.square(np.exp(OTHERS)).sum() / EXP_SUM**2,
    soft_is_expected=False,
  ),
  LossCase(
    name="softmax_regression",
    loss=losses.softmax_regression,
    reference=brier,
    single_class=0.0,
    impossible_target=1.0 + np.square(np.exp(OTHERS)).sum() / EXP_SUM**2,
    soft_is_expected=False,
  ),
  LossCase(
    name="continuous_categorical",
    loss=losses.continuous_categorical,
    reference=continuous_categorical,
    single_class=0.0,
    impossible_target=np.inf,
    size=lambda logits, label: (
      abs(continuous_categorical(logits, label)) + 2 * np.abs(logits).max()
    ),
  ),
)


COSINE_CASES = (
  CosineCase(
    name="normalized_softmax",
    loss=losses.normalized_softmax,
    reference=normalized_softmax,
    hyperparameters={"scale": 7.0},
  ),
  CosineCase(
    name="cosface",
    loss=losses.cosface,
    reference=cosface,
    hyperparameters={"margin": 0.2, "scale": 7.0},
  ),
  CosineCase(
    name="arcface",
    loss=losses.arcface,
    reference=arcface,
    hyperparameters={"margin": 0.3, "scale": 7.0},
  ),
  CosineCase(
    name="sphereface",
    loss=losses.sphereface,
    reference=sphereface,
    hyperparameters={"margin": 2.6, "scale": 7.0},
  ),
  CosineCase(
    name="combined_margin",
    loss=losses.combined_margin,
    reference=combined_margin,
    hyperparameters={
      "multiplicative": 1.4,
      "additive": 0.3,
      "cosine": 0.2,
      "scale": 7.0,
    },
  ),
  CosineCase(
    name="unpg",
    loss=functools.partial(losses.unpg, negatives=NEGATIVES),
    reference=unpg,
    hyperparameters={"margin": 0.2, "scale": 7.0},
  ),
)


BINARY_CASES = (
  BinaryCase(
    name="binary_cross_entropy",
    loss=losses.binary_cross_entropy,
    reference=binary_cross_entropy,
  ),
  BinaryCase(
    name="binary_squentropy",
    loss=losses.binary_squentropy,
    reference=binary_squentropy,
  ),
  BinaryCase(
    name="continuous_bernoulli",
    loss=losses.continuous_bernoulli,
    reference=continuous_bernoulli,
  ),
  BinaryCase(name="dice", loss=losses.dice, reference=dice),
  BinaryCase(name="tversky", loss=losses.tversky, reference=tversky),
  BinaryCase(
    name="self_adjusting_dice",
    loss=losses.self_adjusting_dice,
    reference=self_adjusting_dice,
  ),
  BinaryCase(
    name="anyloss",
    loss=functools.partial(losses.anyloss, metric=confusion.f_beta),
    reference=soft_f1,
    of_set=True,
  ),
  BinaryCase(
    name="ensloss",
    loss=functools.partial(losses.ensloss, jax.random.key(0)),
    reference=None,
    soft_labels=False,
  ),
)


def one_teacher(student: Any, teacher: Any, **arguments: Any) -> Any:
  """Distillation from an ensemble of one."""
  teachers = jnp.asarray(teacher)[None]
  return losses.ensemble_distillation(student, teachers, **arguments)


PAIR_CASES = (
  PairCase(
    name="ensemble_distillation",
    loss=one_teacher,
    reference=distillation,
    num_scores=5,
  ),
  PairCase(
    name="discriminator",
    loss=losses.discriminator,
    reference=discriminator,
    num_scores=2,
  ),
)

# One case for each public loss.
CASES = CLASS_CASES + COSINE_CASES + BINARY_CASES + PAIR_CASES
