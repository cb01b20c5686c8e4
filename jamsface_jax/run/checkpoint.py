"""Orbax behind one small face: save, restore, and read a part.

A checkpoint is named by the number of finished steps and holds four items:
`backbone`, `head`, `training` (step and optimizer) and `metadata`. So an
embedder reads the backbone alone, whatever the head weighs.

  checkpoints/12           complete: it has a manifest, and its name last of all
  checkpoints/16.saving*   being written, or interrupted: removed at the next
                           start
  checkpoints/8.deleting   being removed
  checkpoints/12.damaged   did not match its manifest: kept, never read
"""

import dataclasses
import errno
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from jamsface_jax.errors import InputError, RunError
from jamsface_jax.run.metrics_file import METRICS_FILE
from jamsface_jax.run.state import TrainState
from jamsface_jax.storage.manifest import (
  find_damage,
  sync_directory,
  write_manifest,
)

DIRECTORY = "checkpoints"
_SAVING, _DELETING, _DAMAGED = ".saving", ".deleting", ".damaged"
_SAVE_TIMEOUT = 3600  # Seconds for the slowest process to write its share.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def versions() -> dict[str, str]:
  """Versions of the packages that decide what a run computes."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
  return {name: importlib.metadata.version(name) for name in packages}


class CheckpointReader:
  """The checkpoints of a work directory, to read while another may write.

  What is read is compared with its manifest first.

  Args:
    workdir: of a training run.

  Raises:
    InputError: it has no checkpoint.
  """

  def __init__(self, workdir: str):
    self._directory = os.path.abspath(os.path.join(workdir, DIRECTORY))
    if not os.path.isdir(self._directory):
      raise InputError(
        f"{workdir!r} has no checkpoint: train first, with 'python -m"
        f" jamsface_jax.main --workdir={workdir}'."
      )
    self._damage: dict[tuple[int, tuple[str, ...]], str | None] = {}

  def steps(self) -> list[int]:
    """Finished steps of all complete checkpoints, rising."""
    return sorted(int(n) for n in os.listdir(self._directory) if n.isdigit())

  def latest_step(self) -> int | None:
    """Finished steps of the newest checkpoint, None if there is none."""
    return max(self.steps(), default=None)

  def choose(self, step: int | None) -> int:
    """Returns the wanted step; for None the newest whose backbone is sound.

    Raises:
      InputError: there is no such checkpoint.
      RunError: all are damaged.
    """
    steps = self.steps()
    if not steps or step not in (None, *steps):
      raise InputError(
        f"{self._directory!r} has no checkpoint"
        f"{'' if step is None else f' of step {step}'}: it has"
        f" {', '.join(map(str, steps)) or 'none'}."
      )
    if step is not None:
      return step
    step, damaged = self._newest_sound(("backbone", "metadata"))
    for bad, damage in damaged.items():
      _warn(f"checkpoint {bad} is damaged ({damage}): step {step} is read.")
    return step

  def metadata(self, step: int) -> dict[str, Any]:
    """Reads what was said of a checkpoint."""
    return self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]

  def restore_item(self, step: int, name: str, shapes: Any) -> Any:
    """Reads one item, `backbone` or `head`, and nothing else."""
    return self._restore(step, **{name: ocp.args.StandardRestore(shapes)})[name]

  def _newest_sound(
    self, items: Collection[str]
  ) -> tuple[int | None, dict[int, str]]:
    """The newest sound step, and the damage of those after it."""
    damaged: dict[int, str] = {}
    for step in reversed(self.steps()):
      damage = self._find_damage(step, items)
      if damage is None:
        return step, damaged
      damaged[step] = damage
    if damaged:
      newest = max(damaged)
      raise RunError(
        f"none of the {len(damaged)} checkpoints in {self._directory!r} is"
        f" sound (of step {newest}, {damaged[newest]}): bring one back from a"
        " backup, or choose another --workdir."
      )
    return None, {}

  def _find_damage(self, step: int, items: Collection[str]) -> str | None:
    """See `find_damage`; each part of a checkpoint is looked at once."""
    for key in ((step, ()), (step, tuple(items))):
      if key in self._damage:
        return self._damage[key]
    self._damage[key] = find_damage(self._path(step), items)
    return self._damage[key]

  def _restore(self, step: int, **items: Any) -> Any:
    damage = self._find_damage(step, items)
    try:
      if damage is None:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
          return reader.restore(
            self._path(step), args=ocp.args.Composite(**items)
          )
    except Exception as error:  # Orbax raises bare ones for damaged files.
      damage = " ".join(str(error).split())[:300]
    raise RunError(
      f"checkpoint {step} in {self._directory!r} cannot be read ({damage}):"
      " use another."
    )

  def _path(self, step: int, suffix: str = "") -> str:
    return os.path.join(self._directory, f"{step}{suffix}")

  def close(self) -> None:
    """Nothing stays open between two calls of a reader."""


class Checkpoints(CheckpointReader):
  """The checkpoints of the run that writes them, and alone may do so.

  Args:
    workdir: the work directory.
    keep_last: so many of the newest are kept.
    keep_best: name of the metric whose best checkpoint is kept too, or "".
  """

  def __init__(self, workdir: str, *, keep_last: int, keep_best: str):
    os.makedirs(os.path.join(workdir, DIRECTORY), exist_ok=True)
    super().__init__(workdir)
    self._keep_last = keep_last
    self._keep_best = keep_best
    self._scores = _read_scores(workdir, keep_best) if keep_best else {}
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(), timeout_secs=_SAVE_TIMEOUT
    )
    self._thread = ThreadPoolExecutor(1, "checkpoint")
    self._commit: Future[None] | None = None

  def newest_sound(self) -> int | None:
    """Looks for the checkpoint to go on from; all processes ask together.

    Newer ones that are damaged are moved aside, so that their steps can be
    saved again; what an interrupted save left is removed.

    Returns:
      Its finished steps, None where there is no checkpoint at all.

    Raises:
      RunError: there are some, and all are damaged.
    """
    step = None
    if jax.process_index() == 0:
      self._remove_leftovers()
      step, damaged = self._newest_sound(())
      for bad, damage in damaged.items():
        aside = self._move_aside(bad)
        _warn(f"checkpoint {bad} is damaged ({damage}): moved to {aside!r}.")
      if damaged:
        _warn(f"going on from step {step}: {max(damaged) - step} steps lost.")
    agreed = multihost_utils.broadcast_one_to_all(
      np.int32(-1 if step is None else step)
    )
    return None if agreed < 0 else int(agreed)

  def _remove_leftovers(self) -> None:
    for name in sorted(os.listdir(self._directory)):
      match = re.match(rf"(\d+)({_SAVING}|{_DELETING})", name)
      if match and match[2] == _SAVING:
        _warn(f"the save of checkpoint {match[1]} had been interrupted.")
      if match:
        shutil.rmtree(os.path.join(self._directory, name))

  def _move_aside(self, step: int) -> str:
    aside, number = self._path(step, _DAMAGED), 1
    while os.path.exists(aside):
      number += 1
      aside = self._path(step, f"{_DAMAGED}.{number}")
    os.rename(self._path(step), aside)
    return aside

  def save(
    self,
    step: int,
    state: TrainState,
    metadata: dict[str, Any],
  ) -> None:
    """Starts to write a checkpoint; returns when the state may be changed.

    Args:
      step: finished steps.
      state: what to save.
      metadata: JSON values.

    Raises:
      RunError: this or the save before could not be written.
    """
    self.wait()
    args = ocp.args.Composite(
      **{
        name: ocp.args.StandardSave(item)
        for name, item in _items(state).items()
      },
      metadata=ocp.args.JsonSave(metadata),
    )
    try:
      self._checkpointer.save(self._path(step, _SAVING), args=args)
    except Exception as error:  # Of the file system, through Orbax.
      self._stop(step, error)
    self._commit = self._thread.submit(self._finish, step)

  def note_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes what was measured at a step, to know the best checkpoint."""
    if self._keep_best in metrics:
      self._scores[step] = metrics[self._keep_best]

  def _finish(self, step: int) -> None:
    """Waits for the files; gives them a manifest, a name and a place."""
    try:
      self._checkpointer.wait_until_finished()
      if jax.process_index() == 0:
        write_manifest(self._path(step, _SAVING))
        os.rename(self._path(step, _SAVING), self._path(step))
        sync_directory(self._directory)
        self._remove_old()
    except Exception as error:
      self._stop(step, error)

  def _remove_old(self) -> None:
    steps = self.steps()
    scored = [(self._scores[s], s) for s in steps if s in self._scores]
    best = [max(scored)[1]] if scored else []
    for step in set(steps).difference(steps[-self._keep_last :], best):
      # Renamed first: half a checkpoint must not look like a damaged one.
      os.rename(self._path(step), self._path(step, _DELETING))
      shutil.rmtree(self._path(step, _DELETING))

  def _stop(self, step: int, error: Exception) -> None:
    text = " ".join(str(error).split())
    reason = next(
      (os.strerror(n) for n in _DISK_ERRORS if os.strerror(n) in text),
      text[:300],
    )
    if jax.process_index() == 0:  # On a full disk every byte counts.
      for name in os.listdir(self._directory):
        if name.startswith(f"{step}{_SAVING}"):
          shutil.rmtree(os.path.join(self._directory, name), ignore_errors=True)
    newest = self.latest_step()
    raise RunError(
      f"checkpoint {step} could not be written to {self._directory!r}"
      f" ({reason});"
      f" {'none' if newest is None else f'that of step {newest}'} is there:"
      " make room and run the same command again."
    ) from error

  def check(self) -> None:
    """Raises what a save met that has failed in the meantime."""
    if self._commit and self._commit.done():
      self.wait()

  def wait(self) -> None:
    """Waits until the last save is complete.

    Raises:
      RunError: it could not be written.
    """
    commit, self._commit = self._commit, None
    if commit:
      commit.result()

  def close(self) -> None:
    """Waits for what is being written, then lets go of the directory."""
    try:
      self.wait()
    finally:
      self._thread.shutdown()
      self._checkpointer.close()

  def restore(self, step: int, shapes: TrainState) -> TrainState:
    """Reads a state.

    Args:
      step: of the checkpoint.
      shapes: ShapeDtypeStructs with shardings; the mesh may be another than
        the one that saved.

    Returns:
      The state, each leaf sharded as asked.
    """
    items = self._restore(
      step,
      **{
        name: ocp.args.StandardRestore(item)
        for name, item in _items(shapes).items()
      },
    )
    return TrainState(
      params={"backbone": items["backbone"]["params"], "head": items["head"]},
      batch_stats=items["backbone"]["batch_stats"],
      **{"running": {}} | items["training"],
    )


def _items(state: TrainState) -> dict[str, Any]:
  apart = {"params", "batch_stats"}
  if not state.running:  # Of most losses; Orbax keeps nothing that is empty.
    apart.add("running")
  return {
    "backbone": {
      "params": state.params["backbone"],
      "batch_stats": state.batch_stats,
    },
    "head": state.params["head"],
    "training": {
      field.name: getattr(state, field.name)
      for field in dataclasses.fields(state)
      if field.name not in apart
    },
  }


def _read_scores(workdir: str, name: str) -> dict[int, float]:
  """Values of a metric by step, as far as they were measured."""
  scores = {}
  path = os.path.join(workdir, METRICS_FILE)
  if os.path.exists(path):
    with open(path, encoding="utf-8") as file:
      for line in file:
        if f'"{name}"' in line and line.endswith("\n"):
          metrics = json.loads(line)
          if metrics[name] is not None:
            scores[metrics["step"]] = metrics[name]
  return scores


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)
