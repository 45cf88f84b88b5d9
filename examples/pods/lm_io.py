# SPDX-License-Identifier: Apache-2.0
"""Batches that are read ahead, and metrics that are written."""

from collections.abc import Callable
from concurrent import futures
import csv
import io
from typing import Any

from etils import epath
import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import lm_step
import numpy as np


class Batches:
  """Batches of a data set as arrays on the mesh, which are read ahead.

  Every process reads only the sequences of its devices, one step ahead.

  Attributes:
    number: The batches of one pass over the data.
  """

  def __init__(self, dataset: Any, shape: tuple[int, ...], mesh: Any):
    """Stores the data set, the shape ``[micro-batches, rows, length]``."""
    self._dataset = dataset
    self._shape = shape
    self.number = -(-len(dataset) // (shape[0] * shape[1]))
    self._sharding = NamedSharding(mesh, P(None, *lm_step.TOKENS))
    self._reader = futures.ThreadPoolExecutor(1)
    self._next: dict[int, futures.Future] = {}

  def _read(self, step: int) -> dict[str, jax.Array]:
    micro, rows, _ = self._shape
    first = step * micro * rows

    def part(name: str) -> Callable:
      def read(index: tuple[slice, ...]) -> np.ndarray:
        numbers = np.arange(micro * rows).reshape(micro, rows)[index[:2]]
        read = [self._dataset[first + int(k)][name] for k in numbers.flat]
        return np.reshape(read, (*numbers.shape, -1))[..., index[2]]

      return read

    return {
      name: jax.make_array_from_callback(
        self._shape, self._sharding, part(name)
      )
      for name in ("inputs", "targets")
    }

  def __getitem__(self, step: int) -> dict[str, jax.Array]:
    ready = self._next.pop(step, None) or self._reader.submit(self._read, step)
    self._next = {step + 1: self._reader.submit(self._read, step + 1)}
    return ready.result()


class Metrics:
  """Writes ``metrics.csv``, in the first process only.

  The whole file is written each time, because a bucket cannot append.
  """

  def __init__(self, path: epath.Path, step: int):
    """Removes the rows after the step from which the training continues."""
    self._path = path
    self._rows: list[list[str]] = []
    self._writes = jax.process_index() == 0
    if self._writes:
      path.parent.mkdir(parents=True, exist_ok=True)
      if path.exists():
        found = [
          row for row in csv.reader(path.read_text().splitlines()) if row
        ]
        self._rows = found[:1] + [x for x in found[1:] if int(x[0]) <= step]
      self._save()

  def _save(self) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(self._rows)
    partial = self._path.parent / f"{self._path.name}.part"
    partial.write_text(text.getvalue())
    partial.replace(self._path)

  def write(self, step: int, values: dict[str, float]) -> None:
    """Adds a row."""
    if self._writes:
      if not self._rows:
        self._rows.append(["step", *values])
      numbers = [f"{x:.9g}" for x in values.values()]
      self._rows.append([str(step), *numbers])
      self._save()
