# SPDX-License-Identifier: Apache-2.0
"""Every loss under chex's variants: jitted and not, on the device and not."""

from absl.testing import parameterized
from cases import CLASS_CASES
import chex
import jax.numpy as jnp
import numpy as np
import pytest

LOGITS = np.random.default_rng(3).normal(size=(4, 5)).astype(np.float32)
LABELS = np.array([0, 4, 2, 1], np.int32)


class VariantsTest(chex.TestCase):
  @chex.variants(with_jit=True, with_device=True, without_device=True)
  @parameterized.named_parameters((c.name, c) for c in CLASS_CASES)
  def test_shape_and_dtype(self, case):
    loss = self.variant(lambda logits, labels: case.loss(logits, labels))
    actual = loss(LOGITS, LABELS)
    chex.assert_shape(actual, (4,))
    chex.assert_type(actual, jnp.float32)
    chex.assert_tree_all_finite(actual)

  @chex.variants(without_jit=True)
  @parameterized.named_parameters((c.name, c) for c in CLASS_CASES)
  def test_an_invalid_label_raises_if_it_can_be_read(self, case):
    loss = self.variant(lambda logits, labels: case.loss(logits, labels))
    with pytest.raises(ValueError, match=r"labels\[1\] = 5 is outside"):
      loss(LOGITS, np.array([0, 5, -1, 1]))

  @chex.variants(with_jit=True)
  @parameterized.named_parameters((c.name, c) for c in CLASS_CASES)
  def test_an_invalid_label_is_nan_in_a_trace(self, case):
    loss = self.variant(lambda logits, labels: case.loss(logits, labels))
    actual = np.isnan(loss(LOGITS, np.array([0, 5, -1, 1])))
    np.testing.assert_array_equal(actual, [False, True, True, False])
