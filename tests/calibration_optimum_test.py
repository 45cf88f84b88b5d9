# SPDX-License-Identifier: Apache-2.0
"""Recalibrators reach the minimum that SciPy finds, at any scale of logits."""

import numpy as np
import pytest
import scipy.optimize
from support.calibration_recalibrators import (
  apply,
  data,
  fit,
  log_softmax,
  mean_nll,
)

GAINS = (1e-6, 1.0, 1e6)


def _softplus(x):
  return np.logaddexp(0, x)


def _temperature(z, y):
  """The inverse temperature, by a method of its own."""
  # Logits of order 1, and a bounded search of the logarithm.
  size = np.abs(z).max()
  found = scipy.optimize.minimize_scalar(
    lambda u: mean_nll(np.exp(u) * z / size, y),
    bounds=(-8, 8),
    method="bounded",
    options={"xatol": 1e-12},
  )
  return np.exp(found.x) / size


def _gap(z):
  gap = np.diff(np.sort(z)[:, -2:])[:, 0]
  return np.sort(gap)[(len(gap) - 1) // 2]


def _ensemble(z, y):
  beta, n = _temperature(z, y), len(y)
  parts = [np.exp(log_softmax(x)) for x in (beta * z, z, 0 * z)]
  q = np.stack([p[np.arange(n), y] for p in parts], -1)

  def objective(x):
    mixed = q @ np.append(x, 1 - x.sum())
    return np.inf if mixed.min() <= 0 else -np.log(mixed).mean()

  limits = scipy.optimize.LinearConstraint(np.ones(2), -np.inf, 1)
  return (
    objective,
    np.array([0.5, 0.2]),
    {"method": "SLSQP", "bounds": [(0, 1)] * 2, "constraints": limits},
    lambda p: p.weights[:2],
  )


def _vector(z, y):
  beta, s = _temperature(z, y), _gap(z)
  n, c = z.shape

  def objective(x):
    w, b = x.reshape(2, c)
    penalty = np.square(x).sum() / (n * c)
    return mean_nll((beta + w / s) * z + b, y) + penalty

  def pack(p):
    return np.append(s * (p.weight - beta), p.bias)

  return objective, np.zeros(2 * c), {}, pack


def _linear(x, y, start, penalty):
  """A linear map of ``x``, with a penalty on the change of its matrix."""
  c = x.shape[1]

  def objective(u):
    w, b = u[: c * c].reshape(c, c), u[c * c :]
    price = np.sum(penalty * np.square(w)) + c * np.square(b).sum()
    return mean_nll(x @ (w + start).T + b, y) + price / len(y)

  def pack(p):
    weight = p.weight if np.ndim(p.weight) == 2 else np.diag(p.weight)
    return np.append(weight - start, p.bias)

  return objective, np.zeros(c * c + c), {}, pack


def _matrix(z, y):
  beta, c = _temperature(z, y), z.shape[1]
  gamma = max(beta, 1 / _gap(z))
  off = c * (c - 1) * (1 - np.eye(c))
  return _linear(log_softmax(gamma * z), y, beta / gamma * np.eye(c), off)


def _smoothed(z, y):
  n, c = z.shape
  p = np.exp(log_softmax(_temperature(z, y) * z))
  return np.log(p * n / (n + 1) + 1 / (n + 1) / c)


def _structured_matrix(z, y):
  c = z.shape[1]
  penalty = c * np.eye(c) + c * (c - 1) * (1 - np.eye(c))
  return _linear(_smoothed(z, y), y, np.eye(c), penalty)


def _structured_vector(z, y):
  x, (n, c) = _smoothed(z, y), z.shape

  def objective(u):
    w, b = u.reshape(2, c)
    return mean_nll((1 + w) * x + b, y) + c / n * np.square(u).sum()

  return (
    objective,
    np.zeros(2 * c),
    {},
    lambda p: np.append(p.weight - 1, p.bias),
  )


def _log_loss(odds, y):
  return _softplus(np.where(y == 1, -odds, odds)).mean()


def _beta(z, y):
  beta, s = _temperature(z, y), _gap(z)
  x = z[:, 1] - z[:, 0]

  def objective(u):
    a, b, c = u * [1 / s, 1 / s, 1]
    # log p = -softplus(-x), and c is the log-odds at x = 0.
    even = _softplus(x) - x / 2 - np.log(2)
    odds = (a + b) / 2 * x - (a - b) * even + c
    penalty = np.square(u[:2] - beta * s).sum() + c**2
    return _log_loss(odds, y) + penalty / len(y)

  def pack(p):
    return np.array([p.a * s, p.b * s, p.c - (p.a - p.b) * np.log(2)])

  bounds = [(0, None), (0, None), (None, None)]
  start = np.array([beta * s, beta * s, 0])
  return objective, start, {"method": "L-BFGS-B", "bounds": bounds}, pack


def _odds_input(z, y):
  beta = _temperature(z, y)
  gamma = max(beta, 1 / _gap(z))
  return gamma * (z[:, 1] - z[:, 0]), beta / gamma


def _quadratic(z, y):
  x, ratio = _odds_input(z, y)

  def objective(u):
    odds = u[0] + (ratio + u[1]) * x + u[2] * x**2
    return _log_loss(odds, y) + np.square(u).sum() / len(y)

  return (
    objective,
    np.zeros(3),
    {},
    lambda p: np.array([p.a, p.b - ratio, p.c]),
  )


def _spline(z, y):
  x, ratio = _odds_input(z, y)
  rows = np.sort(x)
  index = int(0.01 * (len(x) - 1))
  low, high = rows[index], rows[-1 - index]
  # SciPy's B-splines on the same knots.
  h = (high - low) / 4
  knots = low + h * np.arange(-3, 8)
  basis = scipy.interpolate.BSpline(knots, np.eye(7), 3)(np.clip(x, low, high))
  straight = ratio * (low + h * np.arange(-1, 6))

  def objective(u):
    penalty = np.square(np.diff(u, 2)).sum() + np.square(u).mean()
    return _log_loss(basis @ (straight + u), y) + penalty / len(y)

  return objective, np.zeros(7), {}, lambda p: p.coefficients - straight


PROBLEMS = {
  "ensemble": _ensemble,
  "vector": _vector,
  "matrix": _matrix,
  "structured_vector": _structured_vector,
  "structured_matrix": _structured_matrix,
  "beta": _beta,
  "quadratic": _quadratic,
  "spline": _spline,
}


def _check(name, gain, dtype, tolerance):
  z, y = data(name)
  z = (z * gain).astype(dtype)
  wide = z.astype(np.float64)
  objective, start, options, pack = PROBLEMS[name](wide, y)
  params = fit(name, z, y)
  assert all(x.dtype == dtype for x in params)
  exact = type(params)(*(np.asarray(x, np.float64) for x in params))
  best = scipy.optimize.minimize(objective, start, tol=1e-10, **options).fun
  got = objective(pack(exact))
  assert got < best + tolerance
  # A map that the objective does not see would pass otherwise.
  assert best < objective(start) - 1e-4
  return exact, z, y, wide


@pytest.mark.parametrize("gain", GAINS)
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimum_is_that_of_scipy(name, gain):
  # The rounding error of a mean of numbers below 10.
  params, z, y, wide = _check(name, gain, np.float32, 3e-6)
  # What is applied is that map. Newton's method starts at the temperature; a
  # spline is constant in the tails, and structured scaling is smoothed.
  loss = mean_nll(np.asarray(apply(fit(name, z, y), z), np.float64), y)
  slack = 1e-2 if name.startswith(("spline", "structured")) else 3e-6
  assert loss < mean_nll(_temperature(wide, y) * wide, y) + slack
  assert np.all(np.isfinite(np.concatenate([np.ravel(x) for x in params])))


@pytest.mark.x64
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_minimum_is_that_of_scipy_in_float64(name):
  _check(name, 1.0, np.float64, 1e-9)


@pytest.mark.parametrize("name", [n for n in PROBLEMS if n != "ensemble"])
def test_the_scale_of_the_logits_does_not_matter(name):
  # A mixture with the probabilities as they are, and beta calibration's
  # logarithms of them, depend on it.
  z, y = data(name)
  losses = [
    mean_nll(np.asarray(apply(fit(name, g * z, y), g * z), np.float64), y)
    for g in np.float32(GAINS)
  ]
  atol = 3e-2 if name == "beta" else 2e-6
  np.testing.assert_allclose(losses, losses[1], rtol=0, atol=atol)
