# SPDX-License-Identifier: Apache-2.0
"""Linear heads under the checks of JAX, and over several processes."""

import functools
import types
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.heads import COTANGENT, FEATURES, KERNEL, LABELS, ROWS
from support.sharded import SPECS, mesh_of

from squentropy_jax import fused, losses
from squentropy_jax.fused import _arguments
from squentropy_jax.fused._mesh import Layout

KEEP = np.arange(ROWS) != 1
# Arrays of JAX: their conversion from NumPy is checked for NaN by itself.
DIRTY = jnp.where(KEEP[:, None], FEATURES, jnp.nan)
NO_LABELS = np.where(KEEP, LABELS, -100)
TEMPERATURE = jnp.where(KEEP, jnp.float32(2), jnp.nan)
INFINITE = jnp.where(KEEP, COTANGENT, jnp.inf)
LOSS = functools.partial(losses.ldr_kl, temperature=TEMPERATURE)


def total(mode, labels, features, kernel):
  """A sum of losses with a dropped row that holds nothing but NaN."""
  if mode is None:
    each = fused.linear_loss(LOSS, features, kernel, labels, where=KEEP)
    return COTANGENT @ each
  return fused.linear_loss_sum(
    LOSS,
    features,
    kernel,
    labels,
    where=KEEP,
    weights=INFINITE,
    plan=fused.Plan(mode),
  )[0]


def of_stats(labels, features, kernel):
  stats = fused.linear_row_stats(features, kernel, labels, where=KEEP)
  return sum(field.sum() for field in stats)


PAIR = (
  np.stack([NO_LABELS, np.full(ROWS, -7)], -1),
  jnp.stack([jnp.ones(ROWS), jnp.where(KEEP, 0.0, jnp.nan)], -1),
)
CALLS = {
  "linear_loss": functools.partial(total, None, NO_LABELS),
  "linear_loss of pairs": functools.partial(total, None, PAIR),
  "grad_in_forward": functools.partial(total, "grad_in_forward", NO_LABELS),
  "recompute": functools.partial(total, "recompute", NO_LABELS),
  "frozen_kernel": functools.partial(total, "frozen_kernel", NO_LABELS),
  "linear_row_stats": functools.partial(of_stats, NO_LABELS),
}


@pytest.mark.parametrize("name", CALLS)
def test_no_nan_and_no_leak_with_a_dropped_row(name):
  """Eager and compiled, value and gradient."""
  head = CALLS[name]
  with jax.debug_nans(True), jax.checking_leaks():
    for wrapped in (lambda f: f, jax.jit):
      value = wrapped(head)(DIRTY, KERNEL)
      again, gradients = wrapped(jax.value_and_grad(head, (0, 1)))(
        DIRTY, KERNEL
      )
      assert np.isfinite(value)
      np.testing.assert_allclose(value, again, rtol=1e-5)
      assert not np.any(gradients[0][~KEEP])


def test_nan_of_a_kept_row_is_found():
  """The check above can fail."""
  with jax.debug_nans(True), pytest.raises(FloatingPointError):
    fused.linear_loss(losses.squentropy, DIRTY, KERNEL, LABELS)


# An eager call on arrays of several processes must not raise on one of them:
# the others would wait. Stand-ins play the arrays that cannot be made here.


def readable(labels=LABELS, layout=None, **changed):
  """Whether the labels of a call are read."""
  arguments = _arguments.HeadArguments(
    **{
      "features": jnp.asarray(FEATURES),
      "kernel": jnp.asarray(KERNEL),
      "bias": None,
      "labels": labels,
      "where": None,
      "weights": None,
    }
    | changed
  )
  return _arguments.known_rows_of(arguments, layout or Layout())[0]


def of_processes():
  """An array with parts on other processes, as far as the checks know."""
  array = unittest.mock.Mock(spec=jax.Array)
  array.is_fully_addressable, array.shape = False, FEATURES.shape
  return array


@pytest.mark.parametrize(
  "name", ["features", "kernel", "bias", "labels", "where", "weights"]
)
def test_labels_are_not_read_where_an_array_spans_processes(name):
  assert readable()
  assert not readable(**{name: of_processes()})


def test_labels_are_not_read_where_the_mesh_spans_processes():
  here, there = (types.SimpleNamespace(process_index=i) for i in (0, 1))
  mesh = types.SimpleNamespace(devices=np.array([[here, here]]))
  assert readable(layout=Layout(mesh))
  mesh.devices = np.array([[here, there]])
  assert not readable(layout=Layout(mesh))


def test_labels_that_are_not_read_give_nan():
  labels = np.where(KEEP, LABELS, -1)
  head = functools.partial(
    fused.linear_loss, losses.squentropy, FEATURES, KERNEL, labels
  )
  mesh = {"mesh": mesh_of((2, 4)), **SPECS}
  with pytest.raises(ValueError, match=r"labels\[1\] = -1 is outside"):
    head(**mesh)
  spans = unittest.mock.PropertyMock(return_value=True)
  with unittest.mock.patch.object(Layout, "spans_processes", spans):
    found = head(**mesh)
  np.testing.assert_array_equal(np.isnan(found), ~KEEP)
