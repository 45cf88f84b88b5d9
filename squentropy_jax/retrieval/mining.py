# SPDX-License-Identifier: Apache-2.0
"""Chooses the examples of each batch, and negatives for each example."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks, varying
from squentropy_jax.retrieval._bisection import bisect_rows

# How often a slot takes an example that was confused with the class of the
# anchor, after a correct and after a wrong prediction, and how often one of the
# predicted class if not.
_CONFUSED_IF_CORRECT, _CONFUSED_IF_WRONG, _FROM_PREDICTED = 0.5, 0.33, 0.5


def _as_ids(
  values: ArrayLike,
  name: str,
  size: int | None = None,
  stop: int = 2**31 - 1,
) -> jax.Array:
  """Checks integers of one axis; a traced one out of range becomes -1."""
  array = checks.as_array(values, name)
  if not jnp.issubdtype(array.dtype, jnp.integer):
    raise TypeError(
      f"{name} must be integers, got dtype {array.dtype}. Pass "
      f"{name}.astype(jnp.int32)."
    )
  if len(array.shape) != 1 or size not in (None, array.shape[0]):
    wanted = "[N]" if size is None else str((size,))
    raise ValueError(f"{name} must have the shape {wanted}, got {array.shape}.")
  if checks.is_concrete(array, used_with=(array,)):
    found = np.asarray(array)
    bad = (found < 0) | (found > stop - 1)
    if bad.any():
      row = int(np.argmax(bad))
      raise ValueError(
        f"{name}[{row}] = {found[row]} is outside [0, {stop}). Leave padded "
        "rows out of the call."
      )
  ids = checks.as_jax(array)
  last = min(stop - 1, jnp.iinfo(ids.dtype).max)
  return jnp.where((ids >= 0) & (ids <= last), ids, -1).astype(jnp.int32)


def balanced_clusters(
  key: jax.Array,
  features: ArrayLike,
  num_clusters: int,
  *,
  num_iters: int = 10,
) -> jax.Array:
  r"""Splits the rows of an array into clusters of equal size.

  Use with :func:`cluster_batches` to put similar examples into one batch, where
  they are difficult negatives of each other. Normalise the features if the loss
  uses cosines. Avoid with an untrained model, whose features do not show which
  examples are similar.

  The rows are split into two parts, and each part is split again. A split is
  balanced 2-means:

  .. math::
    \min_{S, c} \sum_{i \in S} |x_i - c_1|^2 + \sum_{i \notin S} |x_i - c_0|^2
    \quad \text{with a fixed number of rows in } S ,

  by ``num_iters`` assignments, each the best one for its centroids: the rows
  are sorted by :math:`\langle x_i, c_1 - c_0 \rangle`. The first centroids are
  two random rows. Clusters with neighbouring ids are similar.

  The time grows with :math:`N d \log K`. On a CPU a million rows need 130 MiB
  in addition to their features in float32.

  Args:
    key: A key of :func:`jax.random.key`.
    features: One row for each example, shape ``[N, d]``, any floating dtype.
    num_clusters: :math:`K`, a static int in [1, N].
    num_iters: The number of assignments in each split, a static int.

  Returns:
    The cluster of each row, int32 in ``[0, num_clusters)``, shape ``[N]``. The
    sizes differ by at most one. All are -1 if a traced feature is not finite.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape or ``num_clusters`` does not fit, or a concrete
      feature is not finite.

  Examples:
    >>> features = jnp.array([[0.0], [5.1], [0.2], [5.0], [0.1], [5.2]])
    >>> clusters = retrieval.mining.balanced_clusters(
    ...   jax.random.key(0), features, 2
    ... )
    >>> print(clusters)
    [0 1 0 1 0 1]

  References:
    Dahiya et al., `NGAME: Negative Mining-aware Mini-batching for Extreme
    Classification <https://arxiv.org/abs/2207.04452>`_, WSDM 2023.
  """
  checks.check_key(key)
  array = checks.as_floats(features, "features")
  if array.ndim != 2 or 0 in array.shape:
    raise ValueError(
      "features must have the shape [N, d] with at least one row and one "
      f"column, got {array.shape}."
    )
  clusters = checks.as_count("num_clusters", num_clusters)
  if clusters > array.shape[0]:
    raise ValueError(
      f"num_clusters must be at most the number of rows, {array.shape[0]}, got "
      f"{clusters}."
    )
  iters = checks.as_count("num_iters", num_iters)
  if checks.is_concrete(array, used_with=(array,)):
    finite = np.asarray(jnp.all(jnp.isfinite(array), axis=-1))
    if not finite.all():
      raise ValueError(
        "features must be finite, got NaN or infinity in row "
        f"{int(np.argmin(finite))}. Leave such rows out of the call."
      )
  return bisect_rows(key, jax.lax.stop_gradient(array), clusters, iters)


@functools.partial(jax.jit, static_argnums=2)
def _in_batches(
  key: jax.Array, assignments: jax.Array, batch_size: int
) -> jax.Array:
  n = assignments.shape[0]
  of_rows, of_clusters = jax.random.split(key)
  ids = jax.random.permutation(of_rows, n).astype(jnp.int32)
  by_cluster, ids = jax.lax.sort((assignments[ids], ids), num_keys=1)
  new = jnp.concatenate(
    [jnp.zeros((min(n, 1),), bool), by_cluster[1:] != by_cluster[:-1]]
  )
  group = jnp.cumsum(new, dtype=jnp.int32)
  # Any numbers of distinct order: the groups are as many as the rows at most.
  places = jax.random.permutation(of_clusters, n).astype(jnp.int32)
  dropped = by_cluster < 0
  place = jnp.where(dropped, n, places[group])
  ids = jnp.where(dropped, -1, ids)
  _, ids = jax.lax.sort((place, ids), num_keys=1)
  padding = jnp.full((-n % batch_size,), -1, jnp.int32)
  return jnp.concatenate([ids, padding]).reshape(-1, batch_size)


def cluster_batches(
  key: jax.Array, assignments: ArrayLike, batch_size: int
) -> jax.Array:
  r"""Draws the batches of one epoch, with the examples of a cluster together.

  Use with :func:`balanced_clusters`, and a new key for each epoch. Clusters of
  one example each, ``jnp.arange(N)``, give batches in random order. The paper
  starts with such batches and doubles the size of the clusters during the
  training.

  .. math::
    \text{ids} = \bigl(\sigma_{\pi(1)}, \sigma_{\pi(2)}, \dots\bigr)
    \text{ cut into batches}

  where :math:`\sigma_c` are the examples of cluster :math:`c` in random order
  and :math:`\pi` is a random order of the clusters. A cluster may continue in
  the next batch.

  Args:
    key: A key of :func:`jax.random.key`, a new one for every epoch.
    assignments: The cluster of each example, integers of shape ``[N]``, 0 or
      more.
    batch_size: Examples of a batch, a static int.

  Returns:
    Row numbers, int32 of shape ``[num_batches, batch_size]``. Each row number
    occurs once. The last batch is filled with -1: pass ``where=ids >= 0`` to
    the loss, because JAX reads the index -1 as the last row. If ``assignments``
    is traced, examples with a cluster below 0 are left out, and more entries at
    the end are -1.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or a concrete cluster is below 0.

  Examples:
    >>> clusters = jnp.array([0, 1, 0, 1, 1])
    >>> ids = retrieval.mining.cluster_batches(jax.random.key(0), clusters, 3)
    >>> print(ids)
    [[ 0  2  4]
     [ 1  3 -1]]

  References:
    Dahiya et al., `NGAME: Negative Mining-aware Mini-batching for Extreme
    Classification <https://arxiv.org/abs/2207.04452>`_, WSDM 2023.
  """
  checks.check_key(key)
  ids = _as_ids(assignments, "assignments")
  return _in_batches(key, ids, checks.as_count("batch_size", batch_size))


def _inverse(permutation: jax.Array) -> jax.Array:
  ids = jnp.arange(permutation.shape[0], dtype=jnp.int32)
  return jnp.zeros_like(permutation).at[permutation].set(ids)


@functools.partial(jax.jit, static_argnums=4)
def _slots(
  key: jax.Array,
  labels: jax.Array,
  predictions: jax.Array,
  anchors: jax.Array,
  num_slots: int,
) -> jax.Array:
  """Draws the slots one by one; a pool is a range of a sorted list."""
  n, num_anchors = labels.shape[0], anchors.shape[0]
  ids = jnp.arange(n, dtype=jnp.int32)
  wrong = (labels >= 0) & (predictions != labels)
  by_label, of_label = jax.lax.sort((labels, ids), num_keys=1)
  # The wrong ones of each predicted class come first.
  by_predicted, right, of_predicted = jax.lax.sort(
    (predictions, (~wrong).astype(jnp.int32), ids), num_keys=2
  )
  num_wrong = jnp.cumsum(1 - right, dtype=jnp.int32)
  num_wrong = jnp.concatenate([jnp.zeros((1,), jnp.int32), num_wrong])
  place_by_label, place_by_predicted = map(_inverse, (of_label, of_predicted))

  def bounds(values: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    search = functools.partial(jnp.searchsorted, values, x)
    low, high = search(side="left"), search(side="right")
    return low.astype(jnp.int32), high.astype(jnp.int32)

  found = anchors >= 0
  rows = jnp.where(found, anchors, 0)
  label, predicted = labels[rows], predictions[rows]
  own_low, own_high = bounds(by_label, label)
  own_size = own_high - own_low
  low, high = bounds(by_predicted, label)
  confused_low, confused_size = low, num_wrong[high] - num_wrong[low]
  mistaken_low, high = bounds(by_label, predicted)
  correct = predicted == label
  no_class = correct | (predicted < 0)
  mistaken_size = jnp.where(no_class, 0, high - mistaken_low)
  # Rows of an invalid label are the first of the list.
  others_low = jnp.sum(labels < 0, dtype=jnp.int32)
  others_size = jnp.where(found & (label >= 0), n - others_low - own_size, 0)

  sizes = jnp.stack([confused_size, mistaken_size, others_size], axis=-1)
  share = jnp.where(correct, _CONFUSED_IF_CORRECT, _CONFUSED_IF_WRONG)

  def places_in_pools(chosen: jax.Array) -> jax.Array:
    """Where the chosen examples ``[A, S]`` are in each pool, ``[A, 3, S]``."""
    by_label = place_by_label[chosen]
    passed = by_label >= own_high[:, None]
    relative = [
      place_by_predicted[chosen] - confused_low[:, None],
      by_label - mistaken_low[:, None],
      by_label - others_low - jnp.where(passed, own_size[:, None], 0),
    ]
    places = jnp.stack(relative, axis=1)
    inside = (places >= 0) & (places < sizes[:, :, None])
    return jnp.where(inside & (chosen >= 0)[:, None], places, n + num_slots)

  def draw(slot: jax.Array, chosen: jax.Array) -> jax.Array:
    keys = jax.random.split(jax.random.fold_in(key, slot), 3)
    first, second = (jax.random.uniform(k, (num_anchors,)) for k in keys[:2])
    taken = places_in_pools(chosen)
    left = sizes - jnp.sum(taken < n, axis=-1, dtype=jnp.int32)
    left = jnp.maximum(left, 0)  # Some are taken twice if all are used up.
    from_predicted = ~correct & (second < _FROM_PREDICTED)
    pool = jnp.where(from_predicted, 1, 2)
    pool = jnp.where(first < share, 0, pool)[:, None]

    def of_pool(values: jax.Array) -> jax.Array:
      return jnp.take_along_axis(values, pool, axis=1)[:, 0]

    pool = jnp.where((of_pool(left) == 0)[:, None], 2, pool)
    # With replacement if the others are fewer than the slots.
    again = of_pool(left) == 0
    count = jnp.where(again, others_size, of_pool(left))
    place = jax.random.randint(
      keys[2], (num_anchors,), 0, jnp.maximum(count, 1)
    )
    places = jnp.take_along_axis(taken, pool[:, :, None], axis=1)[:, 0]
    places = jnp.sort(jnp.where(again[:, None], n + num_slots, places), axis=-1)
    # An example that is left stands behind those taken before it.
    before = places - jnp.arange(num_slots, dtype=jnp.int32)[None]
    place += jnp.sum(before <= place[:, None], axis=-1, dtype=jnp.int32)
    other = others_low + place
    other += jnp.where(other >= own_low, own_size, 0)
    last = n - 1
    drawn = jnp.stack(
      [
        of_predicted[jnp.minimum(confused_low + place, last)],
        of_label[jnp.minimum(mistaken_low + place, last)],
        of_label[jnp.minimum(other, last)],
      ],
      axis=1,
    )
    ids = jnp.where(others_size > 0, of_pool(drawn), -1)
    return chosen.at[:, slot].set(ids)

  start = jnp.full((num_anchors, num_slots), -1, jnp.int32)
  start = varying.vary_like(start, (key, labels, predictions, anchors))
  return jax.lax.fori_loop(0, num_slots, draw, start)


def hard_negative_slots(
  key: jax.Array,
  labels: ArrayLike,
  predictions: ArrayLike,
  anchors: ArrayLike,
  num_slots: int,
) -> jax.Array:
  r"""Draws negatives of each anchor among the examples that a model confuses.

  Use once an epoch, with predictions of the whole training set, to choose the
  ``negatives`` of :func:`squentropy_jax.retrieval.triplet_margin`.

  For an anchor of class :math:`y` whose predicted class is :math:`\hat y`, each
  of its negatives comes from one of three pools:

  .. math::
    \{i : y_i \ne y, \hat y_i = y\}, \qquad
    \{i : y_i = \hat y\}, \qquad \{i : y_i \ne y\} .

  If the prediction is right, :math:`\hat y = y`, the pools have the
  probabilities 1/2, 0 and 1/2. If the prediction is wrong, the probabilities
  are 0.33, 0.335 and 0.335. If a pool is empty or used up, the negative comes
  from the last pool. The negatives of an anchor are distinct, unless fewer than
  ``num_slots`` examples have other classes.

  Args:
    key: A key of :func:`jax.random.key`.
    labels: The class of each example, integers of shape ``[N]``, 0 or more.
    predictions: The predicted class of each example, integers of shape ``[N]``,
      0 or more.
    anchors: Row numbers of the anchors, integers of shape ``[A]``.
    num_slots: Negatives for each anchor, a static int.

  Returns:
    Row numbers, int32 of shape ``[A, num_slots]``, never of the anchor's own
    class. All those of an anchor are -1 if no other class exists, or if the
    anchor or its label is traced and out of range. Examples with such a label
    are never drawn.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or a concrete value is out of range.

  Examples:
    >>> labels = jnp.array([0, 0, 0, 1, 1, 2])
    >>> predictions = jnp.array([0, 0, 1, 1, 0, 2])
    >>> ids = retrieval.mining.hard_negative_slots(
    ...   jax.random.key(0), labels, predictions, jnp.array([0]), 3
    ... )
    >>> print(jnp.sort(ids))
    [[3 4 5]]

  References:
    Zhu et al., `Coarse-to-Fine: Learning Compact Discriminative Representation
    for Single-Stage Image Retrieval <https://arxiv.org/abs/2308.04008>`_, ICCV
    2023. The probabilities are those of their code.
  """
  checks.check_key(key)
  classes = _as_ids(labels, "labels")
  n = classes.shape[0]
  if n == 0:
    raise ValueError("labels must have at least one example, got none.")
  arrays: Any = (
    classes,
    _as_ids(predictions, "predictions", n),
    _as_ids(anchors, "anchors", stop=n),
  )
  return _slots(key, *arrays, checks.as_count("num_slots", num_slots))
