# SPDX-License-Identifier: Apache-2.0
"""Data sets, their split, losses by name, and readouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses
from squentropy_jax.study import Settings, StudyError, _data, _losses

SHAPES = {
  "digits": (1797, 64, 10),
  "iris": (150, 4, 3),
  "wine": (178, 13, 3),
  "breast_cancer": (569, 30, 2),
}


@pytest.mark.parametrize("name", _data.names())
def test_split_shares_no_row_and_keeps_the_classes(name):
  data = _data.load(name)
  assert (*data.features.shape, data.num_classes) == SHAPES[name]
  marked = data._replace(features=np.arange(len(data.labels))[:, None])
  parts = _data.split(marked, 0)[:3]
  assert sum(part.labels.size for part in parts) == data.labels.size
  # Standardising one column keeps the order, and so tells the rows apart.
  columns = [part.features[:, 0] for part in parts]
  assert np.unique(np.concatenate(columns)).size == data.labels.size
  whole = np.bincount(data.labels) / data.labels.size
  for part in parts:
    # Each of two stratified cuts moves a class by one row at most.
    share = np.bincount(part.labels, minlength=data.num_classes)
    np.testing.assert_allclose(share, whole * part.labels.size, rtol=0, atol=2)


def test_split_is_decided_by_its_seed():
  data = _data.load("iris")
  first, again, other = (_data.split(data, seed) for seed in (3, 3, 4))
  np.testing.assert_array_equal(first.test.features, again.test.features)
  assert not np.array_equal(first.test.features, other.test.features)


def test_features_are_standardised_by_the_training_rows_alone():
  split = _data.split(_data.load("digits"), 0)
  features = split.train.features
  assert features.dtype == np.float32
  varies = features.std(axis=0) > 0
  assert 0 < varies.sum() < 64  # Some pixels of digits are always 0.
  features = features.astype(np.float64)
  np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(features.std(axis=0)[varies], 1, atol=1e-6)
  assert np.abs(split.test.features.mean(axis=0)).max() > 1e-3


def test_class_with_too_few_rows_is_refused():
  labels = np.array([0] * 10 + [1] * 3, np.int32)
  data = _data.Dataset("mine", np.zeros((13, 1), np.float32), labels, 2)
  with pytest.raises(StudyError, match="class 1 of mine has 3 rows"):
    _data.split(data, 0)


def test_names_of_losses():
  names = _losses.names()
  assert {"cross_entropy", "squentropy", "rescaled_square"} <= set(names)
  # The drop-in twin is the same loss once more.
  assert "squentropy_with_integer_labels" not in names


def test_loss_gets_its_hyper_parameters():
  logits = jnp.array([[0.5, -1.0, 2.0]])
  labels = jnp.array([2])
  loss = _losses.parse("rescaled_square:target_value=3,target_weight=2")
  np.testing.assert_array_equal(
    loss(logits, labels),
    losses.rescaled_square(logits, labels, target_value=3.0, target_weight=2.0),
  )
  plain = _losses.parse("softmax_regression:squared=false")
  np.testing.assert_array_equal(
    plain(logits, labels),
    losses.softmax_regression(logits, labels, squared=False),
  )
  assert _losses.signature("squentropy") == "squentropy:scale=1.0"
  assert _losses.signature("cross_entropy") == "cross_entropy"


@pytest.mark.parametrize(
  ("spec", "message"),
  [
    ("squentrpy", "did you mean 'squentropy'"),
    ("__import__", "unknown loss"),
    ("names", "unknown loss"),
    ("squentropy:scal=2", "did you mean 'scale'"),
    ("squentropy:where=1", "unknown hyper-parameter"),
    ("cross_entropy:scale=2", "has no hyper-parameter"),
    ("squentropy:scale", "needs a number"),
    ("squentropy:scale=two", "needs a number"),
    ("squentropy:scale=nan", "needs a number"),
    ("squentropy:scale=exit()", "needs a number"),
    ("softmax_regression:squared=2", "needs true or false"),
    ("", "unknown loss"),
  ],
)
def test_bad_loss_is_refused_in_one_line(spec, message):
  with pytest.raises(StudyError, match=message) as caught:
    _losses.parse(spec)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.25, 1.0, 15.0])
def test_linear_readout_inverts_the_minimiser(weight):
  p = jnp.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])
  height = 10.0
  logits = weight * height * p / (weight * p + 1 - p)
  spec = f"rescaled_square:target_value={height},target_weight={weight}"
  read = _losses.readouts(_losses.parse(spec))["linear"]
  np.testing.assert_allclose(jax.nn.softmax(read(logits)), p, rtol=1e-5)


def test_minimiser_of_the_square_loss_is_where_its_gradient_is_zero():
  p = jnp.array([0.7, 0.2, 0.1])
  loss = _losses.parse("rescaled_square:target_value=10,target_weight=2")
  logits = 2 * 10 * p / (2 * p + 1 - p)
  gradient = jax.grad(lambda z: loss(z[None], p[None])[0])(logits)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_linear_readout_is_clipped_and_finite():
  read = _losses.readouts(_losses.parse("rescaled_square:target_value=10"))
  scores = read["linear"](jnp.array([[-3.0, 25.0, 0.0]]))
  np.testing.assert_allclose(
    jax.nn.softmax(scores), [[1e-6, 1, 1e-6]], rtol=1e-5
  )
  assert list(_losses.readouts(_losses.parse("squentropy"))) == ["softmax"]


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"seeds": 0}, "seeds must be at least 1"),
    ({"epochs": ()}, "epochs"),
    ({"epochs": (0, 3)}, "epochs"),
    ({"epochs": (5, 5)}, "epochs"),
    ({"epochs": (5, 4)}, "epochs"),
    ({"batch_size": 0}, "batch size"),
    ({"learning_rate": 0.0}, "learning rate"),
    ({"learning_rate": float("nan")}, "learning rate"),
    ({"data_seed": -1}, "data seed"),
    ({"losses": ()}, "at least one loss"),
    ({"losses": ("squentropy", "squentropy")}, "named twice"),
  ],
)
def test_settings_that_cannot_be_run(change, message):
  with pytest.raises(StudyError, match=message):
    Settings("iris", **change)


def test_regimes_have_names():
  assert Settings("iris", epochs=(3,)).regimes == {"single": 3}
  assert Settings("iris", epochs=(3, 9)).regimes == {"short": 3, "long": 9}
  assert list(Settings("iris", epochs=(3, 5, 9)).regimes) == [
    "short",
    "epoch_5",
    "long",
  ]
