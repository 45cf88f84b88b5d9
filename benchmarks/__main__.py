# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks [NAME ...]`` runs the named benchmarks, or all."""

import importlib
import pathlib
import sys

NAMES = sorted(
  path.stem
  for path in pathlib.Path(__file__).parent.glob("*.py")
  if path.stem not in ("__init__", "__main__", "runner")
)


def main() -> None:
  """Runs each benchmark's own ``main``."""
  wanted = sys.argv[1:] or NAMES
  unknown = set(wanted) - set(NAMES)
  if unknown:
    sys.exit(f"no benchmark {', '.join(sorted(unknown))}; there are {NAMES}")
  for name in wanted:
    importlib.import_module(f"benchmarks.{name}").main()


if __name__ == "__main__":
  main()
