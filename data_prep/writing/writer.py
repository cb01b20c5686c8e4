"""Writes a data set: shards first, in any order, `dataset.json` last.

Shards appear under their final name only when complete; a directory without
`dataset.json` is not a data set, so an interrupted conversion is never read. A
journal of the finished shards lets the same conversion go on with the others,
and the result is the same, byte for byte, as if it had never been interrupted.
What the journal names is on the disk, and compared with its hash when the
conversion goes on. One process at a time holds the directory.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import os
import shutil
import sys
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import TracebackType
from typing import Any

import numpy as np
from array_record.python import (
  array_record_module,  # ty: ignore[missing-module-member] has no stubs.
)
from jaxtyping import Int32

from jamsface_jax.data import records
from jamsface_jax.errors import InputError, RunError, one_line
from jamsface_jax.protocols.groups_file import GROUPS_FILE
from jamsface_jax.storage import lock, plain_json
from jamsface_jax.storage.durable import sync_directory, sync_file, sync_tree
from jamsface_jax.storage.plain_file import PARTIAL, partial_path, plain
from jamsface_jax.storage.whole_file import remove_left, written_whole

SHARD_BYTES = 256 * 2**20
JOURNAL_FILE = "journal.jsonl"
SKIPPED_FILE = "skipped.txt"
_HASHING = 4  # Shards read at once; a thread hashes some 1.5 GB/s.
# Written again by each attempt that is given them.
_OPTIONAL_FILES = (records.PAIRS_FILE, GROUPS_FILE, SKIPPED_FILE)


def shard_file(number: int) -> str:
  """The name of the shard with this number, from 0."""
  return f"images-{number:05d}.array_record"


@dataclasses.dataclass(frozen=True)
class FinishedShard:
  """What became of a run of items.

  Attributes:
    number: which shard it is, from 0.
    items: how many there were, added or skipped.
    names: SHA-256 of their names, see `digest_names`.
    shard: its file; None if all were skipped.
    labels: the class of each of its records, int32 [n].
    image_sizes: the different (height, width) of its images.
    skipped: a line for each item that was left out.
    inputs: changes whenever a file does that the items were read from; "" where
      `source` of the data set tells that.
  """

  number: int
  items: int
  names: str
  shard: records.Shard | None
  labels: Int32[np.ndarray, " n"]
  image_sizes: list[tuple[int, int]]
  skipped: list[str]
  inputs: str = ""

  def to_json(self) -> dict[str, Any]:
    """What `from_json` reads."""
    shard = self.shard and vars(self.shard)
    return vars(self) | {"shard": shard, "labels": self.labels.tolist()}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> "FinishedShard":
    """The inverse of `to_json`."""
    shard = fields["shard"]
    return cls(
      number=fields["number"],
      items=fields["items"],
      names=fields["names"],
      shard=None if shard is None else records.Shard(**shard),
      labels=np.array(fields["labels"], np.int32),
      image_sizes=[(height, width) for height, width in fields["image_sizes"]],
      skipped=fields["skipped"],
      inputs=fields.get("inputs", ""),
    )


def digest_names(names: Iterable[str]) -> str:
  """Returns what tells the items of a shard from others, a hash."""
  digest = hashlib.sha256()
  for name in names:
    digest.update(f"{name}\n".encode())
  return digest.hexdigest()


class ShardWriter:
  """Writes one shard of a data set; use as a context manager.

  Several may write the same shard at once, as when a machine is given up for
  lost: each under a name of its own, and what they write is the same.

  Attributes:
    bytes: how many the images added so far have.
  """

  def __init__(self, directory: str, number: int):
    self.bytes = 0
    self._number = number
    self._path = os.path.join(directory, shard_file(number))
    self._partial = partial_path(self._path)  # Its writer follows links.
    self._file: array_record_module.ArrayRecordWriter | None = None
    self._names: list[str] = []
    self._labels = array("i")
    self._sizes: set[tuple[int, int]] = set()
    self._skipped: list[str] = []

  def __enter__(self) -> "ShardWriter":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self.abandon()

  @property
  def items(self) -> int:
    """Items added or skipped so far."""
    return len(self._names)

  @property
  def skipped(self) -> int:
    """Items skipped so far."""
    return len(self._skipped)

  def add(
    self, label: int, name: str, image: bytes, size: tuple[int, int]
  ) -> None:
    """Appends the next item, see `DatasetWriter.add`."""
    try:
      if self._file is None:
        self._file = array_record_module.ArrayRecordWriter(
          self._partial, "group_size:1,uncompressed"
        )
      self._file.write(
        records.encode_record(records.Record(label, name, image))
      )
    except (OSError, RuntimeError) as error:
      raise self._failure(error) from None
    self._names.append(name)
    self._labels.append(label)
    self._sizes.add(size)
    self.bytes += len(image)

  def skip(self, name: str, reason: str) -> None:
    """Leaves out the next item; `skipped.txt` will list it."""
    self._skipped.append(f"{name}\t{reason}")
    self._names.append(name)

  def finish(self) -> FinishedShard:
    """Gives the shard its name, now that it is complete."""
    return FinishedShard(
      number=self._number,
      items=self.items,
      names=digest_names(self._names),
      shard=None if self._file is None else self._close(self._file),
      labels=np.array(self._labels, np.int32),
      image_sizes=sorted(self._sizes),
      skipped=self._skipped,
    )

  def abandon(self) -> None:
    """Removes what was written; does nothing after `finish`."""
    if self._file is not None:
      with contextlib.suppress(RuntimeError):  # A disk that is full still is.
        self._file.close()
      self._file = None
      os.remove(self._partial)

  def _close(
    self, file: array_record_module.ArrayRecordWriter
  ) -> records.Shard:
    try:
      file.close()
      digest, size = records.file_digest(self._partial)
      sync_file(self._partial)
      os.replace(self._partial, self._path)
      sync_directory(os.path.dirname(self._path))
    except (OSError, RuntimeError) as error:
      raise self._failure(error) from None
    self._file = None
    name = os.path.basename(self._path)
    return records.Shard(name, len(self._labels), size, digest)

  def _failure(self, error: Exception) -> RunError:
    return RunError(
      f"shard {self._path!r} cannot be written ({one_line(error)}): mend that"
      " and start the same command again, which keeps the finished shards."
    )


class DatasetAssembler:
  """Makes a data set of shards that are finished in any order.

  Use as a context manager: it holds the directory, and the data set is finished
  when the block has ended.

  Args:
    directory: where the data set goes; made if missing, refused if it holds a
      data set already, continued if it holds a part of this conversion.
    name: prefix of the data set's metrics, e.g. "lfw".
    classes: class names, position = label.
    source: says what is converted and how; a part of another conversion is
      refused.
    synthetic: the images are drawn, of nobody.
    shard_bytes: a shard is closed when its images have this many bytes.

  Attributes:
    directory: where the data set goes.
    shard_bytes: when a shard is closed.
    finished: the shards that are there, by number.
  """

  def __init__(
    self,
    directory: str,
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    synthetic: bool = False,
    shard_bytes: int = SHARD_BYTES,
  ):
    self.finished: dict[int, FinishedShard] = {}
    self.directory = directory
    self.shard_bytes = shard_bytes
    self._name = name
    self._synthetic = synthetic
    self._classes = list(classes)
    self._journal_path = os.path.join(directory, JOURNAL_FILE)
    self._source = hashlib.sha256(
      json.dumps([source, name, self._classes, shard_bytes]).encode()
    ).hexdigest()
    self._held = contextlib.ExitStack()

  def __enter__(self) -> "DatasetAssembler":
    with contextlib.ExitStack() as stack:
      stack.enter_context(lock.hold(self.directory, "--output"))
      if os.path.exists(os.path.join(self.directory, records.INDEX_FILE)):
        raise InputError(
          f"--output {self.directory!r} holds a data set already: choose"
          " another directory or delete it first."
        )
      self._resume()
      self._held = stack.pop_all()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with contextlib.closing(self):
      if kind is None:
        self.finish()

  def close(self) -> None:
    """Lets go of the directory, finished or not."""
    self._held.close()

  @property
  def skipped(self) -> int:
    """Items that were left out so far."""
    return len(self.skipped_lines)

  @property
  def skipped_lines(self) -> list[str]:
    """A line for each of them, which begins with its name and a tab."""
    return [
      line
      for number in sorted(self.finished)
      for line in self.finished[number].skipped
    ]

  def accept(self, finished: FinishedShard) -> None:
    """Notes a shard in the journal: it will not be written again."""
    entry = {"source": self._source} | finished.to_json()
    with open(self._journal_path, "a", encoding="utf-8", opener=plain) as file:
      file.write(json.dumps(entry) + "\n")
      file.flush()
      os.fsync(file.fileno())
    if not self.finished:
      sync_directory(self.directory)
    self.finished[finished.number] = finished

  def add_pairs(self, path: str) -> None:
    """Copies a verification protocol into the data set."""
    target = os.path.join(self.directory, records.PAIRS_FILE)
    with (
      open(path, "rb", opener=plain) as source,
      written_whole(target, "wb") as file,
    ):
      shutil.copyfileobj(source, file)

  def finish(self) -> None:
    """Writes `dataset.json` and what else describes the shards.

    Raises:
      InputError: no image, or a class without any.
    """
    in_order = [self.finished[number] for number in sorted(self.finished)]
    shards = [one.shard for one in in_order if one.shard is not None]
    if not shards:
      raise InputError(
        f"no image was written to {self.directory!r}: check --input."
      )
    labels = np.concatenate([one.labels for one in in_order])
    class_sizes = np.bincount(labels, minlength=len(self._classes)).tolist()
    if 0 in class_sizes:
      raise InputError(
        f"class {self._classes[class_sizes.index(0)]!r} has no readable image:"
        " leave it out of the input."
      )
    self._write_lines(records.CLASSES_FILE, self._classes)
    if self.skipped_lines:
      self._write_lines(SKIPPED_FILE, self.skipped_lines)
    image_sizes = {size for one in in_order for size in one.image_sizes}
    labels_digest = records.write_labels(self.directory, labels)
    sync_tree(self.directory)  # What converters have added, too.
    records.write_index(
      self.directory,
      records.DatasetIndex(
        name=self._name,
        images=len(labels),
        classes=len(self._classes),
        class_sizes=tuple(class_sizes),
        image_size=image_sizes.pop() if len(image_sizes) == 1 else None,
        color_order=records.COLOR_ORDER,
        shards=tuple(shards),
        labels_sha256=labels_digest,
        synthetic=self._synthetic,
      ),
    )
    self._remove_partial()
    os.remove(self._journal_path)
    sync_directory(self.directory)

  def _resume(self) -> None:
    """Takes over the shards that an interrupted conversion finished.

    Raises:
      InputError: it was another conversion, or its journal is damaged.
    """
    if not os.path.lexists(self._journal_path):
      return
    entries = list(self._read_journal())
    for name in _OPTIONAL_FILES:  # This attempt may be without them.
      with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(self.directory, name))
    with ThreadPoolExecutor(_HASHING) as pool:
      sound = pool.map(lambda one: self._is_sound(one[1].shard), entries)
      kept = [
        one for one, is_sound in zip(entries, sound, strict=True) if is_sound
      ]
    self.finished = {shard.number: shard for _, shard in kept}
    # What is not taken over must not be read at the next resume.
    with written_whole(self._journal_path) as file:
      file.writelines(line for line, _ in kept)

  def _read_journal(self) -> Iterable[tuple[str, FinishedShard]]:
    """Yields the lines of the journal that are whole."""
    try:
      with open(self._journal_path, encoding="utf-8", opener=plain) as file:
        lines = file.readlines()
    except (OSError, UnicodeDecodeError) as error:
      raise InputError(
        f"{self._journal_path!r} cannot be read ({one_line(error)}): delete"
        f" {self.directory!r} and convert again."
      ) from None
    for line in lines:
      try:
        entry = plain_json.parse(line)
        source = entry.pop("source")
        finished = FinishedShard.from_json(entry)
      except (ValueError, TypeError, KeyError, AttributeError):
        continue  # Torn by a kill: its shard is written again.
      if source != self._source:
        raise self.other_conversion()
      yield line if line.endswith("\n") else f"{line}\n", finished

  def _is_sound(self, shard: records.Shard | None) -> bool:
    """Whether a shard is there as the journal says; says so if it is not."""
    if shard is None:
      return True
    path = os.path.join(self.directory, shard.file)
    try:
      if records.file_digest(path) == (shard.sha256, shard.bytes):
        return True
      what = "is not what was written"
    except OSError as error:
      what = f"cannot be read ({error.strerror})"
    print(
      f"warning: shard {path!r} {what}: it is written again.", file=sys.stderr
    )
    return False

  def other_conversion(self) -> InputError:
    """What to raise if the finished shards are not of this conversion."""
    return InputError(
      f"--output {self.directory!r} holds a part of another conversion:"
      " choose another directory or delete it first."
    )

  def _remove_partial(self) -> None:
    """Removes what killed writers left."""
    remove_left(self.directory, seconds=0)
    pattern = os.path.join(
      glob.escape(self.directory), f"{shard_file(0)[:7]}*{PARTIAL}"
    )
    for path in glob.glob(pattern):
      os.remove(path)

  def _write_lines(self, file_name: str, lines: Sequence[str]) -> None:
    path = os.path.join(self.directory, file_name)
    with written_whole(path) as file:
      file.writelines(f"{line}\n" for line in lines)


class DatasetWriter:
  """Writes records one after another; use as a context manager.

  A conversion is a fixed sequence of items, each added or skipped in turn. Of
  an interrupted one the first `position` items are on disk: go on after them.

  Args:
    directory: where the data set goes, see `DatasetAssembler`.
    name: prefix of the metrics, as there.
    classes: class names, as there.
    source: what is converted, as there.
    synthetic: whether the images are drawn, as there.
    shard_bytes: when a shard is closed, as there.

  Attributes:
    position: items of the sequence that were added or skipped.
    skipped: items that were skipped.
  """

  def __init__(
    self,
    directory: str,
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    synthetic: bool = False,
    shard_bytes: int = SHARD_BYTES,
  ):
    self._assembler = DatasetAssembler(
      directory,
      name=name,
      classes=classes,
      source=source,
      synthetic=synthetic,
      shard_bytes=shard_bytes,
    )
    self._directory = directory
    self._num_classes = len(classes)
    self._shard_bytes = shard_bytes
    self._finished_items = 0
    self._shard = ShardWriter(directory, 0)

  def __enter__(self) -> "DatasetWriter":
    finished = self._assembler.__enter__().finished
    # The sequence goes on at one place: shards after a gap are written again.
    first_missing = next(n for n in count() if n not in finished)
    for number in [number for number in finished if number > first_missing]:
      del finished[number]
    self._finished_items = sum(one.items for one in finished.values())
    self._shard = ShardWriter(self._directory, first_missing)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with contextlib.closing(self._assembler), self._shard:
      if kind is None:
        if self._shard.items:
          self._close_shard()
        self._assembler.finish()

  @property
  def position(self) -> int:
    """Items of the sequence that were added or skipped."""
    return self._finished_items + self._shard.items

  @property
  def skipped(self) -> int:
    """Items that were skipped."""
    return self._assembler.skipped + self._shard.skipped

  def add(
    self, label: int, name: str, image: bytes, size: tuple[int, int]
  ) -> None:
    """Appends the next item of the sequence.

    Args:
      label: its class, 0 to C - 1.
      name: its relative path, unique in the data set.
      image: its encoded bytes (JPEG or PNG), kept as they are.
      size: its (height, width) in pixels.
    """
    if not 0 <= label < self._num_classes:
      raise InputError(
        f"image {name!r} has label {label}, outside [0, {self._num_classes}):"
        " number the classes from 0 without gaps."
      )
    self._shard.add(label, name, image, size)
    if self._shard.bytes >= self._shard_bytes:
      self._close_shard()

  def skip(self, name: str, reason: str) -> None:
    """Leaves out the next item; `skipped.txt` will list it."""
    self._shard.skip(name, reason)

  def add_pairs(self, path: str) -> None:
    """Copies a verification protocol into the data set."""
    self._assembler.add_pairs(path)

  def _close_shard(self) -> None:
    finished = self._shard.finish()
    self._assembler.accept(finished)
    self._finished_items += finished.items
    self._shard = ShardWriter(self._directory, finished.number + 1)
