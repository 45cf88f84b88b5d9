# SPDX-License-Identifier: Apache-2.0
"""The figure of docs/transforms.md; `page_figures` draws it."""

from typing import Any

from figures import COLOURS, DASHES
import jax
import jax.numpy as jnp
import optax

from squentropy_jax import losses, transforms

STEP_SIZES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
LIMIT = 20_000


def steps_to_separate(normalized: bool, step_size: float) -> int:
  """Steps of gradient descent on one example against 999 of another."""
  points = jnp.array([[0.5, -1.0]] + [[-0.5, -1.0]] * 999)
  signs = jnp.array([1.0] + [-1.0] * 999)
  labels = (signs > 0).astype(jnp.int32)
  scale = transforms.scale_by_error_mass() if normalized else optax.identity()
  optimizer = optax.chain(scale, optax.sgd(step_size))

  def loss(w: jax.Array) -> tuple[jax.Array, jax.Array]:
    score = points @ w
    logits = jnp.stack([jnp.zeros_like(score), score], axis=-1)
    return losses.cross_entropy(logits, labels).mean(), logits

  def step(carry: Any) -> Any:
    w, state, count = carry
    gradient, logits = jax.grad(loss, has_aux=True)(w)
    mass = transforms.error_mass(logits, labels)
    updates, state = optimizer.update(gradient, state, error_mass=mass)
    return optax.apply_updates(w, updates), state, count + 1

  def unfinished(carry: Any) -> jax.Array:
    w, _, count = carry
    return ((signs * (points @ w)).min() <= 0) & (count < LIMIT)

  w = jnp.zeros(2)
  start = w, optimizer.init(w), jnp.int32(0)
  return int(
    jax.jit(lambda c: jax.lax.while_loop(unfinished, step, c))(start)[2]
  )


def norms(learning_rate: float) -> jax.Array:
  """The norm of the gradient of the mean prediction in each step."""
  keys = jax.random.split(jax.random.key(0), 3)
  x = jax.random.uniform(keys[0], (64, 3), minval=-1.0)
  y = jnp.sin(3 * x[:, 0]) + 2 * x[:, 1]
  params = {
    "in": jax.random.normal(keys[1], (3, 16)),
    "out": jax.random.normal(keys[2], (16,)) / 4,
  }

  def apply_fn(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["in"]) @ params["out"]

  optimizer = optax.sgd(0.05, momentum=0.9)
  multiplier = transforms.constraint_multiplier(
    1.0, 0.1, learning_rate, initial=0.0
  )

  def step(carry: Any, _: None) -> Any:
    params, state, factor = carry
    gradients = jax.grad(lambda p: ((apply_fn(p, x) - y) ** 2).mean())(params)
    penalty, norm = transforms.output_gradient_norm(
      apply_fn, params, x, rho=1.0
    )
    gradients = jax.tree.map(lambda g, p: g + factor * p, gradients, penalty)
    updates, state = optimizer.update(gradients, state)
    factor = multiplier.update(norm, factor)
    return (optax.apply_updates(params, updates), state, factor), norm

  start = params, optimizer.init(params), multiplier.init()
  return jax.jit(lambda c: jax.lax.scan(step, c, None, length=300)[1])(start)


def draw(panels: Any) -> None:
  """Steps by the step size, and the norm of the gradient by the step."""
  left, right = panels
  names = ("gradient descent", "with scale_by_error_mass")
  for style, name in enumerate(names):
    steps = [steps_to_separate(bool(style), size) for size in STEP_SIZES]
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    shown = [n if n < LIMIT else float("nan") for n in steps]
    left.loglog(STEP_SIZES, shown, label=name, marker="o", ms=3, **line)
  left.set_title("steps until all are correct", fontsize=9)
  left.set_xlabel("step size", fontsize=8)
  for style, (name, rate) in enumerate(
    (("no bound", 0.0), ("with the bound 0.1", 1.0))
  ):
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    right.plot(norms(rate), label=name, **line)
  right.axhline(0.1, color="0.8", lw=0.8, zorder=0)
  right.set_ylim(0.0)
  right.set_title("norm of the gradient", fontsize=9)
  right.set_xlabel("step", fontsize=8)
  for panel in panels:
    panel.legend(fontsize=7, frameon=False)
