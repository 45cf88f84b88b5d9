# SPDX-License-Identifier: Apache-2.0
"""Trains with squentropy in plain JAX, then recalibrates the result.

Needs scikit-learn for its bundled digits. Run: python examples/quickstart.py
"""

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import squentropy_jax
from squentropy_jax import calibration

STEPS = 500
LEARNING_RATE = 0.5


def load():
  """Features in [0, 1] and class ids, for training, calibration and test."""
  features, labels = load_digits(return_X_y=True)
  train_x, rest_x, train_y, rest_y = train_test_split(
    features / 16, labels, test_size=0.5, random_state=0, stratify=labels
  )
  fit_x, test_x, fit_y, test_y = train_test_split(
    rest_x, rest_y, test_size=0.5, random_state=0, stratify=rest_y
  )
  data = (train_x, train_y), (fit_x, fit_y), (test_x, test_y)
  return jax.tree.map(jnp.asarray, data)


def apply(params, features):
  """Logits of a network with one hidden layer."""
  hidden = jax.nn.relu(features @ params["w1"] + params["b1"])
  return hidden @ params["w2"] + params["b2"]


def objective(params, features, labels):
  """The mean over examples, because a loss returns one number per example."""
  return squentropy_jax.squentropy(apply(params, features), labels).mean()


@jax.jit
def train(params, features, labels):
  """Gradient descent on all the training data."""

  def step(params, _):
    value, grads = jax.value_and_grad(objective)(params, features, labels)
    params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
    return params, value

  return jax.lax.scan(step, params, length=STEPS)


def report(name, logits, labels):
  """Prints accuracy, negative log-likelihood and calibration error."""
  stats = calibration.bin_stats(jax.nn.softmax(logits), labels)
  print(
    f"{name:26} accuracy {calibration.accuracy(logits, labels):.3f}"
    f"  NLL {calibration.negative_log_likelihood(logits, labels):.3f}"
    f"  ECE {calibration.expected_calibration_error(stats):.3f}"
  )


def main():
  """Trains, then fits a temperature on held-out data."""
  (train_x, train_y), (fit_x, fit_y), (test_x, test_y) = load()
  key1, key2 = jax.random.split(jax.random.key(0))
  params = {
    "w1": jax.random.normal(key1, (64, 64)) / 8,
    "b1": jnp.zeros((1, 64)),
    "w2": jax.random.normal(key2, (64, 10)) / 8,
    "b2": jnp.zeros((1, 10)),
  }
  params, losses = train(params, train_x, train_y)
  print(f"training loss {losses[0]:.3f} -> {losses[-1]:.3f}")

  logits = apply(params, test_x)
  report("test, softmax", logits, test_y)
  # Squentropy's softmax is less confident than accurate; one number fixes that.
  scaling = calibration.fit_temperature(apply(params, fit_x), fit_y)
  report("test, temperature scaled", calibration.apply(scaling, logits), test_y)


if __name__ == "__main__":
  main()
