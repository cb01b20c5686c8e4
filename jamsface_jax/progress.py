"""What a user sees while steps go by: a bar on a terminal, lines elsewhere."""

import sys
import time
from collections.abc import Mapping

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
