# SPDX-License-Identifier: Apache-2.0
"""The table of results in the terminal."""

from rich import box
from rich.markup import escape
from rich.table import Table

from squentropy_study import _results
from squentropy_study._results import Results


def results_table(results: Results) -> Table:
  """Returns a group of rows per metric and a column per training length."""
  settings = results.settings
  result = Table(
    title=escape(f"{settings.data}, {settings.repeats}"),
    box=box.SIMPLE_HEAD,
    show_edge=False,
    pad_edge=False,
  )
  result.add_column("mean ± standard deviation over seeds")
  for length in settings.training_lengths:
    title = _results.length_title(settings, length)
    result.add_column(title, justify="right")
  for measure in _results.MEASURES:
    if not measure.main:
      continue
    result.add_row(f"[bold]{measure.title}[/bold]")
    last = results.methods[-1]
    for method in results.methods:
      result.add_row(
        results.label(method),
        *(
          _results.mean_and_spread(
            results.per_seed(method, length, measure.name), measure.decimals
          )
          for length in settings.training_lengths
        ),
        end_section=method is last,
      )
  return result
