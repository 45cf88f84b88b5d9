# SPDX-License-Identifier: Apache-2.0
"""Policy gradients of a large head: the loss never has the logits of all rows.

The policy has 1000 actions, of which one in ten is right in each state. A step
samples actions and then takes several steps of clipped policy gradients with an
entropy bonus (PPO). `fused.linear_log_probs` computes log-probabilities and
entropies in tiles.

Needs optax. Run: python examples/rl_log_probs.py
"""

import jax
import jax.numpy as jnp
import optax

from squentropy_jax import fused

STATES, WIDTH, ACTIONS, GROUPS = 64, 32, 1000, 10
SAMPLES, TEMPERATURE = 512, 0.7
ENTROPY_BONUS, CLIP = 1e-3, 0.2
BATCHES, EPOCHS = 30, 4


def log_probs(params, states, actions):
  """Log-probabilities and entropies of the policy."""
  return fused.linear_log_probs(
    params["features"][states],
    params["kernel"],
    actions,
    temperature=TEMPERATURE,
  )


def loss_of(params, states, actions, advantages, before):
  """The clipped loss of PPO with an entropy bonus; also the entropy."""
  now = log_probs(params, states, actions)
  ratio = jnp.exp(now.log_prob - before)
  clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
  gain = jnp.minimum(ratio * advantages, clipped * advantages)
  entropy = now.entropy.mean()
  return -gain.mean() - ENTROPY_BONUS * entropy, entropy


def sample(params, key):
  """States, actions and their rewards. A language model samples by position."""
  keys = jax.random.split(key)
  states = jax.random.randint(keys[0], (SAMPLES,), 0, STATES)
  logits = params["features"][states] @ params["kernel"] / TEMPERATURE
  actions = jax.random.categorical(keys[1], logits)
  rewards = (actions % GROUPS == states % GROUPS).astype(jnp.float32)
  return states, actions, rewards


def main():
  """Trains the policy, and prints the share of right actions."""
  keys = jax.random.split(jax.random.key(1))
  params = {
    "features": jax.random.normal(keys[0], (STATES, WIDTH)),
    "kernel": jax.random.normal(keys[1], (WIDTH, ACTIONS)) / WIDTH**0.5,
  }
  optimizer = optax.adam(0.03)

  @jax.jit
  def step(params, state, key):
    states, actions, rewards = sample(params, key)
    before = log_probs(params, states, actions).log_prob
    for _ in range(EPOCHS):
      gradient, entropy = jax.grad(loss_of, has_aux=True)(
        params, states, actions, rewards - rewards.mean(), before
      )
      updates, state = optimizer.update(gradient, state)
      params = optax.apply_updates(params, updates)
    return params, state, rewards.mean(), entropy

  state = optimizer.init(params)
  for i in range(BATCHES):
    key = jax.random.fold_in(jax.random.key(2), i)
    params, state, accuracy, entropy = step(params, state, key)
    if i % 5 == 4:
      print(f"batch {i + 1:2} reward {accuracy:.3f} entropy {entropy:.3f}")
  print(f"accuracy {accuracy:.4f}")


if __name__ == "__main__":
  main()
