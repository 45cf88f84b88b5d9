# SPDX-License-Identifier: Apache-2.0
"""Every public calibration function that takes ``where``, with arguments."""

import functools
import inspect

import jax
import numpy as np

from squentropy_jax import calibration

# Recalibrators of two classes.
_BINARY = (
  "fit_beta_calibration",
  "fit_quadratic_scaling",
  "fit_spline_scaling",
)
# Arguments that have no default.
_KEYWORDS = {"fit_conformal": {"alpha": 0.25}, "top_k_accuracy": {"k": 2}}


def _takes_where(value):
  return inspect.isfunction(value) and (
    "where" in inspect.signature(value).parameters
  )


NAMES = [name for name, f in vars(calibration).items() if _takes_where(f)]


def function(name):
  """``f(scores, labels, where)``, the same for all functions."""
  f = functools.partial(getattr(calibration, name), **_KEYWORDS.get(name, {}))
  if name == "mean_set_size":
    return lambda scores, labels, where: f(scores, where=where)
  return lambda scores, labels, where: f(scores, labels, where=where)


def arguments(name):
  """Scores ``[12, C]``, labels and ``where``, of which a fourth is False.

  A function of confidences gets them and hits, both ``[12]``, and one of the
  scores of two classes those of one and ids.
  """
  rng = np.random.default_rng(6)
  scores = rng.normal(size=(12, 2 if name in _BINARY else 4)) * 2
  labels = rng.integers(0, scores.shape[-1], 12)
  scores = scores.astype(np.float32)
  kind = next(iter(inspect.signature(getattr(calibration, name)).parameters))
  if kind != "logits":
    scores = np.array(jax.nn.softmax(scores))
  if kind == "sets":
    scores = scores > 0.2
  if kind == "confidence":
    scores, labels = scores.max(-1), labels == scores.argmax(-1)
  if name in ("auroc", "average_precision", "roc_curve", "roc_stats"):
    scores, labels = scores[:, 0], np.int64(labels == 0)
  return scores, labels, np.arange(12) % 4 > 0
