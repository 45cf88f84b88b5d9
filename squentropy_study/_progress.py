# SPDX-License-Identifier: Apache-2.0
"""What a person sees while the study trains."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from squentropy_study import _run
from squentropy_study._settings import Settings


class ProgressBar:
  """A bar over all losses with the loss, the epoch and the time left.

  Where nobody watches (no terminal) only the line that closes each loss is
  printed.
  """

  def __init__(self, settings: Settings, console: Console):
    self._settings = settings
    self._console = console
    self._bar = Progress(
      TextColumn("{task.description}"),
      BarColumn(),
      TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
      TextColumn("loss {task.fields[value]}"),
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
    """Takes it away."""
    self._bar.stop()

  def __call__(self, progress: _run.Progress) -> None:
    """Moves it."""
    spec, epoch, value = progress
    last = self._settings.epochs[-1]
    done = self._settings.losses.index(spec) * last
    self._bar.update(
      self._task,
      completed=done + epoch,
      description=spec,
      epoch=epoch,
      value="-" if value is None else f"{value:.3g}",
    )
    if done + epoch == self._total:
      self._bar.update(self._task, description="writing the report")
    if epoch == last:
      how = (
        "kept from before" if value is None else f"training loss {value:.3g}"
      )
      epochs = f"{last} epoch{'s' if last > 1 else ''}"
      self._console.print(
        f"{spec}: {epochs}, {self._settings.repeats}, {how}",
        highlight=False,
      )
