# SPDX-License-Identifier: Apache-2.0
"""The options of the command line on how data are read."""

import argparse


def add_text_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options on the text of a file."""
  parser.add_argument(
    "--encoding",
    metavar="NAME",
    help="encoding of a text file, such as cp1252 (default: the one of its "
    "byte order mark, or UTF-8)",
  )
  parser.add_argument(
    "--no-header",
    dest="header",
    action="store_false",
    help="the first line of the file holds values; the columns get the names "
    "column1, column2, ...",
  )


def add_table_options(run: argparse.ArgumentParser) -> None:
  """Adds the options on columns and labels of a table."""
  table = run.add_argument_group("columns and labels of a table")
  for name, text in (
    ("drop", "leave out a column"),
    ("categorical", "one-hot encode a column, whatever it looks like"),
    ("numeric", "read a column as numbers, whatever it looks like"),
  ):
    table.add_argument(
      f"--{name}",
      action="append",
      default=[],
      metavar="COLUMN",
      help=f"{text}; may be given several times",
    )
  table.add_argument(
    "--missing",
    action="append",
    default=[],
    metavar="VALUE",
    help="a value that means a missing value in a column of features, such as "
    "-999; may be given several times",
  )
  table.add_argument(
    "--min-class",
    type=int,
    metavar="N",
    help="drop the rows of classes with fewer than N rows",
  )
  table.add_argument(
    "--merge-rare",
    type=int,
    metavar="N",
    help="pool the classes with fewer than N rows in one class",
  )
  table.add_argument(
    "--merge-case",
    action="store_true",
    help="merge labels that differ only in upper and lower case",
  )
  table.add_argument(
    "--dedupe",
    action="store_true",
    help="keep only the first of several rows with equal features and label",
  )
