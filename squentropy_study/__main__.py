# SPDX-License-Identifier: Apache-2.0
"""Runs the command line: ``python -m squentropy_study``."""

import sys

from squentropy_study._cli import main

if __name__ == "__main__":
  sys.exit(main())
