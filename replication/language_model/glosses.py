# SPDX-License-Identifier: Apache-2.0
"""The text of the experiment: the entries of WordNet as tokens."""

from collections.abc import Iterator
import os
import pathlib
from typing import NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from replication import sources

# Each entry starts with this token.
_START = "<|entry|>"
_VALIDATION_SHARE = 20
_SEED = 0


class Tokens(NamedTuple):
  """The token ids of both parts of the text."""

  train: np.ndarray
  validation: np.ndarray


def _entries(root: pathlib.Path) -> Iterator[str]:
  """Yields the words of each entry and what they mean."""
  for part in ("noun", "verb", "adj", "adv"):
    path = root / f"usr/share/wordnet/data.{part}"
    for line in path.read_text(encoding="utf-8").splitlines():
      if line.startswith(" "):
        continue  # Indented lines are the licence.
      fields, _, gloss = line.partition(" | ")
      # The number of words is hexadecimal, and each has a number after it.
      number, *words = fields.split()[3:]
      names = words[: 2 * int(number, 16) : 2]
      # An adjective may have a marker of its position, such as galore(ip).
      names = [x.partition("(")[0].replace("_", " ") for x in names]
      yield f"{', '.join(names)}: {gloss.strip()}"


def _encode(texts: list[str], tokenizer: tokenizers.Tokenizer) -> np.ndarray:
  start = tokenizer.token_to_id(_START)
  encoded = tokenizer.encode_batch(texts)
  joined = np.concatenate([[start, *each.ids] for each in encoded])
  return joined.astype(np.int32)


def prepare(folder: pathlib.Path, vocab: int) -> pathlib.Path:
  """Downloads the text and writes its tokens, unless that is done already.

  Args:
    folder: The folder for downloads and prepared data.
    vocab: The number of classes.

  Returns:
    The path of the tokens, for :func:`load`.

  Raises:
    ValueError: If the text is too small for that many classes.
  """
  path = folder / "sets" / f"glosses-{vocab}.npz"
  if path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  root = sources.debian_package("wordnet-base", folder / "raw")
  entries = list(_entries(root))
  order = np.random.default_rng(_SEED).permutation(len(entries))
  shuffled = [entries[k] for k in order]
  validation = shuffled[::_VALIDATION_SHARE]
  train = [x for k, x in enumerate(shuffled) if k % _VALIDATION_SHARE]
  tokenizer = tokenizers.Tokenizer(models.BPE())
  tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  trainer = trainers.BpeTrainer(
    vocab_size=vocab,
    special_tokens=[_START],
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  tokenizer.train_from_iterator(train, trainer)
  if tokenizer.get_vocab_size() != vocab:
    raise ValueError(
      f"vocab must be {tokenizer.get_vocab_size()} or less for this text, got "
      f"{vocab}; use fewer classes."
    )
  partial = path.with_suffix(f".{os.getpid()}.part.npz")
  np.savez_compressed(
    partial,
    train=_encode(train, tokenizer),
    validation=_encode(validation, tokenizer),
  )
  partial.replace(path)
  return path


def load(path: pathlib.Path) -> Tokens:
  """Reads what :func:`prepare` wrote."""
  with np.load(path) as arrays:
    return Tokens(arrays["train"], arrays["validation"])


def sequences(tokens: np.ndarray, length: int) -> np.ndarray:
  """Cuts tokens into sequences of ``length`` inputs and their targets.

  Args:
    tokens: Token ids.
    length: The number of inputs of a sequence.

  Returns:
    ``[sequences, length + 1]``. The last token of a sequence is the first one
    of the next. Tokens that fill no sequence are left out.
  """
  number = (tokens.size - 1) // length
  starts = length * np.arange(number)
  return tokens[starts[:, None] + np.arange(length + 1)]
