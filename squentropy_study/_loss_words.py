# SPDX-License-Identifier: Apache-2.0
"""Losses as a user types and looks for them."""

from collections.abc import Iterable, Sequence
import inspect
import re

from squentropy_jax import losses as library
from squentropy_study._study_error import StudyError, unknown_name

# What people write for a loss, without case, underscores and the word "loss".
_ABBREVIATIONS = {
  "cross_entropy": (
    "ce xe xent crossent crossentropy nll logloss logistic softmax kl kldiv "
    "categoricalcrossentropy sparsecategoricalcrossentropy softmaxcrossentropy"
  ),
  "cross_entropy:smoothing=0.1": "ls labelsmoothing smoothing",
  "cross_entropy:adjustment=1": (
    "la logitadjusted logitadjustment logitadjustedcrossentropy balancedsoftmax"
  ),
  "squentropy": "sq sqe sqen squent squareentropy",
  "rescaled_square": "mse l2 square squared squareerror meansquarederror rsq",
  "mean_absolute_error": "mae l1 absolute",
  "brier": "brierscore quadratic",
  "focal": "fl focalce",
  "dual_focal": "dfl",
  "poly1": "poly polyloss",
  "generalized_cross_entropy": "gce generalisedcrossentropy lq",
  "symmetric_cross_entropy": "sce",
  "normalized_cross_entropy": "nce normalisedcrossentropy",
  "asymmetric_generalized_cross_entropy": "agce",
  "asymmetric_unhinged": "aul",
  "jensen_shannon": "js jsd jensenshannondivergence",
  "bi_tempered_logistic": "bitempered btl",
  "logit_norm_cross_entropy": "logitnorm",
  "crammer_singer": "hinge svm multiclasshinge margin multimargin cs",
  "weston_watkins": "ww",
  "one_vs_rest_hinge": "ovr ova onevsrest onevsall",
}
_SHORT = {
  word: loss for loss, words in _ABBREVIATIONS.items() for word in words.split()
}
# Names of losses of one logit in other libraries.
_ONE_LOGIT = frozenset(
  (
    "bce",
    "bcewithlogits",
    "binarycrossentropy",
    "sigmoidbinarycrossentropy",
    "sigmoidcrossentropy",
    "sigmoid",
    "sigmoidfocal",
    "binaryfocal",
  )
)


def split(words: Iterable[str]) -> tuple[str, ...]:
  """Returns the losses in words, which may hold several after commas.

  A comma also separates hyper-parameters: ``a:x=1,y=2,b`` is ``a:x=1,y=2`` and
  ``b``.

  Args:
    words: What the user typed after ``--losses``.

  Returns:
    One text per loss.

  Raises:
    StudyError: A hyper-parameter follows a loss without a colon.
  """
  losses: list[str] = []
  for word in words:
    between = " "
    for part in filter(None, map(str.strip, word.split(","))):
      if not (losses and re.match(r"\w+=", part)):
        losses.append(part)
      elif between == "," and ":" in losses[-1]:
        losses[-1] += f",{part}"
      else:
        mark = "," if ":" in losses[-1] else ":"
        raise StudyError(
          "a hyper-parameter follows its loss after a colon, and further ones "
          f"after commas; write {losses[-1]}{mark}{part} instead of "
          f"{losses[-1]}{between}{part}"
        )
      between = ","
  return tuple(losses)


def purpose(name: str) -> str:
  """Returns when to use a loss, in one line: a sentence of its docstring."""
  doc = inspect.getdoc(getattr(library, name)) or ""
  paragraphs = doc.split("\n\n")
  use = (text for text in paragraphs if text.startswith("Use when"))
  text = " ".join(next(use, paragraphs[0]).split())
  # A sentence ends at a period before a capital letter.
  text = re.split(r"(?<=\.) (?=[A-Z`:])", text)[0]
  text = re.sub(r":\w+:`(?:[\w.]+\.)?(\w+)`", r"\1", text)
  return text.replace("``", "")


def _arguments(name: str) -> Sequence[str]:
  """Returns the arguments of a function of the library; empty if there is none.

  A name with an underscore in front is not public.
  """
  loss = None if name.startswith("_") else getattr(library, name, None)
  return list(inspect.signature(loss).parameters) if callable(loss) else []


_OF_CLASSES = (
  "the networks of the study return one logit per class, also for two classes"
)


def unknown_loss(name: str, known: Iterable[str]) -> StudyError:
  """Returns an error that says why a loss is not offered, and what to use.

  Args:
    name: The name, as the user typed it.
    known: The losses that the study offers.
  """
  arguments = _arguments(name)
  if "cosines" in arguments:
    return StudyError(
      f"loss {name!r} is for cosines of features and class vectors, but "
      f"{_OF_CLASSES}; use logit_norm_cross_entropy, which normalises logits, "
      "or cross_entropy"
    )
  others = [x for x in arguments if "scores" in x or "_logits" in x]
  if others:
    return StudyError(
      f"loss {name!r} needs {' and '.join(others)}, which the study does not "
      "have; use cross_entropy"
    )
  key = re.sub(r"[\W_]|loss$", "", name.lower())
  if arguments or key in _ONE_LOGIT:
    return StudyError(
      f"loss {name!r} is for one logit per entry (binary or element-wise), but "
      f"{_OF_CLASSES}; use cross_entropy, or focal for a rare class"
    )
  near = _SHORT.get(key, key)
  if near in known or near.partition(":")[0] in known:
    return StudyError(f"unknown loss {name!r}; did you mean {near!r}?")
  return unknown_name("loss", name, known)
