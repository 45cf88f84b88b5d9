# SPDX-License-Identifier: Apache-2.0
"""When an eager call may read the labels to check their range."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.calibration_functions import NAMES, arguments, function

from squentropy_jax._core import labels as prelude

# These take no labels.
NO_LABELS = {"bin_stats_from_confidence", "mean_set_size"}


class _NotChecked(Exception):
  """Raised right after the labels would have been checked."""


@pytest.fixture
def stop_after_the_check(monkeypatch):
  # The computation that follows would only cost a compilation.
  def stop(labels, num_classes):
    raise _NotChecked

  monkeypatch.setattr(prelude, "narrow_labels", stop)


def _call_with_an_invalid_label(name):
  scores, labels, where = arguments(name)
  labels[1] = 7
  return function(name)(jnp.asarray(scores), labels, where)


def _scores_span_processes(monkeypatch):
  addressable = property(lambda array: array.dtype != jnp.float32)
  array = type(jnp.zeros(()))
  monkeypatch.setattr(array, "is_fully_addressable", addressable)


@pytest.mark.usefixtures("stop_after_the_check")
@pytest.mark.parametrize("name", [n for n in NAMES if n not in NO_LABELS])
def test_labels_are_checked_only_if_every_process_has_the_scores(
  name, monkeypatch
):
  with pytest.raises(ValueError, match=r"labels\[1\] = 7 .* \[0, \d\)"):
    _call_with_an_invalid_label(name)
  # An error on the process with the invalid label would hang the others.
  _scores_span_processes(monkeypatch)
  with pytest.raises(_NotChecked):
    _call_with_an_invalid_label(name)


def test_an_invalid_label_gives_nan_if_the_scores_span_processes(monkeypatch):
  _scores_span_processes(monkeypatch)
  assert np.isnan(_call_with_an_invalid_label("brier_score"))


@pytest.mark.usefixtures("stop_after_the_check")
def test_labels_are_not_checked_if_the_mesh_spans_processes(monkeypatch):
  class Mesh:
    empty = False
    is_multi_process = True

  monkeypatch.setattr(jax.sharding, "get_mesh", Mesh)
  with pytest.raises(_NotChecked):
    _call_with_an_invalid_label("brier_score")
  monkeypatch.setattr(Mesh, "is_multi_process", False)
  with pytest.raises(ValueError, match=r"labels\[1\] = 7"):
    _call_with_an_invalid_label("brier_score")


@pytest.mark.parametrize(
  ("name", "pair"),
  [
    ("brier_score", r"\[1 - p, p\]"),
    ("negative_log_likelihood", r"\[jnp.zeros_like\(z\), z\]"),
  ],
)
def test_one_score_of_two_classes_is_to_be_stacked(name, pair):
  scores, labels, _ = arguments(name)
  with pytest.raises(ValueError, match=rf"pass jnp.stack\({pair}, axis=-1\)"):
    function(name)(scores[:, 1], labels, None)


def test_concrete_labels_are_checked_if_the_scores_are_traced():
  scores, labels, _ = arguments("brier_score")
  labels[1] = 7
  brier_score = function("brier_score")
  traced = jax.jit(lambda scores: brier_score(scores, labels, None))
  with pytest.raises(ValueError, match=r"labels\[1\] = 7"):
    traced(scores)
