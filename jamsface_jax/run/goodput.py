"""Where the wall time of a run goes, over all its starts."""

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping

from jamsface_jax.storage.whole_file import written_whole

GOODPUT_FILE = "goodput.json"

# Wall seconds between the call of `train` and its end are of one kind each.
# `step` is what is wanted; `lost` are steps, data and evaluations that a later
# start had to do again. Between two starts no clock runs.
KINDS = ("step", "startup", "data", "checkpoint", "evaluation", "lost")
_REPEATED = ("step", "data", "evaluation")


class Goodput:
  """A clock that always runs for one kind of work, first for `startup`.

  Args:
    workdir: `W/goodput.json` in it adds up earlier starts.
    save: whether to write it; one process of several does.
  """

  def __init__(self, workdir: str, *, save: bool):
    self._path = os.path.join(workdir, GOODPUT_FILE)
    self._saves = save
    self._kind = "startup"
    self._since = time.monotonic()
    self._seconds: dict[str, float] = dict.fromkeys(KINDS, 0.0)

  def resume(self, at_checkpoint: Mapping[str, float]) -> None:
    """Adds what earlier starts spent.

    Args:
      at_checkpoint: seconds by kind when the checkpoint was saved that this
        start goes on from; empty for a new run. What was spent since is lost.
    """
    try:
      with open(self._path, encoding="utf-8") as file:
        earlier = json.load(file)
    except (OSError, ValueError):  # The first start, or a torn record.
      earlier = dict(at_checkpoint)
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
  def spent(self, kind: str) -> Iterator[None]:
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
    """Writes the seconds so far, for a later start."""
    if self._saves:
      with written_whole(self._path) as file:
        json.dump(self.now(), file)

  def sentence(self) -> str:
    """What to tell the user at the end."""
    seconds = self.now()
    total = sum(seconds.values())
    parts = [f"{k} {seconds[k] / total:.1%}" for k in KINDS]
    return f"wall time {total:,.0f} s: {', '.join(parts)}"
