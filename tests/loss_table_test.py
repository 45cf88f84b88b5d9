# SPDX-License-Identifier: Apache-2.0
"""The catalogue of losses, and the table that it makes."""

import importlib.util
import pathlib

from squentropy_jax import losses
from squentropy_jax.losses import _catalogue

DOCS = pathlib.Path(__file__).parents[1] / "docs"


def test_the_table_is_up_to_date():
  spec = importlib.util.spec_from_file_location(
    "loss_table", DOCS / "loss_table.py"
  )
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  written = module.PATH.read_text("utf-8")
  assert written == module.table(), "Run `python docs/loss_table.py`."


def test_every_loss_has_one_line():
  public = {name for name in vars(losses) if not name.startswith("_")}
  # The same loss with the arguments of optax.
  public -= {"squentropy_with_integer_labels"}
  names = [entry.name for entry in _catalogue.CATALOGUE]
  assert sorted(names) == sorted(public), (
    "squentropy_jax/losses/_catalogue.py has one line for each loss."
  )


def test_entries_are_complete():
  for entry in _catalogue.CATALOGUE:
    authors, year, url = entry.paper
    assert authors
    assert 1950 <= year <= 2100
    assert url.startswith("https://")
    assert entry.purpose
    assert entry.cost
