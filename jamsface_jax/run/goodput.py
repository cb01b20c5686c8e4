"""Where the wall time of a run goes, over all its launches."""

import contextlib
import time
from collections.abc import Generator, Mapping

from jamsface_jax.storage.run_directory import RunDirectory

# Wall seconds between the call of `train` and its end are of one kind each.
# `step` is what is wanted; `lost` are steps, data and evaluations that a later
# launch had to do again. Between two launches no clock runs.
KINDS = ("step", "startup", "data", "checkpoint", "evaluation", "lost")
_REPEATED = ("step", "data", "evaluation")


class Goodput:
  """A clock that always runs for one kind of work, first for `startup`.

  Args:
    run: directory of the run; a file in it adds up earlier launches.
  """

  def __init__(self, run: RunDirectory):
    self._file = run.goodput
    self._kind = "startup"
    self._since = time.monotonic()
    self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)

  def resume(self, at_checkpoint: Mapping[str, float]) -> None:
    """Adds what earlier launches spent.

    Args:
      at_checkpoint: seconds by kind when the checkpoint was saved that this
        launch goes on from; empty for a new run. What was spent since is lost.
    """
    try:
      read = dict(self._file.read_json())
      earlier = {kind: float(read[kind]) for kind in KINDS if kind in read}
    except (OSError, ValueError, TypeError, RecursionError, OverflowError):
      earlier = dict(at_checkpoint)  # The first launch, or a torn record.
    for kind, seconds in earlier.items():
      kept = seconds
      if kind in _REPEATED:
        kept = min(seconds, at_checkpoint.get(kind, 0.0))
      self._seconds[kind] += kept
      self._seconds["lost"] += seconds - kept

  def run(self, kind: str) -> str:
    """Lets the clock run for another kind of work; returns the one before."""
    now = time.monotonic()
    self._seconds[self._kind] += now - self._since
    before, self._kind, self._since = self._kind, kind, now
    return before

  @contextlib.contextmanager
  def spent(self, kind: str) -> Generator[None, None, None]:
    """A context whose time counts as this kind."""
    before = self.run(kind)
    try:
      yield
    finally:
      self.run(before)

  def now(self) -> dict[str, float]:
    """Seconds so far by kind."""
    self.run(self._kind)
    return dict(self._seconds)

  def shares(self) -> dict[str, float]:
    """Shares of the wall time so far by the name of their metric; sum 1."""
    seconds = self.now()
    total = sum(seconds.values())
    return {f"goodput/{k}": seconds[k] / total for k in KINDS}

  def save(self) -> None:
    """Writes the seconds so far, for a later launch."""
    self._file.write_json(self.now(), synced=False)

  def sentence(self) -> str:
    """What to tell the user at the end."""
    seconds = self.now()
    total = sum(seconds.values())
    parts = [f"{k} {seconds[k] / total:.1%}" for k in KINDS]
    return f"wall time {total:,.0f} s: {', '.join(parts)}"
