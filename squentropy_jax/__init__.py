# SPDX-License-Identifier: Apache-2.0
"""Classification losses for JAX, Flax and optax."""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from squentropy_jax import losses as losses
from squentropy_jax import rows as rows
from squentropy_jax._core.class_sums import RowStats as RowStats
from squentropy_jax._core.rows import row_loss as row_loss
from squentropy_jax.losses._squentropy import squentropy as squentropy
from squentropy_jax.losses._squentropy import (
  squentropy_with_integer_labels as squentropy_with_integer_labels,
)

if _TYPE_CHECKING:
  from squentropy_jax import attention as attention
  from squentropy_jax import calibration as calibration
  from squentropy_jax import confusion as confusion
  from squentropy_jax import fused as fused
  from squentropy_jax import heads as heads
  from squentropy_jax import margins as margins
  from squentropy_jax import masking as masking
  from squentropy_jax import nn as nn
  from squentropy_jax import probes as probes
  from squentropy_jax import regression as regression
  from squentropy_jax import retrieval as retrieval
  from squentropy_jax import reweighting as reweighting
  from squentropy_jax import special as special
  from squentropy_jax import transforms as transforms

__version__ = "0.1.0"


# Loaded on first use: together they take as long as a tenth of jax, and two of
# them need flax or optax.
_LAZY = (
  "attention",
  "calibration",
  "confusion",
  "fused",
  "heads",
  "margins",
  "masking",
  "nn",
  "probes",
  "regression",
  "retrieval",
  "reweighting",
  "special",
  "transforms",
)


def __getattr__(name: str) -> _Any:
  if name in _LAZY:
    return _importlib.import_module(f"squentropy_jax.{name}")
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *_LAZY})
