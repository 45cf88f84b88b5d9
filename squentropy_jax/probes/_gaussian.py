# SPDX-License-Identifier: Apache-2.0
"""Gaussians of all classes with one covariance: statistics of features."""

import functools
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.probes._read_examples import (
  Examples,
  as_features,
  as_num_classes,
  check_params,
  product,
  read_examples,
)

Axes = str | tuple[str, ...]
COVARIANCES = ("full", "diagonal")


class TiedGaussian(NamedTuple):
  """A mean for each class and one covariance; see :func:`fit_gaussian`.

  Attributes:
    means: The means of the features, ``[num_classes, d]``; 0 for a class
      without examples.
    covariance: The mean over the examples of the products of deviations from
      the mean of their class, ``[d, d]``, or only its diagonal, ``[d]``.
      ``ridge`` is not included.
    counts: The number of examples of each class, ``[num_classes]``, int32.
    ridge: The number that is added to the diagonal when the covariance is used.
  """

  means: jax.Array
  covariance: jax.Array
  counts: jax.Array
  ridge: jax.Array


class ExtendedGaussian(NamedTuple):
  """A `TiedGaussian` to which :func:`add_class` added classes.

  The covariance is a mean over classes, not over examples. Therefore it cannot
  be merged with other statistics.

  Attributes:
    means: As in :class:`TiedGaussian`.
    covariance: The mean of the covariances before and of the new classes.
    counts: As in :class:`TiedGaussian`.
    ridge: As in :class:`TiedGaussian`.
  """

  means: jax.Array
  covariance: jax.Array
  counts: jax.Array
  ridge: jax.Array


Gaussian = TypeVar("Gaussian", TiedGaussian, ExtendedGaussian)


def check_gaussian(params: Any) -> None:
  """Raises unless ``params`` are Gaussians whose shapes fit."""
  check_params(params, TiedGaussian, ExtendedGaussian)
  shapes = [jnp.shape(x) for x in params]
  means, covariance, counts, ridge = shapes
  good = len(means) == 2 and counts == means[:1] and ridge == ()
  if not good or covariance not in (means[1:], means[1:] * 2):
    raise ValueError(
      "params must have means [num_classes, d], a covariance [d, d] or [d], "
      f"counts [num_classes] and a scalar ridge, got shapes {shapes}."
    )


def _share(part: jax.Array, whole: jax.Array, dtype: Any) -> jax.Array:
  """``part / whole`` of counts, and 0 for a whole of 0."""
  return part.astype(dtype) / jnp.maximum(whole, 1).astype(dtype)


def _fit(
  num_classes: int,
  full: bool,
  axis_name: Axes | None,
  examples: Examples,
  ridge: jax.Array,
) -> TiedGaussian:
  def total(x: jax.Array) -> jax.Array:
    return x if axis_name is None else jax.lax.psum(x, axis_name)

  x, labels, keep, invalid = examples
  classes = jnp.arange(num_classes, dtype=jnp.int32)
  is_class = (labels[:, None] == classes[None, :]) & keep[:, None]
  counts = total(jnp.sum(is_class, axis=0, dtype=jnp.int32))
  one_hot = is_class.astype(x.dtype)
  size = jnp.maximum(counts, 1).astype(x.dtype)[:, None]

  def centred(means: jax.Array) -> jax.Array:
    return jnp.where(keep[:, None], x - means[labels], jnp.zeros_like(x))

  # The second step removes the rounding error of a sum of large numbers.
  means = jnp.zeros((num_classes, x.shape[1]), x.dtype)
  for _ in range(2):
    means = means + total(product(one_hot.T, centred(means))) / size
  deviation = centred(means)
  if full:
    scatter = total(product(deviation.T, deviation))
  else:
    scatter = total(jnp.sum(jnp.square(deviation), axis=0))
  covariance = scatter / jnp.maximum(jnp.sum(counts), 1).astype(x.dtype)
  bad = total(invalid.astype(jnp.int32)) > 0
  nan = jnp.where(bad, jnp.nan, 1.0).astype(x.dtype)
  return TiedGaussian(means * nan, covariance * nan, counts, ridge)


_fit_jit = jax.jit(_fit, static_argnums=(0, 1, 2), inline=True)


def fit_gaussian(
  features: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  covariance: Literal["full", "diagonal"] = "full",
  ridge: ArrayLike = 0.0,
  where: ArrayLike | None = None,
  axis_name: Axes | None = None,
) -> TiedGaussian:
  r"""Computes the means of the classes and the covariance that they share.

  Use it as a classifier on frozen features that needs no training
  (:func:`gaussian_logits`), or to detect inputs that are unlike the training
  data (:func:`mahalanobis_score`). With ``covariance="diagonal"`` and
  ``ridge=1e-9`` it is naive Bayes.

  .. math::
    \mu_c = \frac{1}{n_c} \sum_{i : y_i = c} x_i, \qquad
    \Sigma = \frac{1}{n} \sum_i (x_i - \mu_{y_i}) (x_i - \mu_{y_i})^\top

  The sums divide by :math:`n`, not by :math:`n - C`. :func:`merge_gaussians`
  combines the results of batches.

  Args:
    features: Features, shape ``[..., d]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``.
    num_classes: The number of classes, a static int.
    covariance: ``"full"`` or ``"diagonal"``, static.
    ridge: The number that is added to the diagonal of the covariance, 0 or
      more. It is stored, and added when the covariance is used, once for all
      batches. A covariance of fewer examples than features, or of a constant
      feature, needs a ridge above 0.
    where: Which examples to include, booleans of shape ``[...]``.
    axis_name: The axes of ``jax.shard_map`` whose devices hold the other
      examples. The result is that of all examples.

  Returns:
    The statistics, float32 or wider. If a traced label is out of range, means
    and covariance are NaN.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape or a setting is wrong, or a concrete label or
      ``ridge`` is out of range.

  Examples:
    >>> x = jnp.array([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [6.0, 5.0]])
    >>> params = probes.fit_gaussian(x, jnp.array([0, 0, 1, 1]), 2)
    >>> print(params.means)
    [[1.  0. ]
     [5.  4.5]]
    >>> print(params.covariance)
    [[1.    0.25 ]
     [0.25  0.125]]

  References:
    Lee et al., `A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks <https://arxiv.org/abs/1807.03888>`_,
    NeurIPS 2018.

    Zheng et al., `Revisiting Discriminative vs. Generative Classifiers: Theory
    and Implications <https://arxiv.org/abs/2302.02334>`_, ICML 2023.
  """
  classes = as_num_classes(num_classes)
  if covariance not in COVARIANCES:
    raise ValueError(
      f"covariance must be one of {COVARIANCES}, got {covariance!r}."
    )
  examples = read_examples(features, labels, classes, where)
  added = checks.as_scalar("ridge", ridge, examples.features.dtype, "[0, inf)")
  names = checks.as_axis_names(axis_name)
  fit = functools.partial(_fit_jit, classes, covariance == "full", names)
  return without_explicit_axes(fit, P(), examples, added)


def _outer(x: jax.Array, weights: jax.Array, full: bool) -> jax.Array:
  """The weighted sum of the products of rows with themselves."""
  scaled = weights[:, None] * x
  return product(scaled.T, x) if full else jnp.sum(scaled * x, axis=0)


def merge_gaussians(a: TiedGaussian, b: TiedGaussian) -> TiedGaussian:
  r"""Computes the statistics of two batches from those of each.

  Use it if the features of all examples need too much memory. The result is
  that of :func:`fit_gaussian` on all examples, except for rounding errors. The
  order of the batches does not matter.

  .. math::
    \mu_c = \frac{n_c^a \mu_c^a + n_c^b \mu_c^b}{n_c}, \qquad
    \Sigma = \frac{1}{n} \Bigl( n^a \Sigma^a + n^b \Sigma^b + \sum_c
      \frac{n_c^a n_c^b}{n_c} \delta_c \delta_c^\top \Bigr), \qquad
    \delta_c = \mu_c^b - \mu_c^a

  Args:
    a: Statistics of one batch.
    b: Statistics of another batch, of the same shapes and with the same ridge.

  Returns:
    The statistics of both. If traced ridges differ, the ridge is NaN, and
    logits and scores are NaN too.

  Raises:
    TypeError: If an argument is not a ``TiedGaussian``. The result of
      :func:`add_class` cannot be merged.
    ValueError: If shapes or concrete ridges differ.

  Examples:
    >>> x, y = jnp.array([[0.0], [2.0], [5.0], [7.0]]), jnp.array([0, 0, 0, 1])
    >>> a = probes.fit_gaussian(x[:2], y[:2], 2)
    >>> b = probes.fit_gaussian(x[2:], y[2:], 2)
    >>> print(probes.merge_gaussians(a, b).means)
    [[2.3333]
     [7.    ]]

  References:
    Chan, Golub and LeVeque, `Algorithms for Computing the Sample Variance:
    Analysis and Recommendations <https://doi.org/10.2307/2683386>`_, 1983.
  """
  for name, params in (("a", a), ("b", b)):
    if isinstance(params, ExtendedGaussian):
      raise TypeError(
        f"{name} must not be a result of add_class, whose covariance is a mean "
        "over classes. Merge first, and add classes afterwards."
      )
    if not isinstance(params, TiedGaussian):
      raise TypeError(
        f"{name} must be a probes.TiedGaussian, got {type(params).__name__}."
      )
    check_gaussian(params)
  shapes = [tuple(jnp.shape(x) for x in params) for params in (a, b)]
  if shapes[0] != shapes[1]:
    raise ValueError(
      "a and b must have the same classes, features and kind of covariance, "
      f"got shapes {shapes[0]} and {shapes[1]}."
    )
  if checks.is_concrete(a.ridge, b.ridge) and a.ridge != b.ridge:
    raise ValueError(
      f"a and b must have the same ridge, got {a.ridge} and {b.ridge}. Set one "
      "with b._replace(ridge=a.ridge)."
    )
  return _merge(a, b)


@functools.partial(jax.jit, inline=True)
def _merge(a: TiedGaussian, b: TiedGaussian) -> TiedGaussian:
  dtype = checks.compute_dtype(a.means.dtype, b.means.dtype)
  a, b = (
    TiedGaussian(
      x.means.astype(dtype),
      x.covariance.astype(dtype),
      x.counts,
      jnp.asarray(x.ridge).astype(dtype),
    )
    for x in (a, b)
  )
  counts = a.counts + b.counts
  n = jnp.sum(counts)
  share = _share(b.counts, counts, dtype)
  delta = b.means - a.means
  # An empty class has a mean of 0, which must not enter.
  first = jnp.where((a.counts == 0)[:, None], b.means, a.means)
  both = ((a.counts > 0) & (b.counts > 0))[:, None]
  means = jnp.where(both, a.means + share[:, None] * delta, first)
  between = _outer(
    delta, share * _share(a.counts, n, dtype), a.covariance.ndim == 2
  )
  covariance = (
    _share(jnp.sum(a.counts), n, dtype) * a.covariance
    + _share(jnp.sum(b.counts), n, dtype) * b.covariance
    + between
  )
  ridge = jnp.where(a.ridge == b.ridge, a.ridge, jnp.nan)
  return TiedGaussian(means, covariance, counts, ridge)


def add_class(
  params: TiedGaussian | ExtendedGaussian, features: ArrayLike
) -> ExtendedGaussian:
  r"""Adds a class, without the examples of the other classes.

  Use it when a class is added after the fit. The covariance becomes a mean over
  classes: the new class has the same weight as each other class, whatever the
  number of its examples. Therefore :func:`merge_gaussians` raises a TypeError
  for the result.

  .. math::
    \Sigma \leftarrow \frac{C}{C + 1} \Sigma + \frac{1}{C + 1} S, \qquad
    S = \frac{1}{m} \sum_i (x_i - \mu_{C + 1}) (x_i - \mu_{C + 1})^\top

  with the number :math:`C` of classes that have examples.

  Args:
    params: The result of :func:`fit_gaussian`, or of this function.
    features: Features of the new class, shape ``[..., d]``, of one example or
      more.

  Returns:
    Parameters with one more class, whose id is the previous number of classes.

  Raises:
    TypeError: If ``params`` are not Gaussians or ``features`` not floating.
    ValueError: If a shape does not fit, or if there is no example.

  Examples:
    >>> x = jnp.array([[0.0], [2.0], [5.0], [7.0]])
    >>> params = probes.fit_gaussian(x, jnp.array([0, 0, 1, 1]), 2)
    >>> params = probes.add_class(params, jnp.array([[10.0], [14.0]]))
    >>> print(params.means[:, 0], params.covariance)
    [ 1.  6. 12.] [[2.]]

  References:
    Lee et al., `A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks <https://arxiv.org/abs/1807.03888>`_,
    NeurIPS 2018.
  """
  check_gaussian(params)
  full = params.covariance.ndim == 2
  x = as_features(features, width=params.means.shape[1])
  if x.size == 0:
    raise ValueError(
      f"features must have one or more rows, got shape {x.shape}."
    )
  new = fit_gaussian(
    x,
    jnp.zeros(x.shape[:-1], jnp.int32),
    1,
    covariance="full" if full else "diagonal",
  )
  dtype = jnp.result_type(params.means, x)
  present = jnp.sum(params.counts > 0, dtype=jnp.int32)
  share = _share(present, present + 1, dtype)
  return ExtendedGaussian(
    jnp.concatenate([params.means.astype(dtype), new.means.astype(dtype)]),
    share * params.covariance.astype(dtype)
    + (1 - share) * new.covariance.astype(dtype),
    jnp.concatenate([params.counts, new.counts]),
    jnp.asarray(params.ridge).astype(dtype),
  )
