# SPDX-License-Identifier: Apache-2.0
"""Compares losses on your own data: trains, evaluates and writes a report.

The command ``squentropy-study`` calls :func:`run` and :func:`report`. Names are
imported on first use, because they need packages that only
``pip install 'squentropy_jax[study]'`` installs.
"""

import importlib
from typing import TYPE_CHECKING, Any

from squentropy_study import _extra

if TYPE_CHECKING:
  from squentropy_study._baselines import Baseline
  from squentropy_study._charts import figure_png, figure_style
  from squentropy_study._compare import compare
  from squentropy_study._comparisons import (
    Comparison,
    MethodAtLength,
    Pairs,
    compare_studies,
    compare_values,
    comparisons_csv,
    dataset_means,
    pair,
  )
  from squentropy_study._data import Dataset, load_data
  from squentropy_study._encoding import EncodedTable, encode_table
  from squentropy_study._headline import Headline, headline
  from squentropy_study._metric_samples import RankMetric
  from squentropy_study._paired_errors import Difference
  from squentropy_study._predict import predict
  from squentropy_study._predictions import DataRows
  from squentropy_study._ranking import RankedEntry, Ranking, rank
  from squentropy_study._result_rows import REFERENCE, Method, ResultRow
  from squentropy_study._results import Results
  from squentropy_study._run import Progress, load, report, run
  from squentropy_study._settings import Settings
  from squentropy_study._several_studies import read_results
  from squentropy_study._store import read_config
  from squentropy_study._study_error import StudyError
  from squentropy_study._summary_charts import differences_figure
  from squentropy_study._table_options import TableOptions
  from squentropy_study._test_rows import Predictions
  from squentropy_study._train import RunResult

__all__ = [
  "REFERENCE",
  "Baseline",
  "Comparison",
  "DataRows",
  "Dataset",
  "Difference",
  "EncodedTable",
  "Headline",
  "Method",
  "MethodAtLength",
  "Pairs",
  "Predictions",
  "Progress",
  "RankMetric",
  "RankedEntry",
  "Ranking",
  "ResultRow",
  "Results",
  "RunResult",
  "Settings",
  "StudyError",
  "TableOptions",
  "compare",
  "compare_studies",
  "compare_values",
  "comparisons_csv",
  "dataset_means",
  "differences_figure",
  "encode_table",
  "figure_png",
  "figure_style",
  "headline",
  "load",
  "load_data",
  "pair",
  "predict",
  "rank",
  "read_config",
  "read_results",
  "report",
  "run",
]

_MODULES = {
  "_baselines": ("Baseline",),
  "_charts": ("figure_png", "figure_style"),
  "_compare": ("compare",),
  "_comparisons": (
    "Comparison",
    "MethodAtLength",
    "Pairs",
    "compare_studies",
    "compare_values",
    "comparisons_csv",
    "dataset_means",
    "pair",
  ),
  "_data": ("Dataset", "load_data"),
  "_encoding": ("EncodedTable", "encode_table"),
  "_headline": ("Headline", "headline"),
  "_metric_samples": ("RankMetric",),
  "_paired_errors": ("Difference",),
  "_predict": ("predict",),
  "_predictions": ("DataRows",),
  "_ranking": ("RankedEntry", "Ranking", "rank"),
  "_result_rows": ("REFERENCE", "Method", "ResultRow"),
  "_results": ("Results",),
  "_run": ("Progress", "load", "report", "run"),
  "_settings": ("Settings",),
  "_several_studies": ("read_results",),
  "_store": ("read_config",),
  "_study_error": ("StudyError",),
  "_summary_charts": ("differences_figure",),
  "_table_options": ("TableOptions",),
  "_test_rows": ("Predictions",),
  "_train": ("RunResult",),
}


def __getattr__(name: str) -> Any:
  """Imports a public name on first use."""
  for module, names in _MODULES.items():
    if name in names:
      with _extra.required():
        home = importlib.import_module(f"{__name__}.{module}")
      # Python does not call __getattr__ again for a name that is in globals.
      globals()[name] = getattr(home, name)
      return globals()[name]
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  """Lists the public names, including those that are not imported yet."""
  return sorted({*globals(), *__all__})
