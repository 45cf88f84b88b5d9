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
    self._last = max(settings.max_epochs, *settings.epochs, 0)
    self._console = console
    self._bar = RichProgress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("epoch {task.fields[epoch]} of at most {task.fields[last]}"),
      TextColumn("training loss {task.fields[value]}"),
      TimeRemainingColumn(),
      TextColumn("left"),
      console=console,
      transient=True,
      disable=not console.is_terminal,
    )
    self._task = self._bar.add_task(
      settings.losses[0],
      total=len(settings.losses),
      epoch=0,
      last=self._last,
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
    loss, number, losses, epoch, value, finished = progress
    self._bar.update(
      self._task,
      completed=number if finished else number - 1 + epoch / self._last,
      total=losses,
      description=f"{loss} ({number} of {losses})",
      epoch=f"{epoch:g}",
      value="-" if value is None else f"{value:.3g}",
    )
    if not finished:
      return
    if number == losses:
      self._bar.update(self._task, description="writing the report")
    how = "already trained"
    if value is not None:
      plural = "" if epoch == 1 else "s"
      how = f"{epoch:g} epoch{plural}, training loss {value:.3g}"
    self._console.print(
      f"{loss} ({number} of {losses}): {how}", highlight=False, markup=False
    )
