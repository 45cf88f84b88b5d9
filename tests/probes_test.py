# SPDX-License-Identifier: Apache-2.0
"""Gaussian probes: published numbers, batches, devices, invalid arguments."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest
from support.contract import jit

from squentropy_jax import probes

# The worked case of two classes.
X = np.array([[0, 0], [2, 0], [1, 1], [4, 4], [6, 5], [5, 3]], float)
Y = np.array([0, 0, 0, 1, 1, 1])
NEW = np.array([[8.0, 0], [9, 1], [10, -1]])
QUERY = np.array([2.0, 2.0])

RNG = np.random.default_rng(14)
FEATURES = RNG.normal(size=(40, 3)) @ RNG.normal(size=(3, 3)) + 5
# Class 3 has no example.
LABELS = np.where(np.arange(40) < 3, np.arange(40), RNG.integers(0, 3, 40))


def reference(x, y, num_classes):
  """Means and covariance, in NumPy."""
  means = np.zeros((num_classes, x.shape[1]))
  for c in range(num_classes):
    if (y == c).any():
      means[c] = x[y == c].mean(0)
  deviation = x - means[y]
  return means, deviation.T @ deviation / len(x)


def distances(x, means, covariance):
  difference = x[:, None] - means[None]
  return np.einsum(
    "ncd,de,nce->nc", difference, np.linalg.inv(covariance), difference
  )


fit = jit(
  probes.fit_gaussian,
  static_argnames=("num_classes", "covariance", "axis_name"),
)


@pytest.mark.x64
def test_numbers_of_the_worked_case():
  params = probes.fit_gaussian(X, Y, 2)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-11)
  close(params.means, [[1, 1 / 3], [5, 4]])
  close(params.covariance, [[2 / 3, 1 / 6], [1 / 6, 4 / 9]])
  logits = probes.gaussian_logits(params, QUERY)
  close(-2 * (logits[1] - logits[0]), 17.379310344828 - 6.48275862069)
  close(jax.nn.softmax(logits), [0.995714724119, 0.004285275881])
  score = functools.partial(probes.mahalanobis_score, params)
  close(score(QUERY), -6.48275862069)
  moved = probes.perturbed_inputs(score, QUERY, epsilon=0.1)
  close(moved, [1.9, 1.9])
  close(score(moved), -5.684137931034)
  more = probes.add_class(params, NEW)
  close(more.means[2], [9, 0])
  close(more.covariance, [[2 / 3, 0], [0, 14 / 27]])
  # A second class: the mean of three classes and a new one without spread.
  again = probes.add_class(more, NEW[:1])
  close(again.covariance, 0.75 * more.covariance)


@pytest.mark.x64
def test_numbers_of_naive_bayes():
  params = probes.TiedGaussian(
    jnp.array([[0.0, 0.0], [2.0, 1.0]]),
    jnp.array([1.0, 4.0]),
    jnp.array([1, 3]),
    jnp.array(0.0),
  )
  x = jnp.array([1.0, 1.0])
  logits = probes.gaussian_logits(params, x, prior="empirical")
  posterior = jax.nn.softmax(logits)
  np.testing.assert_allclose(posterior[0], 0.227301379686, rtol=1e-10)
  joint = -4.542318608089 + 3.318706319421
  np.testing.assert_allclose(logits[0] - logits[1], joint, rtol=1e-10)
  np.testing.assert_allclose(-jnp.log(posterior[1]), 0.257866189583, rtol=1e-10)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_statistics_are_those_of_numpy(kind):
  means, covariance = reference(FEATURES, LABELS, 4)
  if kind == "diagonal":
    covariance = np.diagonal(covariance)
  params = fit(
    FEATURES.astype(np.float32), LABELS, num_classes=4, covariance=kind
  )
  np.testing.assert_allclose(params.means, means, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(params.covariance, covariance, rtol=1e-4)
  np.testing.assert_array_equal(params.counts, np.bincount(LABELS, minlength=4))


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_batches_merge_in_any_order(kind):
  x = FEATURES.astype(np.float32) + 100
  settings = {"num_classes": 4, "covariance": kind, "ridge": 1e-3}
  whole = fit(x, LABELS, **settings)
  # The second batch lacks classes, and the last one has no example.
  keep = [np.arange(40) < 10, np.arange(40) == 10, np.arange(40) > 10]
  parts = [fit(x, LABELS, **settings, where=w) for w in keep]
  parts.append(fit(x * np.nan, LABELS, **settings, where=np.zeros(40, bool)))
  merge = jit(probes.merge_gaussians)
  for order in ((0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2)):
    merged = functools.reduce(merge, [parts[i] for i in order])
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.ridge == whole.ridge
    np.testing.assert_allclose(merged.means, whole.means, rtol=1e-6)
    np.testing.assert_allclose(
      merged.covariance, whole.covariance, rtol=1e-4, atol=1e-5
    )


def test_devices_give_the_statistics_of_all_examples():
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  x = FEATURES.astype(np.float32)
  keep = np.arange(40) != 7
  x_nan = np.where(keep[:, None], x, np.nan)

  def local(x, y, keep):
    return probes.fit_gaussian(x, y, 4, where=keep, axis_name="data")

  mapped = jit(
    jax.shard_map(local, mesh=mesh, in_specs=(P("data"),) * 3, out_specs=P())
  )
  found = mapped(x_nan, LABELS, keep)
  whole = fit(x[keep], LABELS[keep], num_classes=4)
  np.testing.assert_array_equal(found.counts, whole.counts)
  np.testing.assert_allclose(found.means, whole.means, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-4)


def test_axis_names_are_a_name_or_a_sequence():
  x = FEATURES.astype(np.float32).reshape(2, 2, 10, 3)
  y = LABELS.reshape(2, 2, 10)
  whole = fit(FEATURES.astype(np.float32), LABELS, num_classes=4)
  for names in (["a", "b"], ("b", "a")):

    def local(x, y, names=names):
      return probes.fit_gaussian(x, y, 4, axis_name=names)

    found = jax.vmap(
      jax.vmap(local, axis_name="b", out_axes=None),
      axis_name="a",
      out_axes=None,
    )(x, y)
    np.testing.assert_array_equal(found.counts, whole.counts)
    np.testing.assert_allclose(found.means, whole.means, rtol=1e-5, atol=1e-6)
  with pytest.raises(TypeError, match="axis_name must be None, a string or"):
    probes.fit_gaussian(x[0, 0], y[0, 0], 4, axis_name=1)


def test_scores_without_a_gradient_move_nothing():
  x = FEATURES.astype(np.float32)
  for score, found in ((lambda x: x.argmax(-1), "int32"), (list, "list")):
    with pytest.raises(TypeError, match=f"score_fn must return .* got {found}"):
      probes.perturbed_inputs(score, x, epsilon=0.1)


def test_logits_and_scores_are_those_of_numpy():
  means, covariance = reference(FEATURES, LABELS, 3)
  squares = distances(FEATURES, means, covariance)
  params = fit(FEATURES.astype(np.float32), LABELS, num_classes=4)
  x = FEATURES.astype(np.float32)
  for prior in ("uniform", "empirical"):
    log_prior = np.log(np.bincount(LABELS) / 40) if prior == "empirical" else 0
    expected = -0.5 * squares + log_prior
    logits = probes.gaussian_logits(params, x, prior=prior)
    assert logits.shape == (40, 4)
    assert np.all(logits[:, 3] == -np.inf)
    expected -= expected[:, :1]
    np.testing.assert_allclose(
      logits[:, :3] - logits[:, :1], expected, atol=1e-4
    )
  score = probes.mahalanobis_score(params, x.reshape(5, 8, 3))
  assert score.shape == (5, 8)
  np.testing.assert_allclose(score.ravel(), -squares.min(1), rtol=1e-4)


def test_special_cases():
  # Identity covariance: the nearest mean. One class: its distance.
  params = probes.TiedGaussian(
    jnp.array([[0.0, 0.0], [3.0, 4.0]]),
    jnp.ones(2),
    jnp.array([2, 2]),
    jnp.float32(0),
  )
  x = jnp.array([[0.0, 1.0], [3.0, 3.0], [6.0, 8.0]])
  np.testing.assert_allclose(probes.mahalanobis_score(params, x), [-1, -1, -25])
  one = jax.tree.map(lambda a: a[:1], params._replace(ridge=jnp.zeros(1)))
  one = one._replace(covariance=params.covariance, ridge=params.ridge)
  np.testing.assert_allclose(probes.mahalanobis_score(one, x), [-1, -18, -100])
  # A feature far from all means leaves the differences of logits accurate.
  far = jnp.array([1e4, 0.0]).at[1].set(2.0)
  z = probes.gaussian_logits(params._replace(covariance=jnp.ones(2) * 2), far)
  np.testing.assert_allclose(z[1] - z[0], 3e4 / 2 + 8 / 2 - 25 / 4, rtol=1e-6)


def test_score_does_not_change_under_affine_maps():
  x = FEATURES.astype(np.float32)
  map_ = np.array([[2, 1, 0], [0, 1, 0], [1, 0, 3]], np.float32)
  scores = []
  for features in (x, x @ map_ + 7):
    params = fit(features, LABELS, num_classes=4)
    scores.append(probes.mahalanobis_score(params, features))
  np.testing.assert_allclose(*scores, rtol=1e-3)


@pytest.mark.parametrize("kind", ["full", "diagonal"])
def test_singular_covariance_raises_or_gives_nan(kind):
  x = np.c_[FEATURES, np.ones(40)].astype(np.float32)
  if kind == "full":
    x[:, 3] = x[:, 0] + x[:, 1]
  params = fit(x, LABELS, num_classes=4, covariance=kind)
  for score in (probes.gaussian_logits, probes.mahalanobis_score):
    with pytest.raises(ValueError, match=r"singular one\. Fit with ridge="):
      score(params, x)
  assert np.isnan(jit(probes.mahalanobis_score)(params, x)).all()
  fixed = params._replace(ridge=jnp.float32(1e-2))
  assert np.isfinite(probes.mahalanobis_score(fixed, x)).all()


def test_gradients_by_features_and_through_the_fit():
  x = FEATURES[:12].astype(np.float32)

  def total(x):
    params = probes.fit_gaussian(x, LABELS[:12], 4, ridge=0.1)
    logits = probes.gaussian_logits(params, x, prior="empirical")
    scores = probes.mahalanobis_score(params, x)
    return jax.nn.logsumexp(logits, axis=-1).mean() + scores.mean()

  value_and_grad = jit(jax.value_and_grad(total))
  _, gradient = value_and_grad(x)
  direction = RNG.normal(size=x.shape).astype(np.float32)
  up, down = (value_and_grad(x + s * direction)[0] for s in (1e-2, -1e-2))
  np.testing.assert_allclose(
    np.vdot(gradient, direction), (up - down) / 2e-2, rtol=2e-2, atol=1e-3
  )


def test_perturbed_inputs_rise_and_keep_their_dtype():
  x = jnp.asarray(RNG.normal(size=(4, 2, 3)), jnp.bfloat16)

  def score(x):
    return -jnp.sum(x.astype(jnp.float32) ** 2, axis=(1, 2))

  moved = probes.perturbed_inputs(
    score, x, epsilon=jnp.array([0.0, 0.01, 0.01, 0.01])
  )
  assert moved.dtype == x.dtype
  np.testing.assert_array_equal(moved[0], x[0])
  assert np.all(score(moved)[1:] > score(x)[1:])
  with pytest.raises(ValueError, match="score_fn must return one score"):
    probes.perturbed_inputs(lambda x: x[0], x, epsilon=1.0)
  with pytest.raises(ValueError, match="epsilon must be a scalar or"):
    probes.perturbed_inputs(score, x, epsilon=jnp.ones(2))
  with pytest.raises(ValueError, match="epsilon must be in"):
    probes.perturbed_inputs(score, x, epsilon=-1.0)


def test_dtypes_and_vmap():
  x = jnp.asarray(FEATURES, jnp.bfloat16)
  params = probes.fit_gaussian(x, LABELS, 4, ridge=1e-2)
  assert params.means.dtype == np.float32
  assert probes.gaussian_logits(params, x).dtype == np.float32
  both = jnp.stack([x, 2 * x])
  mapped = jax.vmap(lambda x: probes.fit_gaussian(x, LABELS, 4))(both)
  np.testing.assert_allclose(mapped.means[1], 2 * mapped.means[0], rtol=1e-5)


def test_invalid_arguments():
  x, y = FEATURES.astype(np.float32), LABELS
  params = probes.fit_gaussian(x, y, 4)
  with pytest.raises(ValueError, match=r"labels\[1\] = 9 is outside \[0, 4\)"):
    probes.fit_gaussian(x[:2], np.array([0, 9]), 4)
  bad = jit(lambda y: probes.fit_gaussian(x[:2], y, 4))(np.array([0, 9]))
  assert np.isnan(bad.means).all()
  assert np.isnan(bad.covariance).all()
  good = jit(lambda y, w: probes.fit_gaussian(x[:2], y, 4, where=w))
  assert np.isfinite(
    good(np.array([0, 9]), np.array([True, False])).means
  ).all()
  with pytest.raises(ValueError, match="covariance must be one of"):
    probes.fit_gaussian(x, y, 4, covariance="tied")
  with pytest.raises(ValueError, match="ridge must be in"):
    probes.fit_gaussian(x, y, 4, ridge=-1.0)
  with pytest.raises(ValueError, match=r"labels must have the batch shape"):
    probes.fit_gaussian(x, y[:3], 4)
  with pytest.raises(TypeError, match="labels must be integer"):
    probes.fit_gaussian(x, y.astype(np.float32), 4)
  with pytest.raises(TypeError, match="num_classes must be one int"):
    probes.fit_gaussian(x, y, 4.0)
  with pytest.raises(ValueError, match="features must have 3 features"):
    probes.gaussian_logits(params, x[:, :2])
  with pytest.raises(ValueError, match="prior must be one of"):
    probes.gaussian_logits(params, x, prior="flat")
  with pytest.raises(TypeError, match=r"params must be a probes\.TiedGaussian"):
    probes.mahalanobis_score(params.means, x)
  with pytest.raises(TypeError, match="Merge first, and add classes"):
    probes.merge_gaussians(probes.add_class(params, x), params)
  with pytest.raises(ValueError, match="same ridge"):
    probes.merge_gaussians(params, params._replace(ridge=jnp.float32(1)))
  with pytest.raises(ValueError, match="same classes, features"):
    probes.merge_gaussians(params, probes.fit_gaussian(x, y, 5))
  with pytest.raises(ValueError, match="one or more rows"):
    probes.add_class(params, x[:0])
