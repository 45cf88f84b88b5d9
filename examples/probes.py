# SPDX-License-Identifier: Apache-2.0
"""Classifiers on frozen features: learning curves, and unknown inputs.

The first part compares naive Bayes with logistic regression at 20 to 5000
examples, whose features are pixels with some noise. The second part trains a
network on seven digits. It detects the three other digits by the largest
softmax probability and by Mahalanobis scores of two layers, which a logistic
regression combines.

Needs scikit-learn and optax. Run: python examples/probes.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, metrics

from squentropy_jax import losses, probes

SIZES = (20, 50, 100, 300, 1000, 5000)
REPEATS, KNOWN, WIDTH, STEPS, NOISE = 8, 7, 64, 300, 0.05
# The variance floor of the paper, and a larger one.
RIDGES = (1e-9, 1e-2)


def accuracy(logits, labels):
  """The share of examples whose largest logit is that of their label."""
  return float(jnp.mean(jnp.argmax(logits, axis=-1) == labels))


@jax.jit
def fit_each(x, labels, size, test):
  """Logits of each classifier, fitted to the first rows."""
  keep = jnp.arange(len(x)) < size
  logits = []
  for ridge in RIDGES:
    bayes = probes.fit_gaussian(
      x, labels, 10, covariance="diagonal", ridge=ridge, where=keep
    )
    logits.append(probes.gaussian_logits(bayes, test, prior="empirical"))
  linear = probes.fit_logistic(x, labels, 10, where=keep)
  return [*logits, probes.linear_logits(linear, test)]


def learning_curves(images, labels):
  """Prints the mean accuracies by the number of labelled examples."""
  found = {size: [] for size in SIZES}
  for seed in range(REPEATS):
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    train_rows, test_rows = order[:1000], order[1000:]
    rows = rng.choice(train_rows, SIZES[-1])
    noise = rng.normal(size=(SIZES[-1], 64)) * NOISE
    x = images[rows] + noise.astype(np.float32)
    for size in SIZES:
      logits = fit_each(x, labels[rows], size, images[test_rows])
      found[size].append([accuracy(z, labels[test_rows]) for z in logits])
  print(f"mean of {REPEATS} splits: share of test images that are right")
  for size, each in found.items():
    plain, ridged, linear = np.mean(each, axis=0)
    print(
      f"{size:4} examples: naive Bayes {plain:.3f} (ridge {RIDGES[1]}: "
      f"{ridged:.3f}), logistic {linear:.3f}"
    )


def layers(params, images):
  """The hidden layers and the logits of the network."""
  hidden = []
  for kernel, bias in params[:-1]:
    images = jax.nn.relu(images @ kernel + bias)
    hidden.append(images)
  kernel, bias = params[-1]
  return hidden, images @ kernel + bias


def train(images, labels):
  """Trains the network with cross-entropy."""
  sizes = (64, WIDTH, WIDTH, KNOWN)
  keys = jax.random.split(jax.random.key(0), 3)
  params = [
    (jax.random.normal(key, (a, b)) * (2 / a) ** 0.5, jnp.zeros(b))
    for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
  ]
  optimizer = optax.adam(3e-3)

  def loss(params):
    return losses.cross_entropy(layers(params, images)[1], labels).mean()

  @jax.jit
  def run(params):
    def step(_, carry):
      params, state = carry
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, STEPS, step, (params, optimizer.init(params)))

  return run(params)[0]


def unknown_digits(images, labels, test_images, test_labels):
  """Prints how well known and unknown digits are separated (AUROC)."""
  known = labels < KNOWN
  images, labels = images[known], labels[known]
  params = train(images, labels)
  fits = [
    probes.fit_gaussian(x, labels, KNOWN, ridge=1e-2)
    for x in layers(params, images)[0]
  ]

  def scores_of(images):
    hidden, _ = layers(params, images)
    pairs = zip(fits, hidden, strict=True)
    return jnp.stack([probes.mahalanobis_score(*p) for p in pairs], axis=-1)

  def last_score(images):
    return probes.mahalanobis_score(fits[-1], layers(params, images)[0][-1])

  is_known = (test_labels < KNOWN).astype(np.int32)
  # One half chooses the weights of the layers, the other one is reported.
  half = np.arange(len(is_known)) % 2 == 0
  scores = scores_of(test_images)
  weights = probes.fit_logistic(scores[half], is_known[half], 2)
  both = probes.linear_logits(weights, scores)[:, 1]
  moved = probes.perturbed_inputs(last_score, test_images, epsilon=0.005)
  logits = layers(params, test_images)[1]
  seen = is_known == 1
  print(
    f"known digits: accuracy {accuracy(logits[seen], test_labels[seen]):.3f}"
  )
  for name, score in {
    "largest softmax probability": jax.nn.softmax(logits).max(axis=-1),
    "Mahalanobis, last layer": scores[:, -1],
    "Mahalanobis, last layer, moved inputs": last_score(moved),
    "Mahalanobis, both layers": both,
  }.items():
    area = metrics.roc_auc_score(is_known[~half], np.asarray(score)[~half])
    print(f"{name}: AUROC {area:.3f}")


def main():
  """Runs both parts on the digits of scikit-learn."""
  images, labels = datasets.load_digits(return_X_y=True)
  order = np.random.default_rng(0).permutation(len(labels))
  images = (images[order] / 16).astype(np.float32)
  labels = labels[order].astype(np.int32)
  split = images[:1000], labels[:1000], images[1000:], labels[1000:]
  learning_curves(images, labels)
  unknown_digits(*split)


if __name__ == "__main__":
  main()
