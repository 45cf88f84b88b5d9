# SPDX-License-Identifier: Apache-2.0
"""Similarities of the examples of a batch that have different labels."""

from collections.abc import Sequence
import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core.labels import as_distinct, widen_ids
from squentropy_jax._core.unit_vectors import unit
from squentropy_jax._core.varying import gathered

# With more, the number of pairs is above the largest int32.
_MAX_EXAMPLES = 2**16


def batch_negatives(
  features: ArrayLike,
  labels: ArrayLike,
  *,
  whisker: ArrayLike = 1.5,
  where: ArrayLike | None = None,
  axis_name: str | Sequence[str] | None = None,
) -> tuple[jax.Array, jax.Array]:
  r"""Computes similarities of all pairs of a batch with different labels.

  Use when an angular loss should also push apart the features of different
  classes: pass the result to :func:`squentropy_jax.losses.unpg`.

  Avoid when the batch is so large that its :math:`B^2 / 2` pairs do not fit in
  memory, or when its labels are often wrong.

  Outliers are left out. Of the :math:`n` cosine similarities of pairs with
  different labels, sorted as :math:`v_0 \le \dots \le v_{n-1}`, those are kept
  with

  .. math::
    Q_1 - r (Q_3 - Q_1) \le v \le Q_3 + r (Q_3 - Q_1), \qquad
    Q_1 = v_{\lfloor n / 4 \rfloor}, \quad Q_3 = v_{\lfloor 3 n / 4 \rfloor} .

  The quartiles are not interpolated and have no gradient. The gradient of a
  kept similarity flows into both features of the pair.

  Args:
    features: Features ``[B, d]``, any floating dtype. They are normalised.
    labels: Class ids, integers ``[B]``. Any integer is valid, because the
      labels are only compared.
    whisker: :math:`r`, a scalar, as for the whiskers of a box plot. ``inf``
      keeps all pairs.
    where: Which examples to keep, booleans ``[B]``. The pairs of a dropped
      example are left out.
    axis_name: The axis of ``shard_map`` over which the batch is spread, or a
      tuple of axes. The result then has the pairs of all devices, the same on
      every device, so that ``P()`` may be its ``out_specs``.

  Returns:
    The similarities of the pairs ``i < j``, of shape ``[B (B - 1) / 2]``,
    float32 or wider, and a mask of the same shape. Similarities are 0 where the
    mask is False. A pair with a NaN or infinite feature is NaN, and the mask is
    True there.

  Raises:
    TypeError: If ``features`` is not floating, ``labels`` are not integers,
      ``where`` is not boolean, or ``axis_name`` is no name.
    ValueError: If shapes do not fit, there are more than 65536 examples, or a
      concrete ``whisker`` is NaN.

  Examples:
    >>> features = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    >>> labels = jnp.array([0, 0, 1])
    >>> similarities, mask = retrieval.batch_negatives(features, labels)
    >>> print(similarities, mask)
    [0.     0.     0.7071] [False  True  True]

  References:
    Jung, Lee, Oh, Park, Park and Son, `Unified Negative Pair Generation toward
    Well-discriminative Feature Space for Face Recognition
    <https://arxiv.org/abs/2203.11593>`_, BMVC 2022.

  .. seealso:: :func:`squentropy_jax.losses.unpg`
  """
  array = checks.as_floats(features, "features")
  if array.ndim != 2:
    raise ValueError(
      f"features must have the shape [examples, width], got {array.shape}. "
      "Reshape other batch axes into one."
    )
  count = array.shape[0]
  names = checks.as_axis_names(axis_name)
  devices = 1 if names is None else jax.lax.axis_size(names)
  if count * devices > _MAX_EXAMPLES:
    raise ValueError(
      f"features must have at most {_MAX_EXAMPLES} examples on all devices, "
      f"because int32 counts their pairs, got {count * devices}. Pass a part "
      "of the batch."
    )
  ids = _as_ids(labels, count)
  if where is not None:
    mask = checks.as_array(where, "where")
    if mask.dtype != jnp.bool_:
      raise TypeError(
        f"where must be boolean, got dtype {mask.dtype}. Pass where != 0."
      )
    if mask.shape != (count,):
      raise ValueError(
        f"where must have the shape {(count,)}, one value for each example, "
        f"got {mask.shape}."
      )
    where = jnp.asarray(mask)
  dtype = checks.compute_dtype(array.dtype)
  reach = checks.as_scalar("whisker", whisker, dtype, "[-inf, inf]")
  return _negatives(array.astype(dtype), ids, where, reach, names)


def _as_ids(labels: ArrayLike, count: int) -> jax.Array:
  ids = checks.as_array(labels, "labels")
  if not jnp.issubdtype(ids.dtype, jnp.integer):
    raise TypeError(
      f"labels must be integers of shape {(count,)}, got dtype {ids.dtype}. "
      "Pass jnp.asarray(labels, jnp.int32)."
    )
  if np.shape(ids) != (count,):
    raise ValueError(
      f"labels must have the shape {(count,)}, one for each of the features, "
      f"got {np.shape(ids)}."
    )
  return as_distinct("labels", widen_ids(ids))


def _pairs(count: int) -> tuple[jax.Array, jax.Array]:
  """The two examples of each pair, without a constant of that size."""
  example = jnp.arange(count, dtype=jnp.int32)
  later = count - 1 - example
  size = count * (count - 1) // 2
  first = jnp.repeat(example, later, total_repeat_length=size)
  before = jnp.cumsum(later) - later
  place = jnp.arange(size, dtype=jnp.int32) - before[first]
  return first, first + 1 + place


@functools.partial(jax.jit, static_argnums=4, inline=True)
def _negatives(
  features: jax.Array,
  ids: jax.Array,
  keep: jax.Array | None,
  whisker: jax.Array,
  names: tuple[str, ...] | None,
) -> tuple[jax.Array, jax.Array]:
  if keep is not None:
    zero = jnp.zeros_like(features)
    features = jnp.where(keep[:, None], features, zero)
  vectors = unit(features)
  if names is not None:
    vectors, ids, keep = jax.tree.map(
      lambda x: gathered(x, names), (vectors, ids, keep)
    )
  first, second = _pairs(len(vectors))
  if not first.size:
    return jnp.zeros(0, vectors.dtype), jnp.zeros(0, bool)
  # The default precision of some devices would round the features to bfloat16.
  product = jnp.matmul(vectors, vectors.T, precision=jax.lax.Precision.HIGHEST)
  similarities = product[first, second]
  valid = ids[first] != ids[second]
  if keep is not None:
    valid &= keep[first] & keep[second]
  mask = within_fences(similarities, valid, whisker)
  return jnp.where(mask, similarities, jnp.zeros_like(similarities)), mask


def within_fences(
  values: jax.Array, valid: jax.Array, whisker: jax.Array
) -> jax.Array:
  """Which valid values are within the fences of a box plot, or NaN."""
  values = jax.lax.stop_gradient(values)
  count = valid.sum(dtype=jnp.int32)
  ordered = jnp.sort(jnp.where(valid, values, jnp.inf))
  # The second index is floor(3 n / 4), without a product that could overflow.
  low, high = ordered[count // 4], ordered[count - (count + 3) // 4]
  low, high = (jnp.where(count > 0, x, jnp.zeros_like(x)) for x in (low, high))
  # An infinite whisker keeps all or none, also if both quartiles are equal.
  reach = jnp.where(jnp.isinf(whisker), whisker, whisker * (high - low))
  inside = (values >= low - reach) & (values <= high + reach)
  return valid & (inside | jnp.isnan(values))
