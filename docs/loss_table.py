# SPDX-License-Identifier: Apache-2.0
"""Writes docs/losses/table.md: ``python docs/loss_table.py``."""

import inspect
import pathlib

from squentropy_jax import losses
from squentropy_jax.losses import _catalogue

PATH = pathlib.Path(__file__).parent / "losses" / "table.md"
INTRODUCTION = """<!-- Written by docs/loss_table.py: edit the catalogue. -->

# All losses

- *Fused*: a [fused linear head](../fused.md) computes it without the logits of
  all rows.
- *Bounded*: the loss has an upper bound over all logits, at the defaults.
- *Proper*: at the defaults, the expected loss is least where the predicted
  probabilities (`loss.log_probs`) are those of the labels.
- *Batch*: the loss of an example depends on the other examples of the batch.

"""
COLUMNS = (
  "loss",
  "for",
  "arguments",
  "fused",
  "bounded",
  "proper",
  "batch",
  "cost",
  "paper",
)


def line(entry: _catalogue.Entry) -> tuple[str, ...]:
  """What the table says of one loss."""
  loss = getattr(losses, entry.name)
  family = loss.__module__.rpartition("._")[2]
  parameters = inspect.signature(loss).parameters.values()
  marks = (hasattr(loss, "row"), entry.bounded, entry.proper, entry.of_batch)
  words = {True: "yes", False: "no"}
  authors, year, url = entry.paper
  return (
    f"[`{entry.name}`]({family}.md#{entry.name})",
    entry.purpose,
    ", ".join(f"`{p.name}`" for p in parameters if p.kind < p.KEYWORD_ONLY),
    *(mark if isinstance(mark, str) else words[mark] for mark in marks),
    entry.cost,
    f"[{authors}]({url}), {year}",
  )


def table() -> str:
  """The page."""
  lines = [COLUMNS, ("---",) * len(COLUMNS), *map(line, _catalogue.CATALOGUE)]
  return INTRODUCTION + "".join(f"| {' | '.join(x)} |\n" for x in lines)


if __name__ == "__main__":
  PATH.write_text(table(), encoding="utf-8")
