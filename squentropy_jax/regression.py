# SPDX-License-Identifier: Apache-2.0
"""Losses of predictions that are numbers, not classes."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks, entries
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.hyperparameters import Hyperparameters

_HYPERPARAMETERS = Hyperparameters({"inner": "[0, 1]"}, {})


@functools.partial(jax.jit, inline=True)
def _assistive(
  arrays: tuple[jax.Array, ...],
  keep: jax.Array | None,
  tough_factors: jax.Array,
  tolerant_factors: jax.Array,
  weights: jax.Array,
  inner: jax.Array,
) -> jax.Array:
  x, target, *teachers = arrays
  # The absolute value, with derivative 0 at 0.
  error = jnp.maximum(x - target, target - x)
  tough, tolerant = (
    jax.lax.stop_gradient(jnp.abs(t - target)) for t in teachers
  )
  inside = error <= tolerant
  square = (error - tolerant) * (error + tolerant) + 3.0 * tolerant
  main = jnp.where(inside, 3.0 * error, square)

  def assist(threshold: jax.Array, factors: jax.Array) -> jax.Array:
    within = (error > inner * threshold) & (error <= threshold)
    factor = jnp.where(within, factors[1], jnp.zeros_like(error))
    factor = jnp.where(error > threshold, factors[0], factor)
    return factor * jnp.abs(threshold - error)

  loss = (
    weights[0] * main
    + weights[1] * assist(tough, tough_factors)
    + weights[2] * assist(tolerant, tolerant_factors)
  )
  return prelude.drop(loss, keep)


def assistive_distillation(
  predictions: jax.typing.ArrayLike,
  targets: jax.typing.ArrayLike,
  tough: jax.typing.ArrayLike,
  tolerant: jax.typing.ArrayLike,
  *,
  tough_factors: jax.typing.ArrayLike | Sequence[float] = (1.9, -0.45),
  tolerant_factors: jax.typing.ArrayLike | Sequence[float] = (1.8, -0.4),
  inner: jax.typing.ArrayLike = 0.15,
  weights: jax.typing.ArrayLike | Sequence[float] = (2.0, 1.0, 1.0),
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes a regression loss that depends on two teachers' errors.

  Use when you regress coordinates, such as facial landmarks, and have an exact
  and an inexact teacher.

  Avoid when you watch the loss: it is discontinuous at the inner thresholds,
  and a smaller value need not mean a smaller error.

  With the student's error :math:`e = |x - g|` and those of a tough and a
  tolerant teacher, :math:`e_1` and :math:`e_2`,

  .. math::
    \ell = w_0\, m(e) + w_1\, a_1(e) + w_2\, a_2(e), \qquad
    m(e) = \begin{cases}
      3 e & e \le e_2 \\ e^2 + 3 e_2 - e_2^2 & e > e_2 \end{cases}, \qquad
    a_i(e) = \begin{cases}
      0 & e \le \text{inner} \cdot e_i \\
      \text{factors}_{i, 1} \, (e_i - e) & e \le e_i \\
      \text{factors}_{i, 0} \, (e - e_i) & e > e_i \end{cases} .

  The teachers' predictions are constants to differentiation.

  Args:
    predictions: The student's predictions, any shape, any floating dtype.
    targets: The true values, floats of the same shape.
    tough: The more exact teacher's predictions, of the same shape.
    tolerant: The less exact teacher's predictions, of the same shape.
    tough_factors: Two factors, beyond and within the tough teacher's error.
    tolerant_factors: Two factors, beyond and within the tolerant teacher's
      error.
    inner: Share of a teacher's error below which its term is 0, in [0, 1], a
      scalar or one value for each entry.
    weights: Three weights, of the main term, the tough teacher's and the
      tolerant teacher's.
    where: Which entries to keep, booleans of the same shape. Dropped ones have
      loss and gradient 0.

  Returns:
    The loss of each entry, of the predictions' shape, float32 or wider.

  Raises:
    TypeError: If an array is not floating or ``where`` not boolean.
    ValueError: If a shape does not fit or a concrete ``inner`` is outside
      [0, 1].

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
  named = {
    "predictions": predictions,
    "targets": targets,
    "tough": tough,
    "tolerant": tolerant,
  }
  arrays, keep = entries.checked_arrays(named, where)
  x = arrays[0]
  numbers, _ = entries.checked_numbers(
    _HYPERPARAMETERS, {"inner": inner}, x, keep, axes=()
  )
  vector = functools.partial(checks.as_vector, dtype=x.dtype)
  return _assistive(
    arrays,
    keep,
    vector("tough_factors", tough_factors, 2),
    vector("tolerant_factors", tolerant_factors, 2),
    vector("weights", weights, 3),
    numbers["inner"],
  )
