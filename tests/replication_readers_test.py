# SPDX-License-Identifier: Apache-2.0
"""Readers of KEEL tables, R tables and folders of IDX images."""

import gzip
import struct

import numpy as np
import pandas as pd
import pytest

from replication import readers


def test_keel_table(tmp_path):
  path = tmp_path / "mine.dat"
  path.write_text("1.5, red, 2\n3, blue, 10\n")
  table = readers.keel_table(path)
  assert table.to_dict("list") == {
    0: [1.5, 3.0],
    1: ["red", "blue"],
    2: [2, 10],
  }


@pytest.mark.parametrize("first", ["@relation mine", "% A comment."])
def test_keel_table_with_a_header_is_refused(tmp_path, first):
  path = tmp_path / "mine.dat"
  path.write_text(f"{first}\n1\n")
  with pytest.raises(ValueError, match=r"mine\.dat has a header"):
    readers.keel_table(path)


def test_r_table(tmp_path):
  pyreadr = pytest.importorskip("pyreadr", reason="reads R tables")
  path = tmp_path / "mine.rda"
  frame = pd.DataFrame({"size": [1.5, np.nan, 3.0], "kind": ["b", "a", "b"]})
  pyreadr.write_rdata(str(path), frame, df_name="mine")
  table = readers.r_table(path)
  np.testing.assert_array_equal(table["size"], frame["size"])
  assert list(table["kind"]) == ["b", "a", "b"]


@pytest.mark.parametrize("count", [0, 2])
def test_r_file_with_another_number_of_tables(tmp_path, monkeypatch, count):
  pyreadr = pytest.importorskip("pyreadr", reason="reads R tables")
  tables = {str(k): pd.DataFrame() for k in range(count)}
  monkeypatch.setattr(pyreadr, "read_r", lambda _: tables)
  with pytest.raises(ValueError, match=f"holds {count} tables, expected one"):
    readers.r_table(tmp_path / "mine.rda")


def _idx(array):
  sizes = struct.pack(f">{array.ndim}I", *array.shape)
  return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_idx_folder(tmp_path):
  x = np.arange(5 * 16, dtype=np.uint8).reshape(5, 4, 4)
  y = np.array([3, 1, 3, 1, 3], np.uint8)
  files = {
    "train-images-idx3-ubyte": x[:3],
    "train-labels-idx1-ubyte": y[:3],
    "t10k-images-idx3-ubyte": x[3:],
    "t10k-labels-idx1-ubyte": y[3:],
  }
  for name, array in files.items():
    if name.startswith("t10k"):
      (tmp_path / f"{name}.gz").write_bytes(gzip.compress(_idx(array)))
    else:
      (tmp_path / name).write_bytes(_idx(array))
  images, labels = readers.idx_folder(tmp_path)
  assert images.shape == (5, 4, 4, 1)
  assert images.dtype == np.float32
  np.testing.assert_array_equal(images[..., 0], x / np.float32(255))
  np.testing.assert_array_equal(labels, y)
  labels_path = tmp_path / "train-labels-idx1-ubyte"
  labels_path.write_bytes(_idx(y))
  with pytest.raises(ValueError, match="has 5 images and 7 labels"):
    readers.idx_folder(tmp_path)
  labels_path.write_bytes(b"no")
  with pytest.raises(ValueError, match="is not an IDX file"):
    readers.idx_folder(tmp_path)
  labels_path.unlink()
  with pytest.raises(ValueError, match=r"has no file train-labels-idx\*-ubyte"):
    readers.idx_folder(tmp_path)
