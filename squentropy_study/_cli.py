# SPDX-License-Identifier: Apache-2.0
"""The entry point of ``squentropy-study``; it runs without the extra too."""

from collections.abc import Sequence
import sys

from squentropy_study import _extra


def main(words: Sequence[str] | None = None) -> int:
  """Runs the command.

  Args:
    words: The arguments; None takes those of the process.

  Returns:
    The exit status: 0 for success, 2 for a user error, 130 after Ctrl-C, 143
    after SIGTERM.
  """
  try:
    with _extra.required():
      from squentropy_study import _commands
  except ModuleNotFoundError as error:
    print(f"squentropy-study: error: {error}", file=sys.stderr)
    return 2
  return _commands.main(sys.argv[1:] if words is None else words)
