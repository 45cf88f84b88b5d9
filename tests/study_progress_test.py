# SPDX-License-Identifier: Apache-2.0
"""The progress of a study, in a terminal and in a pipe."""

import io

from rich.console import Console
from support import study

from squentropy_study import Progress, _progress_bar


class _Clock:
  """A clock that the test sets."""

  now = 0.0

  def __call__(self):
    return self.now


def _bar(*, terminal=False, epochs=(10,)):
  console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
  clock = _Clock()
  settings = study.settings(epochs=epochs, seeds=2)
  return _progress_bar.ProgressBar(settings, console, clock), clock, console


def _lines(console):
  return console.file.getvalue().splitlines()


def test_finished_loss_is_printed_with_its_training_loss():
  bar, _, console = _bar()
  with bar:
    bar(Progress("squentropy", 2, 3, 1.0, 0.25, finished=True))
    bar(Progress("brier", 3, 3, 0.0, None, finished=True))
  assert _lines(console) == [
    "squentropy (loss 2 of 3): 1 epoch, 2 seeds, training loss 0.25",
    "brier (loss 3 of 3): already trained",
  ]


def test_lines_every_half_minute_without_a_terminal():
  bar, clock, console = _bar()
  with bar:
    for second in range(0, 100, 10):
      clock.now = 1.0 + second
      bar(Progress("squentropy", 1, 3, second / 20, 0.5, finished=False))
  lines = _lines(console)
  assert len(lines) == 3
  # 20 seconds an epoch: 8.5 epochs of this loss, and two losses of 201 s.
  assert lines[0] == (
    "loss 1 of 3, squentropy: epoch 1.5 of at most 10, training loss 0.5, at "
    "most 10 min left"
  )


def test_time_is_estimated_after_the_compilation_only():
  bar, clock, console = _bar()
  report = Progress("squentropy", 1, 1, 1.0, 0.5, finished=False)
  with bar:
    # The first segment takes a minute, most of it to compile.
    clock.now = 60.0
    bar(report)
    # One epoch a second from here on.
    clock.now = 92.0
    bar(report._replace(epoch=9.0))
  first, second = _lines(console)
  assert "left" not in first
  assert second.endswith("at most 4 s left")


def test_later_losses_take_as_long_as_earlier_ones():
  bar, clock, console = _bar()
  with bar:
    clock.now = 50.0
    bar(Progress("squentropy", 1, 2, 4.0, 0.5, finished=True))
    clock.now = 85.0
    bar(Progress("brier", 2, 2, 1.0, 0.5, finished=False))
  # 50 seconds as before, of which 35 are over.
  assert _lines(console)[-1].endswith("at most 15 s left")


def test_bar_in_a_terminal():
  bar, clock, console = _bar(terminal=True)
  with bar:
    clock.now = 40.0
    bar(Progress("squentropy", 2, 3, 2.5, 0.5, finished=False))
    bar._bar.refresh()
    shown = console.file.getvalue()
    bar.stage("fitting the baselines")
    bar._bar.refresh()
  assert "loss 2 of 3: squentropy" in shown
  assert "epoch 2.5 of at most 10" in shown
  assert "fitting the baselines" in console.file.getvalue()
  # The bar has its own lines, so there is no other one.
  assert "loss 2 of 3, squentropy" not in console.file.getvalue()


def test_durations_in_words():
  words = [_progress_bar._duration(s) for s in (0.4, 59, 61, 3599, 7500)]
  assert words == ["0 s", "59 s", "1 min", "1 h 00 min", "2 h 05 min"]
