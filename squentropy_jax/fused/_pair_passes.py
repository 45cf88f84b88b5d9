# SPDX-License-Identifier: Apache-2.0
"""The passes over a student's head and its teacher's, on one device.

A tile of logits of each is computed at a time, for the same rows and the same
classes. Features are ``[N, d]`` here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import divergences, varying
from squentropy_jax._core.class_sums import ClassSums, shift_of
from squentropy_jax._core.elementwise import log
from squentropy_jax.fused import _parts, _plan, _tiles, _xla
from squentropy_jax.fused._head import Arrays, Gradient, Head
from squentropy_jax.fused._plan import Blocks


class Divergence(NamedTuple):
  """A divergence of two distributions, q of the student and p of the teacher.

  It is the sum of two halves, an expectation under p and one under q.

  Attributes:
    terms: ``terms(log_p, log_q)``, the terms of both halves for each class.
    by_student: ``by_student(log_p, log_q, of_p, of_q)``, the derivative by the
      student's logits from the two halves.
    by_teacher: The derivative by the teacher's logits.
  """

  terms: Callable[..., tuple[jax.Array, jax.Array]]
  by_student: Callable[..., jax.Array]
  by_teacher: Callable[..., jax.Array]


def _difference(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
  """The derivative of an expectation of ``-log q`` under p by q's logits."""
  return jnp.exp(log_q) - jnp.exp(log_p)


def _centred(log_p: jax.Array, score: jax.Array, mean: jax.Array) -> jax.Array:
  """The derivative of an expectation under p by its logits; 0 for p of 0."""
  p = jnp.exp(log_p)
  return jnp.where(p == 0, jnp.zeros_like(p), p * (score - mean))


def _to_other(log_p: jax.Array, log_q: jax.Array, mean: jax.Array) -> jax.Array:
  return _centred(log_p, divergences.log_ratio(log_p, log_q), mean)


def _to_mixture(
  log_p: jax.Array, log_q: jax.Array, mean: jax.Array
) -> jax.Array:
  score = 0.5 * divergences.log_ratio_to_mixture(log_p, log_q)
  return _centred(log_p, score, mean)


DIVERGENCES = {
  "forward_kl": Divergence(
    lambda p, q: (divergences.kl_terms(p, q), jnp.zeros_like(p)),
    lambda p, q, of_p, of_q: _difference(p, q),
    lambda p, q, of_p, of_q: _to_other(p, q, of_p),
  ),
  "reverse_kl": Divergence(
    lambda p, q: (jnp.zeros_like(p), divergences.kl_terms(q, p)),
    lambda p, q, of_p, of_q: _to_other(q, p, of_q),
    lambda p, q, of_p, of_q: _difference(q, p),
  ),
  "jensen_shannon": Divergence(
    lambda p, q: (
      0.5 * divergences.mixture_terms(p, q),
      0.5 * divergences.mixture_terms(q, p),
    ),
    lambda p, q, of_p, of_q: _to_mixture(q, p, of_q),
    lambda p, q, of_p, of_q: _to_mixture(p, q, of_p),
  ),
}


class Normalizer(NamedTuple):
  """The logarithm of a row's sum of exponentials, ``shift + log_sum``."""

  shift: jax.Array
  log_sum: jax.Array


def normalizer(sums: ClassSums) -> Normalizer:
  """The normalizer from the sums over all classes."""
  return Normalizer(shift_of(sums.max), log(sums.sum_exp))


class Pair(NamedTuple):
  """What there is of the student and of the teacher."""

  student: Any
  teacher: Any


class Rows(NamedTuple):
  """What is known of rows before the divergence, to be cut into blocks."""

  features: Pair
  factor: Pair
  normalizer: Pair


def rows_of(arrays: Pair, normalizers: Pair) -> Rows:
  """The rows of two heads and their normalizers."""
  return Rows(
    Pair(arrays.student.features, arrays.teacher.features),
    Pair(arrays.student.factor, arrays.teacher.factor),
    normalizers,
  )


def _classes_of(
  heads: Pair, arrays: Pair, start: jax.Array | int, width: int
) -> Pair:
  return Pair(
    *(
      _parts.classes_of(head, some, start, width)
      for head, some in zip(heads, arrays, strict=True)
    )
  )


def _with_rows(arrays: Pair, rows: Rows) -> Pair:
  return Pair(
    *(
      some._replace(features=features, factor=factor)
      for some, features, factor in zip(
        arrays, rows.features, rows.factor, strict=True
      )
    )
  )


def _log_probs(z: jax.Array, norm: Normalizer) -> jax.Array:
  # The logarithm of the sum is small: with it first, large logits would cancel.
  return (z - norm.shift[:, None]) - norm.log_sum[:, None]


def dtype_of(heads: Pair) -> jnp.dtype:
  """The dtype of the divergence."""
  return jnp.promote_types(heads.student.sum_dtype, heads.teacher.sum_dtype)


def _tile(
  heads: Pair, parts: Pair, normalizers: Pair
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The student's logits, and log-probabilities of teacher and student."""
  z, of_teacher = (
    _tiles.logits(head, part) for head, part in zip(heads, parts, strict=True)
  )
  dtype = dtype_of(heads)
  log_q, log_p = (
    _log_probs(x, norm).astype(dtype)
    for x, norm in zip((z, of_teacher), normalizers, strict=True)
  )
  return z, log_p, log_q


def halves(
  heads: Pair, divergence: str, blocks: Blocks, arrays: Pair, rows: Rows
) -> jax.Array:
  """Both halves of the divergence of each row, ``[N, 2]``: two products."""
  axes = varying.axes_of(arrays, rows)

  def over_a_block(_, some_rows):
    some = _with_rows(arrays, some_rows)

    def over_classes(total, start, width, _):
      parts = _classes_of(heads, some, start, width)
      _, log_p, log_q = _tile(heads, parts, some_rows.normalizer)
      terms = DIVERGENCES[divergence].terms(log_p, log_q)
      return total + jnp.stack([x.sum(-1) for x in terms], axis=-1), None

    count = some_rows.features.student.shape[0]
    zero = varying.vary(jnp.zeros((count, 2), dtype_of(heads)), axes)
    total = _parts.num_classes(heads.student, arrays.student)
    return None, _plan.over_blocks(over_classes, zero, total, blocks.classes)[0]

  return _plan.over_rows(over_a_block, None, rows, blocks.rows)[1]


def _cotangent(
  heads: Pair,
  divergence: str,
  parts: Pair,
  rows: Rows,
  of_rows: jax.Array,
  cotangent: jax.Array,
  by_factor: bool,
) -> tuple[jax.Array, jax.Array | None]:
  """That of the student's products plus bias, and that of the factor."""
  rule, head = DIVERGENCES[divergence], heads.student
  z, log_p, log_q = _tile(heads, parts, rows.normalizer)
  of_p, of_q = of_rows[:, :1], of_rows[:, 1:]
  by_row = cotangent[:, None]
  zero = jnp.zeros_like(log_q)

  def weighted(g: jax.Array) -> jax.Array:
    # A dropped row may have an infinite divergence.
    return jnp.where(by_row == 0, zero, by_row * g)

  g = weighted(rule.by_student(log_p, log_q, of_p, of_q))
  impossible = log_q == -jnp.inf
  if parts.student.bias is not None:
    g = jnp.where(impossible, zero, g)
  factor = None
  if by_factor:
    # Both derivatives sum to 0, so the normalizers may be left out.
    of_teacher = weighted(rule.by_teacher(log_p, log_q, of_p, of_q))
    terms = g * jnp.where(impossible, zero, log_q)
    terms += of_teacher * jnp.where(log_p == -jnp.inf, zero, log_p)
    factor = (terms.sum(-1) / parts.student.factor.astype(g.dtype)).astype(
      head.sum_dtype
    )
  bend = _tiles.logit_derivative(
    head, _tiles.as_column(parts.student.factor), z
  )
  return g.astype(head.sum_dtype) * bend, factor


def gradient(
  heads: Pair,
  divergence: str,
  blocks: Blocks,
  arrays: Pair,
  rows: Rows,
  of_rows: jax.Array,
  cotangent: jax.Array,
  wanted: frozenset[str],
  kernel_dtype: np.dtype,
  scatter: tuple[str, ...],
) -> Gradient:
  """The gradient of the student's arrays and of the factor of both heads.

  Three products of the student and one of the teacher. The gradient of the
  factor is that of the classes here. ``scatter`` is as in
  `_xla.recomputed_gradient`.
  """
  axes = varying.axes_of(arrays, rows, of_rows, cotangent)
  head: Head = heads.student
  student: Arrays = arrays.student
  every_row = rows, of_rows, cotangent
  names = wanted & {"features", "factor"}

  def over_classes(gradient, start, width, _):
    parts = _classes_of(heads, arrays, start, width)
    of_classes = _xla.zeros_like(head, parts.student, wanted - names, axes)

    def over_rows(carry, row, height, _):
      by_rows, by_classes = carry
      some_rows, some, some_cotangent = _plan.cut(every_row, row, height)
      block = _with_rows(parts, some_rows)
      g, factor = _cotangent(
        heads,
        divergence,
        block,
        some_rows,
        some,
        some_cotangent,
        "factor" in wanted,
      )
      old = by_classes | _plan.cut(by_rows, row, height)
      of_factor = (
        {"factor": old.pop("factor") + factor} if "factor" in old else {}
      )
      new = _xla.add_products(head, old, g, block.student) | of_factor
      by_rows = {
        n: lax.dynamic_update_slice_in_dim(x, new[n], row, 0)
        for n, x in by_rows.items()
      }
      return (by_rows, {n: new[n] for n in by_classes}), None

    (by_rows, of_classes), _ = _plan.over_blocks(
      over_rows,
      ({n: gradient[n] for n in names}, of_classes),
      student.features.shape[0],
      blocks.rows,
    )
    if scatter and "kernel" in of_classes:
      of_classes["kernel"] = _xla.reduced_tile(
        head, scatter, of_classes["kernel"], student.kernel, kernel_dtype
      )
    return _parts.put_classes(head, gradient | by_rows, of_classes, start), None

  zero = _xla.zeros_like(head, student, wanted, axes, kernel_dtype, scatter)
  total = _parts.num_classes(head, student)
  return _plan.over_blocks(over_classes, zero, total, blocks.classes)[0]
