# SPDX-License-Identifier: Apache-2.0
"""What has a part in the numbers beside the settings and the data."""

import hashlib
from importlib import metadata
from pathlib import Path
import platform

import jax

import squentropy_jax

# The code that decides the numbers in the cells; reports, figures and the
# command line may change without a training anew.
_SOURCE = (
  "*.py",
  "losses/*.py",
  "calibration/_*.py",
  "study/_data.py",
  "study/_evaluate.py",
  "study/_losses.py",
  "study/_models.py",
  "study/_readers.py",
  "study/_settings.py",
  "study/_tables.py",
  "study/_train.py",
)


def _source() -> str:
  """A digest of ``_SOURCE``: a version number stands for many states."""
  root = Path(squentropy_jax.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(path for part in _SOURCE for path in root.glob(part)):
    digest.update(path.relative_to(root).as_posix().encode() + b"\0")
    digest.update(path.read_bytes() + b"\0")
  return digest.hexdigest()[:12]


def versions() -> dict[str, str]:
  """Versions of everything that has a part in the numbers."""
  packages = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")
  return {
    "squentropy_jax": squentropy_jax.__version__,
    "source": _source(),
    "python": platform.python_version(),
    **{name: metadata.version(name) for name in packages},
    "device": jax.devices()[0].device_kind,
  }
