"""Orbax behind one small face: save, restore, and read a part.

A checkpoint is named by the number of finished steps and holds four items:
`backbone`, `head`, `training` (step and optimizer) and `metadata`. So an
embedder reads the backbone alone, whatever the head weighs. How checkpoints
lie on the disk, `storage.checkpoint_folder` says.
"""

import contextlib
import dataclasses
import errno
import json
import math
import os
import sys
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NoReturn

import jax
import orbax.checkpoint as ocp
from etils import epath

from jamsface_jax import interruption, shell
from jamsface_jax.devices import processes
from jamsface_jax.errors import InputError, RunError, one_line
from jamsface_jax.run.metrics_file import read_scores
from jamsface_jax.run.state import TrainState
from jamsface_jax.storage.manifest import Share
from jamsface_jax.storage.run_directory import RunDirectory

_SAVE_TIMEOUT = 3600  # Seconds for the slowest process to write its share.
# Arrays are compressed. Weights hardly are; momenta may be zeros, but never
# without as many weights.
_MOST_RATIO = 100
_MOST_BYTES = 64 * 2**20  # Beyond the ratio, for what is small.
_PARAMETERS = frozenset({"backbone", "head"})  # Items that are dictionaries.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


class CheckpointReader:
  """The checkpoints of a run, to read while another process may write.

  What is read is compared with its manifest first. Nothing stays open between
  two calls.

  Args:
    run: directory of a training run.

  Raises:
    InputError: it has no checkpoint.
  """

  def __init__(self, run: RunDirectory):
    self._folder = run.checkpoints
    self._require(run)
    self._damage: dict[tuple[int, tuple[str, ...]], str | None] = {}

  def _require(self, run: RunDirectory) -> None:
    """Refuses a run that has written none."""
    if not self._folder.exists():
      raise InputError(
        f"{run.path!r} has no checkpoint: train first, with"
        f" {shell.command('jamsface_jax.main', f'--workdir={run.path}')}."
      )

  def steps(self) -> list[int]:
    """Finished steps of all complete checkpoints, rising."""
    return self._folder.steps()

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
        f"{self._folder.path!r} has no checkpoint"
        f"{'' if step is None else f' of step {step}'}: it has"
        f" {', '.join(map(str, steps)) or 'none'}."
      )
    if step is not None:
      return step
    newest, damaged = self._newest_sound(("backbone", "metadata"))
    if newest is None:
      raise RunError(
        f"the checkpoints in {self._folder.path!r} went away while they were"
        " read: run the same command again."
      )
    for bad, damage in damaged.items():
      _warn(f"checkpoint {bad} is damaged ({damage}): step {newest} is read.")
    return newest

  def metadata(self, step: int) -> dict[str, Any]:
    """Reads what was said of a checkpoint.

    Raises:
      RunError: it cannot be read.
    """
    return self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]

  def restore_item(self, step: int, name: str, shapes: Any) -> Any:
    """Reads one item and nothing else.

    Args:
      step: finished steps of the checkpoint.
      name: "backbone" or "head".
      shapes: tree of ShapeDtypeStructs with shardings.

    Returns:
      The same tree of arrays, sharded as asked.

    Raises:
      RunError: it cannot be read.
    """
    return self._restore(step, **{name: ocp.args.StandardRestore(shapes)})[name]

  def _newest_sound(
    self, items: Collection[str]
  ) -> tuple[int | None, dict[int, str]]:
    """The newest sound step, and the damage of those after it."""
    damaged: dict[int, str] = {}
    for step in reversed(self._to_look_at()):
      damage = self._find_damage(step, items)
      if damage is None:
        return step, damaged
      damaged[step] = damage
    if damaged:
      newest = max(damaged)
      raise RunError(
        f"none of the {len(damaged)} checkpoints in {self._folder.path!r} is"
        f" sound (of step {newest}, {damaged[newest]}): bring one back from a"
        " backup, or choose another --workdir."
      )
    return None, {}

  def _find_damage(self, step: int, items: Collection[str]) -> str | None:
    """See `find_damage`; each part of a checkpoint is looked at once."""
    for key in ((step, ()), (step, tuple(items))):
      if key in self._damage:
        return self._damage[key]
    self._damage[key] = self._look(step, items)
    return self._damage[key]

  def _to_look_at(self) -> list[int]:
    """Steps of which the newest sound one is wanted, rising."""
    return self.steps()

  def _look(self, step: int, items: Collection[str]) -> str | None:
    """Compares a part of a checkpoint with its manifest."""
    return self._folder.find_damage(step, items)

  def _restore(self, step: int, **items: Any) -> Any:
    """Reads some items of a checkpoint that were compared with its manifest."""
    damage = self._find_damage(step, items)
    shapes = {
      name: asked.item
      for name, asked in items.items()
      if isinstance(asked, ocp.args.StandardRestore)
    }
    try:
      if damage is None:
        self._require_fit(step, shapes)
        with (
          interruption.postponed(),
          ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader,
        ):
          return reader.restore(
            self._folder.place(step), args=ocp.args.Composite(**items)
          )
    except InputError:
      raise
    except Exception as error:  # Orbax raises bare ones for damaged files.
      damage = one_line(error, 300)
    raise RunError(
      f"checkpoint {step} in {self._folder.path!r} cannot be read ({damage}):"
      " use another."
    )

  def _require_fit(self, step: int, shapes: Mapping[str, Any]) -> None:
    """Refuses to read what a checkpoint does not hold.

    Its arrays and the settings may be of different runs, or a stranger's; what
    was never written of an array is read as zeros, of any number.

    Args:
      step: finished steps of the checkpoint.
      shapes: what is asked of it: trees of ShapeDtypeStructs, by item.

    Raises:
      InputError: other arrays than it holds, or more than its files can.
    """
    place = self._folder.place(step)
    for name in sorted(_PARAMETERS.intersection(shapes)):
      asked = _shapes_by_path(shapes[name])
      held = _shapes_by_path(_read_shapes(place, name))
      for path in sorted(asked.keys() | held.keys()):
        ours, theirs = asked.get(path, "none"), held.get(path, "none")
        if ours != theirs:
          raise InputError(
            "config.json of the run describes another network than checkpoint"
            f" {step} in {self._folder.path!r} holds ({name} {path}: {ours} by"
            f" the settings, {theirs} there): bring back the file that this run"
            " wrote."
          )
    promised = sum(
      math.prod(shape.shape) * shape.dtype.itemsize
      for shape in jax.tree.leaves(shapes)
    )
    there = self._folder.listed_bytes(step, shapes)
    if promised > _MOST_BYTES + _MOST_RATIO * there:
      raise InputError(
        f"checkpoint {step} in {self._folder.path!r} promises"
        f" {promised / 2**20:,.0f} MiB of arrays in {there:,} bytes of files:"
        " it was not written by a run; use another."
      )


class Checkpoints(CheckpointReader):
  """The checkpoints of the run that writes them, and alone may do so.

  All processes of the run make one and call its methods together.

  Args:
    run: directory of the run.
    keep_last: so many of the newest are kept.
    keep_best: name of the metric whose best checkpoint is kept too, or "".
  """

  def __init__(self, run: RunDirectory, *, keep_last: int, keep_best: str):
    super().__init__(run)
    self._keep_last = keep_last
    self._keep_best = keep_best
    self._scores = read_scores(run.metrics, keep_best) if keep_best else {}
    self._checkpointer = ocp.AsyncCheckpointer(
      ocp.CompositeCheckpointHandler(), timeout_secs=_SAVE_TIMEOUT
    )
    self._thread = ThreadPoolExecutor(1, "checkpoint")
    self._commit: Future[None] | None = None
    # Each process writes its share of a checkpoint, this one names and removes.
    self._leads = jax.process_index() == 0
    self._share = Share(jax.process_index(), jax.process_count())
    self._agreed: list[int] | None = None

  def _require(self, run: RunDirectory) -> None:
    """Makes the place for them: there may be none yet."""
    self._folder.create()

  def _to_look_at(self) -> list[int]:
    """Those that all processes have agreed on."""
    return self.steps() if self._agreed is None else self._agreed

  def newest_sound(self) -> int | None:
    """Looks for the checkpoint to go on from; all processes ask together.

    Newer ones that are damaged are moved aside, so that their steps can be
    saved again; what an interrupted save left is removed.

    Returns:
      Its finished steps, None where there is no checkpoint at all.

    Raises:
      RunError: there are some, and all are damaged.
    """
    foreign = self._folder.set_foreign_aside() if self._leads else {}
    for name, aside in foreign.items():
      _warn(f"{name!r} is no checkpoint: moved to {aside!r}.")
    swept = self._folder.sweep() if self._leads else []
    for step in swept:
      _warn(f"the save of checkpoint {step} had been interrupted.")
    # The same for all, even where one sees the folder as it was before.
    self._agreed = json.loads(self._exchange("steps", self.steps())[0])
    newest, damaged = self._newest_sound(())
    if self._leads:
      self._move_aside(newest, damaged)
    self._exchange("moved", None)
    self._agreed = None
    return newest

  def _move_aside(self, newest: int | None, damaged: dict[int, str]) -> None:
    """Leaves sound checkpoints alone in the folder."""
    for step, damage in damaged.items():
      aside = self._folder.set_aside(step)
      _warn(f"checkpoint {step} is damaged ({damage}): moved to {aside!r}.")
    if newest is not None and damaged:
      lost = max(damaged) - newest
      _warn(f"going on from step {newest}: {lost} steps lost.")

  def _look(self, step: int, items: Collection[str]) -> str | None:
    """Each process looks at its share; all learn what the first one found."""
    if items or self._agreed is None:
      return super()._look(step, items)
    found = self._folder.find_damage(step, items, self._share)
    return next(
      filter(None, map(json.loads, self._exchange(f"{step}", found))), None
    )

  def _exchange(self, about: str, value: Any) -> list[str]:
    """Values of all processes as JSON, by process; see `processes.exchange`."""
    name = f"{self._folder.path}/{about}"
    return processes.exchange(name, json.dumps(value))

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
      self._checkpointer.save(self._folder.saving_place(step), args=args)
    except Exception as error:  # Of the file system, through Orbax.
      self._stop(step, error)
    self._commit = self._thread.submit(self._finish, step)

  def note_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
    """Notes what was measured at a step, to know the best checkpoint."""
    if self._keep_best in metrics:
      self._scores[step] = metrics[self._keep_best]

  def _finish(self, step: int) -> None:
    """Waits for the files; makes a checkpoint of them and removes old ones."""
    try:
      self._checkpointer.wait_until_finished()
      # Process 0 is the last for whom Orbax has finished.
      self._exchange("written", step)
      mine = self._folder.hash_files(step, self._share)
      parts = self._exchange("hashed", mine)
      if self._leads:
        files = {k: v for part in parts for k, v in json.loads(part).items()}
        self._folder.complete(step, files)
        self._remove_old()
    except Exception as error:
      self._stop(step, error)

  def _remove_old(self) -> None:
    steps = self.steps()
    scored = [(self._scores[s], s) for s in steps if s in self._scores]
    best = [max(scored)[1]] if scored else []
    for step in set(steps).difference(steps[-self._keep_last :], best):
      self._folder.remove(step)

  def _stop(self, step: int, error: Exception) -> NoReturn:
    text = one_line(error, None)
    reason = next(
      (os.strerror(n) for n in _DISK_ERRORS if os.strerror(n) in text), None
    )
    mend = "make room" if reason else "mend that"
    if self._leads:  # On a full disk every byte counts.
      self._folder.discard(step)
    newest = self.latest_step()
    raise RunError(
      f"checkpoint {step} could not be written to {self._folder.path!r}"
      f" ({reason or text[:300]});"
      f" {'none' if newest is None else f'that of step {newest}'} is there:"
      f" {mend} and run the same command again."
    ) from error

  def is_complete(self) -> bool:
    """Whether no save is under way."""
    return self._commit is None or self._commit.done()

  def check(self) -> None:
    """Raises what a save met that has failed in the meantime."""
    if self.is_complete():
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
      step: finished steps of the checkpoint.
      shapes: ShapeDtypeStructs with shardings; the mesh may be another than
        the one that saved.

    Returns:
      The state, each leaf sharded as asked.

    Raises:
      RunError: it cannot be read.
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
      **{"running": {}, "seen": {}} | items["training"],
    )


def _items(state: TrainState) -> dict[str, Any]:
  """What is stored of a state, by item; names of its fields are stored too."""
  apart = {"params", "batch_stats"}
  # Empty for most losses, and Orbax keeps nothing that is.
  apart |= {name for name in ("running", "seen") if not getattr(state, name)}
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


def _read_shapes(place: str, item: str) -> Any:
  """A tree of what describes each array that a checkpoint has of an item."""
  # By its handler: a `Checkpointer` warns of what an item alone does not have.
  with (
    interruption.postponed(),
    contextlib.closing(ocp.StandardCheckpointHandler()) as reader,
  ):
    return reader.metadata(epath.Path(place, item)).tree


def _shapes_by_path(tree: Any) -> dict[str, tuple[int, ...]]:
  """The shapes in a tree of dictionaries, by their keys with slashes."""
  return {
    "/".join(key.key for key in path): tuple(leaf.shape)
    for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _warn(text: str) -> None:
  print(f"warning: {text}", file=sys.stderr, flush=True)
