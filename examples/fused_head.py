# SPDX-License-Identifier: Apache-2.0
"""A dense and a fused head side by side: the same training, other memory.

Every token of a vocabulary is followed by one other token, which a small
embedding model learns. The dense head makes the logits of all rows; the fused
one makes them in tiles and never holds them together.

Needs optax. Run: python examples/fused_head.py
"""

import functools

import jax
import jax.numpy as jnp
import optax

from squentropy_jax import fused, losses

ROWS, WIDTH, CLASSES = 1024, 32, 2048
BUDGET = 2**21  # Bytes that the fused head may take beside its arguments.
STEPS = 60
Z_LOSS = 1e-4

next_token = jax.random.permutation(jax.random.key(0), CLASSES)


def dense_loss(params, tokens):
  """The mean loss of logits that are all there at once."""
  logits = params["embedding"][tokens] @ params["kernel"]
  return losses.squentropy(logits, next_token[tokens]).mean()


def fused_loss(params, tokens):
  """The same number; the sum and the count would add up over micro-batches."""
  total, count = fused.linear_loss_sum(
    losses.squentropy,
    params["embedding"][tokens],
    params["kernel"],
    next_token[tokens],
    memory_budget=BUDGET,
  )
  return total / count


def own_formula(params, tokens):
  """Cross-entropy, z-loss and accuracy, all from one pass over the classes."""
  stats = fused.linear_row_stats(
    params["embedding"][tokens],
    params["kernel"],
    next_token[tokens],
    memory_budget=BUDGET,
  )
  log_normaliser = jnp.logaddexp(stats.target, stats.rest_lse)
  loss = losses.cross_entropy.row(stats) + Z_LOSS * log_normaliser**2
  hit = stats.target > stats.rest_max
  return loss.mean(), {
    "accuracy": hit.mean(),
    "log-normaliser": log_normaliser.mean(),
  }


def init():
  """An embedding of tokens, and the kernel of the head."""
  keys = jax.random.split(jax.random.key(1))
  return {
    "embedding": jax.random.normal(keys[0], (CLASSES, WIDTH)),
    "kernel": jax.random.normal(keys[1], (WIDTH, CLASSES)) / WIDTH**0.5,
  }


def train(loss, has_aux=False):
  """Trained parameters, and MiB of temporary memory in a step."""
  optimizer = optax.adam(0.1)
  params = init()
  state = optimizer.init(params)
  grad = jax.value_and_grad(loss, has_aux=has_aux)

  @jax.jit
  def step(params, state, key):
    tokens = jax.random.randint(key, (ROWS,), 0, CLASSES)
    value, gradient = grad(params, tokens)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  key = jax.random.key(2)
  compiled = step.lower(params, state, key).compile()
  memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
  for i in range(STEPS):
    params, state, _ = compiled(params, state, jax.random.fold_in(key, i))
  return params, memory


def main():
  """Trains by each of the three, and prints what a step needs."""
  everything = jnp.arange(CLASSES)
  report = jax.jit(functools.partial(own_formula, tokens=everything))
  print(f"The logits take {ROWS * CLASSES * 4 / 2**20:.0f} MiB.")
  for name, loss, has_aux in (
    ("dense", dense_loss, False),
    ("fused", fused_loss, False),
    ("fused, own formula", own_formula, True),
  ):
    params, memory = train(loss, has_aux)
    _, found = report(params)
    print(
      f"{name:20} temporary memory of a step {memory:5.1f} MiB, "
      f"accuracy {found['accuracy']:.4f}, "
      f"log-normaliser {found['log-normaliser']:.2f}"
    )


if __name__ == "__main__":
  main()
