# SPDX-License-Identifier: Apache-2.0
"""A small distillation of two heads, and its exact values."""

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax import fused

KINDS = ("forward_kl", "reverse_kl", "jensen_shannon")
ROWS, WIDTH, OF_TEACHER, CLASSES = 6, 5, 4, 9
RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


FEATURES, KERNEL, BIAS = normal(ROWS, WIDTH), normal(WIDTH, CLASSES), normal(9)
TEACHER = normal(ROWS, OF_TEACHER), normal(OF_TEACHER, CLASSES)
TEACHER_BIAS = normal(CLASSES)
TEMPERATURE = np.linspace(0.5, 2.0, ROWS, dtype=np.float32)
COTANGENT = np.linspace(-1.0, 2.0, ROWS, dtype=np.float32)
# Blocks of 5 classes and, for 200 rows, of 100 rows.
SMALL = fused.Plan(memory_budget=1)


def divergence(kind, z, t):
  """From the logits of student and teacher, in the dtype of both."""
  p, q = jax.nn.softmax(t, -1), jax.nn.softmax(z, -1)

  def kl(a, b):
    ratio = jnp.log(jnp.where(a > 0, a, 1.0)) - jnp.log(b)
    return jnp.where(a > 0, a * ratio, 0.0).sum(-1)

  if kind == "forward_kl":
    return kl(p, q)
  if kind == "reverse_kl":
    return kl(q, p)
  return 0.5 * kl(p, (p + q) / 2) + 0.5 * kl(q, (p + q) / 2)


def reference(kind, features, kernel, bias, temperature, teacher, caps=None):
  """The weighted sum of the divergences, and its gradients, in float64."""

  def total(features, kernel, bias, temperature):
    z = features @ kernel + bias[None]
    t = teacher[0] @ teacher[1] + teacher[2][None]
    if caps is not None:
      z, t = (c * jnp.tanh(x / c) for c, x in zip(caps, (z, t), strict=True))
    if temperature.ndim:
      temperature = temperature[:, None]
    each = divergence(kind, z / temperature, t / temperature)
    weights = jnp.asarray(COTANGENT, jnp.float64)
    return (each * weights).sum(), each

  arguments = (features, kernel, bias, temperature)
  with jax.enable_x64(True):
    wide = [jnp.asarray(x, jnp.float64) for x in arguments]
    teacher = [jnp.asarray(x, jnp.float64) for x in teacher]
    run = jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True)
    (_, each), gradients = jax.tree.map(np.asarray, run(*wide))
  return each, gradients


def head(features, kernel, bias, temperature, **settings):
  return fused.linear_distillation(
    features,
    kernel,
    *TEACHER,
    student_bias=bias,
    teacher_bias=TEACHER_BIAS,
    temperature=temperature,
    plan=SMALL,
    **settings,
  )
