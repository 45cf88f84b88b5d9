# SPDX-License-Identifier: Apache-2.0
"""Readers of the file formats that only the replication needs."""

import gzip
import pathlib

import numpy as np
import pandas as pd


def keel_table(path: pathlib.Path) -> pd.DataFrame:
  """Reads a KEEL table of rows without a header.

  Args:
    path: The file.

  Returns:
    The table. Its columns are named 0, 1, 2, ..., and the last one holds the
    classes.

  Raises:
    ValueError: The file has a header.
  """
  table = pd.read_csv(path, header=None, skipinitialspace=True)
  if str(table.iat[0, 0]).startswith(("@", "%")):
    raise ValueError(f"{path} has a header; only rows of values can be read.")
  return table


def r_table(path: pathlib.Path) -> pd.DataFrame:
  """Reads the only table of an ``.rda`` file of R.

  Args:
    path: The file.

  Returns:
    The table.

  Raises:
    ValueError: The file holds no table, or several.
  """
  import pyreadr  # Only a download of R tables needs it.

  tables = pyreadr.read_r(str(path))
  if len(tables) != 1:
    raise ValueError(f"{path} holds {len(tables)} tables, expected one.")
  return next(iter(tables.values()))


def _idx(path: pathlib.Path) -> np.ndarray:
  """Reads the array of an IDX file, compressed or not."""
  data = path.read_bytes()
  if path.suffix == ".gz":
    data = gzip.decompress(data)
  # Two zeros, the type (8: unsigned bytes), the rank, and the shape.
  if len(data) < 4 or data[:3] != b"\x00\x00\x08":
    raise ValueError(f"{path} is not an IDX file of unsigned bytes.")
  rank = data[3]
  shape = np.frombuffer(data, ">u4", rank, offset=4)
  return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def idx_folder(folder: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
  """Reads the images of a folder with the layout of MNIST.

  Args:
    folder: The folder. Training and test images are put together.

  Returns:
    Images ``[rows, height, width, 1]`` in 0 .. 1, and class ids ``[rows]``.

  Raises:
    ValueError: A file is missing, or is not an IDX file.
  """

  def both(kind: str) -> np.ndarray:
    arrays = []
    for part in ("train", "t10k"):
      found = sorted(folder.glob(f"{part}-{kind}-idx?-ubyte*"))
      if not found:
        raise ValueError(f"{folder} has no file {part}-{kind}-idx*-ubyte.")
      arrays.append(_idx(found[0]))
    return np.concatenate(arrays)

  images, labels = both("images"), both("labels")
  if len(images) != len(labels):
    raise ValueError(
      f"{folder} has {len(images)} images and {len(labels)} labels."
    )
  return images[..., None] / np.float32(255), labels.astype(np.int32)
