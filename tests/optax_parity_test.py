# SPDX-License-Identifier: Apache-2.0
"""optax's own tests of its softmax cross-entropy, passed by ours.

They ship inside its wheel. Ours stands in for optax's functions there, in the
poly loss built on them too; what is left out is named with its reason, and
README.md tells users of the same differences.
"""

import functools
import re
import unittest

import jax
import jax.numpy as jnp
import numpy as np
from optax.losses import _classification, _classification_test
import pytest

from squentropy_jax import losses

SUITES = (
  _classification_test.SoftmaxCrossEntropyTest,
  _classification_test.SafeSoftmaxCrossEntropyTest,
  _classification_test.SoftmaxCrossEntropyWithIntegerLabelsTest,
  _classification_test.PolyLossTest,
)

ON_MASKED_CLASS = (
  "Puts target mass on a masked class: optax drops it, we return NaN."
)
ONE_CLASS = "Has logits of one class, which ours refuse."
# Patterns, because older versions of optax put the arguments into the names.
DESELECTED = {
  r"PolyLossTest.test_equals_to_cross_entropy_when_eps0"
  r"(4|_\(logits=array\(\[0\.314\]\).*)": ONE_CLASS,
  "SoftmaxCrossEntropyTest.test_mask0": ON_MASKED_CLASS,
  "SoftmaxCrossEntropyTest.test_mask1": ON_MASKED_CLASS,
  "PolyLossTest.test_mask0": ON_MASKED_CLASS,
  "PolyLossTest.test_mask1": ON_MASKED_CLASS,
}


@functools.partial(jax.jit, static_argnames="axis")
def _stand_in(logits, labels, axis=-1, where=None):
  """Ours behind optax's signature, where ``axis`` may be several.

  Under jit, because some of their labels do not sum to 1, which is an error if
  the labels are known.
  """
  if isinstance(axis, tuple):
    end = range(-len(axis), 0)
    logits = jnp.moveaxis(jnp.asarray(logits), axis, tuple(end))
    logits = logits.reshape(*logits.shape[: -len(axis)], -1)
    axis = -1
  return losses.cross_entropy(logits, labels, axis=axis, where=where)


def _cases():
  loader = unittest.TestLoader()
  for suite in SUITES:
    for case in loader.loadTestsFromTestCase(suite):
      # The class and the method, without the parameters' values.
      yield f"{suite.__name__}.{case._testMethodName}", case


CASES = dict(_cases())
SKIPPED = {
  pattern: {name for name in CASES if re.fullmatch(pattern, name)}
  for pattern in DESELECTED
}


def test_deselected_exist():
  assert all(SKIPPED.values())


@pytest.mark.parametrize(
  "name", sorted(set(CASES).difference(*SKIPPED.values()))
)
def test_optax(name, monkeypatch):
  for function in (
    "softmax_cross_entropy",
    "safe_softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
  ):
    monkeypatch.setattr(_classification, function, _stand_in)
  np.random.seed(0)  # Their draws are not seeded.
  result = unittest.TestResult()
  # Their test code relies on jax's default settings.
  with (
    jax.numpy_dtype_promotion("standard"),
    jax.numpy_rank_promotion("allow"),
  ):
    CASES[name].run(result)
  assert result.testsRun == 1
  assert result.wasSuccessful(), (result.failures + result.errors)[0][1]
