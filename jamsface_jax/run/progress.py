"""What a user sees while work goes by: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm


class Progress:
  """Follows work that is counted; what is said stands above its bar.

  Args:
    total: how much there is to do.
    finished: how much of it was done before.
    unit: what is counted, with a space before it if one is wanted.
    title: said before the bar, or None.
    layout: tqdm's `bar_format`; None for tqdm's own, which has a speed.
    quiet: show nothing, as all processes but one do.
  """

  def __init__(
    self,
    total: int,
    finished: int = 0,
    *,
    unit: str,
    title: str | None = None,
    layout: str | None = None,
    quiet: bool,
  ):
    self._total = total
    self._quiet = quiet
    self._bar = tqdm(
      total=total,
      initial=finished,
      unit=unit,
      desc=title,
      bar_format=layout,
      dynamic_ncols=True,
      disable=quiet or not sys.stderr.isatty(),
    )

  def __enter__(self) -> "Progress":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    traceback: TracebackType | None,
  ) -> None:
    self.close()

  @property
  def has_bar(self) -> bool:
    """Whether there is a bar to be seen."""
    return not self._bar.disable

  def advance(self, count: int = 1) -> None:
    """Counts what has been done."""
    self._bar.update(count)

  def note(self, line: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._quiet:
      return
    if self.has_bar:
      self._bar.write(line, file=sys.stdout)
    else:
      print(line, flush=True)

  def close(self) -> None:
    """Ends the bar; lines may follow."""
    self._bar.close()


_STEPS = (
  "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps"
  " [{elapsed}, {remaining} left{postfix}]"
)


class StepProgress(Progress):
  """Follows the steps of a run.

  Args:
    total: steps of the whole run.
    finished: steps done before.
    quiet: show nothing, as all processes but one do.
  """

  def __init__(self, total: int, finished: int, *, quiet: bool):
    super().__init__(total, finished, unit="step", layout=_STEPS, quiet=quiet)
    self._finished = finished
    self._timed_from: tuple[float, int] | None = None

  def advance(self, count: int = 1) -> None:
    """Counts steps that have been done."""
    super().advance(count)
    self._finished += count
    if self._timed_from is None:  # The first of them compiled.
      self._timed_from = time.monotonic(), self._finished

  def show(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the latest training metrics.

    A window whose every step was rejected has neither loss nor accuracy.

    Args:
      step: finished steps.
      metrics: values by name, as they are logged.
    """
    text = "no step counted"
    if "train/loss" in metrics:
      text = (
        f"loss {metrics['train/loss']:.3f}"
        f", accuracy {metrics['train/accuracy']:.1%}"
      )
    if "train/images_per_second" in metrics:  # Not while it compiles.
      text += f", {metrics['train/images_per_second']:,.0f} images/s"
    if self.has_bar:
      self._bar.set_postfix_str(text)
      return
    if self._timed_from is not None and step > self._timed_from[1]:
      begin, first = self._timed_from
      each = (time.monotonic() - begin) / (step - first)
      text += f", {clock(each * (self._total - step))} left"
    self.note(f"step {step}/{self._total}: {text}")


_LINE_SECONDS = 30.0  # Between lines of progress where there is no terminal.


class ImageProgress(Progress):
  """Follows images: how many are done, speed and time left.

  Args:
    total: images in all.
    title: said before the bar, or None.
    quiet: show nothing, as all processes but one do.
  """

  def __init__(self, total: int, *, title: str | None, quiet: bool):
    super().__init__(total, unit=" images", title=title, quiet=quiet)
    self._done = 0
    self._begin = self._said = time.monotonic()

  def advance(self, count: int = 1) -> None:
    """Counts images that have been done."""
    super().advance(count)
    self._done += count
    now = time.monotonic()
    if self.has_bar or now - self._said < _LINE_SECONDS:
      return
    self._said = now
    rate = self._done / (now - self._begin)
    left = tqdm.format_interval((self._total - self._done) / rate)
    self.note(
      f"{self._done:,} of {self._total:,} images, {rate:,.0f} images/s,"
      f" {left} left"
    )


def clock(seconds: float) -> str:
  """A duration as hours:minutes:seconds."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"
