# SPDX-License-Identifier: Apache-2.0
"""Losses of predictions that are numbers, not classes."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude


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
    >>> tough, tolerant = zero + 0.02, zero + 0.05
    >>> print(regression.assistive_distillation(x, zero, tough, tolerant))
    [0.006  0.0395 0.191  0.4758]

  References:
    Fard and Mahoor, `Facial Landmark Points Detection Using Knowledge
    Distillation-Based Neural Networks <https://arxiv.org/abs/2111.07047>`_,
    2021.

  .. seealso:: :func:`squentropy_jax.losses.ensemble_distillation`
  """
  x = checks.as_floats(predictions, "predictions")
  dtype = checks.compute_dtype(x.dtype)
  others = []
  for name, value in (
    ("targets", targets),
    ("tough", tough),
    ("tolerant", tolerant),
  ):
    other = checks.as_floats(value, name)
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
    checks.check_interval(name, array, "(-inf, inf)", dtype)
    parameters.append(array.astype(dtype))
  parameters.append(checks.as_scalar("inner", inner, dtype, "[0, 1]"))
  if where is not None:
    where = prelude.as_where(where, x.shape, x.shape)
    x, *others = (jnp.where(where, a, jnp.zeros_like(a)) for a in (x, *others))
  return _assistive(x.astype(dtype), *others, where, tuple(parameters))
