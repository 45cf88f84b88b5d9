# SPDX-License-Identifier: Apache-2.0
"""Softmax regression on frozen features, to the optimum."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from squentropy_jax._core import checks
from squentropy_jax._core.varying import vary_like, without_explicit_axes
from squentropy_jax.probes._read_examples import (
  Examples,
  as_features,
  as_num_classes,
  check_params,
  product,
  read_examples,
)

# Limits: Newton steps, halvings of a step, conjugate-gradient steps.
_NEWTON_STEPS = 100
_HALVINGS = 30
_CG_STEPS = 300
# A direction is computed to this relative accuracy.
_CG_TOLERANCE = 1e-3


class LinearProbe(NamedTuple):
  """A linear classifier; see :func:`fit_logistic`.

  Attributes:
    kernel: ``[d, num_classes]``.
    bias: ``[num_classes]``; ``-inf`` for a class without examples.
  """

  kernel: jax.Array
  bias: jax.Array


class _Problem(NamedTuple):
  """Standardised examples; the last feature is 1, for the bias."""

  x: jax.Array  # [n, d + 1], 0 in dropped rows.
  is_label: jax.Array  # [n, C]
  keep: jax.Array  # [n]
  present: jax.Array  # [C]
  penalty: jax.Array  # [d + 1], of the squared weights of each feature.


class _Point(NamedTuple):
  weights: jax.Array  # [d + 1, C]
  logits: jax.Array  # [n, C]
  value: jax.Array
  gradient: jax.Array  # [d + 1, C]
  probabilities: jax.Array  # [n, C]


# The number of steps, the least change before the last one, the last one.
_State = tuple[jax.Array, jax.Array, jax.Array, _Point]


def _at(problem: _Problem, weights: jax.Array, logits: jax.Array) -> _Point:
  x, is_label, keep, present, penalty = problem
  z = jnp.where(present[None, :], logits, -jnp.inf)
  log_p = jax.nn.log_softmax(z, axis=-1)
  p = jnp.where(keep[:, None], jnp.exp(log_p), 0)
  # 1 - p has no accuracy for a confident row, and the optimum needs it.
  others = jnp.sum(jnp.where(is_label, 0, p), axis=-1, keepdims=True)
  residual = jnp.where(is_label, -others, p)
  shrink = penalty[:, None] * weights
  loss = -jnp.sum(jnp.where(is_label, log_p, 0))
  return _Point(
    weights,
    logits,
    loss + 0.5 * jnp.sum(shrink * weights),
    product(x.T, residual) + shrink,
    p,
  )


def _direction(problem: _Problem, point: _Point) -> jax.Array:
  """The Newton step, by preconditioned conjugate gradients."""
  x, penalty, p = problem.x, problem.penalty, point.probabilities

  # Equal biases change nothing. Curvature in that direction, in which the
  # gradient is 0 except for rounding errors, makes the Hessian definite.
  common = problem.present.astype(x.dtype)
  weight = jnp.sum(p * (1 - p)) / jnp.maximum(jnp.sum(common), 1)

  def curvature(v: jax.Array) -> jax.Array:
    image = product(x, v)
    mean = jnp.sum(p * image, axis=1, keepdims=True)
    out = product(x.T, p * (image - mean)) + penalty[:, None] * v
    return out.at[-1].add(weight * common * jnp.vdot(common, v[-1]))

  # The diagonal of the Hessian. Features of small variance have a large one.
  diagonal = product(jnp.square(x).T, p * (1 - p)) + penalty[:, None]
  diagonal = diagonal.at[-1].add(weight * common)
  diagonal = jnp.where(diagonal > 0, diagonal, 1)

  def precondition(v: jax.Array) -> jax.Array:
    return v / diagonal

  # The weights of each feature sum to 0 over the classes. With a small penalty,
  # rounding errors in the direction of equal weights would be large steps.
  def centred(v: jax.Array) -> jax.Array:
    total = product(v, common[:, None])
    return v - total * common[None, :] / jnp.maximum(jnp.sum(common), 1)

  b = centred(-point.gradient)
  first = precondition(b)
  size = jnp.vdot(b, first)

  def goes_on(state: tuple[jax.Array, ...]) -> jax.Array:
    count, _, _, _, rho = state
    return (count < _CG_STEPS) & (rho > _CG_TOLERANCE**2 * size)

  def advance(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    count, v, residual, along, rho = state
    image = curvature(along)
    length = rho / jnp.vdot(along, image)
    residual = residual - length * image
    new = precondition(residual)
    rho_new = jnp.vdot(residual, new)
    along_new = new + rho_new / rho * along
    return count + 1, v + length * along, residual, along_new, rho_new

  start = vary_like((jnp.zeros((), jnp.int32), jnp.zeros_like(b)), b)
  v = jax.lax.while_loop(goes_on, advance, (*start, b, first, size))[1]
  return centred(v)


def _step(problem: _Problem, point: _Point) -> tuple[_Point, jax.Array]:
  """The next point; also the largest change of a logit in a full step."""
  step = _direction(problem, point)
  change = product(problem.x, step)
  decrease = -jnp.vdot(point.gradient, step)
  eps = float(jnp.finfo(step.dtype).eps)
  limit = point.value + 32 * eps * jnp.abs(point.value)

  def moved(length: jax.Array) -> _Point:
    return _at(
      problem, point.weights + length * step, point.logits + length * change
    )

  def too_far(state: tuple[jax.Array, jax.Array, _Point]) -> jax.Array:
    halvings, _, new = state
    derivative = jnp.vdot(new.gradient, step)
    before = derivative <= 0
    lower = (derivative <= decrease / 2) & (new.value <= limit)
    return ~(before | lower) & (halvings < _HALVINGS)

  def halve(
    state: tuple[jax.Array, jax.Array, _Point],
  ) -> tuple[jax.Array, jax.Array, _Point]:
    halvings, length, _ = state
    return halvings + 1, length / 2, moved(length / 2)

  one = jnp.ones((), step.dtype)
  start = vary_like((jnp.zeros((), jnp.int32), one), step)
  state = (*start, moved(start[1]))
  halvings, _, new = jax.lax.while_loop(too_far, halve, state)
  largest = jnp.max(jnp.abs(change), initial=0.0)
  return new, jnp.where(halvings == 0, largest, jnp.inf)


def _minimise(problem: _Problem) -> tuple[jax.Array, jax.Array]:
  """The weights ``[d + 1, C]`` of the least value; also whether they are."""
  n, width = problem.x.shape
  num_classes = len(problem.present)
  dtype = problem.x.dtype
  eps = float(jnp.finfo(dtype).eps)

  def is_least(state: _State) -> jax.Array:
    _, best, last, point = state
    size = 1 + jnp.max(jnp.abs(point.logits), initial=0.0)
    small = last <= 8 * eps * size
    # Rounding errors end the progress of small steps.
    stalled = (last > best / 2) & (best <= 1e-3 * size)
    return small | stalled

  def goes_on(state: _State) -> jax.Array:
    return ~is_least(state) & (state[0] < _NEWTON_STEPS)

  def advance(state: _State) -> _State:
    count, best, last, point = state
    new, change = _step(problem, point)
    return count + 1, jnp.minimum(best, last), change, new

  like = (problem.x, problem.is_label, problem.keep)
  zero = vary_like(jnp.zeros((width, num_classes), dtype), like)
  logits = vary_like(jnp.zeros((n, num_classes), dtype), like)
  start = vary_like(
    (jnp.zeros((), jnp.int32), *jnp.full((2,), jnp.inf, dtype)), like
  )
  state = (*start, _at(problem, zero, logits))
  state = jax.lax.while_loop(goes_on, advance, state)
  return state[3].weights, is_least(state)


def _fit(
  num_classes: int, examples: Examples, l2: jax.Array
) -> tuple[LinearProbe, jax.Array]:
  """The probe; also whether valid arguments did not lead to the optimum."""
  x, labels, keep, invalid = examples
  dtype = x.dtype
  classes = jnp.arange(num_classes, dtype=jnp.int32)
  is_label = (labels[:, None] == classes[None, :]) & keep[:, None]
  present = jnp.any(is_label, axis=0)
  count = jnp.maximum(jnp.sum(keep), 1).astype(dtype)
  kept = keep[:, None]
  # The bias is free, so centred features have the same optimum.
  centre = jnp.sum(x, axis=0) / count
  x = jnp.where(kept, x - centre[None, :], 0)
  # In units of the largest, whose square neither overflows nor underflows.
  unit = jnp.max(jnp.abs(x), axis=0, initial=0.0)
  unit = jnp.where(unit > 0, unit, 1)
  x = x / unit[None, :]
  spread = jnp.sqrt(jnp.sum(jnp.square(x), axis=0) / count)
  spread = jnp.where(spread > 0, spread, 1)
  scale = unit * spread
  ones = keep.astype(dtype)[:, None]
  problem = _Problem(
    jnp.concatenate([x / spread[None, :], ones], axis=1),
    is_label,
    keep,
    present,
    jnp.append(jnp.square(jnp.sqrt(l2) / scale), 0),
  )
  weights, is_least = _minimise(problem)
  kernel = weights[:-1] / scale[:, None]
  bias = weights[-1] - product(centre, kernel)
  # The optimum is determined up to a constant: the mean of the biases is 0.
  some = jnp.maximum(jnp.sum(present), 1).astype(dtype)
  bias = bias - jnp.sum(jnp.where(present, bias, 0)) / some
  good = ~invalid & jnp.any(present) & jnp.all(jnp.isfinite(x))
  bias = jnp.where(present, bias, -jnp.inf)
  nan = jnp.where(good & is_least, 1, jnp.nan).astype(dtype)
  return LinearProbe(kernel * nan, bias * nan), good & ~is_least


_fit_jit = jax.jit(_fit, static_argnums=0)


def fit_logistic(
  features: ArrayLike,
  labels: ArrayLike,
  num_classes: int,
  *,
  l2: ArrayLike = 1.0,
  where: ArrayLike | None = None,
) -> LinearProbe:
  r"""Fits a linear classifier by penalised cross-entropy (a linear probe).

  Use it to measure how well frozen features separate the classes, or to combine
  the scores of several layers. :func:`fit_gaussian` is a closed form, which may
  need fewer examples.

  .. math::
    \min_{W, b} \; -\sum_i \log \mathrm{softmax}(W^\top x_i + b)_{y_i}
    + \frac{\lambda}{2} \lVert W \rVert^2

  The bias is not penalised. In terms of scikit-learn's
  ``LogisticRegression``, :math:`\lambda` is ``1 / C`` for three or more classes
  and ``2 / C`` for two. The problem is convex and is solved by Newton's method
  until the training logits no longer change by more than rounding errors.

  Args:
    features: Features, shape ``[..., d]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``.
    num_classes: The number of classes, a static int.
    l2: The weight :math:`\lambda` of the penalty, above 0.
    where: Which examples to include, booleans of shape ``[...]``.

  Returns:
    A :class:`LinearProbe` for :func:`linear_logits`, float32 or wider. The
    biases have mean 0. A class without examples has bias ``-inf``. All is NaN
    if there is no example, if a feature is not finite, if a traced label is out
    of range, or if the optimum is not reached under ``jax.jit``. The result is
    differentiable in forward mode only.

  Raises:
    TypeError: If an argument has a wrong type.
    ValueError: If a shape is wrong, if a concrete label or ``l2`` is out of
      range, or if the optimum is not reached because ``l2`` is too small for
      the dtype.

  Examples:
    >>> x = jnp.array([[0.0], [1.0], [2.0], [3.0]])
    >>> params = probes.fit_logistic(x, jnp.array([0, 0, 1, 1]), 2)
    >>> print(jax.nn.softmax(probes.linear_logits(params, x))[:, 1])
    [0.1149 0.3361 0.6639 0.8851]

  References:
    Zheng et al., `Revisiting Discriminative vs. Generative Classifiers: Theory
    and Implications <https://arxiv.org/abs/2302.02334>`_, ICML 2023.
  """
  classes = as_num_classes(num_classes)
  examples = read_examples(features, labels, classes, where)
  weight = checks.as_scalar("l2", l2, examples.features.dtype, "(0, inf)")
  probe, failed = without_explicit_axes(
    functools.partial(_fit_jit, classes),
    P(),
    examples,
    weight,
  )
  if checks.is_concrete(failed) and failed:
    raise ValueError(
      "l2 must be large enough for the optimum to be found in "
      f"{weight.dtype}, got {l2}. Pass a larger l2, or features in float64 "
      "with jax_enable_x64."
    )
  return probe


def linear_logits(params: LinearProbe, features: ArrayLike) -> jax.Array:
  r"""Computes the logits of a linear classifier.

  Use it with the result of :func:`fit_logistic`.

  .. math:: z = W^\top x + b

  Args:
    params: The kernel and the bias.
    features: Features, shape ``[..., d]``, any floating dtype.

  Returns:
    The logits, shape ``[..., num_classes]``, float32 or wider; ``-inf`` for
    classes without examples.

  Raises:
    TypeError: If ``params`` are not a ``LinearProbe`` or ``features`` not
      floating.
    ValueError: If a shape does not fit.

  Examples:
    >>> params = probes.LinearProbe(jnp.array([[1.0, -1.0]]), jnp.zeros(2))
    >>> print(probes.linear_logits(params, jnp.array([[0.5], [2.0]])))
    [[ 0.5 -0.5]
     [ 2.  -2. ]]

  References:
    Zheng et al., `Revisiting Discriminative vs. Generative Classifiers: Theory
    and Implications <https://arxiv.org/abs/2302.02334>`_, ICML 2023.
  """
  check_params(params, LinearProbe)
  kernel, bias = params
  if jnp.ndim(kernel) != 2 or jnp.shape(bias) != jnp.shape(kernel)[1:]:
    raise ValueError(
      "params must have a kernel [d, num_classes] and a bias [num_classes], "
      f"got shapes {jnp.shape(kernel)} and {jnp.shape(bias)}."
    )
  x = as_features(features, width=kernel.shape[0])
  dtype = checks.compute_dtype(x.dtype, kernel.dtype)
  rows = x.astype(dtype).reshape(-1, x.shape[-1])
  z = product(rows, jnp.asarray(kernel, dtype))
  z = z + jnp.asarray(bias, dtype)[None, :]
  return z.reshape(*x.shape[:-1], kernel.shape[1])
