# SPDX-License-Identifier: Apache-2.0
"""The progress bar in the terminal, or lines where there is none."""

from collections.abc import Callable
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from squentropy_study._run import Progress
from squentropy_study._settings import Settings

# Seconds between two lines where there is no terminal.
_PAUSE = 30.0


def _duration(seconds: float) -> str:
  """Returns ``45 s``, ``3 min`` or ``2 h 05 min``."""
  if seconds < 60:
    return f"{seconds:.0f} s"
  minutes = round(seconds / 60)
  hours, rest = divmod(minutes, 60)
  return f"{hours} h {rest:02d} min" if hours else f"{minutes} min"


class ProgressBar:
  """A bar over all losses, and a line for each finished loss.

  Without a terminal there is a line every 30 seconds instead of the bar. The
  time left is estimated from the second report of a loss on, because the first
  one includes the compilation. It is an upper bound, because a training may end
  before its last epoch.
  """

  def __init__(
    self,
    settings: Settings,
    console: Console,
    clock: Callable[[], float] = time.monotonic,
  ):
    self._settings = settings
    self._console = console
    self._clock = clock
    self._longest = max(settings.max_epochs, *settings.epochs, 0)
    self._durations: list[float] = []
    # When the loss started, and its first report after that.
    self._started = clock()
    self._first: tuple[float, float] | None = None
    self._printed = clock()
    self._bar = RichProgress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("{task.fields[state]}"),
      console=console,
      transient=True,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task(
      "preparing the data", total=len(settings.losses), state=""
    )

  def __enter__(self) -> "ProgressBar":
    """Shows the bar."""
    self._bar.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    """Removes the bar."""
    self._bar.stop()

  def stage(self, text: str) -> None:
    """Shows what is done other than training, such as writing the report."""
    self._bar.update(self._task, description=text, state="")

  def __call__(self, progress: Progress) -> None:
    """Updates the bar, and prints a line for a finished loss."""
    loss, number, losses, epoch, value, finished = progress
    name = f"loss {number} of {losses}"
    if finished:
      self._finish(progress)
      done = f"loss {number + 1} of {losses}"
      self._bar.update(
        self._task,
        total=losses,
        completed=number,
        description="writing the report" if number == losses else done,
        state="",
      )
      return
    now = self._clock()
    left = self._left(epoch, now, losses - number)
    self._first = self._first or (now, epoch)
    state = f"epoch {epoch:.4g} of at most {self._longest}"
    if value is not None:
      state += f", training loss {value:.3g}"
    if left is not None:
      state += f", at most {_duration(left)} left"
    self._bar.update(
      self._task,
      total=losses,
      completed=number - 1 + epoch / self._longest,
      description=f"{name}: {loss}",
      state=state,
    )
    if not self._console.is_terminal and now - self._printed >= _PAUSE:
      self._print(f"{name}, {loss}: {state}")

  def _left(self, epoch: float, now: float, others: int) -> float | None:
    """Estimates the seconds left; None before anything can be known."""
    mean = sum(self._durations) / max(len(self._durations), 1)
    if self._first is None or epoch <= self._first[1]:
      # The compilation is not over, but earlier losses are known.
      known = (others + 1) * mean - (now - self._started)
      return max(known, 0.0) if self._durations else None
    start, first = self._first
    rate = (now - start) / (epoch - first)
    this = rate * (self._longest - epoch)
    whole = now - self._started + this
    return this + others * (mean if self._durations else whole)

  def _finish(self, progress: Progress) -> None:
    """Prints the line of a finished loss."""
    now = self._clock()
    how = "already trained"
    if progress.value is not None:
      plural = "" if progress.epoch == 1 else "s"
      how = f"{progress.epoch:.4g} epoch{plural}, {self._settings.repeats}, "
      how += f"training loss {progress.value:.3g}"
      self._durations.append(now - self._started)
    self._started, self._first = now, None
    name = f"loss {progress.number} of {progress.losses}"
    self._print(f"{progress.loss} ({name}): {how}")

  def _print(self, text: str) -> None:
    self._console.print(text, highlight=False, markup=False, soft_wrap=True)
    self._printed = self._clock()
