# SPDX-License-Identifier: Apache-2.0
"""Data sets, their split, losses by name, and probability_maps."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from squentropy_jax import losses
from squentropy_study import Settings, StudyError, _data, _loss_specs

SHAPES = {
  "digits": (1797, 64, 10),
  "iris": (150, 4, 3),
  "wine": (178, 13, 3),
  "breast_cancer": (569, 30, 2),
}


def _rows(folds, number):
  """Rows to train on, to recalibrate on and to test on of a fold."""
  parts = (folds.calibration, folds.test)
  held_out = [part.rows[number][part.keep[number]] for part in parts]
  return [folds.train[number], *held_out]


@pytest.mark.parametrize("folds", [1, 3, 5])
@pytest.mark.parametrize("name", _data.names())
def test_folds_share_no_row_and_keep_the_classes(name, folds):
  data = _data.load(name)
  shape = (*data.features.shape, len(data.classes))
  assert shape == SHAPES[name]
  dealt = _data.fold(data, folds, 0)
  parts = 4 if folds == 1 else folds
  whole = np.bincount(data.labels) / data.labels.size
  tested = []
  for number in range(folds):
    rows = _rows(dealt, number)
    every = np.concatenate(rows)
    assert np.unique(every).size == every.size
    # Folds are cut to the length of the shortest, which drops a row or two.
    assert data.labels.size - every.size <= 2
    for part in rows:
      # A part holds each class by its share, up to one row for each part.
      share = np.bincount(data.labels[part], minlength=whole.size)
      np.testing.assert_allclose(share, whole * part.size, rtol=0, atol=parts)
    tested.append(rows[2])
  if folds > 1:
    every = np.sort(np.concatenate(tested))
    np.testing.assert_array_equal(every, np.arange(data.labels.size))


def test_folds_are_decided_by_their_seed():
  data = _data.load("iris")
  first, again, other = (_data.fold(data, 1, seed) for seed in (3, 3, 4))
  for a, b in zip(first[5:], again[5:], strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(first.train, other.train)


def test_features_are_standardised_by_the_training_rows_alone():
  data = _data.load("digits")
  folds = _data.fold(data, 3, 0)
  assert folds.features.dtype == np.float32
  for number in range(3):
    x = folds.features.astype(np.float64)
    x = (x - folds.shift[number]) * folds.scale[number]
    train, _, test = (x[rows] for rows in _rows(folds, number))
    varies = np.ptp(train, axis=0) > 0
    assert 0 < varies.sum() < 64  # Some pixels of digits are always 0.
    np.testing.assert_array_equal(folds.scale[number][~varies], 0)
    # Up to the rows dropped to make the folds equally long, 2 of 600.
    np.testing.assert_allclose(train.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(train.std(axis=0)[varies], 1, atol=0.1)
    assert np.abs(test.mean(axis=0)).max() > 1e-3


def test_rows_cut_to_make_folds_equally_long_have_no_say():
  # 1 row of 10 is cut: a column that varies by that row alone is constant.
  data = _data.load("iris")
  data = _data.draw(data, 130, 0)
  for row in range(130):
    x = np.zeros((130, 1))
    x[row] = 1
    folds = _data.fold(data._replace(features=x), 3, 0)
    trained = (folds.train == row).any(axis=1)
    np.testing.assert_array_equal(folds.scale[:, 0] > 0, trained)


def test_digest_is_of_rows_and_classes():
  data = _data.load("iris")
  other = [
    data._replace(features=data.features + 1e-9),
    data._replace(features=data.features.reshape(-1, 2, 2, 1)),
    data._replace(labels=2 - data.labels),
    data._replace(classes=("a", "b", "c")),
  ]
  digests = {_data.digest(each) for each in [data, *other]}
  assert len(digests) == 5
  assert _data.digest(_data.load("iris")) == _data.digest(data)
  # Where the rows come from is told by the settings.
  assert _data.digest(data._replace(name="x", notes=("y",))) in digests


def test_large_offsets_keep_their_digits():
  data = _data.load("iris")
  moved = data._replace(features=data.features + 2.0**26)
  near, far = (_data.fold(d, 1, 0).features for d in (data, moved))
  np.testing.assert_allclose(near, far, rtol=0, atol=1e-6)


def test_gaps_are_left_to_the_training_and_images_share_a_scale():
  data = _data.load("iris")
  features = data.features.copy()
  features[::7, 1] = np.nan
  folds = _data.fold(data._replace(features=features), 1, 0)
  np.testing.assert_array_equal(np.isnan(folds.features), np.isnan(features))
  assert np.isfinite(folds.shift).all()
  assert np.isfinite(folds.scale).all()
  images = data._replace(features=data.features.reshape(-1, 2, 2, 1))
  assert _data.fold(images, 1, 0).shift.shape == (1, 1)


def test_class_with_too_few_rows_is_refused():
  labels = np.array([0] * 10 + [1] * 3, np.int32)
  data = _data.Dataset("mine", np.zeros((13, 1)), labels, ("no", "yes"))
  with pytest.raises(StudyError, match="class 'yes' of mine has 3 rows"):
    _data.fold(data, 1, 0)
  _data.fold(data, 3, 0)


def test_draw_keeps_the_shares():
  data = _data.load("digits")
  drawn = _data.draw(data, 300, 0)
  assert drawn.labels.size == 300
  assert "300 of 1797 rows drawn" in drawn.notes[-1]
  share = np.bincount(data.labels) * 300 / 1797
  np.testing.assert_allclose(np.bincount(drawn.labels), share, rtol=0, atol=1)
  assert _data.draw(data, 1797, 0) is data
  with pytest.raises(StudyError, match="at most 147, or 150 for all; got 149"):
    _data.draw(_data.load("iris"), 149, 0)


def test_names_of_losses():
  # The adversarial one takes two logits.
  cases_of_one = {case.name for case in cases.CASES} - {
    "smooth_adversarial_comp_sum"
  }
  assert set(_loss_specs.names()) == cases_of_one


def test_a_loss_is_read_through_its_link():
  logits = jnp.array([[0.5, -1.0, 2.0], [0.0, 0.1, -0.2]])
  for name in _loss_specs.names():
    link = getattr(getattr(losses, name), "link", None)
    temperatures = {"t1": 0.5, "t2": 1.5} if "tempered" in name else {}
    spec = f"{name}:t1=0.5,t2=1.5" if temperatures else name
    (probability_map, read), *others = _loss_specs.probability_maps(_loss_specs.parse(spec)).items()
    if link is None or name == "rescaled_square":
      assert probability_map == "softmax"
      assert read(logits) is logits
    else:
      assert probability_map == link.__name__
      np.testing.assert_array_equal(
        read(logits), link(logits, **temperatures), err_msg=name
      )
    assert [key for key, _ in others] == ["linear"] * (
      name == "rescaled_square"
    )
  # The largest logit is not the class of this one.
  (read,) = _loss_specs.probability_maps(_loss_specs.parse("spherical_softmax")).values()
  assert read(logits)[1].argmax() == 2


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
    ("squentropy:", "follow the colon"),
    ("squentropy:scale=1,scale=2", "scale twice"),
    ("squentropy:scale=-1", r"scale must be in \[0, inf\)"),
    ("bi_tempered_logistic", "needs t1 and t2: write bi_tempered_logistic:t1="),
    ("bi_tempered_logistic:t1=0.5", "needs t2: write .*t2="),
    ("squentropy:scal=2", "did you mean 'scale'"),
    ("squentropy:where=1", "unknown hyper-parameter"),
    ("cross_entropy:scale=2", "unknown hyper-parameter of cross_entropy"),
    ("cross_entropy:smoothing=1", r"smoothing must be in \[0, 1\)"),
    ("squentropy:smoothin=1", "did you mean 'smoothing'"),
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
    _loss_specs.parse(spec)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weight", [0.25, 1.0, 15.0])
def test_linear_readout_inverts_the_minimiser(weight):
  p = jnp.array([[0.7, 0.2, 0.1], [0.05, 0.9, 0.05]])
  height = 10.0
  logits = weight * height * p / (weight * p + 1 - p)
  spec = f"rescaled_square:target_value={height},target_weight={weight}"
  read = _loss_specs.probability_maps(_loss_specs.parse(spec))["linear"]
  np.testing.assert_allclose(jax.nn.softmax(read(logits)), p, rtol=1e-5)


def test_minimiser_of_the_square_loss_is_where_its_gradient_is_zero():
  p = jnp.array([0.7, 0.2, 0.1])
  loss = _loss_specs.parse("rescaled_square:target_value=10,target_weight=2")
  logits = 2 * 10 * p / (2 * p + 1 - p)
  gradient = jax.grad(lambda z: loss(z[None], p[None])[0])(logits)
  np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_linear_readout_is_clipped_and_finite():
  read = _loss_specs.probability_maps(_loss_specs.parse("rescaled_square:target_value=10"))
  scores = read["linear"](jnp.array([[-3.0, 25.0, 0.0]]))
  np.testing.assert_allclose(
    jax.nn.softmax(scores), [[1e-6, 1, 1e-6]], rtol=1e-5
  )
  for spec in ("squentropy", "rescaled_square:target_value=0"):
    assert list(_loss_specs.probability_maps(_loss_specs.parse(spec))) == ["softmax"]


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
  assert Settings("iris", epochs=(3,)).training_lengths == {"single": 3}
  assert Settings("iris", epochs=(3, 9)).training_lengths == {"short": 3, "long": 9}
  assert list(Settings("iris", epochs=(3, 5, 9)).training_lengths) == [
    "short",
    "epoch_5",
    "long",
  ]
