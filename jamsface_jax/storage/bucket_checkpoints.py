"""The checkpoints of a run in a bucket: which are whole, damaged, half written.

  checkpoints/12/...              complete: it has a manifest, written last
  checkpoints/16/...              without a manifest: being written, or left of
                                  an interrupted save or removal, and removed at
                                  the next start
  checkpoints/12/run/...          the small files of the run at that instant
  checkpoints/12.damaged/...      did not match its manifest: kept, never read

Nothing is renamed: a bucket has no folders. What `CheckpointFolder` does with
names on a disk, the manifest does here, an object that is there or is not.
"""

import base64
import collections
import dataclasses
import json
import re
from collections.abc import Collection, Mapping

from jamsface_jax.errors import one_line
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.bucket import Blob, Bucket, ChangedError
from jamsface_jax.storage.manifest import (
  ALL,
  MANIFEST_FILE,
  Entry,
  Share,
  listed_bytes,
  unlisted,
)
from jamsface_jax.storage.mirror import Mirror

_RUN = "run"  # Folder of a checkpoint for the small files.
_DAMAGED = ".damaged"


@dataclasses.dataclass(frozen=True)
class BucketCheckpoints:
  """Checkpoints in a bucket; the same methods as `CheckpointFolder`.

  Attributes:
    folder: where they are.
    mirror: the small files of the run.
  """

  folder: Bucket
  mirror: Mirror

  @property
  def path(self) -> str:
    """Their address, as Orbax wants it."""
    return self.folder.address

  def exists(self) -> bool:
    """Whether there is any complete checkpoint."""
    return bool(self.steps())

  def create(self) -> None:
    """Does nothing: a bucket has no folders."""

  def set_foreign_aside(self) -> dict[str, str]:
    """Does nothing: other objects are in nobody's way."""
    return {}

  def steps(self) -> list[int]:
    """Finished steps of all complete checkpoints, rising."""
    return sorted(s for s, of in self._list().items() if MANIFEST_FILE in of)

  def place(self, step: int) -> str:
    """Address of a complete checkpoint."""
    return self._at(step).address

  def saving_place(self, step: int) -> str:
    """Address that a checkpoint is written to until it is `complete`."""
    return self._at(step).address

  def hash_files(self, step: int, share: Share) -> dict[str, Entry]:
    """Nothing: the bucket has the checksums of what each process wrote."""
    return {}

  def complete(
    self, step: int, files: Mapping[str, Entry] | None = None
  ) -> None:
    """Makes what was written a checkpoint, with the small files in it.

    Args:
      step: finished steps of the checkpoint.
      files: what `hash_files` gave, which is nothing.

    Raises:
      RunError: the run may be another process's by now.
    """
    target = self._at(step)
    target.upload(
      {f"{_RUN}/{n}": path for n, path in self.mirror.for_checkpoint().items()}
    )
    there = {name: _entry(blob) for name, blob in target.blobs().items()}
    text = json.dumps({"files": there}, indent=1)
    self.mirror.check()
    try:
      target.write(MANIFEST_FILE, text.encode(), replaces=0)
    except ChangedError:
      # Written, and the answer was lost on its way; or not by this process.
      if target.read(MANIFEST_FILE) != text.encode():
        raise
    self.mirror.publish()

  def discard(self, step: int) -> None:
    """Removes what there is of a checkpoint that could not be completed."""
    try:
      self._delete(step, self._list(step).get(step, ()))
    except OSError:
      pass  # The next start sweeps.

  def find_damage(
    self, step: int, items: Collection[str], share: Share = ALL
  ) -> str | None:
    """Compares a checkpoint with its manifest.

    The bucket keeps a checksum of what each object holds, which it compares
    itself; that of the manifest must be the same. Nothing is read.

    Args:
      step: finished steps of the checkpoint.
      items: look at these parts of it only; none: at everything.
      share: no matter: every process may look at all, which is two requests.

    Returns:
      What is wrong, beginning with the address of the object, or None.
    """
    target = self._at(step)
    manifest = f"{target.address}/{MANIFEST_FILE}"
    try:
      files = plain_json.parse(target.read(MANIFEST_FILE))["files"]
      expected = {name: dict(entry) for name, entry in files.items()}
    except FileNotFoundError:
      return f"{manifest!r} is missing"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      return f"{manifest!r} is broken: {one_line(error, None)}"
    if missing := unlisted(expected, items):
      return f"{manifest!r} is broken: it has no file of {missing!r}"
    there = target.blobs()
    for name, entry in expected.items():
      if items and name.split("/")[0] not in items:
        continue
      whole = f"{target.address}/{name}"
      if name not in there:
        return f"{whole!r} is missing"
      found = _entry(there[name])
      if found["bytes"] != entry.get("bytes"):
        return f"{whole!r} has {found['bytes']} bytes of {entry.get('bytes')}"
      if "sha256" in entry:  # Of a run that was copied from a disk.
        found["sha256"] = target.sha256(name)
      if any(found.get(kind, value) != value for kind, value in entry.items()):
        return f"{whole!r} has other bytes than were written"
    return None

  def listed_bytes(self, step: int, items: Collection[str]) -> int:
    """Bytes of the objects of some parts of a sound checkpoint."""
    files = plain_json.parse(self._at(step).read(MANIFEST_FILE))["files"]
    return listed_bytes(files, items)

  def remove(self, step: int) -> None:
    """Removes a checkpoint."""
    # The manifest first: half a checkpoint must not look like a damaged one.
    self._at(step).delete([MANIFEST_FILE])
    self._delete(step, self._list(step).get(step, ()))

  def set_aside(self, step: int) -> str:
    """Keeps a damaged checkpoint under another name, which it returns."""
    there, number = self.folder.blobs(f"{step}{_DAMAGED}"), 1
    name = f"{step}{_DAMAGED}"
    while any(one.startswith(f"{name}/") for one in there):
      number += 1
      name = f"{step}{_DAMAGED}.{number}"
    objects = self._list(step)[step]
    self.folder.copy({f"{step}/{one}": f"{name}/{one}" for one in objects})
    self._delete(step, objects)
    return f"{self.path}/{name}"

  def sweep(self) -> list[int]:
    """Removes what interrupted saves and removals have left.

    Returns:
      The steps whose save had been interrupted.
    """
    found = self._list()
    whole = [step for step, of in found.items() if MANIFEST_FILE in of]
    for step in set(found).difference(whole):
      self._delete(step, found[step])
    # Saves go forward: what is left of an earlier step was being removed.
    return sorted(
      s for s in set(found).difference(whole) if s > max(whole, default=-1)
    )

  def take_back(self) -> None:
    """Makes the small files of the run what they were at the newest sound one.

    Without a checkpoint, those that belong to steps are not there.
    """
    for step in reversed(self.steps()):
      if self.find_damage(step, ()) is None:
        inside = self._list(step)[step]
        self.mirror.take_back(
          {
            name.removeprefix(f"{_RUN}/"): f"checkpoints/{step}/{name}"
            for name in inside
            if name.startswith(f"{_RUN}/")
          }
        )
        return

  def _at(self, step: int) -> Bucket:
    return self.folder.below(str(step))

  def _list(self, step: int | None = None) -> dict[int, Mapping[str, Blob]]:
    """The objects of all checkpoints by step, or of one."""
    found: dict[int, dict[str, Blob]] = collections.defaultdict(dict)
    below = "" if step is None else f"{step}/"
    for name, blob in self.folder.blobs(below).items():
      number, _, rest = name.partition("/")
      if re.fullmatch(r"\d+", number) and rest:
        found[int(number)][rest] = blob
    return dict(found)

  def _delete(self, step: int, names: Collection[str]) -> None:
    """Removes objects of a checkpoint, its manifest first."""
    self._at(step).delete([n for n in names if n == MANIFEST_FILE])
    self._at(step).delete(names)


def _entry(blob: Blob) -> Entry:
  """What a manifest says of an object, whose checksums the bucket made."""
  entry: Entry = {"bytes": blob.bytes}
  if blob.md5:
    entry["md5"] = base64.b64decode(blob.md5).hex()
  else:
    entry["crc32c"] = base64.b64decode(blob.crc32c).hex()
  return entry
