# SPDX-License-Identifier: Apache-2.0
"""Kinds of files, their options, and packages that are not installed."""

import pathlib
import shlex

import numpy as np
import pandas as pd
import pytest

from squentropy_study import Settings, StudyError, _cli, _read_file, load_data


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".tab", ".txt", ".data"])
def test_endings_of_text(tmp_path, ending):
  path = tmp_path / f"a{ending}"
  path.write_text("x|y\n1|a\n")
  table = _read_file.read(path, "y")
  assert table.frame.to_dict("list") == {"x": ["1"], "y": ["a"]}
  assert table.notes == ("values are separated by bars",)
  usual = {".csv": ",", ".tsv": "\t", ".tab": "\t"}.get(ending)
  path.write_text(f"x{usual or ','}y\n1{usual or ','}a\n")
  assert bool(_read_file.read(path, "y").notes) == (usual is None)


def test_parquet_keeps_types(tmp_path):
  path = tmp_path / "a.parquet"
  days = pd.date_range("2024-01-01", periods=2)
  frame = pd.DataFrame({"n": [1, 2], "s": ["NA", " x"], "d": days})
  frame.to_parquet(path)
  table = _read_file.read(path, "s")
  pd.testing.assert_frame_equal(table.frame, frame)
  assert not table.from_text


@pytest.mark.parametrize(
  ("name", "message"),
  [
    (
      "a.json",
      r"reader for '\.json'; save .*frame\.to_parquet.*expected one of",
    ),
    ("a.jsonl", "to_csv"),
    ("a.feather", "to_csv"),
    ("a.npy", r"no reader for '\.npy'; save.*np\.savez\(path, x="),
    ("a.doc", r"\.csv, \.tsv, \.tab, \.txt, \.data, \.arff, \.parquet, \.xlsx"),
    ("a.csv.7z", r"\.gz, \.zip, \.bz2 or \.xz\), or a folder with one folder"),
    ("a.json.gz", r"no reader for '\.json\.gz'"),
    ("a.gz", r"no reader for '\.gz'"),
    ("a", "no reader for 'a name without ending'"),
    ("a.parquet", r"cannot be read as a \.parquet file"),
    ("a.parquet.gz", r"cannot be read as a \.parquet file"),
    ("a.npz", r"cannot be read as a \.npz file"),
    ("a.npz.gz", r"cannot be read as a \.npz file"),
  ],
)
def test_files_that_are_not_read(tmp_path, name, message):
  path = tmp_path / name
  path.write_text("no")
  label = None if ".npz" in name else "y"
  with pytest.raises(StudyError, match=message) as caught:
    load_data(str(path), label)
  assert str(path) in str(caught.value)
  assert "\n" not in str(caught.value)


def test_label_is_asked_for(tmp_path):
  path = tmp_path / "a.csv"
  names = [f"c{k}" for k in range(9)]
  path.write_text(",".join(names) + "\n" + ",".join("123456789") + "\n")
  with pytest.raises(StudyError, match=r"--label, one of c0, .*c7, \.\.\.$"):
    load_data(str(path))


@pytest.mark.parametrize(
  ("name", "label", "options", "message"),
  [
    (
      "a.npz",
      None,
      {"encoding": "utf-8"},
      "file of arrays, not text.*leave ou",
    ),
    ("a.npz", None, {"header": False}, "file of arrays.*leave out --no-header"),
    ("a.npz", "y", {}, "labels in the array y.*leave out --label"),
    (
      "a.parquet",
      "y",
      {"encoding": "utf-8"},
      "parquet file, not text.*--encod",
    ),
    ("a.parquet", "y", {"header": False}, "leave out --no-header"),
    ("a.xlsx", "y", {"encoding": "utf-8"}, "xlsx file, not text"),
    ("a.arff", "y", {"header": False}, "ARFF file, which has no header line"),
    ("", None, {"encoding": "utf-8"}, "folder of images, not text"),
    ("", None, {"header": False}, "folder of images, which has no header"),
  ],
)
def test_options_that_a_kind_does_not_have(
  tmp_path, name, label, options, message
):
  path = tmp_path / name
  if name:
    path.write_text("no")
  with pytest.raises(StudyError, match=message):
    load_data(str(path), label, **options)


def test_options_of_bundled_data():
  for options in ({"encoding": "utf-8"}, {"header": False}):
    with pytest.raises(StudyError, match="is a bundled data set and no file"):
      load_data("iris", **options)


def test_options_of_text(tmp_path):
  path = tmp_path / "a.txt"
  path.write_bytes("1,é\n2,b\n3,b\n".encode("cp1252"))
  data = load_data(str(path), "column2", encoding="cp1252", header=False)
  assert data.classes == ("b", "é")
  np.testing.assert_array_equal(data.features, [[1], [2], [3]])
  with pytest.raises(StudyError, match=r"unknown column of .*'y'.*column2"):
    load_data(str(path), "y", encoding="cp1252", header=False)


@pytest.mark.parametrize(
  ("name", "package", "advice"),
  [
    ("a.parquet", "pyarrow", r"install.*'squentropy_jax\[tables\]"),
    ("a.xlsx.gz", "openpyxl", r"install.*'squentropy_jax\[tables\]"),
    ("a.xls", "xlrd", r"save the table as \.xlsx"),
  ],
)
def test_missing_package_says_what_to_install(
  tmp_path, monkeypatch, name, package, advice
):
  def missing(*_, **__):
    raise ImportError("Unable to find a usable engine")

  monkeypatch.setattr("pandas.read_parquet", missing)
  monkeypatch.setattr("pandas.ExcelFile", missing)
  path = tmp_path / name
  path.write_bytes(b"\xd0\xcf\x11\xe0" if name == "a.xls" else b"no")
  message = f"the package {package}, which is not installed; {advice}"
  with pytest.raises(StudyError, match=message):
    load_data(str(path), "y")


def test_command_has_the_options(monkeypatch):
  settings = Settings("a.csv", label="y", encoding="cp1252", header=False)
  words = shlex.split(settings.command("out"))
  assert words[-1] == "--no-header"
  assert "--no-header" not in Settings("a.csv").command("out")
  seen = []

  def run(settings, *_, **__):
    seen.append(settings)
    raise StudyError("enough")

  monkeypatch.setattr("squentropy_study._run.run", run)
  for command in (settings.command("out"), "squentropy-study run a.csv"):
    assert _cli.main(shlex.split(command)[1:]) == 2
  assert seen == [settings, Settings("a.csv")]


def test_study_reads_with_the_options_of_its_settings(tmp_path, monkeypatch):
  from squentropy_study import _data, _run

  seen = []

  def load(name, label, *_, **options):
    seen.append((name, label, options))
    raise StudyError("enough")

  monkeypatch.setattr(_data, "load_data", load)
  settings = Settings("a.csv", label="y", encoding="cp1252", header=False)
  with pytest.raises(StudyError, match="enough"):
    _run.run(settings, pathlib.Path(tmp_path))
  options = {"encoding": "cp1252", "header": False}
  options |= dict.fromkeys(("time", "group", "id"))
  assert seen == [
    ("a.csv", "y", {**options, "options": settings.table_options})
  ]
