"""Numbers of a run to `metrics.jsonl` and TensorBoard, by one process."""

import json
import math
import os
from collections.abc import Mapping

from tensorboardX import SummaryWriter

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class MetricWriter:
  """Appends metrics; a resumed run takes back what it will write again.

  Args:
    workdir: the work directory.
    finished: steps that the run resumes from; later lines are dropped.

  Attributes:
    last: names of the metrics of step `finished` that were there.
  """

  def __init__(self, workdir: str, finished: int):
    self._path = os.path.join(workdir, METRICS_FILE)
    self.last: set[str] = _drop_after(self._path, finished)
    self._file = open(self._path, "a", encoding="utf-8")
    self._tensorboard = SummaryWriter(
      os.path.join(workdir, TENSORBOARD), purge_step=finished + 1
    )

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Writes one line.

    Args:
      step: finished steps.
      metrics: names as "train/loss" or "lfw/accuracy".
    """
    # JSON has no NaN: what could not be measured is null.
    finite = {k: v if math.isfinite(v) else None for k, v in metrics.items()}
    self._file.write(json.dumps({"step": step, **finite}) + "\n")
    self._file.flush()
    for name, value in finite.items():
      if value is not None:
        self._tensorboard.add_scalar(name, value, step)

  def sync(self) -> None:
    """Makes the lines so far survive a loss of power."""
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Writes what is still in memory."""
    self._file.close()
    self._tensorboard.close()


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
    with open(path + ".partial", "w", encoding="utf-8") as file:
      file.writelines(kept)
    os.replace(path + ".partial", path)
  return last
