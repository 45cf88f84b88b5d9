# SPDX-License-Identifier: Apache-2.0
"""The versions that decide the numbers of a study."""

from importlib import metadata
import platform
from typing import Any

import jax

import squentropy_jax

# Raise this number in every change after which the same settings and data give
# other numbers: in the study (folds, encoding, networks, training) as well as
# in a loss, a recalibrator or a metric of the library. A study is resumed only
# with the number it was started with. tests/study_fingerprint_test.py fails
# when the numbers of a small study move.
NUMERICS = 3
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def versions() -> dict[str, str | int]:
  """Returns the versions and the device that decide the numbers."""
  config: Any = jax.config  # Its options have no types.
  return {
    "numerics": NUMERICS,
    "squentropy_jax": squentropy_jax.__version__,
    **{name: metadata.version(name) for name in _LIBRARIES},
    "python": platform.python_version(),
    "device": jax.devices()[0].device_kind,
    "floats": str(jax.dtypes.canonicalize_dtype("float64")),
    "matmul_precision": str(config.jax_default_matmul_precision),
  }


def fingerprint(versions: dict[str, str | int]) -> dict[str, str | int]:
  """Returns the versions that must agree to resume a study.

  The version of Python is recorded for the reader, but decides no number.
  """
  return {key: value for key, value in versions.items() if key != "python"}
