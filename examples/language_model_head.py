# SPDX-License-Identifier: Apache-2.0
"""The head of a language model in blocks of rows: norm, tied table, soft cap.

Every token is followed by one other token, which a small model learns. The
features are bfloat16 of shape [batch, length, width], some positions are
padding, and the loss has a z-loss. The logits of BLOCK_ROWS positions are in
memory at a time.

Needs optax. Run: python examples/language_model_head.py
"""

import jax
import jax.numpy as jnp
import optax

import squentropy_jax
from squentropy_jax import fused, losses, rows

BATCH, LENGTH, WIDTH, CLASSES = 32, 128, 64, 512
BLOCK_ROWS = 128
STEPS = 40

next_token = jax.random.permutation(jax.random.key(0), CLASSES)


@squentropy_jax.row_loss
def with_z_loss(stats):
  """Cross-entropy and a z-loss."""
  return losses.cross_entropy.row(stats) + 1e-4 * rows.z_loss(stats)


def head(params, block):
  """Logits of a block of features: a norm, the tied table and a soft cap."""
  block = block.astype(jnp.float32)
  mean_sq = jnp.mean(block**2, axis=-1, keepdims=True)
  block = block * jax.lax.rsqrt(mean_sq + 1e-6) * params["scale"][None]
  table = params["table"].astype(jnp.bfloat16)
  logits = jnp.einsum("nd,vd->nv", block.astype(jnp.bfloat16), table)
  return 30.0 * jnp.tanh(logits.astype(jnp.float32) / 30.0)


def sums(params, tokens, is_token):
  """Sums over the tokens, to be added up over batches and divided once."""
  mixed = params["table"][tokens] @ params["mix"]
  return fused.blocked_loss_sum(
    with_z_loss,
    head,
    {"scale": params["scale"], "table": params["table"]},
    mixed.astype(jnp.bfloat16),
    next_token[tokens],
    block_rows=BLOCK_ROWS,
    where=is_token,
    metrics={
      "cross-entropy": losses.cross_entropy.row,
      "z-loss": rows.z_loss,
      "accuracy": rows.correct,
    },
  )


def mean_loss(params, tokens, is_token):
  """The loss of a step, and the means of the metrics."""
  found = sums(params, tokens, is_token)
  metrics = {name: x / found.weight for name, x in found.metrics.items()}
  return found.loss / found.weight, metrics


def main():
  """Trains the model, and prints metrics and the memory of a step."""
  keys = jax.random.split(jax.random.key(1))
  params = {
    "table": jax.random.normal(keys[0], (CLASSES, WIDTH)) / 4,
    "mix": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH**0.5,
    "scale": jnp.ones(WIDTH),
  }
  optimizer = optax.adam(0.03)

  @jax.jit
  def step(params, state, key):
    tokens = jax.random.randint(key, (BATCH, LENGTH), 0, CLASSES)
    is_token = jnp.arange(LENGTH) < LENGTH - 5
    is_token = jnp.broadcast_to(is_token, (BATCH, LENGTH))
    gradient, metrics = jax.grad(mean_loss, has_aux=True)(
      params, tokens, is_token
    )
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, metrics

  state, key = optimizer.init(params), jax.random.key(2)
  compiled = step.lower(params, state, key).compile()
  for i in range(STEPS):
    params, state, metrics = compiled(params, state, jax.random.fold_in(key, i))
  memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
  print(f"The logits take {BATCH * LENGTH * CLASSES * 4 / 2**20:.1f} MiB.")
  print(f"A step takes {memory:.1f} MiB of temporary memory.")
  print(", ".join(f"{name} {x:.4f}" for name, x in metrics.items()))


if __name__ == "__main__":
  main()
