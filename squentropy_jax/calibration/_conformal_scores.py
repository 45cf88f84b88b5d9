# SPDX-License-Identifier: Apache-2.0
"""Scores that measure how badly each class fits a prediction."""

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax.calibration._row_functions import are_probabilities
from squentropy_jax.calibration._scored_rows import as_scores, widen


@jax.jit
def _nan_unless_probabilities(p: Array) -> Array:
  """``p`` ``[..., C]`` in float32 or wider; NaN in rows of other numbers."""
  return jnp.where(are_probabilities(p)[..., None], widen(p), jnp.nan)


def lac_score(probabilities: ArrayLike) -> Array:
  r"""Computes the LAC score of each class, which gives the smallest sets.

  Use it if the mean size of prediction sets matters most. It covers difficult
  examples less often than easy ones.

  .. math:: s_k = 1 - p_k

  LAC stands for least ambiguous set-valued classifier; the score is also known
  as THR.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.

  Returns:
    The scores, shape ``[..., C]``, float32 or wider. NaN in a row that does not
    hold probabilities (see :class:`BinStats`).

  Raises:
    TypeError: If ``probabilities`` are not floating point numbers.

  Examples:
    >>> print(calibration.lac_score(jnp.array([0.7, 0.2, 0.1])))
    [0.3 0.8 0.9]

  References:
    Sadinle, Lei and Wasserman, `Least Ambiguous Set-Valued Classifiers with
    Bounded Error Levels <https://arxiv.org/abs/1609.00451>`_, 2019.
  """
  p = as_scores("probabilities", probabilities)
  return 1 - _nan_unless_probabilities(p)


def aps_score(probabilities: ArrayLike, *, key: Array | None = None) -> Array:
  r"""Computes the APS score of each class, which adapts to difficulty.

  Use it if difficult and easy examples should be covered equally often. The
  sets are larger than those of :func:`lac_score`.

  .. math:: s_k = \sum_{j : \pi(j) \le \pi(k)} p_j - u\, p_k

  with :math:`\pi(k)` the rank of class :math:`k` by falling probability (ties
  by class). With a ``key``, :math:`u` is uniform in [0, 1) for each example;
  without, it is 0 and sets are larger than necessary. Use different keys for
  the calibration and the test examples:
  ``functools.partial(calibration.aps_score, key=key)``.

  Classes whose probability is 0, or too small to change the sum, would all have
  the score 1. To separate them, :math:`j / C` is added to the score of the
  :math:`j`-th of them. So a set of a saturated prediction need not have every
  class.

  APS stands for adaptive prediction sets.

  Args:
    probabilities: Predicted probabilities, shape ``[..., C]``.
    key: A random key, or None for scores without randomness.

  Returns:
    The scores, shape ``[..., C]``, float32 or wider. NaN in a row that does not
    hold probabilities (see :class:`BinStats`).

  Raises:
    TypeError: If ``probabilities`` are not floating point numbers or ``key`` is
      not a random key.

  Examples:
    >>> print(calibration.aps_score(jnp.array([0.2, 0.7, 0.1])))
    [0.9 0.7 1. ]

  References:
    Romano, Sesia and Candès, `Classification with Valid and Adaptive Coverage
    <https://arxiv.org/abs/2006.02544>`_, 2020.
  """
  p = _nan_unless_probabilities(as_scores("probabilities", probabilities))
  order = jnp.argsort(p, axis=-1, descending=True)
  total = jnp.cumsum(jnp.take_along_axis(p, order, axis=-1), axis=-1)
  # Sums of equal classes would tie, and a set would have all of them or none.
  is_same = total[..., 1:] <= jax.lax.cummax(total[..., :-1], axis=p.ndim - 1)
  ties = jnp.cumsum(is_same, axis=-1, dtype=jnp.int32).astype(p.dtype)
  total = total.at[..., 1:].add(ties / p.shape[-1])
  # Sorting the order gives the inverse permutation.
  score = jnp.take_along_axis(total, jnp.argsort(order, axis=-1), axis=-1)
  if key is None:
    return score
  checks.check_key(key)
  u = jax.random.uniform(key, (*p.shape[:-1], 1), p.dtype)
  return score - jnp.broadcast_to(u, p.shape) * p
