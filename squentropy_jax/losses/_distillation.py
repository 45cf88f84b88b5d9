# SPDX-License-Identifier: Apache-2.0
"""Losses of a student against its teachers."""

from collections.abc import Sequence
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import checks as _checks
from squentropy_jax._core import rows as _rows

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


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _ensemble_distillation(
  axis: int,
  student: jax.Array,
  teachers: jax.Array,
  weights: jax.Array,
  where: jax.Array | None,
  temperature: jax.Array,
) -> jax.Array:
  s = jnp.moveaxis(student, axis, -1)
  t = jnp.moveaxis(teachers, axis + 1, -1)
  keep = where
  if where is not None and where.ndim == s.ndim:
    mask = jnp.moveaxis(where, axis, -1)
    keep = mask.any(-1)
    s, t = jnp.where(mask, s, -jnp.inf), jnp.where(mask, t, -jnp.inf)
  if keep is not None:
    s, t = (jnp.where(keep[..., None], x, jnp.zeros_like(x)) for x in (s, t))
  log_p = jax.nn.log_softmax(t / temperature, axis=-1)
  weights = weights.reshape(weights.shape + (1,) * s.ndim)
  log_p = _log_mixture(log_p, weights / weights.sum())
  loss = _divergence(log_p, jax.nn.log_softmax(s / temperature, axis=-1))
  return loss if keep is None else jnp.where(keep, loss, jnp.zeros_like(loss))


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
  student = _checks.as_logits(student_logits, "student_logits")
  axis = _checks.as_axis(axis, student, "student_logits")
  full = student.shape
  _checks.check_num_classes(full[axis], "student_logits")
  teachers = _checks.as_logits(teacher_logits, "teacher_logits")
  if teachers.shape[1:] != full or not teachers.shape[0]:
    raise ValueError(
      f"teacher_logits must have the shape {('K', *full)}, the student's "
      f"behind an axis of teachers, got {teachers.shape}."
    )
  dtype = np.promote_types(
    _checks.compute_dtype(student.dtype), _checks.compute_dtype(teachers.dtype)
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
    _checks.check_interval("teacher_weights", weights, "[0, inf)", dtype)
    weights = weights.astype(dtype)
    if _checks.is_concrete(weights):
      one = np.asarray(weights).sum() > 0
      _checks.check_domain("teacher_weights", weights, one, ">= 0, one > 0")
  if where is not None:
    where = _checks.as_where(where, full[:axis] + full[axis + 1 :], full)
  scale = _checks.as_scalar("temperature", temperature, dtype, "(0, inf)")
  return _ensemble_distillation(
    axis, student.astype(dtype), teachers.astype(dtype), weights, where, scale
  )


def _two_scores(
  scores: jax.typing.ArrayLike, axis: int, name: str
) -> tuple[jax.Array, int]:
  array = _checks.as_logits(scores, name)
  axis = _checks.as_axis(axis, array, name)
  if array.shape[axis] != 2:
    raise ValueError(
      f"{name} must have 2 scores along axis {axis}, student's and teacher's, "
      f"got shape {array.shape}."
    )
  return jnp.moveaxis(array, axis, -1), axis


@functools.partial(jax.jit, inline=True)
def _discriminator(
  student: jax.Array, teacher: jax.Array, keep: jax.Array | None
) -> jax.Array:
  if keep is not None:
    student, teacher = (
      jnp.where(keep[..., None], x, jnp.zeros_like(x))
      for x in (student, teacher)
    )
  sign = jnp.array([-1.0, 1.0], student.dtype).reshape(
    (1,) * (student.ndim - 1) + (2,)
  )
  wrong = _rows.softplus(sign * student) + _rows.softplus(-sign * teacher)
  loss = wrong.sum(-1) / 4.0
  return loss if keep is None else jnp.where(keep, loss, jnp.zeros_like(loss))


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
  student, axis = _two_scores(student_scores, axis, "student_scores")
  teacher, _ = _two_scores(teacher_scores, axis, "teacher_scores")
  if student.shape != teacher.shape:
    raise ValueError(
      "student_scores and teacher_scores must have one shape, got "
      f"{np.shape(student_scores)} and {np.shape(teacher_scores)}."
    )
  if where is not None:
    where = _checks.as_where(where, student.shape[:-1], student.shape[:-1])
  dtype = np.promote_types(
    _checks.compute_dtype(student.dtype), _checks.compute_dtype(teacher.dtype)
  )
  return _discriminator(student.astype(dtype), teacher.astype(dtype), where)


@functools.partial(jax.jit, inline=True)
def _assistive(
  x: jax.Array,
  target: jax.Array,
  tough: jax.Array,
  tolerant: jax.Array,
  keep: jax.Array | None,
  parameters: tuple[jax.Array, ...],
) -> jax.Array:
  tough_slopes, tolerant_slopes, weights, inner = parameters
  # The absolute value, of slope 0 at 0.
  error = jnp.maximum(x - target, target - x)
  # Errors of the teachers, moved to the student's side.
  tough, tolerant = (
    jax.lax.stop_gradient(jnp.abs(t - target)) for t in (tough, tolerant)
  )
  inside = error <= tolerant
  square = (error - tolerant) * (error + tolerant) + 3.0 * tolerant
  main = jnp.where(inside, 3.0 * error, square)

  def assist(threshold: jax.Array, slopes: jax.Array) -> jax.Array:
    within = (error > inner * threshold) & (error <= threshold)
    slope = jnp.where(within, slopes[1], jnp.zeros_like(error))
    slope = jnp.where(error > threshold, slopes[0], slope)
    return slope * jnp.abs(threshold - error)

  loss = (
    weights[0] * main
    + weights[1] * assist(tough, tough_slopes)
    + weights[2] * assist(tolerant, tolerant_slopes)
  )
  return loss if keep is None else jnp.where(keep, loss, jnp.zeros_like(loss))


def assistive_distillation(
  predictions: jax.typing.ArrayLike,
  targets: jax.typing.ArrayLike,
  tough: jax.typing.ArrayLike,
  tolerant: jax.typing.ArrayLike,
  *,
  tough_slopes: jax.typing.ArrayLike | Sequence[float] = (1.9, -0.45),
  tolerant_slopes: jax.typing.ArrayLike | Sequence[float] = (1.8, -0.4),
  inner: jax.typing.ArrayLike = 0.15,
  weights: jax.typing.ArrayLike | Sequence[float] = (2.0, 1.0, 1.0),
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Regression loss, steeper beyond two teachers' errors and flatter within.

  With the student's error :math:`e = |x - g|` and those of a tough and a
  tolerant teacher, :math:`e_1` and :math:`e_2`,

  .. math::
    \ell = w_0\, m(e) + w_1\, a_1(e) + w_2\, a_2(e), \qquad
    m(e) = \begin{cases}
      3 e & e \le e_2 \\ e^2 + 3 e_2 - e_2^2 & e > e_2 \end{cases}, \qquad
    a_i(e) = \begin{cases}
      0 & e \le \text{inner} \cdot e_i \\
      \text{slopes}_{i, 1} \, (e_i - e) & e \le e_i \\
      \text{slopes}_{i, 0} \, (e - e_i) & e > e_i \end{cases} .

  Made for the coordinates of facial landmarks, not for classes. It jumps at the
  inner thresholds, so it is no continuous loss, and its value no measure of
  progress. Teachers are constants to differentiation.

  Args:
    predictions: The student's, any shape, any floating dtype.
    targets: What is to be predicted, floats of the same shape.
    tough: The more exact teacher's predictions, of the same shape.
    tolerant: The less exact teacher's predictions, of the same shape.
    tough_slopes: Slopes beyond and within the tough teacher's error.
    tolerant_slopes: Slopes beyond and within the tolerant teacher's error.
    inner: Share of a teacher's error below which it does not assist, in [0, 1].
    weights: Of the main term, the tough and the tolerant teacher's.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0.

  Returns:
    The loss of each entry, of the predictions' shape, float32 or wider.

  Raises:
    TypeError: If an array is not floating or ``where`` not boolean.
    ValueError: If a shape does not fit or ``inner`` is outside [0, 1].

  Examples:
    >>> x, zero = jnp.array([0.001, 0.01, 0.03, 0.08]), jnp.zeros(4)
    >>> print(losses.assistive_distillation(x, zero, zero + 0.02, zero + 0.05))
    [0.006  0.0395 0.191  0.4758]

  References:
    Fard and Mahoor, `Facial Landmark Points Detection Using Knowledge
    Distillation-Based Neural Networks <https://arxiv.org/abs/2111.07047>`_,
    2021.

  .. seealso:: :func:`squentropy_jax.losses.ensemble_distillation`
  """
  x = _checks.as_floats(predictions, "predictions")
  dtype = _checks.compute_dtype(x.dtype)
  others = []
  for name, value in (
    ("targets", targets),
    ("tough", tough),
    ("tolerant", tolerant),
  ):
    other = _checks.as_floats(value, name)
    if other.shape != x.shape:
      raise ValueError(
        f"{name} must have the shape of predictions {x.shape}, got "
        f"{other.shape}."
      )
    others.append(other.astype(dtype))
  parameters = []
  for name, numbers, size in (
    ("tough_slopes", tough_slopes, 2),
    ("tolerant_slopes", tolerant_slopes, 2),
    ("weights", weights, 3),
  ):
    array = jnp.asarray(numbers)
    if array.shape != (size,):
      raise ValueError(f"{name} must be {size} numbers, got {numbers!r}.")
    _checks.check_interval(name, array, "(-inf, inf)", dtype)
    parameters.append(array.astype(dtype))
  parameters.append(_checks.as_scalar("inner", inner, dtype, "[0, 1]"))
  if where is not None:
    where = _checks.as_where(where, x.shape, x.shape)
    x, *others = (jnp.where(where, a, jnp.zeros_like(a)) for a in (x, *others))
  return _assistive(x.astype(dtype), *others, where, tuple(parameters))
