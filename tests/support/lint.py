# SPDX-License-Identifier: Apache-2.0
"""``make lint``: what a style checker does not know about this repository.

It reads every file that git tracks and finds paths of one machine, hosts of
package registries, source files without a licence, and words that the project
has given up, each with the word to use.
"""

import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
LICENCE = "# SPDX-License-Identifier: Apache-2.0\n"

MACHINE = re.compile(
  r"(?:^|(?<=[^\w.-]))/(?:work|root|home|Users|tmp)/\w+", re.M
)
REGISTRY = re.compile(r"pypi\.org|pythonhosted\.org|registry\.npmjs")

# A regular expression and the advice. It matches whole words in any case, also
# as a part of a name with underscores.
WORDS = {
  r"(?:not )?told apart": "(not) significantly different",
  r"tell(?:s|ing)? (?:\w+ ){0,3}apart": "distinguish",
  r"mend(?:s|ed|ing)?": "fix, or recalibrate",
  r"loud(?:ly)?": "raises ValueError, or returns NaN",
  r"poison(?:s|ed|ing)?": "set to NaN",
  r"harmless": "placeholder",
  r"spoil(?:s|t|ed|ing)?": "invalid",
  r"tilt(?:s|ed)?": "sum of z exp(z)",
  r"(?:keeps?|kept|keeping|loses?|lost) (?:(?:the|all|its|their) )?digits": (
    "accurate, no cancellation, or a relative error"
  ),
  r"digits (?:survive|are kept|are lost)": "accurate, no cancellation",
  r"at (?:its|their) head": "the main one is",
  r"in the place of": "a drop-in replacement for, or instead of",
  r"forecasts?": "predicted probabilities",
  r"slopes?": "gradient, or derivative",
  r"roundings": "ulp, or rounding errors",
  r"counts? for nothing": "is ignored",
  r"lengthen(?:s|ed|ing)?": "scale",
  r"weigh(?:s|ed|ing)? by": "weight by",
  r"readouts?": "probability map",
  r"regimes?": "training length",
  r"for want of": "because there is no",
  r"beside": "in addition to, next to",
  r"at hand": "available",
  r"(?:all|none|no|nothing|everything|\w+ed|same|one|that) but for": "except",
  r"save for": "except",
  r"what (?:it|they) can be told": "options",
  r"what is not there": "limitations",
  r"moments": "class sums",
  r"ways? of working": "mode",
  r"with_row|with_link|logit_scale": "row_loss",
  r"RowForm": "row_loss",
  r'way="\w+"': "mode=",
  r'mode="(?:value|frozen|keep|stream)"': (
    "forward, frozen_kernel, grad_in_forward, or recompute"
  ),
}
# Lines that need such a word: a file, and a part of the line.
ALLOWED = (
  # The list of changes of the plan quotes its former words.
  ("docs/replication/plan.md", '"Not told apart" is now'),
  # The title of a paper.
  ("docs/losses/simplex.md", "Verification of Forecasts"),
  (
    "squentropy_jax/calibration/_metrics_scores.py",
    "Verification of Forecasts",
  ),
  ("squentropy_jax/losses/_simplex.py", "Verification of Forecasts"),
  # Ranges of logits, not lengths of a training.
  ("tests/accuracy_test.py", "regime"),
  ("tests/support/references.py", "regime"),
)
# This list itself, data, and what others have written.
SKIPPED = (
  "tests/support/lint.py",
  "tests/lint_test.py",
  "tests/data/",
  "LICENSE",
  "requirements/",
)


def _pattern(words: str) -> re.Pattern[str]:
  """Whole words, also across the end of a line or of a comment's line."""
  words = words.replace(" ", r"\s+(?:# )?")
  return re.compile(rf"(?<![a-z0-9])(?:{words})(?![a-z0-9])", re.I)


_PATTERNS = [(_pattern(words), advice) for words, advice in WORDS.items()]


def problems(name: str, text: str) -> list[str]:
  """What is wrong with a file.

  Args:
    name: Its path in the repository.
    text: What it holds.

  Returns:
    A line for each problem, which begins with file and line number.
  """
  found = []

  def add(start: int, message: str) -> None:
    found.append((text.count("\n", 0, start) + 1, message))

  if name.endswith(".py") and text and not text.startswith(LICENCE):
    add(0, f"has no first line {LICENCE.strip()!r}")
  if not name.startswith(SKIPPED):
    for match in MACHINE.finditer(text):
      add(match.start(), f"names a path of one machine: {match.group()}")
    for match in REGISTRY.finditer(text):
      add(match.start(), f"names a package registry: {match.group()}")
    for pattern, advice in _PATTERNS if not name.endswith(".csv") else ():
      for match in pattern.finditer(text):
        first = text.rfind("\n", 0, match.start()) + 1
        line = text[first : text.find("\n", match.end())]
        if not any(n == name and part in line for n, part in ALLOWED):
          said = " ".join(match.group().split())
          add(match.start(), f"{said!r}: write {advice!r}")
  return [f"{name}:{line}: {message}" for line, message in sorted(found)]


def main() -> int:
  """Prints the problems of all tracked files; returns whether there are any."""
  listed = subprocess.run(
    ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True
  )
  found = []
  for name in listed.stdout.decode().split("\0"):
    path = ROOT / name
    if not name or not path.is_file():
      continue
    try:
      text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
      continue  # A picture or an array.
    found += problems(name, text)
  for problem in found:
    print(problem)
  return bool(found)


if __name__ == "__main__":
  sys.exit(main())
