"""The metrics of steps: taken one step late, averaged, watched, written."""

import contextlib
import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
from jaxtyping import Array, Float, Float64, Int64

from jamsface_jax.errors import NotFiniteError
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.run.goodput import Goodput
from jamsface_jax.run.progress import StepProgress
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.metric_writer import MetricWriter
from jamsface_jax.training.step import MISSES


@dataclasses.dataclass
class _Pending:
  """A step whose metrics may still be computed."""

  step: int
  metrics: Mapping[str, Float[Array, "..."]]
  ids: Int64[np.ndarray, " n"]


# Parts of the names of metrics that are states of the run, which are not
# averaged over steps.
_STATES = ("margin", "learning_rate", "rejected", "train/loss_")


class StepLog:
  """Takes the metrics of each step one step late, so that nothing waits.

  It adds up what lies between two lines, stops the run when a loss is not
  finite, and measures speed and the share of time spent waiting for data.

  Args:
    settings: those of the run.
    run: directory of the run.
    writer: gets each line.
    progress: shows each line.
    goodput: clock of the run.
    total_steps: steps of the whole run.
    begun: what `state` was at the checkpoint that the run goes on from; {} at
      the start.
  """

  def __init__(
    self,
    settings: Settings,
    run: RunDirectory,
    *,
    writer: MetricWriter,
    progress: StepProgress,
    goodput: Goodput,
    total_steps: int,
    begun: Mapping[str, Any],
  ):
    self._log_every = settings.log_every
    self._batch_size = settings.data.batch_size
    self._run = run
    self._writer = writer
    self._progress = progress
    self._goodput = goodput
    self._total_steps = total_steps
    self._reject_in_a_row = settings.optimizer.reject_in_a_row
    self._pending: _Pending | None = None
    self._sums: dict[str, float] = dict(begun.get("sums", {}))
    self._count: int = begun.get("count", 0)
    self._misses = np.zeros((0, 2))
    if begun.get("misses"):
      self._misses = np.array(begun["misses"], np.float64)
    self._waited = 0.0
    self._timed = 0  # Steps since `_since`.
    self._since: float | None = None

  @property
  def last_metrics(self) -> set[str]:
    """Names of the metrics that the step which the run goes on from has."""
    return self._writer.last

  @contextlib.contextmanager
  def waiting(self) -> Generator[None, None, None]:
    """A context whose time counts as waiting for data."""
    begin = time.monotonic()
    with self._goodput.spent("data"):
      yield
    self._waited += time.monotonic() - begin

  def add(
    self,
    step: int,
    metrics: Mapping[str, Float[Array, "..."]],
    ids: Int64[np.ndarray, " n"],
  ) -> None:
    """Notes a step that has just been started.

    Args:
      step: finished steps, once it is.
      metrics: values by name, on the devices; scalars but for `MISSES`.
      ids: the examples that this process had in it.
    """
    self.catch_up()
    self._pending = _Pending(step, metrics, ids)

  def skip(self, step: int) -> None:
    """Notes a step that is left out."""
    self.catch_up()
    self._progress.advance()
    if step % self._log_every == 0 or step == self._total_steps:
      self._write(step, {})

  def catch_up(self) -> None:
    """Reads the metrics of the step noted last."""
    if self._pending is None:
      return
    step, ids = self._pending.step, self._pending.ids
    found = dict(self._pending.metrics)
    misses = found.pop(MISSES, None)
    metrics = {k: float(v) for k, v in found.items()}
    self._pending = None
    in_a_row = int(metrics.pop("train/rejected_in_a_row"))
    if in_a_row > self._reject_in_a_row:
      self._stop(step, metrics, ids)
    self._progress.advance()
    if in_a_row:
      self._progress.note(
        f"step {step}: loss {metrics['train/loss']}, gradient norm"
        f" {metrics['train/gradient_norm']}: rejected"
      )
    else:  # A mean with one value that is not finite would say nothing.
      for name, value in metrics.items():
        self._sums[name] = self._sums.get(name, 0.0) + value
      self._count += 1
      if misses is not None:
        of_step = np.asarray(misses, np.float64)
        # None yet after a line, or where an older version was stopped.
        begun = len(self._misses)
        self._misses = self._misses + of_step if begun else of_step
    if self._since is None:  # The first step compiles: no speed to be had.
      self._goodput.run("step")
      self._restart_clock()
    else:
      self._timed += 1
    if step % self._log_every == 0 or step == self._total_steps:
      self._write(step, metrics)

  def _write(self, step: int, latest: Mapping[str, float]) -> None:
    """Writes and shows a line: means since the last one, states as they are."""
    means = {k: v / self._count for k, v in self._sums.items()}
    for name, value in latest.items():  # States of the run are not averaged.
      if any(kind in name for kind in _STATES):
        means[name] = value
    if self._timed and self._since is not None:
      elapsed = time.monotonic() - self._since
      means["train/images_per_second"] = (
        self._timed * self._batch_size / elapsed
      )
      means["train/data_wait_fraction"] = min(self._waited / elapsed, 1.0)
    means |= _mean_misses(self._misses) | self._goodput.shares()
    self._goodput.save()
    self._writer.write(step, means)
    self._progress.show(step, means)
    self._sums, self._count, self._misses = {}, 0, np.zeros((0, 2))
    self._restart_clock()

  def _restart_clock(self) -> None:
    self._since, self._waited, self._timed = time.monotonic(), 0.0, 0

  def add_evaluations(
    self,
    step: int,
    evaluations: Sequence[Evaluation],
    further: Mapping[str, float],
  ) -> dict[str, float]:
    """Writes what was measured at a step; returns all of it.

    Args:
      step: finished steps.
      evaluations: those of the sets of `settings.evaluation`.
      further: more metrics.
    """
    measured = dict(further)
    for evaluation in evaluations:
      measured |= evaluation.metrics
      self._progress.note(
        f"step {step}: {evaluation.name} {evaluation.headline}"
      )
    if measured:
      self._writer.write(step, measured)
    # An evaluation's time is not training's.
    self._restart_clock()
    return measured

  def state(self) -> dict[str, Any]:
    """What lies between two lines, as JSON, for the run that goes on here.

    The lines before it are on the disk when this returns.
    """
    self._writer.sync()
    return {
      "sums": dict(self._sums),
      "count": self._count,
      "misses": self._misses.tolist(),
    }

  def _stop(
    self, step: int, metrics: Mapping[str, float], ids: Int64[np.ndarray, " n"]
  ) -> NoReturn:
    """Ends the run for a loss that is not finite; notes what is known."""
    file = self._run.not_finite(step, jax.process_index())
    values = {k: str(v) for k, v in metrics.items()}
    file.write_json({"step": step, "metrics": values, "ids": ids.tolist()})
    raise NotFiniteError(
      f"the loss of step {step} is {metrics['train/loss']}, its gradient's norm"
      f" {metrics['train/gradient_norm']}; metrics and example ids are in"
      f" {file.path!r}.",
      step,
    )

  def close(self) -> None:
    """Ends the bar and the files."""
    self._progress.close()
    self._writer.close()


def _mean_misses(misses: Float64[np.ndarray, "g 2"]) -> dict[str, float]:
  """Means of 1 - p: "train/miss@4" is that of classes of 4 to 7 images."""
  return {
    f"train/miss@{2**group}": float(total / count)
    for group, (total, count) in enumerate(misses)
    if count
  }
