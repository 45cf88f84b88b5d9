# SPDX-License-Identifier: Apache-2.0
"""The measures of a model: likelihood, calibration, logits and norms."""

import jax
import jax.numpy as jnp

from replication.language_model import grid, transformer
from squentropy_jax import calibration, losses

_BINS = 15


def norms(params: transformer.Params) -> dict[str, jax.Array]:
  """Computes norms of the weights that make the logits.

  Args:
    params: The weights.

  Returns:
    The norm of the output layer, the norm of its mean row, and the norm of the
    gains of the last normalisation.
  """
  head = params["head"]
  return {
    "head_norm": jnp.linalg.norm(head),
    "mean_row_norm": jnp.linalg.norm(head.mean(axis=0)),
    "final_norm": jnp.linalg.norm(params["norm"]),
  }


def _calibration_error(
  logits: jax.Array, labels: jax.Array
) -> calibration.BinStats:
  """Returns the statistics of bins of the confidence."""
  confidence = jnp.exp(logits.max(axis=-1) - jax.nn.logsumexp(logits, axis=-1))
  correct = jnp.argmax(logits, axis=-1) == labels
  return calibration.bin_stats_from_confidence(
    confidence, correct, num_bins=_BINS
  )


def measure(
  params: transformer.Params, sequences: jax.Array, setup: grid.Setup
) -> dict[str, jax.Array]:
  """Computes all measures of a model on the evaluation text.

  Args:
    params: The weights.
    sequences: Token ids ``[blocks, rows, length + 1]``. The first block fits
      the temperature, and the measures are means over the others.
    setup: The sizes of the model.

  Returns:
    One number by the name of each measure.
  """

  def logits_and_labels(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    inputs = transformer.features(params, block[:, :-1], setup.heads)
    logits = inputs.reshape(-1, setup.width) @ params["head"].T
    return logits, block[:, 1:].reshape(-1)

  scaling = calibration.fit_temperature(*logits_and_labels(sequences[0]))

  def of_block(block: jax.Array) -> tuple:
    logits, labels = logits_and_labels(block)
    scaled = calibration.apply(scaling, logits)
    center = logits.mean(axis=-1, keepdims=True)
    means = {
      "nll": losses.cross_entropy(logits, labels).mean(),
      "accuracy": (jnp.argmax(logits, axis=-1) == labels).mean(),
      "nll_scaled": losses.cross_entropy(scaled, labels).mean(),
      "mean_logit": logits.mean(),
      "variance": jnp.square(logits - center).mean(),
      "log_z": jax.nn.logsumexp(logits, axis=-1).mean(),
    }
    bins = (
      _calibration_error(logits, labels),
      _calibration_error(scaled, labels),
    )
    return means, bins, jnp.abs(logits).max()

  means, bins, largest = jax.lax.map(of_block, sequences[1:])
  found = {name: value.mean() for name, value in means.items()}
  plain, scaled = (
    # Statistics of bins add up over blocks.
    calibration.expected_calibration_error(
      jax.tree.map(lambda x: x.sum(axis=0), each)
    )
    for each in bins
  )
  found["std_logit"] = jnp.sqrt(found.pop("variance"))
  found |= {"ece": plain, "ece_scaled": scaled, "max_abs_logit": largest.max()}
  found["temperature"] = scaling.temperature
  return found | norms(params)
