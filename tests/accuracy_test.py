# SPDX-License-Identifier: Apache-2.0
"""Errors of losses and gradients in ulp of the true value.

With u one ulp and K the largest gap between a logit and the target's, the
bounds are: cross-entropy 4 + K/2 u (1 u more per factor 32 of the class count
above 1000) and its gradient's entries 8 + K u; sums of squares 4 u and their
gradient's entries 8 u; squentropy the sum of both, each in its own unit. The
rows of the table keep K/2 u; any row keeps K u, which is what the exponential
makes of half a unit in the last place of its argument where u is smallest.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import references

from squentropy_jax import losses

TABLE = json.loads(references.TABLE.read_text(encoding="utf-8"))
LOSSES = {name: getattr(losses, name) for name in references.DEFINITIONS}
DTYPES = [np.float32, pytest.param(np.float64, marks=pytest.mark.x64)]


def unit(truth, dtype):
  """One ulp, at least that of the smallest normal number."""
  truth = np.abs(truth).astype(dtype)
  return np.spacing(np.maximum(truth, np.finfo(dtype).tiny)).astype(np.float64)


def from_hex(values):
  return np.array([float.fromhex(h) for h in values])


def by_shape(dtype):
  """Rows of one length go through one call."""
  groups = {}
  for entry in TABLE:
    row, label = references.row_of(entry)
    groups.setdefault(row.size, []).append((entry, row.astype(dtype), label))
  for group in groups.values():
    entries, rows, labels = zip(*group, strict=True)
    yield entries, np.stack(rows), np.array(labels)


def gap(rows, labels):
  target = np.take_along_axis(rows, labels[:, None], axis=1)
  return np.abs(np.float64(rows) - target).max(-1)


def value_of(entries, name):
  return from_hex([e["truth"][name]["value"] for e in entries])


def gradient_of(entries, name):
  return np.stack([from_hex(e["truth"][name]["gradient"]) for e in entries])


def value_bound(name, entries, rows, labels, dtype):
  """The bound on the error of the value."""
  size = rows.shape[-1]
  exponential = 4 + gap(rows, labels) / 2
  if size > 1000:
    exponential += np.log(size / 1000) / np.log(32)
  true = value_of(entries, name)
  if name == "cross_entropy":
    return exponential * unit(true, dtype)
  if name == "rescaled_square":
    return 4 * unit(true, dtype)
  entropy = value_of(entries, "cross_entropy")
  # The sum itself is rounded once.
  return (
    exponential * unit(entropy, dtype)
    + 4 * unit(true - entropy, dtype)
    + 0.5 * unit(true, dtype)
  )


def gradient_bound(name, entries, rows, labels, dtype):
  """The bound on the error of every entry of the gradient."""
  exponential = 8 + gap(rows, labels)[:, None]
  true = gradient_of(entries, name)
  if name == "cross_entropy":
    return exponential * unit(true, dtype)
  if name == "rescaled_square":
    return 8 * unit(true, dtype)
  entropy = gradient_of(entries, "cross_entropy")
  return exponential * unit(entropy, dtype) + 8 * unit(true - entropy, dtype)


def report(entries, errors, bounds):
  outside = np.flatnonzero(~(errors <= bounds))
  return [(entries[i]["regime"], errors[i], bounds[i]) for i in outside]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_values(name, dtype):
  tiny = np.finfo(dtype).tiny
  for entries, rows, labels in by_shape(dtype):
    actual = np.float64(jax.jit(LOSSES[name])(rows, labels))
    truth = value_of(entries, name)
    errors = np.abs(actual - truth)
    # A truth below the normal numbers may be flushed to 0.
    bounds = value_bound(name, entries, rows, labels, dtype)
    violations = report(
      entries, errors, bounds + np.where(truth < tiny, tiny, 0)
    )
    assert not violations
    assert (actual[truth > tiny] > 0).all()


@pytest.mark.parametrize("classes", [2, 10])
def test_any_row_is_within_the_bound_of_its_exponential(classes):
  rng = np.random.default_rng(1)
  rows = np.float32(30 * rng.normal(size=(4000, classes)))
  labels = rows.argmax(-1)
  rest = np.float64(rows) - np.float64(rows.max(-1, keepdims=True))
  np.put_along_axis(rest, labels[:, None], -np.inf, axis=1)
  truth = np.log1p(np.exp(rest).sum(-1))
  normal = truth > np.finfo(np.float32).tiny
  actual = np.float64(losses.cross_entropy(rows, labels))
  # Only the nearest classes contribute; the farthest would be too lax a bound.
  nearest = -rest.max(-1)
  bounds = (5 + nearest) * unit(truth, np.float32)
  assert normal.sum() > 3000
  assert (np.abs(actual - truth)[normal] <= bounds[normal]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name, dtype):
  tiny = np.finfo(dtype).tiny
  gradient = jax.jit(jax.grad(lambda z, y: LOSSES[name](z, y).sum()))
  for entries, rows, labels in by_shape(dtype):
    if "logits" not in entries[0]:
      continue
    actual = np.float64(gradient(rows, labels))
    truth = gradient_of(entries, name)
    bounds = gradient_bound(name, entries, rows, labels, dtype)
    errors = np.abs(actual - truth)
    small = np.where(np.abs(truth) < tiny, tiny, 0)
    assert not report(
      entries, (errors - bounds - small).max(-1), np.zeros(len(rows))
    )


def test_cross_entropy_gradients_sum_to_zero():
  gradient = jax.jit(jax.grad(lambda z, y: losses.cross_entropy(z, y).sum()))
  for entries, rows, labels in by_shape(np.float32):
    if "logits" in entries[0]:
      actual = np.float64(gradient(rows, labels))
      largest = unit(np.abs(actual).max(-1), np.float32)
      bounds = (8 + gap(rows, labels)) * largest
      assert not report(entries, np.abs(actual.sum(-1)), bounds)


def test_the_table_is_what_its_script_writes():
  """Derived again for a few rows of every kind."""
  assert len(TABLE) == len(references.recipes())
  for entry in TABLE[:: len(TABLE) // 6] + TABLE[-1:]:
    for name in LOSSES:
      assert references.truth(name, entry) == entry["truth"][name]


def test_soft_labels_of_a_confident_row_are_accurate():
  logits = jnp.array([[40.0, 0.0, -1.0]])
  one_hot = jnp.array([[1.0, 0.0, 0.0]])
  truth = np.log1p(np.exp(-40.0) + np.exp(-41.0))
  value = losses.cross_entropy(logits, one_hot)[0]
  np.testing.assert_allclose(value, truth, rtol=24 * 6e-8)
  gradient = jax.grad(lambda z: losses.cross_entropy(z, one_hot).sum())(logits)
  np.testing.assert_allclose(gradient[0, 0], -truth, rtol=64 * 6e-8)
