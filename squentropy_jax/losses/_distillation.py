# SPDX-License-Identifier: Apache-2.0
"""Distillation: losses of a student against its teachers.

A student learns from the outputs of other models instead of labels. For
predictions that are numbers, such as coordinates, there is
:func:`squentropy_jax.regression.assistive_distillation`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.distributions import Target, distribution_loss
from squentropy_jax._core.divergences import kl_terms
from squentropy_jax._core.elementwise import softplus


def _log_mixture(log_p: jax.Array, weights: jax.Array) -> jax.Array:
  """``log sum_k weights_k exp(log_p_k)`` over the first axis."""
  largest = jax.lax.stop_gradient(log_p.max(0))
  shift = jnp.where(largest == -jnp.inf, jnp.zeros_like(largest), largest)
  mixed = (weights * jnp.exp(log_p - shift[None])).sum(0)
  is_zero = mixed == 0
  log_mixed = jnp.log(jnp.where(is_zero, jnp.ones_like(mixed), mixed))
  return jnp.where(is_zero, -jnp.inf, shift + log_mixed)


@distribution_loss(domains={"temperature": "(0, inf)"})
def _ensemble_distillation(
  student: jax.Array,
  _: Target,
  teachers: jax.Array,
  weights: jax.Array,
  *,
  temperature: jax.Array,
) -> jax.Array:
  of_teachers = temperature[None] if temperature.ndim else temperature
  log_p = jax.nn.log_softmax(teachers / of_teachers, axis=-1)
  weights = weights.reshape(weights.shape + (1,) * student.ndim)
  log_p = _log_mixture(log_p, weights / weights.sum())
  log_q = jax.nn.log_softmax(student / temperature, axis=-1)
  return kl_terms(log_p, log_q).sum(-1)


def ensemble_distillation(
  student_logits: jax.typing.ArrayLike,
  teacher_logits: jax.typing.ArrayLike,
  *,
  teacher_weights: jax.typing.ArrayLike | None = None,
  temperature: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the divergence of a student from its teachers' mean prediction.

  Use when a student learns from the mean of several teachers' probabilities,
  or from one teacher.

  Avoid when you mean the softmax of the teachers' mean logits, which weights
  confident teachers more. For that target pass one teacher, the mean of the
  logits.

  With student logits :math:`z`, teacher logits :math:`t_1, \dots, t_K` and
  weights :math:`w` of sum 1,

  .. math::
    \ell = \sum_c \bar p_c \log \frac{\bar p_c}{\mathrm{softmax}(z / T)_c} ,
    \qquad \bar p = \sum_k w_k \, \mathrm{softmax}(t_k / T) .

  The loss is cross-entropy with soft labels :math:`\bar p` minus the entropy of
  :math:`\bar p`. It is 0 where the student agrees with its teachers, and
  accurate close to that point. The gradient decreases with the temperature:
  multiply the loss by ``temperature**2`` to mix it with hard labels. The
  teachers' logits have a gradient too: wrap them in
  :func:`jax.lax.stop_gradient` if the teachers are trained in the same step.

  Args:
    student_logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    teacher_logits: Scores of K teachers, shape ``[K, ..., num_classes]``.
    teacher_weights: Weights of the teachers, shape ``[K]``, at least 0 and of
      any positive sum. By default all are equal.
    temperature: Divides all logits, above 0, a scalar or one value for each
      example, shape ``[...]``.
    axis: The class axis of ``student_logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the shape of ``student_logits``.

  Returns:
    The loss of each example in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, if a concrete weight is below 0 or all
      of them are 0, or if a concrete ``temperature`` is not above 0.

  Examples:
    >>> student = jnp.array([1.0, 0.0, -1.0])
    >>> teachers = jnp.array([[2.0, 0.0, -2.0], [1.0, 1.0, 0.0]])
    >>> print(f"{losses.ensemble_distillation(student, teachers):.6f}")
    0.001678

  References:
    Shen and Savvides, `MEAL V2: Boosting Vanilla ResNet-50 to 80%+ Top-1
    Accuracy on ImageNet without Tricks <https://arxiv.org/abs/2009.08453>`_,
    2020; Hinton, Vinyals and Dean, `Distilling the Knowledge in a Neural
    Network <https://arxiv.org/abs/1503.02531>`_, 2015.

  .. seealso:: :func:`squentropy_jax.losses.discriminator`
  """
  student = checks.as_logits(student_logits, "student_logits")
  full = student.shape
  teachers = checks.as_logits(teacher_logits, "teacher_logits")
  if teachers.shape[1:] != full or not teachers.shape[0]:
    raise ValueError(
      f"teacher_logits must have the shape {('K', *full)}, an axis of teachers "
      f"before the axes of student_logits, got {teachers.shape}. For one "
      "teacher pass teacher_logits[None]."
    )
  dtype = checks.compute_dtype(student.dtype, teachers.dtype)
  count = teachers.shape[0]
  if teacher_weights is None:
    weights = jnp.ones(count, dtype)
  else:
    weights = checks.as_vector(
      "teacher_weights", teacher_weights, count, dtype, "[0, inf)"
    )
    if checks.is_concrete(weights):
      some = np.asarray(weights).sum() > 0
      checks.check_domain("teacher_weights", weights, some, ">= 0, one > 0")
  return _ensemble_distillation.evaluate(
    student,
    None,
    axis=axis,
    where=where,
    more={"teacher_logits": teachers},
    constants=(weights,),
    name="student_logits",
    temperature=temperature,
  )


def _two_scores(
  scores: jax.typing.ArrayLike, axis: int, name: str
) -> jax.Array:
  array = checks.as_logits(scores, name)
  if array.shape[checks.as_axis(axis, array, name)] != 2:
    raise ValueError(
      f'{name} must have 2 scores along axis {axis}, for "of the student" and '
      f'"of the teacher", got shape {array.shape}.'
    )
  return array


@distribution_loss()
def _discriminator(
  student: jax.Array, _: Target, teacher: jax.Array
) -> jax.Array:
  sign = jnp.array([-1.0, 1.0], student.dtype).reshape(
    (1,) * (student.ndim - 1) + (2,)
  )
  terms = softplus(sign * student) + softplus(-sign * teacher)
  return terms.sum(-1) / 4.0


def discriminator(
  student_scores: jax.typing.ArrayLike,
  teacher_scores: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes a discriminator's loss on outputs of a student and its teacher.

  Use when you train a small network that classifies outputs as the student's
  or the teacher's. The student maximises the loss: reverse its gradient there.

  Avoid when you train the student. It becomes easier to recognise if it
  minimises this loss, as it does in the authors' code.

  A discriminator has two scores for an output, :math:`s_0` for "of the student"
  and :math:`s_1` for "of the teacher". The loss is the mean binary
  cross-entropy of its scores :math:`a` for the student's output and :math:`b`
  for the teacher's,

  .. math::
    \ell = \tfrac14 \bigl( \log(1 + e^{-a_0}) + \log(1 + e^{a_1})
                           + \log(1 + e^{b_0}) + \log(1 + e^{-b_1}) \bigr) .

  Args:
    student_scores: Scores for the student's outputs, shape ``[..., 2]``.
    teacher_scores: Scores for the teacher's outputs, of the same shape.
    axis: The axis of the two scores.
    where: Which examples to keep, booleans of shape ``[...]``.

  Returns:
    The loss of each pair of outputs, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit.

  Examples:
    >>> student, teacher = jnp.array([0.3, 0.1]), jnp.array([0.0, 0.8])
    >>> print(f"{losses.discriminator(student, teacher):.4f}")
    0.5907

  References:
    Shen and Savvides, `MEAL V2 <https://arxiv.org/abs/2009.08453>`_, 2020.

  .. seealso:: :func:`squentropy_jax.losses.ensemble_distillation`
  """
  student = _two_scores(student_scores, axis, "student_scores")
  teacher = _two_scores(teacher_scores, axis, "teacher_scores")
  if student.shape != teacher.shape:
    raise ValueError(
      "student_scores and teacher_scores must have the same shape, got "
      f"{student.shape} and {teacher.shape}."
    )
  return _discriminator.evaluate(
    student,
    None,
    axis=axis,
    where=where,
    more={"teacher_scores": teacher},
    name="student_scores",
  )
