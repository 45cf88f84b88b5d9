# SPDX-License-Identifier: Apache-2.0
"""Flax Linen with padded batches: the loss takes the mask.

Needs flax, optax and scikit-learn. Run: python examples/flax_linen.py
"""

from flax import linen as nn
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

import squentropy_jax

EPOCHS = 20
BATCH = 256


class Classifier(nn.Module):
  """Two dense layers."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits ``[batch, 10]`` of features ``[batch, 64]``."""
    return nn.Dense(10)(nn.relu(nn.Dense(128)(x)))


@jax.jit
def train_step(state, features, labels, where):
  """One step of Adam on the kept rows of a batch."""

  def objective(params):
    logits = state.apply_fn({"params": params}, features)
    loss = squentropy_jax.squentropy(logits, labels, where=where)
    # Dropped rows are 0 in the sum, so divide by the number of kept rows.
    return loss.sum() / where.sum()

  loss, grads = jax.value_and_grad(objective)(state.params)
  return state.apply_gradients(grads=grads), loss


def padded_batches(features, labels):
  """All rows in batches of one shape; the last one is padded."""
  for start in range(0, len(labels), BATCH):
    part = features[start : start + BATCH], labels[start : start + BATCH]
    fill = BATCH - len(part[1])
    yield (
      np.pad(part[0], ((0, fill), (0, 0))),
      np.pad(part[1], (0, fill), constant_values=-100),
      np.arange(BATCH) < BATCH - fill,
    )


def main():
  """Trains on the first 1500 digits, tests on the other 297."""
  features, labels = load_digits(return_X_y=True)
  features = (features / 16).astype(np.float32)
  model = Classifier()
  state = train_state.TrainState.create(
    apply_fn=model.apply,
    params=model.init(jax.random.key(0), features[:1])["params"],
    tx=optax.adam(5e-3),
  )
  for epoch in range(EPOCHS):
    order = np.random.default_rng(epoch).permutation(1500)
    for batch in padded_batches(features[order], labels[order]):
      state, loss = train_step(state, *batch)
  logits = state.apply_fn({"params": state.params}, features[1500:])
  correct = logits.argmax(-1) == jnp.asarray(labels[1500:])
  print(f"training loss {loss:.3f}  test accuracy {correct.mean():.3f}")

  # The last batch has 220 rows and 36 of padding, whose labels are -100.
  *_, (padded, ids, where) = padded_batches(features[:1500], labels[:1500])
  logits = state.apply_fn({"params": state.params}, padded)
  masked = squentropy_jax.squentropy(logits, ids, where=where)
  plain = squentropy_jax.squentropy(logits[where], ids[where])
  print(
    f"mean loss of the {where.sum()} kept rows: with a mask "
    f"{masked.sum() / where.sum():.4f}, without padding {plain.mean():.4f}"
  )


if __name__ == "__main__":
  main()
