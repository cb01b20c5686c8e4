"""What a user sees while steps go by: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Mapping

import jax
from tqdm import tqdm


class Progress:
  """Follows a run of `total` steps.

  Args:
    total: steps of the whole run.
    finished: steps done before.
    quiet: show nothing, as all processes but one do.
  """

  def __init__(self, total: int, finished: int, *, quiet: bool):
    self._total = total
    self._timed_from = time.monotonic(), finished
    self._shown = False
    self._quiet = quiet
    self._bar = None
    if sys.stderr.isatty() and not quiet:
      self._bar = tqdm(
        total=total,
        initial=finished,
        unit="step",
        dynamic_ncols=True,
        bar_format=(
          "{percentage:3.0f}% {bar} {n_fmt}/{total_fmt} steps"
          " [{elapsed}, {remaining} left{postfix}]"
        ),
      )

  def step(self) -> None:
    """Counts one finished step."""
    if self._bar:
      self._bar.update()

  def show(self, step: int, metrics: Mapping[str, float]) -> None:
    """Shows the latest training metrics, names as in `metrics.jsonl`.

    A window whose every step was rejected has neither loss nor accuracy.
    """
    if self._quiet:
      return
    text = "all steps rejected"
    if "train/loss" in metrics:
      text = (
        f"loss {metrics['train/loss']:.3f}"
        f", accuracy {metrics['train/accuracy']:.1%}"
      )
    if "train/images_per_second" in metrics:  # Not while it compiles.
      text += f", {metrics['train/images_per_second']:,.0f} images/s"
    if self._bar:
      self._bar.set_postfix_str(text)
      return
    now = time.monotonic()
    begin, first = self._timed_from
    left = (now - begin) / max(step - first, 1) * (self._total - step)
    self.note(f"step {step}/{self._total}: {text}, {clock(left)} left")
    if not self._shown:  # What came before was compilation, mostly.
      self._shown, self._timed_from = True, (now, step)

  def note(self, line: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._quiet:
      return
    if self._bar:
      self._bar.write(line, file=sys.stdout)
    else:
      print(line, flush=True)

  def close(self) -> None:
    """Ends the bar."""
    if self._bar:
      self._bar.close()


def clock(seconds: float) -> str:
  """A duration as hours:minutes:seconds."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}"


_LINE_SECONDS = 30.0  # Between lines of progress where there is no terminal.


class _Progress:
  """Images done, speed and time left: a bar on a terminal, lines elsewhere.

  With several processes the first speaks, of its own share.
  """

  def __init__(self, total: int):
    self._total, self._done = total, 0
    self._quiet = jax.process_index() > 0
    share = f"1 of {jax.process_count()} processes"
    self._bar = tqdm(
      total=total,
      unit=" images",
      disable=self._quiet or not sys.stderr.isatty(),
      dynamic_ncols=True,
      desc=share if jax.process_count() > 1 else None,
    )
    self._begin = self._said = time.monotonic()

  def __enter__(self) -> "_Progress":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def add(self, images: int) -> None:
    """Counts images."""
    self._done += images
    self._bar.update(images)
    now = time.monotonic()
    if self._bar.disable and not self._quiet:
      if now - self._said < _LINE_SECONDS:
        return
      self._said = now
      rate = self._done / (now - self._begin)
      left = tqdm.format_interval((self._total - self._done) / rate)
      print(
        f"{self._done:,} of {self._total:,} images, {rate:,.0f} images/s,"
        f" {left} left",
        flush=True,
      )
