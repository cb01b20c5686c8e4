"""The checkpoints of a run as folders: which are whole, damaged, half written.

  checkpoints/12           complete: it has a manifest, and its name last of all
  checkpoints/16.saving*   being written, or interrupted: removed at the next
                           start
  checkpoints/8.deleting   being removed
  checkpoints/12.damaged   did not match its manifest: kept, never read
  checkpoints/X.set_aside  was something else: kept, never read

Nobody else knows these names. Callers say what becomes of a checkpoint; that
it takes renaming is how a file system makes it happen at once.
"""

import contextlib
import dataclasses
import os
import re
import shutil
from collections.abc import Collection, Mapping

from jamsface_jax.storage.durable import sync_directory
from jamsface_jax.storage.manifest import (
  ALL,
  Entry,
  Share,
  find_damage,
  hash_files,
  listed_bytes,
  read_manifest,
  write_manifest,
)
from jamsface_jax.storage.plain_file import make_folder
from jamsface_jax.storage.set_aside import ENDING, set_aside

_SAVING, _DELETING, _DAMAGED = ".saving", ".deleting", ".damaged"
_STEP = re.compile("0|[1-9][0-9]{0,17}")
_OURS = re.compile(rf"(?:{_STEP.pattern})(?:({_SAVING}|{_DELETING}).*)?")


@dataclasses.dataclass(frozen=True)
class CheckpointFolder:
  """Where checkpoints lie, each named by its number of finished steps.

  Attributes:
    path: absolute, as Orbax wants it.
  """

  path: str

  def exists(self) -> bool:
    """Whether the folder is there."""
    return os.path.isdir(self.path)

  def create(self) -> None:
    """Makes the folder if it is not there."""
    make_folder(self.path)

  def steps(self) -> list[int]:
    """Finished steps of all complete checkpoints, rising."""
    return sorted(
      int(entry.name)
      for entry in os.scandir(self.path)
      if _STEP.fullmatch(entry.name) and entry.is_dir()
    )

  def place(self, step: int) -> str:
    """Directory of a complete checkpoint, to read."""
    return self._path(step)

  def saving_place(self, step: int) -> str:
    """Directory that a checkpoint is written to until it is `complete`."""
    return self._path(step, _SAVING)

  def hash_files(self, step: int, share: Share) -> dict[str, Entry]:
    """Sizes and hashes of what a process has written of a checkpoint."""
    return hash_files(self._path(step, _SAVING), share)

  def complete(
    self, step: int, files: Mapping[str, Entry] | None = None
  ) -> None:
    """Makes what was written a checkpoint; it is on the disk afterwards.

    Args:
      step: finished steps of the checkpoint.
      files: what `hash_files` gave in all processes; None: there is one.
    """
    write_manifest(self._path(step, _SAVING), files)
    os.rename(self._path(step, _SAVING), self._path(step))
    sync_directory(self.path)

  def discard(self, step: int) -> None:
    """Removes what there is of a checkpoint that could not be completed."""
    for name in os.listdir(self.path):
      if name.startswith(f"{step}{_SAVING}"):
        with contextlib.suppress(OSError):
          _remove_tree(os.path.join(self.path, name))

  def find_damage(
    self, step: int, items: Collection[str], share: Share = ALL
  ) -> str | None:
    """Compares a checkpoint with its manifest.

    Args:
      step: finished steps of the checkpoint.
      items: look at these parts of it only; none: at everything.
      share: which process this is; it looks at its share of the bytes.

    Returns:
      What is wrong, beginning with the path of the file, or None.
    """
    return find_damage(self._path(step), items, share)

  def listed_bytes(self, step: int, items: Collection[str]) -> int:
    """Bytes of the files of some parts of a sound checkpoint."""
    return listed_bytes(read_manifest(self._path(step)), items)

  def remove(self, step: int) -> None:
    """Removes a checkpoint."""
    # Renamed first: half a checkpoint must not look like a damaged one.
    os.rename(self._path(step), self._path(step, _DELETING))
    _remove_tree(self._path(step, _DELETING))

  def set_aside(self, step: int) -> str:
    """Keeps a damaged checkpoint under another name, which it returns."""
    return set_aside(self._path(step), _DAMAGED)

  def set_foreign_aside(self) -> dict[str, str]:
    """Moves away what is no checkpoint, nor left of one.

    Returns:
      What it is called now, by what it was called.
    """
    foreign = [
      entry
      for entry in os.scandir(self.path)
      if not (_OURS.fullmatch(entry.name) and entry.is_dir())
      and ENDING not in entry.name
      and _DAMAGED not in entry.name
    ]
    return {entry.path: set_aside(entry.path) for entry in foreign}

  def sweep(self) -> list[int]:
    """Removes what interrupted saves and removals have left.

    Returns:
      The steps whose save had been interrupted.
    """
    interrupted = []
    for name in sorted(os.listdir(self.path)):
      if ENDING in name:
        continue
      match = re.match(rf"(\d+)({_SAVING}|{_DELETING})", name)
      if match and match[2] == _SAVING:
        interrupted.append(int(match[1]))
      if match:
        _remove_tree(os.path.join(self.path, name))
    return interrupted

  def _path(self, step: int, suffix: str = "") -> str:
    return os.path.join(self.path, f"{step}{suffix}")


def _remove_tree(path: str) -> None:
  """Removes a directory, or whatever else has its name: a link, not its end."""
  if os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  else:
    os.remove(path)
