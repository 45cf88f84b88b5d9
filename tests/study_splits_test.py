# SPDX-License-Identifier: Apache-2.0
"""Splits by time and by groups."""

import numpy as np
import pytest

from squentropy_study import Settings, StudyError, _data, _folds, _run, _splits


def _parts(folds, number=0):
  held_out = (folds.validation, folds.test)
  return [
    folds.train[number],
    *(part.rows[number][part.keep[number]] for part in held_out),
  ]


@pytest.fixture(scope="module")
def iris():
  return _data.load_data("iris")


@pytest.mark.parametrize("kind", ["numbers", "dates"])
def test_time_trains_on_the_past(iris, kind):
  times = np.random.default_rng(0).permutation(150)
  start = np.datetime64("2026-01-01")
  values = times * 1.5 if kind == "numbers" else start + times
  folds = _folds.fold(iris, 1, 0, times=values)
  train, validation, test = _parts(folds)
  assert (train.size, validation.size, test.size) == (75, 37, 38)
  assert times[train].max() < times[validation].min()
  assert times[validation].max() < times[test].min()
  every = np.concatenate([train, validation, test])
  np.testing.assert_array_equal(np.sort(every), np.arange(150))
  (note,) = folds.notes
  ends = (
    "from 0 to 111" if kind == "numbers" else "from 2026-01-01 to 2026-03-16"
  )
  assert note.startswith(f"trained on 75 rows {ends}, validated on 37 rows")
  # The training rows are the same, in another order.
  other = _folds.fold(iris, 1, 1, times=values)
  assert set(other.train[0]) == set(train)


def test_rows_of_the_same_time_stay_in_one_part(iris):
  # Months of 12 or 13 rows.
  months = np.random.default_rng(0).permutation(150) // 13
  parts = _parts(_folds.fold(iris, 1, 0, times=months))
  held = [set(months[rows]) for rows in parts]
  assert held[0] | held[1] | held[2] == set(months)
  assert not held[0] & held[1]
  assert not held[1] & held[2]
  sizes = np.array([rows.size for rows in parts])
  np.testing.assert_allclose(sizes, [75, 37.5, 37.5], atol=13)
  # Half of the rows have the first time, and one row the last one.
  times = np.r_[np.zeros(100), np.ones(49), 2].astype(int)
  order = np.random.default_rng(1).permutation(150)
  sizes = [p.size for p in _parts(_folds.fold(iris, 1, 0, times=times[order]))]
  assert sizes == [100, 49, 1]


def test_class_that_a_part_lacks(iris):
  # The file is sorted by class: the last one is never trained on.
  with pytest.raises(
    StudyError, match=r"class 'virginica' has no training row .*--time"
  ):
    _folds.fold(iris, 1, 0, times=np.arange(150))
  times = np.random.default_rng(0).permutation(150) + 1000 * (iris.labels != 0)
  folds = _folds.fold(iris, 1, 0, times=times)
  assert folds.notes[1:] == (
    "class 'setosa' has no validation row in the split of --time",
    "class 'setosa' has no test row in the split of --time",
  )


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (np.r_[np.nan, np.arange(149)], "1 of 150 rows have no value"),
    (
      np.array(["NaT"] * 2 + ["2026-01-01"] * 148, "M8[D]"),
      "2 of 150 rows have no value in the column of --time",
    ),
    (np.arange(150) % 2, "has 2 different values, but .* at least 3"),
    (np.full(150, "may"), "must hold numbers or dates"),
    (np.arange(3), "one value for each of the 150 rows"),
  ],
)
def test_times_that_cannot_be_split(iris, values, message):
  with pytest.raises(StudyError, match=message) as caught:
    _folds.fold(iris, 1, 0, times=values)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("kind", ["numbers", "texts"])
def test_no_group_is_in_two_parts(iris, folds, kind):
  # Groups of one to nine rows.
  rng = np.random.default_rng(0)
  ids = np.repeat(np.arange(30), rng.integers(1, 10, 30))[:150]
  ids = rng.permutation(np.pad(ids, (0, 150 - ids.size), constant_values=30))
  groups = ids if kind == "numbers" else np.array([f"c{k}" for k in ids], "O")
  split = _folds.fold(iris, folds, 0, groups=groups)
  tested = []
  for number in range(folds):
    held = [set(ids[rows]) for rows in _parts(split, number)]
    assert not held[0] & held[1]
    assert not held[1] & held[2]
    assert not held[0] & held[2]
    tested.append(_parts(split, number)[2])
  assert (
    f"{np.unique(ids).size} groups, of which none is in two" in (split.notes[0])
  )
  if folds > 1:
    every = np.sort(np.concatenate(tested))
    np.testing.assert_array_equal(every, np.arange(150))
  again = _folds.fold(iris, folds, 0, groups=groups)
  np.testing.assert_array_equal(again.train, split.train)


@pytest.mark.parametrize(
  ("groups", "message"),
  [
    (np.arange(150) % 3, "has 3 different values, .* needs at least 4"),
    (np.array(["a", ""] * 75, "O"), "75 of 150 rows have no value"),
    (np.array(["a", None, "b"] * 50, "O"), "50 of 150 rows have no value"),
    (np.where(np.arange(150) < 9, np.nan, 1.0), "9 of 150 rows have no value"),
    (np.arange(9), "one value for each of the 150 rows"),
  ],
)
def test_groups_that_cannot_be_split(iris, groups, message):
  with pytest.raises(StudyError, match=message):
    _folds.fold(iris, 1, 0, groups=groups)


def test_class_of_one_group_raises(iris):
  # Each class is one group, and a fourth group has a row of the first class.
  groups = iris.labels.copy()
  groups[0] = 3
  with pytest.raises(StudyError, match=r"has no training row .* of --group"):
    _folds.fold(iris, 1, 0, groups=groups)


@pytest.mark.parametrize(
  ("folds", "columns", "message"),
  [
    (4, ("time",), "leave out --folds 4, or --time"),
    (1, ("time", "group"), "leave out one of them"),
  ],
)
def test_options_that_do_not_fit(iris, folds, columns, message):
  names = dict.fromkeys(columns, "x")
  with pytest.raises(StudyError, match=message):
    Settings("x.csv", label="y", folds=folds, **names)
  arrays = {f"{name}s": np.arange(150) for name in columns}
  with pytest.raises(StudyError, match=message):
    _folds.fold(iris, folds, 0, **arrays)


def test_random_split_is_that_of_no_option(iris):
  split = _splits.random(iris.labels, 3, 0)
  folds = _folds.fold(iris, 3, 0)
  assert folds.notes == ()
  for number in range(3):
    np.testing.assert_array_equal(
      np.sort(folds.train[number]), np.sort(split.train[number])
    )


def test_sample_and_digest_have_times_and_groups(iris):
  data = iris._replace(
    times=np.arange(150), groups=np.array([f"g{k}" for k in range(150)], "O")
  )
  drawn = _data.draw(data, 60, 0)
  np.testing.assert_array_equal(data.features[drawn.times], drawn.features)
  assert [f"g{k}" for k in drawn.times] == drawn.groups.tolist()
  others = [
    data._replace(times=None),
    data._replace(groups=None),
    data._replace(times=np.arange(150)[::-1]),
    data._replace(groups=data.groups[::-1]),
  ]
  assert len({_data.digest(each) for each in [data, *others]}) == 5


@pytest.mark.parametrize("option", ["time", "group"])
def test_bundled_data_has_no_such_column(option, tmp_path):
  settings = Settings("iris", **{option: "x"})
  with pytest.raises(StudyError, match=f"iris has no column for --{option}"):
    _run.run(settings, tmp_path / "out")
  assert not (tmp_path / "out").exists()
  words = settings.command("o").split()
  assert words[words.index(f"--{option}") + 1] == "x"


def test_equal_numbers_of_an_object_column_are_one_group():
  labels = np.arange(80) % 2
  groups = np.repeat(np.arange(20), 4)
  mixed = groups.astype(object)
  mixed[::2] = [float(x) for x in groups[::2]]
  found = _splits.grouped(labels, 1, 0, mixed)
  for parts in zip(found.train, found.validation, found.test, strict=True):
    train, validation, test = (set(groups[part]) for part in parts)
    assert len(train | validation | test) == 20
    assert len(train) + len(validation) + len(test) == 20
