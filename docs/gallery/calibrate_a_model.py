# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Calibrate a model
#
# A network on handwritten digits becomes over-confident in long training. A
# temperature, fitted on held-out examples, corrects its probabilities.

# %%
import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from squentropy_jax import calibration, losses

images, digits = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(images))
images, digits = jnp.asarray(images[order] / 16), jnp.asarray(digits[order])
# Noise makes the problem difficult enough for errors.
images += 0.3 * jax.random.normal(jax.random.key(9), images.shape)
train, fit, test = slice(0, 700), slice(700, 1200), slice(1200, None)

# %%


def logits_of(params, x):
  """Logits of a network with one hidden layer."""
  return jax.nn.relu(x @ params["w1"]) @ params["w2"]


@jax.jit
def trained(params):
  """Gradient descent on the cross-entropy."""

  def objective(params):
    logits = logits_of(params, images[train])
    return losses.cross_entropy(logits, digits[train]).mean()

  def step(params, _):
    grads = jax.grad(objective)(params)
    return jax.tree.map(lambda p, g: p - 0.5 * g, params, grads), None

  return jax.lax.scan(step, params, length=1500)[0]


keys = jax.random.split(jax.random.key(0))
params = trained(
  {
    "w1": jax.random.normal(keys[0], (64, 64)) / 8,
    "w2": jax.random.normal(keys[1], (64, 10)) / 8,
  }
)
held_out, logits = (logits_of(params, images[rows]) for rows in (fit, test))

# %% [markdown]
# ## Fit and apply
#
# Every recalibrator is a pair: `fit_*` returns parameters, and `apply` maps
# logits to logits.

# %%
fits = {
  "none": None,
  "temperature": calibration.fit_temperature(held_out, digits[fit]),
  "vector scaling": calibration.fit_vector_scaling(held_out, digits[fit]),
  "isotonic": calibration.fit_isotonic_regression(held_out, digits[fit]),
}
found = {}
for name, params in fits.items():
  z = logits if params is None else calibration.apply(params, logits)
  found[name] = jax.nn.softmax(z)
  stats = calibration.bin_stats(found[name], digits[test])
  print(
    f"{name:15} ECE {calibration.expected_calibration_error(stats):.3f}"
    f"  Brier {calibration.brier_score(found[name], digits[test]):.3f}"
    f"  accuracy {calibration.accuracy(found[name], digits[test]):.3f}"
  )

# %% [markdown]
# ## Reliability diagrams
#
# In a calibrated model the accuracy of each bin equals its confidence, on the
# diagonal.

# %%
_, panels = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
for panel, name in zip(panels, ("none", "temperature"), strict=True):
  stats = calibration.bin_stats(found[name], digits[test], num_bins=10)
  calibration.plots.reliability_diagram(stats, ax=panel)
  panel.set_title(f"recalibration: {name}")

# %% [markdown]
# ## Prediction sets
#
# A conformal threshold gives sets of classes that contain the label with the
# probability that you choose, here 95 %.

# %%
threshold = calibration.fit_conformal(
  jax.nn.softmax(held_out), digits[fit], alpha=0.05
)
sets = calibration.prediction_set(threshold, jax.nn.softmax(logits))
print(f"coverage {calibration.set_coverage(sets, digits[test]):.3f}")
print(f"mean size {calibration.mean_set_size(sets):.2f} of 10 classes")

# %% [markdown]
# [Calibration](../calibration.md) helps to choose a metric and a recalibrator.
