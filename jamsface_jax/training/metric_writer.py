"""Numbers of a run to its file of metrics, TensorBoard and W&B."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

# Made by protobuf as it is imported.
from tensorboardX.proto.event_pb2 import (
  Event,  # ty: ignore[missing-module-member]
  SessionLog,  # ty: ignore[missing-module-member]
)
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from jamsface_jax.errors import DISK_FULL, RunError
from jamsface_jax.run.metrics_file import drop_after
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.wandb_log import WandbLog


class MetricWriter:
  """Appends metrics; a resumed run takes back what it will write again.

  Args:
    run: directory of the run; where it is not written to, nothing is.
    finished: steps that the run resumes from; later lines are dropped.
    wandb_log: gets the same numbers, if there is one.

  Attributes:
    last: names of the metrics of step `finished` that were there.
  """

  def __init__(
    self, run: RunDirectory, finished: int, wandb_log: WandbLog | None = None
  ):
    self._wandb_log = wandb_log
    self._file = run.metrics
    self.last: set[str] = drop_after(run.metrics, finished)
    # SummaryWriter writes in a thread, whose errors (a full disk) go nowhere
    # and whose end makes the next call wait for ever.
    self._events = RecordWriter(run.new_events_file()) if run.writes else None
    self._add_event(file_version="brain.Event:2")
    # TensorBoard hides what an earlier launch wrote from this step on.
    self._add_event(
      step=finished + 1, session_log=SessionLog(status=SessionLog.START)
    )

  def _add_event(self, **fields: Any) -> None:
    if self._events:
      event = Event(wall_time=time.time(), **fields)
      self._events.write(event.SerializeToString())

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one line.

    Args:
      step: finished steps.
      metrics: values by name, "train/loss" or "lfw/accuracy".

    Raises:
      RunError: the disk is full.
    """
    # JSON has no NaN: what could not be measured is null.
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    try:
      self._file.append_line(json.dumps({"step": step, **finite}))
      for name, value in finite.items():
        if value is not None:
          self._add_event(step=step, summary=scalar(name, value))
    except OSError as error:
      mend = "make room" if error.errno in DISK_FULL else "mend that"
      raise RunError(
        f"{self._file.path!r} cannot be written ({error.strerror}): {mend} and"
        " run the same command again."
      ) from error
    if self._wandb_log:
      self._wandb_log.write(
        step, {k: v for k, v in finite.items() if v is not None}
      )

  def sync(self) -> None:
    """Makes the lines so far survive a loss of power."""
    self._file.sync()

  def close(self) -> None:
    """Writes what is still in memory."""
    try:
      if self._wandb_log:
        self._wandb_log.close()
    finally:
      if self._events:
        self._events.close()
