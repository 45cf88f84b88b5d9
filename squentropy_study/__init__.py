# SPDX-License-Identifier: Apache-2.0
"""Does another loss help on this data? Trains, compares, and reports.

The command is ``squentropy-study``; these functions do the same from Python.
"""

from squentropy_study._errors import StudyError
from squentropy_study._results import Results
from squentropy_study._run import Progress, report, run
from squentropy_study._settings import Settings
from squentropy_study._verdict import verdict

__all__ = [
  "Progress",
  "Results",
  "Settings",
  "StudyError",
  "report",
  "run",
  "verdict",
]
