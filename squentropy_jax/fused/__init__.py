# SPDX-License-Identifier: Apache-2.0
"""Linear heads with a loss, which never hold the logits of all rows."""

from squentropy_jax.fused._api import linear_loss as linear_loss
from squentropy_jax.fused._api import linear_loss_sum as linear_loss_sum
from squentropy_jax.fused._api import linear_row_stats as linear_row_stats
from squentropy_jax.fused._blocked import blocked_loss_sum as blocked_loss_sum
from squentropy_jax.fused._head_confidence import Confidence as Confidence
from squentropy_jax.fused._head_confidence import (
  linear_confidence as linear_confidence,
)
from squentropy_jax.fused._linear_distillation import (
  linear_distillation as linear_distillation,
)
from squentropy_jax.fused._log_probs import LogProbs as LogProbs
from squentropy_jax.fused._log_probs import linear_log_probs as linear_log_probs
from squentropy_jax.fused._metrics import LossSum as LossSum
from squentropy_jax.fused._plan import Plan as Plan
from squentropy_jax.fused._target_logits import target_logits as target_logits
