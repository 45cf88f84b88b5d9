# SPDX-License-Identifier: Apache-2.0
"""The progress bar in the terminal."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from squentropy_study._run import Progress
from squentropy_study._settings import Settings


class ProgressBar:
  """A bar over all losses, and a line for each finished loss.

  Without a terminal only the lines are printed.
  """

  def __init__(self, settings: Settings, console: Console):
    self._settings = settings
    self._console = console
    self._bar = RichProgress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
      TextColumn("training loss {task.fields[value]}"),
      TimeRemainingColumn(),
      TextColumn("left"),
      console=console,
      transient=True,
      disable=not console.is_terminal,
    )
    self._total = len(settings.losses) * settings.epochs[-1]
    self._task = self._bar.add_task(
      settings.losses[0],
      total=self._total,
      epoch=0,
      epochs=settings.epochs[-1],
      value="-",
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

  def __call__(self, progress: Progress) -> None:
    """Updates the bar."""
    loss, epoch, value = progress
    last = self._settings.epochs[-1]
    done = self._settings.losses.index(loss) * last
    self._bar.update(
      self._task,
      completed=done + epoch,
      description=loss,
      epoch=epoch,
      value="-" if value is None else f"{value:.3g}",
    )
    if done + epoch == self._total:
      self._bar.update(self._task, description="writing the report")
    if epoch == last:
      how = "already trained" if value is None else f"training loss {value:.3g}"
      epochs = f"{last} epoch{'s' if last > 1 else ''}"
      self._console.print(
        f"{loss}: {epochs}, {self._settings.repeats}, {how}",
        highlight=False,
      )
