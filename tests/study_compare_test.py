# SPDX-License-Identifier: Apache-2.0
"""Losses are compared on a DataFrame or an array in memory."""

import tempfile

import numpy as np
import pandas as pd
import pytest
from support import study

import squentropy_study
from squentropy_study import StudyError

LOSSES = ["cross_entropy", "squentropy"]
ROWS = 120


def _table():
  rng = np.random.default_rng(1)
  size = rng.normal(size=ROWS)
  kind = pd.Categorical(rng.choice(["a", "b"], ROWS))
  day = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(ROWS), "D")
  y = np.where(size + (kind == "a") + rng.normal(size=ROWS) > 0.4, "yes", "no")
  x = pd.DataFrame(
    {
      "code": [f"c{k}" for k in range(ROWS)],
      "size": np.where(np.arange(ROWS) % 9, size, np.nan),
      "kind": kind,
      "open": pd.array(size > 0, "boolean"),
      "day": day,
    },
    index=np.arange(ROWS) + 1000,
  )
  return x, pd.Series(y, x.index, name="bought")


X, Y = _table()


def _compare(x, y, **changes):
  settings = {"losses": LOSSES, "seeds": 2, "epochs": (), "max_epochs": 12}
  settings |= {"model": "linear", "learning_rate": 0.02, "baselines": False}
  settings["id"] = "code"
  return squentropy_study.compare(x, y, quiet=True, **{**settings, **changes})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
  """The folder and the results of a comparison."""
  out = tmp_path_factory.mktemp("compare") / "out"
  with pytest.MonkeyPatch.context() as patch:
    study.skip_figures(patch)
    return out, _compare(X, Y, out=out)


def test_table_is_encoded_as_from_a_file(compared, tmp_path, monkeypatch):
  pytest.importorskip("pyarrow")
  study.skip_figures(monkeypatch)
  _, results = compared
  path = tmp_path / "table.parquet"
  X.assign(bought=Y).to_parquet(path, index=False)
  settings = squentropy_study.Settings(
    str(path),
    label="bought",
    losses=tuple(LOSSES),
    seeds=2,
    epochs=(),
    max_epochs=12,
    model="linear",
    learning_rate=0.02,
    baselines=False,
    id="code",
  )
  of_file = squentropy_study.run(settings, tmp_path / "out")
  ours, theirs = results.rows, of_file.rows
  assert [row[1:] for row in ours] == [row[1:] for row in theirs]
  name = results.settings.data
  assert {row.data for row in ours} == {name}
  assert name.startswith("data-")
  assert len(name) == len("data-12345678")


def test_labels_may_be_a_column_or_an_array(compared, monkeypatch):
  out, results = compared
  study.skip_figures(monkeypatch)
  study.forbid_training(monkeypatch)
  again = _compare(X.assign(bought=Y), "bought", out=out)
  assert again.rows == results.rows
  # Another name of the label is another study.
  with pytest.raises(StudyError, match="label was bought, now label"):
    _compare(X, Y.to_numpy(), out=out)


def test_folder_refuses_other_data_and_names_the_call(compared, monkeypatch):
  out, _ = compared
  study.forbid_training(monkeypatch)
  with pytest.raises(StudyError, match=r"holds another study \(data was data-"):
    _compare(X.assign(size=X["size"] + 1), Y, out=out)
  command = squentropy_study.read_config(out)["command"]
  assert command.startswith("squentropy_study.compare(x, y, losses=('cross_")
  assert f"out={str(out)!r}" in command
  assert "max_epochs=12" in command
  assert "label" not in command


def test_folder_predicts_new_rows(compared):
  out, _ = compared
  names = ["day", "open", "kind", "size", "code"]
  frame = squentropy_study.predict(out, X[:7][names])
  assert frame["id"].tolist() == [f"c{k}" for k in range(7)]
  assert "id" not in squentropy_study.predict(out, X[:7][names[:-1]])
  assert frame.index.equals(X.index[:7])
  assert set(frame["predicted"]) <= {"yes", "no"}


def test_table_of_results_is_the_ranking(compared):
  _, results = compared
  table, ranking = results.table(), squentropy_study.rank(results)
  assert repr(results) == (
    f"<results of cross_entropy, squentropy on {results.settings.data}>"
  )
  assert table["loss"].tolist() == [entry.label for entry in ranking.entries]
  assert table["nll"].is_monotonic_increasing
  assert not table["is_baseline"].any()
  other = table[table["loss"] == "squentropy"].iloc[0]
  reference = table[table["loss"] == "cross_entropy"].iloc[0]
  assert table.attrs["reference"] == "cross_entropy"
  for name in ("nll", "accuracy", "ece"):
    difference = other[f"{name}_difference"]
    assert difference == pytest.approx(other[name] - reference[name])
    assert other[f"{name}_low"] < difference < other[f"{name}_high"]
    assert other[f"{name}_rows_error"] > 0
    assert np.isnan(reference[f"{name}_difference"])
  assert 0 <= other["nll_p"] <= 1
  assert np.isnan(other["ece_p"])
  nll = [row.nll_scaled for row in results.rows if row.loss == "squentropy"]
  assert other["nll"] == pytest.approx(np.mean(nll), rel=1e-5)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_plot_shows_each_loss_in_each_metric(compared, theme):
  _, results = compared
  figure = results.plot(theme)
  table = results.table()
  panels = figure.axes
  labels = [text.get_text() for text in panels[0].get_yticklabels()]
  assert labels == table["loss"].tolist()
  assert len(panels) == 3
  place = labels.index("squentropy")
  for ax, name, scale in zip(
    panels, ("nll", "accuracy", "ece"), (1, 100, 1), strict=True
  ):
    drawn = [
      line.get_xdata() for line in ax.lines if line.get_ydata()[0] == place
    ]
    low, high = table.loc[place, [f"{name}_low", f"{name}_high"]]
    assert any(
      np.allclose(x, [scale * low, scale * high]) for x in drawn if len(x) == 2
    )
  assert len(squentropy_study.figure_png(figure)) > 1000


def test_arrays_are_features_and_no_folder_is_left(
  compared, tmp_path, monkeypatch
):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  # Of the shape of the encoded table, for which the programs are compiled.
  table = X.assign(bought=Y)
  encoded = squentropy_study.encode_table("x", table, "bought")
  results = _compare(encoded.features, Y, losses=["squentropy"], id=None)
  assert set(results.predictions()["label"]) == {"yes", "no"}
  assert not list(tmp_path.iterdir())
  assert results.settings.label is None
  assert results.table()["loss"].tolist() == ["squentropy"]
  figure = results.plot()
  assert len(figure.axes) == 3
  # A notebook shows it without pyplot.
  assert figure._repr_png_().startswith(b"\x89PNG")
  ours = results.run_results["squentropy"].test_scores
  _, of_table = compared
  np.testing.assert_array_equal(
    ours, of_table.run_results["squentropy"].test_scores
  )


def test_progress_and_notes_are_printed(monkeypatch, capsys):
  from squentropy_study import _run

  def run_rows(dataset, settings, out, *, on_note=lambda _: None, **_):
    for note in dataset.notes:
      on_note(note)

  monkeypatch.setattr(_run, "run_rows", run_rows)
  monkeypatch.setattr(_run, "load", lambda _: None)
  x = X.assign(constant=1)
  squentropy_study.compare(x, Y)
  assert "Data: " in (said := capsys.readouterr().err)
  assert "constant" in said
  squentropy_study.compare(x, Y, quiet=True)
  assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
  ("x", "y", "settings", "message"),
  [
    (X, Y[::-1], {}, "x and y have different indexes"),
    (
      X,
      Y.to_numpy()[1:],
      {},
      r"one label for each of the 120 rows .* \(119,\)",
    ),
    (X, "sold", {}, "unknown column of x 'sold'"),
    (
      X,
      Y.rename("day"),
      {},
      "x has a column 'day', which is also the name of y",
    ),
    (X[["size"]].to_numpy(), "size", {}, "x is not a DataFrame"),
    (X[["size"]].to_numpy(), Y[:3], {}, r"got shapes \(120, 1\) and \(3,\)"),
    (X.to_numpy(), Y, {}, "x must be an array of numbers, got object"),
    (X[["size"]].to_numpy(), Y, {"time": "day"}, "x has no column for --time"),
    (X, Y, {"label": "y"}, "label is a setting of files"),
    (X, Y, {"epoch": 3}, "unknown setting 'epoch'; did you mean 'epochs'"),
    (X, Y, {"losses": "ce"}, "'cross_entropy'"),
  ],
)
def test_arguments_that_do_not_fit_raise(monkeypatch, x, y, settings, message):
  study.forbid_training(monkeypatch)
  with pytest.raises(StudyError, match=message):
    squentropy_study.compare(x, y, **settings)
