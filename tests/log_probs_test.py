# SPDX-License-Identifier: Apache-2.0
"""The gradients of predicted log-probabilities, over all losses."""

from cases import CLASS_CASES
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.contract import jit

PREDICTS = pytest.mark.parametrize(
  "case", [c for c in CLASS_CASES if c.predicts], ids=repr
)
LOGITS = np.array([0.5, -np.inf, 1.0, -0.3], np.float32)


@PREDICTS
def test_an_impossible_class_leaves_all_gradients_finite(case):
  loss = getattr(case.loss, "func", case.loss)
  possible = np.isfinite(LOGITS)

  def total(logits, numbers):
    log_probs = loss.log_probs(logits, **numbers)
    return jnp.where(possible, log_probs, 0.0) @ jnp.arange(4.0)

  by_logits, by_numbers = jit(jax.grad(total, argnums=(0, 1)))(
    LOGITS, {n: np.float32(x) for n, x in case.hyperparameters.items()}
  )
  assert by_logits[1] == 0
  assert np.isfinite(by_logits).all()
  assert all(np.isfinite(x) for x in by_numbers.values())


@PREDICTS
def test_a_mask_is_refused(case):
  loss = getattr(case.loss, "func", case.loss)
  with pytest.raises(TypeError, match="no argument where"):
    loss.log_probs(LOGITS, where=LOGITS > 0)
