"""Numbers of a run to `metrics.jsonl`, TensorBoard, W&B, by one process."""

import contextlib
import json
import math
import os
import socket
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from jamsface_jax.errors import RunError
from jamsface_jax.run.metrics_file import METRICS_FILE
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.training.wandb_log import WandbLog

TENSORBOARD = "tensorboard"


class MetricWriter:
  """Appends metrics; a resumed run takes back what it will write again.

  Args:
    workdir: the work directory.
    finished: steps that the run resumes from; later lines are dropped.
    wandb_log: gets the same numbers, if there is one.

  Attributes:
    last: names of the metrics of step `finished` that were there.
  """

  def __init__(
    self, workdir: str, finished: int, wandb_log: WandbLog | None = None
  ):
    self._wandb_log = wandb_log
    self._path = os.path.join(workdir, METRICS_FILE)
    self.last: set[str] = _drop_after(self._path, finished)
    self._file = open(self._path, "a", encoding="utf-8")
    directory = os.path.join(workdir, TENSORBOARD)
    os.makedirs(directory, exist_ok=True)
    # SummaryWriter writes in a thread, whose errors (a full disk) go nowhere
    # and whose end makes the next call wait for ever.
    self._events = RecordWriter(
      os.path.join(
        directory,
        f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}",
      )
    )
    self._add_event(file_version="brain.Event:2")
    # TensorBoard hides what an earlier run wrote from this step on.
    self._add_event(
      step=finished + 1, session_log=SessionLog(status=SessionLog.START)
    )

  def _add_event(self, **fields) -> None:
    event = Event(wall_time=time.time(), **fields)
    self._events.write(event.SerializeToString())

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one line.

    Args:
      step: finished steps.
      metrics: names as "train/loss" or "lfw/accuracy".

    Raises:
      RunError: the disk is full.
    """
    # JSON has no NaN: what could not be measured is null.
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    try:
      self._file.write(json.dumps({"step": step, **finite}) + "\n")
      self._file.flush()
      for name, value in finite.items():
        if value is not None:
          self._add_event(step=step, summary=scalar(name, value))
    except OSError as error:
      raise RunError(
        f"{self._path!r} cannot be written ({error.strerror}): make room and"
        " run the same command again."
      ) from error
    if self._wandb_log:
      self._wandb_log.write(
        step, {k: v for k, v in finite.items() if v is not None}
      )

  def sync(self) -> None:
    """Makes the lines so far survive a loss of power."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Writes what is still in memory."""
    with contextlib.ExitStack() as closing:
      closing.callback(self._events.close)
      if self._wandb_log:
        closing.callback(self._wandb_log.close)
      self._file.close()


def _drop_after(path: str, finished: int) -> set[str]:
  """Keeps the whole lines of steps up to `finished`; names what it has."""
  if not os.path.exists(path):
    return set()
  with open(path, encoding="utf-8") as file:
    lines = file.readlines()
  kept, last = [], set()
  for line in lines:
    try:
      metrics = json.loads(line)
      if metrics["step"] <= finished and line.endswith("\n"):
        kept.append(line)
        if metrics["step"] == finished:
          last.update(metrics)
    except ValueError:
      continue  # Torn by a kill in the middle of writing.
  if kept != lines:
    with written_whole(path) as file:
      file.writelines(kept)
  return last
