# SPDX-License-Identifier: Apache-2.0
"""Triplet losses of squared distances: of vectors, and of local descriptors."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.hyperparameters import Hyperparameters
from squentropy_jax._core.unit_vectors import unit

_HYPERPARAMETERS = Hyperparameters({"margin": "[0, inf)"}, {})


def _hinge(x: jax.Array, counted: jax.Array | bool) -> jax.Array:
  """``max(0, x)`` with derivative 0 at 0, NaN of NaN; 0 where not counted."""
  return jnp.where((x <= 0) | ~jnp.asarray(counted), jnp.zeros_like(x), x)


def _square_distance(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.square(a - b).sum(-1)


def triplet_margin(
  anchor: ArrayLike,
  positive: ArrayLike,
  negatives: ArrayLike,
  *,
  margin: ArrayLike = 0.1,
  where: ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the triplet margin loss of an anchor against several negatives.

  Use when each anchor has one positive and its own negatives, for example those
  of :func:`squentropy_jax.retrieval.mining.hard_negative_slots`.

  Avoid when all other positives of a batch may serve as negatives: use
  :func:`squentropy_jax.retrieval.top_k_margin`, which chooses the hardest of
  them.

  With the negatives :math:`n_j`,

  .. math::
    \sum_j \max\bigl(0,\, \lVert a - p \rVert^2 - \lVert a - n_j \rVert^2
                    + m\bigr)

  The vectors are used as they are: normalise them first for a loss of cosine
  similarities. A negative at or beyond the margin has gradient 0.

  Args:
    anchor: Vectors ``[..., d]``, any floating dtype.
    positive: Vectors of the same shape.
    negatives: Vectors ``[..., n, d]``.
    margin: :math:`m`, at least 0, a scalar or of shape ``[...]``.
    where: Which negatives to keep, booleans ``[..., n]``. An example without a
      kept negative has loss and gradient 0.

  Returns:
    The loss of each example, ``[...]``, float32 or wider.

  Raises:
    TypeError: If vectors are not floating or ``where`` is not boolean.
    ValueError: If shapes do not fit, or a concrete ``margin`` is below 0.

  Examples:
    >>> anchor, positive = jnp.array([1.0, 0.0]), jnp.array([0.8, 0.6])
    >>> negatives = jnp.array([[0.6, 0.8], [-1.0, 0.0]])
    >>> loss = retrieval.triplet_margin(anchor, positive, negatives, margin=0.5)
    >>> print(f"{loss:.4f}")
    0.1000

  References:
    Zhu, Gao, Ke, Qiao and Sun, `Coarse-to-Fine: Learning Compact Discriminative
    Representation for Single-Stage Image Retrieval
    <https://arxiv.org/abs/2308.04008>`_, ICCV 2023.

  .. seealso:: :func:`squentropy_jax.retrieval.local_descriptor_triplet`
  """
  a = checks.as_floats(anchor, "anchor")
  p = checks.as_floats(positive, "positive")
  n = checks.as_floats(negatives, "negatives")
  if a.ndim == 0:
    raise ValueError(
      "anchor must be vectors of shape [..., d], got a scalar. For vectors of "
      "one number pass anchor[..., None]."
    )
  if p.shape != a.shape:
    raise ValueError(
      f"positive must have the shape of anchor {a.shape}, got {p.shape}. "
      "Nothing is broadcast."
    )
  batch, width = a.shape[:-1], a.shape[-1]
  if n.ndim != a.ndim + 1 or (*n.shape[:-2], n.shape[-1]) != a.shape:
    raise ValueError(
      f"negatives must have the shape {(*batch, 'n', width)} for anchors of "
      f"shape {a.shape}, got {n.shape}. For one negative of each anchor pass "
      "negatives[..., None, :]."
    )
  rows = None
  if where is not None:
    mask = checks.as_array(where, "where")
    if mask.dtype != jnp.bool_:
      raise TypeError(
        f"where must be boolean, got dtype {mask.dtype}. Pass where != 0."
      )
    if mask.shape != n.shape[:-1]:
      raise ValueError(
        f"where must have the shape {n.shape[:-1]}, one value for each "
        f"negative, got {mask.shape}. Nothing is broadcast."
      )
    known = checks.is_concrete(mask, used_with=(a, p, n))
    rows = np.zeros(batch, bool)
    if known:
      rows = np.asarray(np.any(np.asarray(mask), axis=-1))
    where = jnp.asarray(mask)
  dtype = checks.compute_dtype(a.dtype, p.dtype, n.dtype)
  numbers = _HYPERPARAMETERS.as_arrays({"margin": margin}, dtype, batch, rows)
  return _triplet_margin(a, p, n, where, numbers)


@functools.partial(jax.jit, inline=True)
def _triplet_margin(
  a: jax.Array,
  p: jax.Array,
  n: jax.Array,
  keep: jax.Array | None,
  numbers: dict[str, jax.Array],
) -> jax.Array:
  wide = checks.compute_dtype(a.dtype, p.dtype, n.dtype)
  a, p, n = (x.astype(wide) for x in (a, p, n))
  counted: jax.Array | bool = True
  if keep is not None:
    counted, some = keep, keep.any(-1)
    numbers = _HYPERPARAMETERS.placeholders(numbers, some)
    a, p = (jnp.where(some[..., None], x, jnp.zeros_like(x)) for x in (a, p))
    n = jnp.where(keep[..., None], n, jnp.zeros_like(n))
  margin = numbers["margin"]
  near = jnp.expand_dims(_square_distance(a, p) + margin, -1)
  far = _square_distance(jnp.expand_dims(a, -2), n)
  return _hinge(near - far, counted).sum(-1)


def local_descriptor_triplet(
  features: ArrayLike,
  attention: ArrayLike,
  *,
  margin: ArrayLike = 0.1,
  max_ratio: ArrayLike = 0.9,
) -> jax.Array:
  r"""Computes a triplet loss of the local descriptors that match in two images.

  Use when each image has many local descriptors, and the images are ordered as
  an anchor, a positive that shows the same object, and negatives.

  Avoid when images have one vector each: use
  :func:`squentropy_jax.retrieval.triplet_margin`.

  For unit descriptors, the loss is a sum over matches :math:`(a, p)` of anchor
  and positive and over the negative images :math:`t`,

  .. math::
    \sum_{(a, p)} \sum_t \max\bigl(0,\, \lVert a - p \rVert^2
      - \min_{n \in t} \lVert a - n \rVert^2 + m\bigr) .

  Two descriptors match if each is the nearest to the other, if the distance
  from :math:`a` to :math:`p` is at most ``max_ratio`` times the distance from
  :math:`a` to the second nearest descriptor of the positive, and if fewer than
  half of the positive's descriptors have more attention than :math:`p`. The
  choice of matches and of nearest descriptors is not differentiated. Without a
  match the loss and the gradient are 0.

  Args:
    features: Descriptors ``[T, L, d]`` of ``T`` images, any floating dtype.
      They are normalised. A descriptor of zeros stays as it is.
    attention: Scores ``[T, L]``; only those of the positive matter.
    margin: :math:`m`, a scalar, at least 0.
    max_ratio: Largest ratio of the distances of the nearest and the second
      nearest descriptor, a scalar, at least 0; 1 allows every ratio.

  Returns:
    The loss of the tuple, a scalar, float32 or wider.

  Raises:
    TypeError: If ``features`` or ``attention`` is not floating.
    ValueError: If shapes do not fit, there are fewer than three images, or a
      concrete hyper-parameter is below 0.

  Examples:
    >>> anchor = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    >>> positive = jnp.array([[0.8, 0.6], [-0.6, 0.8]])
    >>> negative = jnp.array([[0.8, -0.6], [-0.8, 0.6]])
    >>> features = jnp.stack([anchor, positive, negative])
    >>> loss = retrieval.local_descriptor_triplet(features, jnp.ones((3, 2)))
    >>> print(f"{loss:.4f}")
    0.1000

  References:
    Zhu, Gao, Ke, Qiao and Sun, `Coarse-to-Fine: Learning Compact Discriminative
    Representation for Single-Stage Image Retrieval
    <https://arxiv.org/abs/2308.04008>`_, ICCV 2023.

  .. seealso:: :func:`squentropy_jax.retrieval.triplet_margin`
  """
  vectors = checks.as_floats(features, "features")
  scores = checks.as_floats(attention, "attention")
  if vectors.ndim != 3 or vectors.shape[0] < 3 or vectors.shape[1] == 0:
    raise ValueError(
      "features must have the shape [T, L, d] of an anchor, a positive and at "
      f"least one negative image, got {vectors.shape}."
    )
  if scores.shape != vectors.shape[:2]:
    raise ValueError(
      f"attention must have the shape {vectors.shape[:2]}, one score for each "
      f"descriptor, got {scores.shape}."
    )
  dtype = checks.compute_dtype(vectors.dtype)
  return _local_descriptor_triplet(
    vectors.astype(dtype),
    scores[1],
    checks.as_scalar("margin", margin, dtype, "[0, inf)"),
    checks.as_scalar("max_ratio", max_ratio, dtype, "[0, inf)"),
  )


def _square_distances(a: jax.Array, b: jax.Array) -> jax.Array:
  """Squared distances of all vectors of ``a`` from all of ``b``, constants."""
  a, b = jax.lax.stop_gradient((a, b))
  product = jnp.matmul(
    a, jnp.swapaxes(b, -1, -2), precision=jax.lax.Precision.HIGHEST
  )
  size = jnp.square(a).sum(-1, keepdims=True)
  other = jnp.expand_dims(jnp.square(b).sum(-1), -2)
  return size + other - 2.0 * product


def _matches(
  a: jax.Array, p: jax.Array, attention: jax.Array, max_ratio: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The descriptor of ``p`` nearest to each of ``a``, and where they match."""
  count = len(a)
  distances = _square_distances(a, p)
  nearest = distances.argmin(1)
  place = jnp.arange(count)
  matched = distances.argmin(0)[nearest] == place
  more = (attention[None] > attention[:, None]).sum(1, dtype=jnp.int32)
  matched &= (2 * more < count)[nearest]
  if count > 1:
    second = distances.at[place, nearest].set(jnp.inf).argmin(1)
    # Computed from the difference, because small distances cancel above.
    d1, d2 = (jnp.sqrt(_square_distance(a, p[k])) for k in (nearest, second))
    one = jnp.ones_like(d2)
    matched &= jnp.where(d2 > 0, d1 / jnp.where(d2 > 0, d2, one), one) <= (
      max_ratio
    )
  return nearest, matched


@functools.partial(jax.jit, inline=True)
def _local_descriptor_triplet(
  features: jax.Array,
  attention: jax.Array,
  margin: jax.Array,
  max_ratio: jax.Array,
) -> jax.Array:
  vectors = unit(features)
  anchor, positive, negatives = vectors[0], vectors[1], vectors[2:]
  fixed = jax.lax.stop_gradient(vectors)
  nearest, matched = _matches(fixed[0], fixed[1], attention, max_ratio)
  near = _square_distance(anchor, positive[nearest])
  images = jnp.broadcast_to(fixed[0], (len(negatives), *anchor.shape))
  hardest = _square_distances(images, negatives).argmin(-1)
  chosen = jnp.take_along_axis(negatives, hardest[..., None], axis=1)
  far = _square_distance(jnp.broadcast_to(anchor, chosen.shape), chosen)
  each = jnp.broadcast_to(near + margin, far.shape) - far
  total = _hinge(each, jnp.broadcast_to(matched, far.shape)).sum()
  # A comparison with NaN is False, and would leave invalid descriptors out.
  invalid = jnp.isnan(vectors).any() | jnp.isnan(attention).any()
  return total * prelude.nan_factor(invalid, total.dtype)
