# SPDX-License-Identifier: Apache-2.0
"""Tables and figures of the replication from its rows."""

import pathlib

import pandas as pd


def write(
  docs: pathlib.Path, results: pd.DataFrame, curves: pd.DataFrame
) -> None:
  """Writes the summary and the figures."""
