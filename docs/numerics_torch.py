# SPDX-License-Identifier: Apache-2.0
"""Writes docs/numerics_torch.csv: the errors of PyTorch's cross-entropy.

The figure of docs/numerics.md shows them next to those of optax and of this
library. PyTorch is only in the extra ``peers``, so its errors are stored.

Run: python docs/numerics_torch.py
"""

import csv

import numerics_figure
import torch


def main() -> None:
  """Computes the errors with the installed version of PyTorch."""
  rows = []
  for margin in numerics_figure.MARGINS:
    logits = numerics_figure.rows_of(margin)
    z = torch.tensor(logits, requires_grad=True)
    labels = torch.zeros(len(logits), dtype=torch.long)
    loss = torch.nn.functional.cross_entropy(z, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    found = numerics_figure.largest_errors(
      logits, loss.detach().numpy(), gradient[:, 0].numpy()
    )
    rows.append(
      (torch.__version__, f"{margin:g}", *(f"{x:.4g}" for x in found))
    )
  with numerics_figure.TORCH.open("w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("torch", "margin", "loss", "derivative"))
    writer.writerows(rows)


if __name__ == "__main__":
  main()
