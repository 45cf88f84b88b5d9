# SPDX-License-Identifier: Apache-2.0
"""Logits and distances of class-conditional Gaussians."""

from collections.abc import Callable
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.probes._gaussian import (
  ExtendedGaussian,
  TiedGaussian,
  check_gaussian,
)
from squentropy_jax.probes._read_examples import as_features, product

_PRIORS = ("uniform", "empirical")


def _widen(params: TiedGaussian | ExtendedGaussian, x: jax.Array) -> tuple:
  """The parameters and the features in the wider of their dtypes."""
  dtype = checks.compute_dtype(params.means.dtype, x.dtype)
  means, covariance, counts, ridge = params
  return (
    means.astype(dtype),
    covariance.astype(dtype),
    counts,
    jnp.asarray(ridge).astype(dtype),
    x.astype(dtype),
  )


@jax.jit
def _factor(covariance: jax.Array, ridge: jax.Array) -> jax.Array:
  """The Cholesky factor, or the standard deviations; NaN if singular.

  A pivot that is at the level of its rounding error is 0: a factor of such
  pivots is finite, and distances from it are wrong.
  """
  size = covariance.shape[0]
  eps = float(jnp.finfo(covariance.dtype).eps)
  if covariance.ndim == 1:
    variance = covariance + ridge
    return jnp.sqrt(jnp.where(variance > 0, variance, jnp.nan))
  full = covariance + ridge * jnp.eye(size, dtype=covariance.dtype)
  factor = jnp.linalg.cholesky(full)
  pivots = jnp.square(jnp.diagonal(factor))
  good = jnp.all(pivots > size * eps * jnp.diagonal(full))
  return jnp.where(good, factor, jnp.nan)


def _read_factor(
  params: TiedGaussian | ExtendedGaussian, dtype: jnp.dtype
) -> jax.Array:
  """The factor; raises if it is concrete, singular, and was not NaN before."""
  factor = _factor(
    params.covariance.astype(dtype), jnp.asarray(params.ridge).astype(dtype)
  )
  if (
    checks.is_concrete(factor, params.covariance, params.ridge)
    and jnp.isnan(factor).any()
    and jnp.isfinite(params.covariance).all()
    and jnp.isfinite(params.ridge)
  ):
    raise ValueError(
      "params must have a positive definite covariance, got a singular one. "
      "Fit with ridge= above 0, which fewer examples than features and "
      "constant features need."
    )
  return factor


def _solve(factor: jax.Array, rows: jax.Array) -> jax.Array:
  """Rows ``[n, d]`` in units of the standard deviation."""
  if factor.ndim == 1:
    return rows / factor[None, :]
  return jax.lax.linalg.triangular_solve(
    factor, rows, left_side=False, lower=True, transpose_a=True
  )


def _standardised(
  means: jax.Array, factor: jax.Array, counts: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Features and means, in units of the standard deviation.

  The mean of the means is subtracted: differences of large numbers are rounded.
  """
  some = (counts > 0)[:, None]
  number = jnp.maximum(jnp.sum(counts > 0), 1).astype(x.dtype)
  centre = jnp.sum(jnp.where(some, means, 0), axis=0) / number
  v = _solve(factor, jnp.where(some, means - centre[None, :], 0))
  return _solve(factor, x - centre[None, :]), v


@functools.partial(jax.jit, static_argnums=0)
def _logits(
  empirical: bool,
  means: jax.Array,
  factor: jax.Array,
  counts: jax.Array,
  x: jax.Array,
) -> jax.Array:
  present = counts > 0
  u, v = _standardised(means, factor, counts, x)
  # |u|^2 is the same for all classes. With it, a feature that is far from all
  # means would cost the accuracy of the differences.
  bias = -0.5 * jnp.sum(jnp.square(v), axis=1)
  if empirical:
    total = jnp.maximum(jnp.sum(counts), 1).astype(x.dtype)
    bias = bias + jnp.log(jnp.maximum(counts, 1).astype(x.dtype) / total)
  z = product(u, v.T) + bias[None, :]
  return jnp.where(present[None, :], z, -jnp.inf)


def gaussian_logits(
  params: TiedGaussian | ExtendedGaussian,
  features: ArrayLike,
  *,
  prior: Literal["uniform", "empirical"] = "uniform",
) -> jax.Array:
  r"""Computes logits of classes from Gaussians with one covariance.

  Use them to classify features after :func:`fit_gaussian`. Their softmax is the
  posterior of linear discriminant analysis. With a diagonal covariance and the
  empirical prior it is that of naive Bayes. A network whose loss takes these
  logits is trained for Gaussian features.

  .. math::
    z_c = -\frac{1}{2} (x - \mu_c)^\top (\Sigma + \text{ridge} \cdot I)^{-1}
      (x - \mu_c) + \log \pi_c + \text{a constant of the row}

  The constant makes the logits linear in the features, so that a feature far
  from all means does not reduce the accuracy.

  Args:
    params: The result of :func:`fit_gaussian`, :func:`merge_gaussians` or
      :func:`add_class`.
    features: Features, shape ``[..., d]``, any floating dtype.
    prior: ``"uniform"``, or ``"empirical"`` for the share of each class in the
      examples of the fit. Static.

  Returns:
    The logits, shape ``[..., num_classes]``, float32 or wider; ``-inf`` for
    classes without examples. A traced covariance that is singular gives NaN.

  Raises:
    TypeError: If ``params`` are not Gaussians or ``features`` not floating.
    ValueError: If a shape or ``prior`` is wrong, or a concrete covariance is
      singular.

  Examples:
    >>> x = jnp.array([[0.0], [2.0], [5.0], [7.0]])
    >>> params = probes.fit_gaussian(x, jnp.array([0, 0, 1, 1]), 2)
    >>> logits = probes.gaussian_logits(params, jnp.array([[3.0], [6.0]]))
    >>> print(jax.nn.softmax(logits))
    [[9.2414e-01 7.5858e-02]
     [3.7266e-06 1.0000e+00]]

  References:
    Lee et al., `A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks <https://arxiv.org/abs/1807.03888>`_,
    NeurIPS 2018.

    Zheng et al., `Revisiting Discriminative vs. Generative Classifiers: Theory
    and Implications <https://arxiv.org/abs/2302.02334>`_, ICML 2023.
  """
  check_gaussian(params)
  if prior not in _PRIORS:
    raise ValueError(f"prior must be one of {_PRIORS}, got {prior!r}.")
  x = as_features(features, width=params.means.shape[1])
  means, _, counts, _, wide = _widen(params, x)
  factor = _read_factor(params, wide.dtype)
  rows = wide.reshape(-1, wide.shape[-1])
  logits = functools.partial(_logits, prior == "empirical")
  spec = P(*jax.typeof(rows).sharding.spec[:1])
  z = without_explicit_axes(logits, spec, means, factor, counts, rows)
  return z.reshape(*x.shape[:-1], means.shape[0])


@jax.jit
def _score(
  means: jax.Array, factor: jax.Array, counts: jax.Array, x: jax.Array
) -> jax.Array:
  present = counts > 0
  u, v = _standardised(means, factor, counts, x)

  # One class at a time: differences of all classes are [n, num_classes, d].
  def from_class(mean: jax.Array) -> jax.Array:
    return jnp.sum(jnp.square(u - mean[None, :]), axis=1)

  squares = jax.lax.stop_gradient(jax.lax.map(from_class, v))
  squares = jnp.where(present[:, None], squares, jnp.inf)
  closest = jnp.argmin(squares, axis=0)
  score = -jnp.sum(jnp.square(_solve(factor, x - means[closest])), axis=1)
  return jnp.where(jnp.any(present), score, jnp.nan)


def mahalanobis_score(
  params: TiedGaussian | ExtendedGaussian, features: ArrayLike
) -> jax.Array:
  r"""Computes how close features are to the closest class.

  Use it to detect inputs that are unlike the training data. Their score is low.
  For several layers of a network, compute the score of each layer and combine
  the scores with :func:`fit_logistic`.

  .. math::
    M(x) = -\min_c \, (x - \mu_c)^\top (\Sigma + \text{ridge} \cdot I)^{-1}
      (x - \mu_c)

  This is the definition of the paper. Its published code returns half of it.

  Args:
    params: The result of :func:`fit_gaussian`, :func:`merge_gaussians` or
      :func:`add_class`.
    features: Features, shape ``[..., d]``, any floating dtype.

  Returns:
    The score of each example, shape ``[...]``, float32 or wider, at most 0.
    Classes without examples are left out. A traced covariance that is singular
    gives NaN.

  Raises:
    TypeError: If ``params`` are not Gaussians or ``features`` not floating.
    ValueError: If a shape is wrong or a concrete covariance is singular.

  Examples:
    >>> x = jnp.array([[0.0], [2.0], [5.0], [7.0]])
    >>> params = probes.fit_gaussian(x, jnp.array([0, 0, 1, 1]), 2)
    >>> print(probes.mahalanobis_score(params, jnp.array([[2.0], [10.0]])))
    [ -1. -16.]

  References:
    Lee et al., `A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks <https://arxiv.org/abs/1807.03888>`_,
    NeurIPS 2018.
  """
  check_gaussian(params)
  x = as_features(features, width=params.means.shape[1])
  means, _, counts, _, wide = _widen(params, x)
  factor = _read_factor(params, wide.dtype)
  rows = wide.reshape(-1, wide.shape[-1])
  spec = P(*jax.typeof(rows).sharding.spec[:1])
  score = without_explicit_axes(_score, spec, means, factor, counts, rows)
  return score.reshape(x.shape[:-1])


def perturbed_inputs(
  score_fn: Callable[[jax.Array], jax.Array],
  inputs: ArrayLike,
  *,
  epsilon: ArrayLike,
) -> jax.Array:
  r"""Moves each input a small step towards a higher score.

  Use it before :func:`mahalanobis_score`. The score of inputs that are like the
  training data increases more than that of other inputs. Choose ``epsilon`` on
  validation data. The paper tries values from 0 to 0.01.

  .. math::
    \hat x = x + \varepsilon \operatorname{sign} \nabla_x M(x)

  where the sign of 0 is 0.

  Args:
    score_fn: Computes the scores ``[...]`` of inputs, such as the Mahalanobis
      score of a network's features. The score of an input must not depend on
      other inputs.
    inputs: Inputs, one or more axes for the examples and any others, any
      floating dtype.
    epsilon: The size of the step, 0 or more: a scalar, or one value for each
      example, of the scores' shape.

  Returns:
    The moved inputs, of the inputs' shape and dtype.

  Raises:
    TypeError: If ``inputs`` or the scores are not floating.
    ValueError: If the scores do not have one value for each example, or if
      ``epsilon`` has a wrong shape or, concrete, is below 0.

  Examples:
    >>> score = lambda x: -jnp.sum(x**2, axis=-1)
    >>> x = jnp.array([[2.0, -1.0, 0.0]])
    >>> print(probes.perturbed_inputs(score, x, epsilon=0.5))
    [[ 1.5 -0.5  0. ]]

  References:
    Lee et al., `A Simple Unified Framework for Detecting Out-of-Distribution
    Samples and Adversarial Attacks <https://arxiv.org/abs/1807.03888>`_,
    NeurIPS 2018.
  """
  x = checks.as_floats(inputs, "inputs")
  checks.check_interval("epsilon", epsilon, "[0, inf)")
  scores, back = jax.vjp(score_fn, x)
  if not isinstance(scores, jax.Array) or not jnp.issubdtype(
    scores.dtype, jnp.floating
  ):
    found = getattr(scores, "dtype", type(scores).__name__)
    raise TypeError(
      f"score_fn must return an array of floats, got {found}. A score without "
      "a gradient, such as a class id, moves nothing."
    )
  if scores.shape != x.shape[: scores.ndim]:
    raise ValueError(
      "score_fn must return one score for each example, of a shape that "
      f"begins the inputs' shape {x.shape}, got {scores.shape}."
    )
  step = jnp.asarray(epsilon, x.dtype)
  if step.shape not in ((), scores.shape):
    raise ValueError(
      f"epsilon must be a scalar or have the scores' shape {scores.shape}, got "
      f"{step.shape}."
    )
  (gradient,) = back(jnp.ones_like(scores))
  step = step.reshape(step.shape + (1,) * (x.ndim - step.ndim))
  return x + step * jnp.sign(jax.lax.stop_gradient(gradient))
