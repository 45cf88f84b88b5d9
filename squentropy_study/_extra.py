# SPDX-License-Identifier: Apache-2.0
"""Names the extra to install where a package of the study is missing."""

from collections.abc import Iterator
import contextlib

# What the extra `study` brings, as modules.
MODULES = frozenset(
  (
    "flax",
    "matplotlib",
    "optax",
    "orbax",
    "pandas",
    "rich",
    "scipy",
    "sklearn",
    "threadpoolctl",
  )
)


@contextlib.contextmanager
def required() -> Iterator[None]:
  """Adds the command that installs the extra to an import error."""
  try:
    yield
  except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in MODULES:
      raise
    raise ModuleNotFoundError(
      f"squentropy_study needs the package {error.name}, which is not "
      "installed. Install the extra: pip install 'squentropy_jax[study]'",
      name=error.name,
    ) from error
