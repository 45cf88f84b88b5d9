# SPDX-License-Identifier: Apache-2.0
"""A Sphinx extension that prints how long each notebook took.

The page of the gallery says that each takes less than a minute. A busy machine
is slower, so a longer time is printed and is no error.
"""

from collections.abc import Mapping
from typing import Any

LIMIT = 60.0


def lines(seconds: Mapping[str, float]) -> list[str]:
  """Returns a line for each notebook, and one with those above the limit.

  Args:
    seconds: How long each notebook took when it was run last.
  """
  found = [f"{name} took {time:.1f} s" for name, time in seconds.items()]
  slow = [name for name, time in seconds.items() if time > LIMIT]
  if slow:
    found.append(f"More than {LIMIT:.0f} s: {', '.join(slow)}")
  return found


def _print(app: Any, exception: Exception | None) -> None:
  del exception
  pages = getattr(app.env, "nb_metadata", {})
  times = {
    name: (pages[name].get("exec_data") or {}).get("runtime")
    for name in sorted(pages)
  }
  for line in lines({k: v for k, v in times.items() if v is not None}):
    print(line)


def setup(app: Any) -> dict[str, bool]:
  """Prints the times at the end of a build."""
  app.connect("build-finished", _print)
  return {"parallel_read_safe": True, "parallel_write_safe": True}
