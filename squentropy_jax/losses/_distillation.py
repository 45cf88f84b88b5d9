# SPDX-License-Identifier: Apache-2.0
"""Losses of a student against its teachers."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.distributions import Target, distribution_loss
from squentropy_jax._core.elementwise import softplus

# Of (e^-r - 1 + r) / r^2 in powers of -r; exact in float64 for |r| < 1.
_EXCESS = tuple(1.0 / math.factorial(n + 2) for n in range(18))


def _log_mixture(log_p: jax.Array, weights: jax.Array) -> jax.Array:
  """``log sum_k weights_k exp(log_p_k)`` over the first axis."""
  top = jax.lax.stop_gradient(log_p.max(0))
  shift = jnp.where(top == -jnp.inf, jnp.zeros_like(top), top)
  total = (weights * jnp.exp(log_p - shift[None])).sum(0)
  nothing = total == 0
  log_total = jnp.log(jnp.where(nothing, jnp.ones_like(total), total))
  return jnp.where(nothing, -jnp.inf, shift + log_total)


def _divergence(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """Kullback-Leibler divergence of q from p, as a sum of terms above 0.

  The terms p (r - 1 + e^-r) of the log ratio r sum to it, because p and q both
  sum to 1; those of the definition cancel where p is close to q.
  """
  p, q = jnp.exp(log_p), jnp.exp(log_q)
  none = p == 0
  zero = jnp.zeros_like(p)
  ratio = jnp.where(none, zero, log_p) - jnp.where(none, zero, log_q)
  near = jnp.abs(ratio) < 1.0
  r = jnp.where(near, ratio, zero)
  series = jnp.full_like(r, _EXCESS[-1])
  for c in _EXCESS[-2::-1]:
    series = c - r * series
  far = p * jnp.where(near, zero, ratio) + (q - p)
  return jnp.where(near & ~none, p * (r * r * series), far).sum(-1)


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
  return _divergence(log_p, jax.nn.log_softmax(student / temperature, axis=-1))


def ensemble_distillation(
  student_logits: jax.typing.ArrayLike,
  teacher_logits: jax.typing.ArrayLike,
  *,
  teacher_weights: jax.typing.ArrayLike | None = None,
  temperature: jax.typing.ArrayLike = 1.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Divergence of the student from the mean of its teachers' probabilities.

  With student logits :math:`z`, teacher logits :math:`t_1, \dots, t_K` and
  weights :math:`w` of sum 1,

  .. math::
    \ell = \sum_c \bar p_c \log \frac{\bar p_c}{\mathrm{softmax}(z / T)_c} ,
    \qquad \bar p = \sum_k w_k \, \mathrm{softmax}(t_k / T) .

  It differs from the cross-entropy of soft labels by the entropy of the
  teachers, a constant of the student, and is 0 where the student agrees. The
  mean of probabilities is not the softmax of mean logits: unsure teachers count
  less there. Multiply by ``temperature**2`` to keep the size of the gradient
  over temperatures. The gradient reaches the teachers too; wrap their logits in
  :func:`jax.lax.stop_gradient` if they are trained in the same step.

  Args:
    student_logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    teacher_logits: Scores of K teachers, shape ``[K, ..., num_classes]``.
    teacher_weights: Weights of the teachers, shape ``[K]``, at least 0 and of
      any positive sum; by default all the same.
    temperature: Divides all logits, above 0.
    axis: The class axis of ``student_logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``student_logits.shape``. Dropped examples have loss
      and gradient 0.

  Returns:
    The loss of each example in nats, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If logits are not floating or ``where`` not boolean.
    ValueError: If a shape does not fit, a concrete weight is below 0, all of
      them are 0, or ``temperature`` is not above 0.

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
      f"teacher_logits must have the shape {('K', *full)}, the student's "
      f"behind an axis of teachers, got {teachers.shape}."
    )
  dtype = np.promote_types(
    checks.compute_dtype(student.dtype), checks.compute_dtype(teachers.dtype)
  )
  if teacher_weights is None:
    weights = jnp.ones(teachers.shape[:1], dtype)
  else:
    weights = jnp.asarray(teacher_weights)
    if weights.shape != teachers.shape[:1]:
      raise ValueError(
        f"teacher_weights must have the shape {teachers.shape[:1]}, one per "
        f"teacher, got {weights.shape}."
      )
    checks.check_interval("teacher_weights", weights, "[0, inf)", dtype)
    weights = weights.astype(dtype)
    if checks.is_concrete(weights):
      one = np.asarray(weights).sum() > 0
      checks.check_domain("teacher_weights", weights, one, ">= 0, one > 0")
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


@distribution_loss()
def _discriminator(
  student: jax.Array, _: Target, teacher: jax.Array
) -> jax.Array:
  sign = jnp.array([-1.0, 1.0], student.dtype).reshape(
    (1,) * (student.ndim - 1) + (2,)
  )
  wrong = softplus(sign * student) + softplus(-sign * teacher)
  return wrong.sum(-1) / 4.0


def _two_scores(
  scores: jax.typing.ArrayLike, axis: int, name: str
) -> jax.Array:
  array = checks.as_logits(scores, name)
  if array.shape[checks.as_axis(axis, array, name)] != 2:
    raise ValueError(
      f"{name} must have 2 scores along axis {axis}, student's and teacher's, "
      f"got shape {array.shape}."
    )
  return array


def discriminator(
  student_scores: jax.typing.ArrayLike,
  teacher_scores: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Binary cross-entropy of telling the student's outputs from the teacher's.

  A discriminator has two scores for an output, :math:`s_0` for "of the student"
  and :math:`s_1` for "of the teacher". With its scores :math:`a` for the
  student's output and :math:`b` for the teacher's,

  .. math::
    \ell = \tfrac14 \bigl( \log(1 + e^{-a_0}) + \log(1 + e^{a_1})
                           + \log(1 + e^{b_0}) + \log(1 + e^{-b_1}) \bigr) .

  It trains the discriminator. A student that is to become like its teacher
  minimises the *negative* loss; the authors' code lets both minimise the loss
  itself, which teaches the student to be told apart.

  Args:
    student_scores: Scores for the student's outputs, shape ``[..., 2]``.
    teacher_scores: Scores for the teacher's outputs, of the same shape.
    axis: The axis of the two scores.
    where: Which examples to keep, booleans of shape ``[...]``. Dropped examples
      have loss and gradient 0.

  Returns:
    The loss of each pair of outputs, shape ``[...]``, float32 or wider.

  Raises:
    TypeError: If scores are not floating or ``where`` not boolean.
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
      "student_scores and teacher_scores must have one shape, got "
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
