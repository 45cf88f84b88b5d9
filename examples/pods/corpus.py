# SPDX-License-Identifier: Apache-2.0
"""Text, tokenizer and packed sequences for the language model.

The default text is the source of Python's standard library, about 12 MB that
every machine with Python has (PSF licence). One file in twenty is used for the
evaluation only. If hosts share no file system, prepare a folder and copy it to
every host: python examples/pods/corpus.py --data data/lm
"""

import argparse
from collections.abc import Iterator
import hashlib
import os
import pathlib
import sysconfig
from typing import NamedTuple

import grain
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

STDLIB = "stdlib"
# Every file starts with this token.
START = "<|file|>"
_VALIDATION_SHARE = 20
# Folders of the standard library that are not its source.
_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "__pycache__"}


class Corpus(NamedTuple):
  """The token ids of all files, concatenated, and their tokenizer.

  Attributes:
    train: Token ids to train on.
    validation: Token ids for the evaluation.
    tokenizer: The tokenizer.
    digest: Hash of the names and contents of the files.
  """

  train: np.ndarray
  validation: np.ndarray
  tokenizer: tokenizers.Tokenizer
  digest: str


def _files(text: str) -> Iterator[tuple[str, str]]:
  """Yields names and contents of the files of a text."""
  if text == STDLIB:
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    paths = [
      path
      for path in root.rglob("*.py")
      if not _LEFT_OUT & set(path.relative_to(root).parts)
    ]
  else:
    root = pathlib.Path(text)
    paths = [root] if root.is_file() else list(root.rglob("*.txt"))
    root = root.parent if root.is_file() else root
  for path in sorted(paths):
    name = path.relative_to(root).as_posix()
    yield name, path.read_text(encoding="utf-8", errors="replace")


def _is_validation(name: str) -> bool:
  """Chooses by the name, so that the choice does not depend on other files."""
  digest = hashlib.sha256(name.encode()).digest()
  return digest[0] % _VALIDATION_SHARE == 0


def _train_tokenizer(files: dict[str, str], vocab: int) -> tokenizers.Tokenizer:
  """Trains a byte-pair encoding on the training files."""
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=[START],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  training = (x for name, x in files.items() if not _is_validation(name))
  tokenizer.train_from_iterator(training, trainer)
  return tokenizer


def _encode(texts: list[str], tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  """Returns the tokens of all texts, each after the token ``START``."""
  start = tokenizer.token_to_id(START)
  encoded = tokenizer.encode_batch(texts)
  return np.concatenate([[start, *each.ids] for each in encoded]).astype(
    np.int32
  )


def _digest(files: dict[str, str]) -> str:
  """Returns a hash of names and contents."""
  digest = hashlib.sha256()
  for name, content in files.items():
    for part in (name, content):
      encoded = part.encode()
      digest.update(len(encoded).to_bytes(8))
      digest.update(encoded)
  return digest.hexdigest()


def prepare(folder: pathlib.Path, text: str, vocab: int) -> None:
  """Writes tokenizer and tokens to a folder, unless it has those of the text.

  A host to which the folder was copied does not need the text.

  Args:
    folder: Where to write ``tokenizer-*.json`` and ``tokens-*.npz``.
    text: ``stdlib``, a text file, or a folder with ``.txt`` files.
    vocab: Size of the vocabulary.

  Raises:
    ValueError: If the text is too small for that vocabulary.
  """
  names = _names(folder, text, vocab)
  files = dict(_files(text))
  digest = _digest(files)
  if all(path.exists() for path in names):
    with np.load(names[1]) as stored:
      if not files or str(stored["digest"]) == digest:
        return
  if not files:
    raise ValueError(
      f"--text must name a text file or a folder with .txt files, got {text}"
    )
  folder.mkdir(parents=True, exist_ok=True)
  parts: dict[bool, list[str]] = {True: [], False: []}
  for name, content in files.items():
    parts[_is_validation(name)].append(content)
  # Without files for the evaluation, use the last twentieth of the text.
  if not parts[True]:
    joined = "".join(parts[False])
    cut = len(joined) - len(joined) // _VALIDATION_SHARE
    parts = {False: [joined[:cut]], True: [joined[cut:]]}
  tokenizer = _train_tokenizer(files, vocab)
  if tokenizer.get_vocab_size() != vocab:
    raise ValueError(
      f"vocab must be at most {tokenizer.get_vocab_size()} for this text, got "
      f"{vocab}; pass a smaller --vocab or a larger --text"
    )
  tokenizer_path, tokens_path = names
  # Written under another name first, because another process may be reading.
  partial = tokenizer_path.with_suffix(f".{os.getpid()}.part")
  tokenizer.save(str(partial))
  partial.replace(tokenizer_path)
  partial = tokens_path.with_suffix(f".{os.getpid()}.part")
  with partial.open("wb") as file:
    np.savez(
      file,
      train=_encode(parts[False], tokenizer),
      validation=_encode(parts[True], tokenizer),
      digest=digest,
    )
  partial.replace(tokens_path)


def _names(
  folder: pathlib.Path, text: str, vocab: int
) -> tuple[pathlib.Path, pathlib.Path]:
  key = hashlib.sha256(text.encode()).hexdigest()[:8]
  stem = f"{pathlib.Path(text).stem}-{key}-{vocab}"
  return folder / f"tokenizer-{stem}.json", folder / f"tokens-{stem}.npz"


def load(folder: pathlib.Path, text: str, vocab: int) -> Corpus:
  """Reads what :func:`prepare` wrote."""
  tokenizer_path, tokens_path = _names(folder, text, vocab)
  with np.load(tokens_path) as tokens:
    train, validation = tokens["train"], tokens["validation"]
    digest = str(tokens["digest"])
  tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_path))
  return Corpus(train, validation, tokenizer, digest)


class Sequences:
  """Consecutive pieces of ``length + 1`` tokens, the last one padded.

  Neighbours share a token: the last target of one is the first input of the
  next. Padding has the target -1.
  """

  def __init__(self, tokens: np.ndarray, length: int):
    if tokens.size < 2:
      raise ValueError(
        f"tokens must have at least 2 entries, got {tokens.size}"
      )
    self._tokens = tokens
    self._length = length

  def __len__(self) -> int:
    return -(-(self._tokens.size - 1) // self._length)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    start = index * self._length
    piece = self._tokens[start : start + self._length + 1]
    missing = self._length + 1 - piece.size
    return {
      "inputs": np.pad(piece[:-1], (0, missing)),
      "targets": np.pad(piece[1:], (0, missing), constant_values=-1),
    }


def shuffled(tokens: np.ndarray, length: int, seed: int) -> grain.MapDataset:
  """Returns the sequences in an order that depends on the seed.

  A process can read any sequence by its number. The state of the data is
  therefore the number of the step, and every process reads only the sequences
  of its devices. With ``.repeat()``, each pass has a new order.
  """
  return grain.MapDataset.source(Sequences(tokens, length)).shuffle(seed=seed)


class Padded:
  """A data set that is read once: sequences after its end have no targets.

  The last batch of an evaluation would otherwise count sequences twice.
  """

  def __init__(self, dataset: grain.MapDataset):
    self._dataset = dataset

  def __len__(self) -> int:
    return len(self._dataset)

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    if index < len(self):
      return self._dataset[index]
    first = self._dataset[0]
    return {
      "inputs": np.zeros_like(first["inputs"]),
      "targets": np.full_like(first["targets"], -1),
    }


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--data", type=pathlib.Path, default="data/lm")
  parser.add_argument("--text", default=STDLIB)
  parser.add_argument("--vocab", type=int, default=8192)
  arguments = parser.parse_args()
  prepare(arguments.data, arguments.text, arguments.vocab)
