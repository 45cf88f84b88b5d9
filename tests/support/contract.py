# SPDX-License-Identifier: Apache-2.0
"""What the contract tests of all losses share.

Compiling is most of the time. `evaluate` compiles a case about eight times, for
all tests together. What else is checked is one program for each test. All are
compiled without optimisations.
"""

import functools
from typing import NamedTuple

from cases import CLASS_CASES
import jax
import numpy as np
import pytest

from squentropy_jax.losses import _catalogue

EVERY = pytest.mark.parametrize("case", CLASS_CASES, ids=repr)
ROW = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if hasattr(c.loss, "row")], ids=repr
)
PREDICTS = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.predicts], ids=repr
)
PROPER = {entry.name: entry.proper for entry in _catalogue.CATALOGUE}
SOFT = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.soft_is_expected], ids=repr
)
F32 = np.float32

# Six rows and five classes: small, ragged, and larger than any corner of them.
LOGITS = np.random.default_rng(20230207).normal(size=(6, 5)).astype(F32) * 2
LABELS = np.array([0, 4, 2, 3, 1, 2], np.int32)


# Programs this small take longer to optimise than to run.
jit = functools.partial(
  jax.jit, compiler_options={"xla_backend_optimization_level": 0}
)


@functools.cache
def compiled(loss):
  """One jitted loss per case, shared by the tests."""
  return jit(loss, static_argnames="axis")


class Result(NamedTuple):
  """A loss of each example, and the gradients of their sum.

  Attributes:
    loss: Of each example.
    by_logit: Of the logits' shape.
    by_label: Of the labels' shape if they are soft, else None.
    by_number: By hyper-parameter, each of its own shape.
  """

  loss: np.ndarray
  by_logit: np.ndarray
  by_label: np.ndarray | None
  by_number: dict[str, np.ndarray]


@functools.cache
def _evaluated(loss):
  def total(arrays, fixed):
    hyperparameters, arrays = arrays["hyperparameters"], {**arrays, **fixed}
    each = loss(
      arrays["logits"],
      arrays["labels"],
      where=arrays["where"],
      **hyperparameters,
    )
    return each.sum(), each

  return jit(jax.grad(total, has_aux=True))


def evaluate(case, logits, labels, where=None, **hyperparameters):
  """The `Result` of a case.

  It is one program for all calls in which the kind of the labels, of the mask
  and of the hyper-parameters, and the shapes are the same. A test that can use
  a program that another test compiles takes no time.
  """
  labels = np.asarray(labels)
  arrays = {"logits": logits, "hyperparameters": hyperparameters}
  fixed = {"where": where}
  is_hard = np.issubdtype(labels.dtype, np.integer)
  (fixed if is_hard else arrays)["labels"] = labels
  gradients, loss = jax.tree.map(
    np.asarray, _evaluated(case.loss)(arrays, fixed)
  )
  return Result(
    loss,
    gradients["logits"],
    gradients.get("labels"),
    gradients["hyperparameters"],
  )


def quickly_compiled(function):
  """The same function as one program, compiled without optimisations."""

  compiled_once = jit(function)

  def run(*args, **kwargs):
    return jax.tree.map(np.asarray, compiled_once(*args, **kwargs))

  return run


def reference(case, logits, labels, **hyperparameters):
  """The reference over a batch, classes of logit ``-inf`` taken away."""
  values = []
  for row, label in zip(np.float64(logits), labels, strict=True):
    possible = row > -np.inf
    values.append(
      case.reference(
        row[possible], int(possible[:label].sum()), **hyperparameters
      )
    )
  return np.array(values)


def reference_gradient(case, logits, labels, **hyperparameters):
  """Central differences of the reference; 0 at impossible classes."""
  step, grad = 1e-5, np.zeros(logits.shape)
  for k in range(logits.shape[-1]):
    if (logits[:, k] == -np.inf).all():
      continue
    up, down = np.float64(logits), np.float64(logits)
    up[:, k] += step
    down[:, k] -= step
    grad[:, k] = (
      reference(case, up, labels, **hyperparameters)
      - reference(case, down, labels, **hyperparameters)
    ) / (2 * step)
  return grad


def gradients_close(actual, expected):
  np.testing.assert_allclose(
    actual, expected, rtol=1e-5, atol=4e-6 * np.abs(expected).max()
  )


def size_of(case, logits, labels, **hyperparameters):
  """What rounding errors are relative to: the loss itself, or its terms."""
  sized = case if case.size is None else case._replace(reference=case.size)
  return np.abs(reference(sized, logits, labels, **hyperparameters))


def close(actual, expected, ulps=64, size=None):
  """Equal up to rounding errors of the largest term."""
  size = np.abs(expected) if size is None else size
  tolerance = ulps * np.finfo(F32).eps * np.maximum(size, 1e-30)
  np.testing.assert_array_less(
    np.abs(np.float64(actual) - expected), tolerance + 1e-37
  )


def soft_labels():
  p = np.random.default_rng(20230207).random((6, 5)).astype(F32)
  return p / p.sum(-1, keepdims=True)


def each_scaled(case):
  """Hyper-parameters ``[6]``, a little larger from example to example."""
  steps = 1 + 0.05 * np.arange(6)
  return {n: F32(value * steps) for n, value in case.hyperparameters.items()}


def predicted(case, logits):
  """The probabilities that a model trained with the loss predicts."""
  loss = getattr(case.loss, "func", case.loss)
  keywords = getattr(case.loss, "keywords", {})
  log_probs = loss.log_probs(F32(logits), **keywords)
  return np.exp(np.float64(log_probs))
