# SPDX-License-Identifier: Apache-2.0
"""A language model's head with its classes sharded over a mesh.

Two groups of devices share the rows of a batch, and in each group four devices
share the vocabulary: no device holds the kernel, or the logits, of all classes.
It runs on eight CPU devices of one processor. On real devices remove the line
that asks for them.

Needs optax. Run: python examples/vocab_parallel_head.py
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import optax

from squentropy_jax import fused, losses

jax.config.update("jax_num_cpu_devices", 8)

ROWS, WIDTH, CLASSES = 512, 32, 1000
STEPS = 100

mesh = jax.make_mesh((2, 4), ("data", "vocab"), axis_types=(AxisType.Auto,) * 2)
next_token = jax.random.permutation(jax.random.key(0), CLASSES)


def loss_of(params, tokens):
  """The mean over all rows of all devices."""
  features = params["embedding"][tokens]
  features = jax.lax.with_sharding_constraint(
    features, NamedSharding(mesh, P("data"))
  )
  total, count = fused.linear_loss_sum(
    losses.squentropy,
    features,
    params["kernel"],
    next_token[tokens],
    mesh=mesh,
    features_spec=P("data"),
    kernel_spec=P(None, "vocab"),
  )
  return total / count


def accuracy_of(params, tokens):
  """The share of rows whose target has the largest logit of all classes."""
  stats = fused.linear_row_stats(
    params["embedding"][tokens],
    params["kernel"],
    next_token[tokens],
    mesh=mesh,
    features_spec=P(),
    kernel_spec=P(None, "vocab"),
  )
  return (stats.target > stats.rest_max).mean()


def main():
  """Trains, and prints how the kernel is sharded and what is gathered."""
  keys = jax.random.split(jax.random.key(1))
  params = {
    "embedding": jax.random.normal(keys[0], (CLASSES, WIDTH)),
    "kernel": jax.random.normal(keys[1], (WIDTH, CLASSES)) / WIDTH**0.5,
  }
  specs = {"embedding": P(), "kernel": P(None, "vocab")}
  params = jax.device_put(
    params, {name: NamedSharding(mesh, s) for name, s in specs.items()}
  )
  here = params["kernel"].addressable_shards[0].data.shape
  print(f"kernel {params['kernel'].shape}, on each device {here}")
  optimizer = optax.adam(0.1)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, key):
    tokens = jax.random.randint(key, (ROWS,), 0, CLASSES)
    value, gradient = jax.value_and_grad(loss_of)(params, tokens)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  key = jax.random.key(2)
  compiled = step.lower(params, state, key).compile()
  gathered = len(re.findall(r" all-gather(-start)?\(", compiled.as_text()))
  print(f"arrays gathered in a step: {gathered}")
  for i in range(STEPS):
    key = jax.random.fold_in(jax.random.key(2), i)
    params, state, value = compiled(params, state, key)
    if i % 20 == 19:
      print(f"step {i + 1:3} loss {value:.4f}")
  accuracy = jax.jit(accuracy_of)(params, jnp.arange(CLASSES))
  print(f"accuracy {accuracy:.4f}")


if __name__ == "__main__":
  main()
