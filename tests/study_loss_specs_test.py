# SPDX-License-Identifier: Apache-2.0
"""Losses as text, and the probabilities that a model predicts."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses
from squentropy_study import StudyError, _loss_specs, _loss_words

LOGITS = jnp.array([[0.5, -1.0, 2.0], [0.0, 0.1, -0.2]])


def _parse_with_required(name):
  """A loss with 0.5, 1.5, ... for hyper-parameters without a default."""
  parameters = inspect.signature(getattr(losses, name)).parameters.values()
  required = [
    p.name
    for p in parameters
    if p.kind is p.KEYWORD_ONLY and p.default is p.empty
  ]
  values = ",".join(f"{key}={k + 0.5}" for k, key in enumerate(required))
  return _loss_specs.parse(f"{name}:{values}" if values else name)


def test_losses_are_those_with_log_probs():
  names = _loss_specs.names()
  assert names == tuple(sorted(names))
  for name in dir(losses):
    loss = getattr(losses, name)
    predicts = hasattr(loss, "log_probs")
    # The models return logits, which need not be in [-1, 1].
    of_cosines = predicts and "cosines" in inspect.signature(loss).parameters
    assert (name in names) == (predicts and not of_cosines), name
  assert {text.partition(":")[0] for text in _loss_specs.DEFAULT} < {*names}
  # These take other arguments than logits and labels.
  assert not {"smooth_adversarial_comp_sum", "discriminator"} & {*names}


@pytest.mark.parametrize("name", _loss_specs.names())
def test_probability_maps_of_a_loss(name):
  spec = _parse_with_required(name)
  loss = getattr(losses, name)
  maps = spec.probability_maps()
  own = [] if loss.predicts_softmax else ["log_probs"]
  assert list(maps) == [*own, "softmax"]
  assert maps["softmax"](LOGITS) is LOGITS
  for key in own:
    scores = maps[key](LOGITS)
    expected = loss.log_probs(LOGITS, **dict(spec.hyperparameters))
    np.testing.assert_array_equal(scores, expected)
    # The metrics take a softmax of the scores, which leaves them unchanged.
    np.testing.assert_allclose(
      jax.nn.softmax(scores), np.exp(expected), rtol=1e-5
    )


def test_probability_of_zero_has_a_floor():
  """Else one row would make NLL and temperature of the study useless."""
  spec = _loss_specs.parse("bi_tempered_logistic:t1=0.8,t2=0.8")
  logits = np.array([[0.0, 9.0, 8.9], [0.1, 0.2, 0.0]], np.float32)
  raw = losses.bi_tempered_logistic.log_probs(logits, t1=0.8, t2=0.8)
  assert np.isneginf(raw).tolist() == [[True, False, False], [False] * 3]
  log_probs = spec.probability_maps()["log_probs"]
  np.testing.assert_array_equal(
    log_probs(logits), np.maximum(raw, np.float32(_loss_specs.LOG_FLOOR))
  )
  # A more confident mistake has no lower NLL.
  rising = np.array([[a, 0, 0] for a in np.linspace(0, 30, 61)], np.float32)
  narrow = _loss_specs.parse("bi_tempered_logistic:t1=0.5,t2=0.95")
  of_label = narrow.probability_maps()["log_probs"](rising)[:, 1]
  assert (np.diff(of_label) <= 1e-5).all()
  diverged = spec.probability_maps()["log_probs"](logits * np.float32(np.nan))
  assert np.isnan(diverged).all()


def test_predicted_class_may_differ_from_the_largest_logit():
  maps = _loss_specs.parse("spherical_softmax").probability_maps()
  assert maps["log_probs"](LOGITS)[1].argmax() == 2
  assert maps["softmax"](LOGITS)[1].argmax() == 1


def test_loss_gets_its_hyper_parameters():
  logits = jnp.array([[0.5, -1.0, 2.0]])
  labels = jnp.array([2])
  loss = _loss_specs.parse("rescaled_square:target_value=3,target_weight=2")
  np.testing.assert_array_equal(
    loss(logits, labels),
    losses.rescaled_square(logits, labels, target_value=3.0, target_weight=2.0),
  )
  plain = _loss_specs.parse("softmax_regression:squared=false")
  np.testing.assert_array_equal(
    plain(logits, labels),
    losses.softmax_regression(logits, labels, squared=False),
  )
  smooth = _loss_specs.parse("squentropy:smoothing=0.3,scale=2")
  np.testing.assert_allclose(
    smooth(logits, labels),
    losses.squentropy(logits, jnp.array([[0.1, 0.1, 0.8]]), scale=2.0),
    rtol=1e-6,
  )
  adjusted = _loss_specs.parse("squentropy:adjustment=1.5,scale=2")
  assert (adjusted.adjustment, adjusted.smoothing) == (1.5, 0)
  # The bias of the logits is for the training alone.
  np.testing.assert_array_equal(
    adjusted(logits, labels), losses.squentropy(logits, labels, scale=2.0)
  )
  assert _loss_specs.signature("squentropy") == "squentropy:scale=1.0"
  assert _loss_specs.signature("cross_entropy") == "cross_entropy"
  signature = _loss_specs.signature("bi_tempered_logistic")
  assert signature == "bi_tempered_logistic:t1=...,t2=...,num_iters=5"


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("squentrpy", "did you mean 'squentropy'"),
    ("__import__", "unknown loss"),
    ("names", "unknown loss"),
    ("squentropy:", "no hyper-parameter after the colon"),
    ("squentropy:scale=1,scale=2", "sets scale twice"),
    ("squentropy:scale=-1", r"scale must be in \[0, inf\)"),
    ("bi_tempered_logistic", "needs t1 and t2; write bi_tempered_logistic:t1="),
    ("bi_tempered_logistic:t1=0.5", "needs t2; write .*t2="),
    ("squentropy:scal=2", "did you mean 'scale'"),
    ("squentropy:where=1", "unknown hyper-parameter"),
    ("cross_entropy:scale=2", "unknown hyper-parameter of cross_entropy"),
    ("cross_entropy:smoothing=1", r"smoothing must be in \[0, 1\)"),
    ("squentropy:smoothin=1", "did you mean 'smoothing'"),
    ("squentropy:adjustment=-1", "adjustment must be 0 or more, got -1"),
    ("squentropy:adjustment=x", "adjustment must be a number, got 'x'"),
    ("squentropy:scale", "scale must be a number, got"),
    ("squentropy:scale=two", "scale must be a number, got"),
    ("squentropy:scale=nan", "scale must be a number, got"),
    ("squentropy:scale=exit()", "scale must be a number, got"),
    ("softmax_regression:squared=2", "squared must be true or false, got '2'"),
    (
      "bi_tempered_logistic:t1=0.5,t2=1.5,num_iters=2.5",
      "num_iters must be an integer, got '2.5'",
    ),
    ("", "unknown loss"),
    ("ce", "did you mean 'cross_entropy'"),
    ("CrossEntropyLoss", "did you mean 'cross_entropy'"),
    ("xent", "did you mean 'cross_entropy'"),
    ("sq", "did you mean 'squentropy'"),
    ("mse", "did you mean 'rescaled_square'"),
    ("focal_loss", "did you mean 'focal'"),
    ("hinge", "did you mean 'crammer_singer'"),
    ("kl", "did you mean 'cross_entropy'"),
    ("label_smoothing", "did you mean 'cross_entropy:smoothing=0.1'"),
    ("bce", "one logit per entry .* use cross_entropy"),
    ("dice", "one logit per entry .* use cross_entropy"),
    ("ensloss", "one logit per entry .* use cross_entropy"),
    ("arcface", "for cosines of features .* use logit_norm_cross_entropy"),
    ("discriminator", "needs student_scores and teacher_scores"),
  ],
)
def test_invalid_loss_raises_one_line(spec, message):
  with pytest.raises(StudyError, match=message) as caught:
    _loss_specs.parse(spec)
  assert "\n" not in str(caught.value)


def test_smoothing_mixes_the_labels_with_the_uniform_distribution():
  smooth = _loss_specs.parse("cross_entropy:smoothing=0.3")
  labels = jnp.array([2])
  np.testing.assert_allclose(
    smooth(LOGITS[:1], labels),
    losses.cross_entropy(LOGITS[:1], jnp.array([[0.1, 0.1, 0.8]])),
    rtol=1e-6,
  )


@pytest.mark.parametrize("weight", [0.25, 1.0, 15.0])
def test_log_probs_invert_the_minimizer_of_the_square_loss(weight):
  p = jnp.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])
  value = 10.0
  logits = weight * value * p / (weight * p + 1 - p)
  text = f"rescaled_square:target_value={value},target_weight={weight}"
  log_probs = _loss_specs.parse(text).probability_maps()["log_probs"]
  np.testing.assert_allclose(jnp.exp(log_probs(logits)), p, rtol=1e-5)


def test_gradient_of_the_square_loss_is_zero_at_its_minimizer():
  p = jnp.array([0.7, 0.2, 0.1])
  loss = _loss_specs.parse("rescaled_square:target_value=10,target_weight=2")
  logits = 2 * 10 * p / (2 * p + 1 - p)
  gradient = jax.grad(lambda z: loss(z[None], p[None])[0])(logits)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_log_probs_of_the_square_loss_are_finite():
  maps = _loss_specs.parse("rescaled_square:target_value=10").probability_maps()
  scores = maps["log_probs"](jnp.array([[-3.0, 25.0, 0.0]]))
  np.testing.assert_allclose(jnp.exp(scores), [[1e-6, 1, 1e-6]], rtol=1e-5)


def test_loss_without_own_probabilities_has_the_softmax_alone():
  for text in ("squentropy", "rescaled_square:target_value=0"):
    assert list(_loss_specs.parse(text).probability_maps()) == ["softmax"]


def test_abbreviations_are_of_losses_that_the_study_offers():
  names = _loss_specs.names()
  for short, loss in _loss_words._SHORT.items():
    assert loss.partition(":")[0] in names
    # An abbreviation is no loss itself, or it could not be suggested.
    assert short not in names


def test_every_loss_says_what_it_is_for():
  for name in _loss_specs.names():
    text = _loss_words.purpose(name)
    assert text.startswith("Use when ")
    assert text.endswith(".")
    assert not {":", "`", "\n"} & set(text.replace(": a positive", ""))
