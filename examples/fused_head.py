# SPDX-License-Identifier: Apache-2.0
"""A dense and a fused head side by side: the same training, less memory.

Every token of a vocabulary is followed by one other token, which a small
embedding model learns. The dense head computes the logits of all rows. The
fused head computes them in tiles and never holds all of them.

Needs optax. Run: python examples/fused_head.py
"""

import functools

import jax
import jax.numpy as jnp
import optax

from squentropy_jax import fused, losses

ROWS, WIDTH, CLASSES = 1024, 32, 2048
BUDGET = 2**21  # Bytes of temporary memory for the fused head.
STEPS = 60
Z_LOSS = 1e-4

next_token = jax.random.permutation(jax.random.key(0), CLASSES)


def dense_loss(params, tokens):
  """The mean loss of all logits."""
  logits = params["embedding"][tokens] @ params["kernel"]
  return losses.squentropy(logits, next_token[tokens]).mean()


def fused_loss(params, tokens):
  """The same number. Micro-batches would add up both totals and divide once."""
  sums = fused.linear_loss_sum(
    losses.squentropy,
    params["embedding"][tokens],
    params["kernel"],
    next_token[tokens],
    plan=fused.Plan(memory_budget=BUDGET),
  )
  return sums.loss / sums.weight


def formula(params, tokens):
  """Cross-entropy, z-loss and accuracy, all from one pass over the classes."""
  stats = fused.linear_row_stats(
    params["embedding"][tokens],
    params["kernel"],
    next_token[tokens],
    plan=fused.Plan(memory_budget=BUDGET),
  )
  loss = losses.cross_entropy.row(stats) + Z_LOSS * stats.log_z**2
  hit = stats.target > stats.rest_max
  return loss.mean(), {
    "accuracy": hit.mean(),
    "log-normaliser": stats.log_z.mean(),
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
  """Trains with each of the three, and prints the memory of a step."""
  everything = jnp.arange(CLASSES)
  report = jax.jit(functools.partial(formula, tokens=everything))
  print(f"The logits take {ROWS * CLASSES * 4 / 2**20:.0f} MiB.")
  for name, loss, has_aux in (
    ("dense", dense_loss, False),
    ("fused", fused_loss, False),
    ("fused, formula", formula, True),
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
