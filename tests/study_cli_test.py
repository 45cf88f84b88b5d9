# SPDX-License-Identifier: Apache-2.0
"""The command line: one-line errors, exit codes, Ctrl-C."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from support import study

from squentropy_study import (
  StudyError,
  _cli,
  _commands,
  _data,
  _headline,
  _run,
  _terminal_table,
)

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  ("words", "message"),
  [
    ("run digts", "unknown data set 'digts'; did you mean 'digits'?"),
    ("run qqq", "choose from digits, iris, wine, breast_cancer"),
    ("run iris --losses squentrpy", "did you mean 'squentropy'?"),
    ("run iris --losses", "expected at least one argument"),
    ("run iris --seeds 0", "seeds must be at least 1, got 0"),
    ("run iris --seeds few", "invalid int value"),
    ("run iris --epochs 0", "epochs must be increasing"),
    ("run iris --epochs 40,30", "epochs must be increasing"),
    ("run iris --epochs many", "increasing integers such as 40 300"),
    ("run iris --epochs 30 20", "epochs must be increasing"),
    ("run iris --losses ce", "did you mean 'cross_entropy'?"),
    ("run iris --losses squentropy,scale=2", "write squentropy:scale=2"),
    ("run iris --losses dice", "is for one logit per entry"),
    ("run iris --epochs=-3", "epochs must be increasing"),
    ("run iris --max-epochs 0", "max epochs must be at least 1"),
    ("run iris --stopping loss", "invalid choice: 'loss'"),
    ("run iris --class-weights x", "invalid choice: 'x'"),
    ("run iris --reference nll", "unknown loss 'nll'"),
    ("run iris --reference focal", "'focal' is not among the losses"),
    ("run iris --batch-size 0", "batch size must be at least 1"),
    ("run iris --learning-rate 0", "learning rate must be above 0"),
    ("run iris --learning-rate inf", "learning rate must be above 0"),
    ("run iris --save-every -1", "expected 0 or more seconds, got -1"),
    ("run iris --save-every nan", "expected 0 or more seconds, got nan"),
    ("run iris --save-every abc", "expected 0 or more seconds, got abc"),
    ("run iris --rows 149", "at most 147, or 150 for all rows; got 149"),
    ("run iris --out /proc/x", "name another folder with --out"),
    ("run iris --zzz 9", "unrecognized arguments: --zzz 9"),
    ("run iris --seed 9", "unknown option '--seed'; did you mean '--seeds'?"),
    ("run iris --stop-by nll", "did you mean '--stopping'?"),
    ("run iris --missin x", "did you mean '--missing'?"),
    ("run iris --losses squentropy scale=2", "write squentropy:scale=2"),
    ("run iris --losses nowhere.loss", "cannot import nowhere"),
    ("report a --outt b", "unknown option '--outt'; did you mean '--out'?"),
    ("losses extra", "unrecognized arguments: extra"),
    ("run", "required: data"),
    ("rum iris", "invalid choice"),
    ("", "required: command"),
    ("report nowhere", "nowhere holds no study"),
    ("report nowhere neither", "nowhere holds no finished study"),
    ("run iris --model mpl", "unknown model 'mpl'; did you mean 'mlp'?"),
    ("run iris --optimizer sgd2", "did you mean 'sgd'?"),
    ("run iris --folds 2", "folds must be 1, or 3 and more"),
    ("run iris --rows 2", "rows must be at least the 3 classes"),
    ("run iris --rows 0", "rows must be at least 1"),
    ("run iris --model cnn", "model cnn needs images of shape"),
    ("run iris --label x", "leave out --label"),
    ("run iris --id x", "iris has no column for --id"),
    ("run iris --losses squentropy:", "remove the colon"),
    ("run none.csv", "there is no file none.csv"),
  ],
)
def test_user_error_is_one_line_and_writes_nothing(
  words, message, tmp_path, monkeypatch, capsys
):
  monkeypatch.chdir(tmp_path)
  assert _cli.main(words.split()) == 2
  captured = capsys.readouterr()
  assert captured.out == ""
  assert captured.err.startswith("squentropy-study: error: ")
  assert captured.err.count("\n") == 1
  assert message in captured.err
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["a file", "a file/below", "held"])
def test_output_that_cannot_be_used(where, tmp_path, capsys):
  (tmp_path / "a file").write_text("mine")
  (tmp_path / "held").mkdir()
  (tmp_path / "held" / "mine").write_text("mine")
  out = str(tmp_path / where)
  assert _cli.main(["run", "iris", "--out", out]) == 2
  error = capsys.readouterr().err
  assert error.count("\n") == 1
  assert out in error
  assert (tmp_path / "a file").read_text() == "mine"
  assert [path.name for path in (tmp_path / "held").iterdir()] == ["mine"]


def test_lists(capsys):
  assert _cli.main(["losses"]) == 0
  losses = capsys.readouterr().out.splitlines()
  assert "squentropy:scale=1.0" in losses
  place = losses.index("cross_entropy")
  assert losses[place + 1] == (
    "    Use when there is no reason for another loss."
  )
  assert "smoothing=0.1" in losses[-1]
  assert _cli.main(["data"]) == 0
  data = capsys.readouterr().out.splitlines()
  assert "digits: 1797 rows, 64 features, 10 classes" in data


def test_reader_that_ends_early_is_no_error():
  """Such as ``squentropy-study losses | head``."""
  code = "import sys; from squentropy_study import _cli; sys.exit(_cli.main())"
  with subprocess.Popen(
    [sys.executable, "-c", code, "losses"],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  ) as process:
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_version(capsys):
  with pytest.raises(SystemExit) as exit_:
    _cli.main(["--version"])
  assert not exit_.value.code
  text = capsys.readouterr().out
  assert re.fullmatch(
    r"squentropy-study \d\S+ \(jax \d\S+, flax .*, python 3\S+\)\n", text
  )


@pytest.mark.parametrize(
  ("words", "expected"),
  [
    ("a b", ("a", "b")),
    ("a,b", ("a", "b")),
    ("a, b,", ("a", "b")),
    ("a:x=1,y=2,b", ("a:x=1,y=2", "b")),
    ("a:x=1 b:y=2,c", ("a:x=1", "b:y=2", "c")),
  ],
)
def test_losses_with_spaces_or_commas(words, expected):
  parsed = _commands._parser().parse_args(
    ["run", "iris", "--losses", *words.split()]
  )
  assert parsed.losses == expected


@pytest.mark.parametrize("words", ["40 300", "40,300", "40, 300"])
def test_epochs_with_spaces_or_commas(words):
  parsed = _commands._parser().parse_args(
    ["run", "iris", "--epochs", *words.split()]
  )
  assert parsed.epochs == (40, 300)


def test_help_shows_the_losses_as_they_are_typed(capsys):
  with pytest.raises(SystemExit):
    _cli.main(["run", "--help"])
  text = " ".join(capsys.readouterr().out.split())
  assert "(default: cross_entropy squentropy rescaled_square:target" in text


def test_options_become_settings(monkeypatch, tmp_path):
  seen = {}

  def run(settings, out, **rest):
    seen.update(settings=settings, out=out, **rest)
    raise StudyError("enough")

  monkeypatch.setattr(_run, "run", run)
  words = ["run", "wine", "--seeds", "3", "--epochs", "2,9", "--losses"]
  words += ["squentropy:scale=0.5", "cross_entropy", "--batch-size", "8"]
  words += ["--learning-rate", "0.01", "--data-seed", "7", "--quiet"]
  words += ["--rows", "99", "--folds", "3", "--model", "linear"]
  words += ["--optimizer", "sgd", "--max-epochs", "50", "--stopping", "nll"]
  words += ["--class-weights", "balanced", "--reference", "best"]
  words += ["--no-baselines", "--id", "customer"]
  assert _cli.main([*words, "--out", str(tmp_path / "a b")]) == 2
  settings = seen["settings"]
  assert settings.data == "wine"
  assert settings.losses == ("squentropy:scale=0.5", "cross_entropy")
  assert (settings.seeds, settings.epochs) == (3, (2, 9))
  assert (settings.batch_size, settings.learning_rate) == (8, 0.01)
  assert settings.data_seed == 7
  assert (settings.rows, settings.folds) == (99, 3)
  assert (settings.model, settings.optimizer) == ("linear", "sgd")
  assert (settings.max_epochs, settings.stopping) == (50, "nll")
  assert (settings.class_weights, settings.reference) == ("balanced", "best")
  assert settings.baselines is False
  assert settings.id == "customer"
  assert seen["command"].endswith(f"--out '{tmp_path}/a b'")
  # The command of the settings gives the same settings.
  first = settings
  assert _cli.main(shlex.split(settings.command("x"))[1:]) == 2
  assert seen["settings"] == first
  assert seen["out"] == pathlib.Path("x")
  assert _cli.main(["run", "wine", "--epochs", "none"]) == 2
  assert seen["settings"].epochs == ()
  words = shlex.split(seen["settings"].command("x"))[1:]
  assert "none" in words
  assert _cli.main(words) == 2
  assert seen["settings"].baselines is True
  assert seen["settings"].epochs == ()


def test_table_headline_and_place_are_printed(study_copy, capsys, monkeypatch):
  study.skip_figures(monkeypatch)
  words = shlex.split(study.settings().command(str(study_copy)))[1:]
  assert _cli.main(words) == 0
  captured = capsys.readouterr()
  text = re.sub(r"\s+", " ", captured.out)
  assert "iris, 2 seeds, stopped" in text
  assert re.search(r"squentropy +\d\.?\d* +\d\.\d+ +\d\d\S* +0\.\d+", text)
  assert "95 % interval" in text
  assert "better than cross_entropy on iris" in text
  assert f"Report: {study_copy}/report.html" in text
  assert "squentropy (loss 3 of 3): already trained" in captured.err
  assert _cli.main([*words, "--quiet"]) == 0
  assert capsys.readouterr() == ("", "")
  assert _cli.main(["report", str(study_copy)]) == 0
  assert capsys.readouterr().out == captured.out


def test_notes_on_the_data_are_printed_first(tmp_path, capsys, monkeypatch):
  study.skip_figures(monkeypatch)
  data = tmp_path / "[red]mine.csv"
  rows = [f"{k},{'ab'[k % 2]}" for k in range(20)]
  data.write_text("\n".join(["x,y", "0,", *rows]))
  words = ["run", str(data), "--label", "y", "--losses", "cross_entropy"]
  words += ["--seeds", "1", "--epochs", "none", "--max-epochs", "1"]
  words += ["--model", "linear", "--no-baselines"]
  words += ["--out", str(tmp_path / "[/b]o")]
  monkeypatch.setattr(_terminal_table, "results_table", lambda results: "")
  nothing = _headline.Headline("", ())
  monkeypatch.setattr(_headline, "headline", lambda results: nothing)
  assert _cli.main(words) == 0
  captured = capsys.readouterr()
  first = captured.err.splitlines()[0]
  assert first == "Data: 1 row without a label is dropped"
  assert captured.out.endswith(f"Report: {tmp_path}/[/b]o/report.html\n")


@pytest.mark.parametrize(
  ("data", "folder"),
  [
    ("iris", "iris"),
    ("some/mine.csv", "mine"),
    ("mine.tsv.gz", "mine"),
    ("a.b.csv.zip", "a.b"),
  ],
)
def test_default_folder_is_named_after_the_data(data, folder):
  assert _data.short_name(data) == folder


def _wait_for(path, process):
  for _ in range(6000):
    if path.exists():
      return
    assert process.poll() is None, process.communicate()
    time.sleep(0.01)
  pytest.fail("the first loss was not finished in a minute")


def test_ctrl_c_keeps_what_is_finished_and_no_half_written_file(tmp_path):
  out = tmp_path / "out"
  words = ["run", "iris", "--seeds", "1", "--epochs", "4000"]
  words += ["--model", "linear"]
  # A parent in the background hands down a SIGINT that is ignored.
  program = (
    "import signal, sys; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "from squentropy_study import _cli; "
    "sys.exit(_cli.main(sys.argv[1:]))"
  )
  process = subprocess.Popen(
    [sys.executable, "-c", program, *words, "--out", str(out)],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  try:
    _wait_for(out / "runs" / "cross_entropy.npz", process)
    process.send_signal(signal.SIGINT)
    printed, error = process.communicate(timeout=60)
  finally:
    process.kill()
  assert process.returncode == 130, error
  last = error.splitlines()[-1]
  assert last.startswith("Interrupted. Finished losses: cross_entropy")
  assert last.endswith("run the same command again without --fresh.")
  assert "Traceback" not in error
  assert printed == ""
  names = {path.name for path in out.rglob("*")}
  assert {"config.json", "runs", "cross_entropy.npz"} <= names
  assert not {"results.csv", "report.html"} & names
  assert not [name for name in names if name.endswith(".part")]


@pytest.mark.parametrize(
  ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_sigterm_is_reported_as_ctrl_c(
  number, status, tmp_path, monkeypatch, capsys
):
  def run(*_, **__):
    os.kill(os.getpid(), number)
    time.sleep(60)

  monkeypatch.setattr(_run, "run", run)
  handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
  signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    assert _cli.main(["run", "iris", "--out", str(tmp_path / "o")]) == status
    assert signal.getsignal(signal.SIGTERM) is handlers[0]
  finally:
    signal.signal(signal.SIGINT, handlers[1])
  error = capsys.readouterr().err
  assert error.startswith("Interrupted. Finished losses: none")
  assert error.count("\n") == 1
