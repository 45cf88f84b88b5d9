# SPDX-License-Identifier: Apache-2.0
"""The table in the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from squentropy_study import _results
from squentropy_study._results import Results


def table(results: Results) -> Table:
  """Regimes side by side; the losses stand together under each number."""
  settings = results.settings
  result = Table(
    title=escape(f"{settings.data}, {settings.repeats}"),
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
  )
  result.add_column("mean ± standard deviation")
  for regime, epochs in settings.regimes.items():
    result.add_column(f"{regime}: {epochs} epochs", justify="right")
  for column in _results.COLUMNS:
    if not column.main:
      continue
    result.add_row(f"[bold]{column.title}[/bold]")
    last = results.methods[-1]
    for method in results.methods:
      result.add_row(
        results.label(method),
        *(
          _results.mean_and_spread(
            results.per_seed(method, regime, column.name), column.decimals
          )
          for regime in settings.regimes
        ),
        end_section=method is last,
      )
  return result
