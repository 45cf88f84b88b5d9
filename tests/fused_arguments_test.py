# SPDX-License-Identifier: Apache-2.0
"""Invalid arguments of linear heads raise an error that names them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.heads import CLASSES, FEATURES, KERNEL, LABELS, ROWS, WIDTH

from squentropy_jax import RowStats, fused, losses

HEADS = {
  "linear_loss": functools.partial(fused.linear_loss, losses.squentropy),
  "linear_loss_sum": functools.partial(
    fused.linear_loss_sum, losses.squentropy
  ),
  "linear_row_stats": fused.linear_row_stats,
}
IDS = np.stack([LABELS, LABELS], -1)
HALVES = np.full((ROWS, 2), 0.5, np.float32)

INVALID = {
  "integer features": (
    {"features": FEATURES.astype(int)},
    TypeError,
    "features must be floating",
  ),
  "scalar features": (
    {"features": np.float32(1)},
    ValueError,
    "features must have a feature axis",
  ),
  "integer kernel": (
    {"kernel": KERNEL.astype(int)},
    TypeError,
    "kernel must be floating",
  ),
  "kernel of rank 3": (
    {"kernel": KERNEL[None]},
    ValueError,
    r"kernel must have the shape \[d, V\]",
  ),
  "kernel transposed": (
    {"kernel": KERNEL.T},
    ValueError,
    "pass class_axis=0",
  ),
  "no class": (
    {"kernel": KERNEL[:, :0]},
    ValueError,
    "kernel must have at least one class",
  ),
  "class axis 2": (
    {"class_axis": 2},
    ValueError,
    "class_axis must be 0 or 1",
  ),
  "labels of another shape": (
    {"labels": LABELS[:2]},
    ValueError,
    r"labels must have the batch shape \(6,\)",
  ),
  "dense targets": (
    {"labels": np.full((ROWS, CLASSES), 1 / CLASSES, np.float32)},
    TypeError,
    "labels must be class ids",
  ),
  "boolean labels": (
    {"labels": LABELS > 0},
    TypeError,
    "labels must be integers, got dtype bool",
  ),
  "label -1": (
    {"labels": LABELS - 1},
    ValueError,
    r"labels\[0\] = -1 is outside \[0, 9\)",
  ),
  "label C": (
    {"labels": LABELS + 4},
    ValueError,
    r"labels\[5\] = 9 is outside \[0, 9\)",
  ),
  "bias of another shape": (
    {"bias": np.zeros(2, np.float32)},
    ValueError,
    r"bias must have the shape \(9,\)",
  ),
  "integer bias": (
    {"bias": np.zeros(CLASSES, int)},
    TypeError,
    "bias must be floating",
  ),
  "class mask": (
    {"where": np.ones((ROWS, CLASSES), bool)},
    ValueError,
    "Make classes impossible with bias=-inf",
  ),
  "where of numbers": (
    {"where": np.ones(ROWS)},
    TypeError,
    "where must be boolean.*return sums have weights=",
  ),
  "soft_cap 0": (
    {"soft_cap": 0.0},
    ValueError,
    r"soft_cap must be in \(0, inf\)",
  ),
  "where with a class axis of length 1": (
    {"where": np.ones((ROWS, 1), bool)},
    ValueError,
    r"where must have the batch shape \(6,\).*Pass where\[\.\.\., 0\]",
  ),
  "where of another batch": (
    {"where": np.ones(2, bool)},
    ValueError,
    r"Pass jnp\.broadcast_to\(where, \(6,\)\)",
  ),
  "mode as the plan": (
    {"plan": "recompute"},
    TypeError,
    r"plan must be a fused\.Plan, got 'recompute'",
  ),
  "another mode": (
    {"plan": fused.Plan("fast")},
    ValueError,
    "mode of plan must be one of",
  ),
  "budget 0": (
    {"plan": fused.Plan(memory_budget=0)},
    ValueError,
    r"memory_budget of plan must be in \[1, inf\)",
  ),
  "budget in words": (
    {"plan": fused.Plan(memory_budget="1")},
    TypeError,
    "memory_budget of plan must be one int",
  ),
  "mesh in words": (
    {"mesh": "x"},
    TypeError,
    r"mesh must be a jax\.sharding\.Mesh",
  ),
  "integer products": (
    {"compute_dtype": jnp.int32},
    TypeError,
    "compute_dtype must be a floating dtype",
  ),
  "sums of eight bits": (
    {"reduce_dtype": jnp.float8_e4m3fn},
    TypeError,
    "reduce_dtype must be a floating dtype of 16 bits or more",
  ),
  "dtype in words": (
    {"compute_dtype": "half a float"},
    TypeError,
    "compute_dtype must be a floating dtype",
  ),
  "soft_cap in words": (
    {"soft_cap": "a"},
    TypeError,
    "soft_cap must be a real number",
  ),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("case", INVALID)
def test_argument_that_does_not_fit(name, case):
  changed, error, message = INVALID[case]
  arguments = {"features": FEATURES, "kernel": KERNEL, "labels": LABELS}
  with pytest.raises(error, match=message):
    HEADS[name](**arguments | changed)


@pytest.mark.parametrize(
  ("labels", "error", "message"),
  [
    ((IDS, HALVES, HALVES), TypeError, r"must be a pair \(ids, prob"),
    ((HALVES, HALVES), TypeError, "ids of labels must be integers"),
    ((IDS, IDS), TypeError, "probabilities of labels must be floating"),
    ((IDS, HALVES[:, :1]), ValueError, "must both have the shape"),
    ((LABELS, HALVES[:, 0]), ValueError, "must both have the shape"),
    ((IDS[:, :0], HALVES[:, :0]), ValueError, "labels must hold one class id"),
    ((IDS + 7, HALVES), ValueError, r"labels\[2, 0\] = 9 is outside"),
  ],
)
def test_sparse_targets_that_do_not_fit(labels, error, message):
  with pytest.raises(error, match=message):
    fused.linear_loss(losses.squentropy, FEATURES, KERNEL, labels)


def test_sparse_targets_have_no_row_stats():
  with pytest.raises(
    TypeError, match="labels must be class ids for linear_row_stats"
  ):
    fused.linear_row_stats(FEATURES, KERNEL, (IDS, HALVES))


def test_invalid_ids_of_unused_entries_are_no_error():
  ids = np.where(np.arange(2) == 1, -100, IDS)
  probabilities = np.where(np.arange(2) == 1, 0, 2 * HALVES)
  labels = LABELS.copy()
  labels[1] = -100
  one = HEADS["linear_loss"](FEATURES, KERNEL, (ids, probabilities))
  np.testing.assert_array_equal(
    one, HEADS["linear_loss"](FEATURES, KERNEL, LABELS)
  )
  for drop in ({"where": LABELS != 1}, {"weights": 1.0 * (LABELS != 1)}):
    _, count, _ = HEADS["linear_loss_sum"](FEATURES, KERNEL, labels, **drop)
    assert count == 5.0


@pytest.mark.parametrize("name", ["linear_loss", "linear_row_stats"])
def test_only_sums_have_their_gradient_in_the_forward_pass(name):
  with pytest.raises(ValueError, match=r"Use fused\.linear_loss_sum"):
    HEADS[name](FEATURES, KERNEL, LABELS, plan=fused.Plan("grad_in_forward"))


def test_weights_that_do_not_fit():
  head = functools.partial(HEADS["linear_loss_sum"], FEATURES, KERNEL, LABELS)
  with pytest.raises(ValueError, match="weights must have the batch shape"):
    head(weights=np.ones(2, np.float32))
  with pytest.raises(TypeError, match="weights must be real numbers"):
    head(weights=np.ones(ROWS, bool))
  with pytest.raises(TypeError, match="weights must be a real number"):
    head(weights=np.ones(ROWS, np.complex64))


def test_traced_soft_cap_is_refused():
  with pytest.raises(TypeError, match="soft_cap must be a number"):
    jax.grad(
      lambda cap: HEADS["linear_loss"](
        FEATURES, KERNEL, LABELS, soft_cap=cap
      ).sum()
    )(3.0)


@pytest.mark.parametrize(
  ("loss", "hyper", "error", "message"),
  [
    (losses.brier, {}, TypeError, r"loss must be a row loss.*got brier"),
    (losses.squentropy, {"sclae": 1.0}, TypeError, "no hyper-parameter sclae"),
    (losses.cross_entropy, {"scale": 1.0}, TypeError, "It has none"),
    (losses.comp_sum, {"tau": -1.0}, ValueError, "tau must be"),
    (losses.squentropy, {"scale": np.ones(2)}, ValueError, "scale must be a"),
    (
      losses.squentropy,
      {"scale": np.where(np.arange(ROWS) == 4, -1.0, 1.0)},
      ValueError,
      r"scale must be in \[0, inf\)",
    ),
    (losses.squentropy, {"scale": True}, TypeError, "must be a real number"),
  ],
)
def test_loss_that_does_not_fit(loss, hyper, error, message):
  with pytest.raises(error, match=message):
    fused.linear_loss(
      functools.partial(loss, **hyper), FEATURES, KERNEL, LABELS
    )


@pytest.mark.parametrize(
  ("loss", "smoothing", "error", "message"),
  [
    (
      losses.comp_sum,
      0.1,
      ValueError,
      "label_smoothing must be 0 for comp_sum",
    ),
    (losses.squentropy, 2.0, ValueError, r"in \[0, 1\]"),
    (losses.comp_sum, False, TypeError, "a real number"),
    (losses.squentropy, np.zeros(2), ValueError, "must be a scalar"),
  ],
)
def test_smoothing_that_does_not_fit(loss, smoothing, error, message):
  with pytest.raises(error, match=message):
    fused.linear_loss(loss, FEATURES, KERNEL, LABELS, label_smoothing=smoothing)


def test_partial_has_keywords_only():
  with pytest.raises(TypeError, match="keyword arguments only"):
    fused.linear_loss(
      functools.partial(losses.squentropy, FEATURES), FEATURES, KERNEL, LABELS
    )


def test_hyperparameters_come_by_partial_only():
  with pytest.raises(TypeError, match="unexpected keyword argument 'scale'"):
    fused.linear_loss(losses.squentropy, FEATURES, KERNEL, LABELS, scale=0.5)


@pytest.mark.parametrize(
  "zero", [0, 0.0, np.float32(0), np.zeros(()), jnp.float32(0)], ids=repr
)
def test_smoothing_by_any_zero_is_none(zero):
  """So it is no error for a loss that declares no formula for it."""
  head = functools.partial(
    fused.linear_loss, losses.comp_sum, FEATURES, KERNEL, LABELS
  )
  np.testing.assert_array_equal(head(label_smoothing=zero), head())


def test_outer_partial_wins():
  """As in Python."""
  head = functools.partial(
    fused.linear_loss, features=FEATURES, kernel=KERNEL, labels=LABELS
  )
  inner = functools.partial(losses.squentropy, scale=0.5)
  np.testing.assert_array_equal(
    head(functools.partial(inner, scale=2.0)),
    head(functools.partial(losses.squentropy, scale=2.0)),
  )
  assert np.any(head(inner) != head(losses.squentropy))


def test_narrow_float_inputs_are_taken():
  """Eight bits are widened for the products, and get narrow gradients."""
  features = jnp.asarray(FEATURES, jnp.float8_e4m3fn)

  def head(h):
    return HEADS["linear_loss"](h, KERNEL, LABELS).sum()

  loss, gradient = jax.value_and_grad(head)(features)
  assert loss.dtype == jnp.float32
  assert gradient.dtype == features.dtype
  np.testing.assert_allclose(loss, head(FEATURES), rtol=1e-6)
  assert features.shape == (ROWS, WIDTH)


def test_row_stats_type():
  stats = HEADS["linear_row_stats"](FEATURES, KERNEL, LABELS)
  assert isinstance(stats, RowStats)
  assert {x.shape for x in stats} == {(ROWS,)}


@pytest.mark.parametrize("name", ["compute_dtype", "reduce_dtype"])
def test_dtype_in_every_form(name):
  """A class, a dtype and a name of a dtype are the same setting."""
  forms = (jnp.bfloat16, jnp.dtype(jnp.bfloat16), "bfloat16")
  first, *others = (
    jax.eval_shape(
      functools.partial(HEADS["linear_loss_sum"], **{name: form}),
      FEATURES,
      KERNEL,
      LABELS,
    )
    for form in forms
  )
  assert all(other == first for other in others)
