"""Writes a data set: shards first, `dataset.json` last.

Shards appear under their final name only when complete; a directory without
`dataset.json` is not a data set, so an interrupted conversion is never read. A
journal of the finished shards lets the same conversion go on after them, and
the result is the same, byte for byte, as if it had never been interrupted.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

from array_record.python import array_record_module

from jamsface_jax.data import records
from jamsface_jax.errors import InputError

SHARD_BYTES = 256 * 2**20
JOURNAL_FILE = "journal.jsonl"
SKIPPED_FILE = "skipped.txt"


class DatasetWriter:
  """Collects records into shards; use as a context manager.

  A conversion is a fixed sequence of items, each added or skipped in turn. Of
  an interrupted one the first `position` items are on disk: go on after them.

  Args:
    directory: where the data set goes; made if missing, refused if it holds a
      data set already, continued if it holds a part of this conversion.
    name: prefix of the data set's metrics, e.g. "lfw".
    classes: class names, position = label.
    source: says what is converted and how; a part of another conversion is
      refused.
    shard_bytes: a shard is closed when it holds this many bytes.

  Attributes:
    position: items of the sequence that finished shards account for.
    skipped: items that were left out so far.
  """

  def __init__(
    self,
    directory: str,
    *,
    name: str,
    classes: Sequence[str],
    source: str,
    shard_bytes: int = SHARD_BYTES,
  ):
    if os.path.exists(os.path.join(directory, records.INDEX_FILE)):
      raise InputError(
        f"--output {directory!r} holds a data set already: choose another"
        " directory or delete it first."
      )
    try:
      os.makedirs(directory, exist_ok=True)
    except OSError as error:
      raise InputError(
        f"--output {directory!r} cannot be made ({error.strerror}): choose"
        " another directory."
      ) from None
    self.position = 0
    self._directory = directory
    self._name = name
    self._classes = list(classes)
    self._shard_bytes = shard_bytes
    self._class_sizes: Counter[int] = Counter()
    self._image_sizes: set[tuple[int, int]] = set()
    self._shards: list[records.Shard] = []
    self._skipped: list[str] = []
    self._journal_path = os.path.join(directory, JOURNAL_FILE)
    self._source = hashlib.sha256(
      json.dumps([source, name, self._classes, shard_bytes]).encode()
    ).hexdigest()
    self._resume()
    self._start_shard()

  def _resume(self) -> None:
    """Takes over the shards that an interrupted conversion finished."""
    if not os.path.exists(self._journal_path):
      return
    with open(self._journal_path, encoding="utf-8") as file:
      lines = file.readlines()
    for line in lines:
      try:
        entry = json.loads(line)
      except ValueError:
        break  # Torn by a kill: its shard is written again.
      if entry["source"] != self._source:
        raise InputError(
          f"--output {self._directory!r} holds a part of another conversion:"
          " choose another directory or delete it first."
        )
      shard = records.Shard(**entry["shard"])
      path = os.path.join(self._directory, shard.file)
      if not os.path.exists(path) or os.path.getsize(path) != shard.bytes:
        break
      self._shards.append(shard)
      self.position = entry["position"]
      self._class_sizes.update({int(k): n for k, n in entry["labels"].items()})
      self._image_sizes.update(map(tuple, entry["image_sizes"]))
      self._skipped += entry["skipped"]
    # What follows the last good line must not be read at the next resume.
    with open(self._journal_path + ".partial", "w", encoding="utf-8") as file:
      file.writelines(lines[: len(self._shards)])
    os.replace(self._journal_path + ".partial", self._journal_path)

  def _start_shard(self) -> None:
    self._file = None
    self._written = self._count = 0
    self._labels: Counter[int] = Counter()
    self._sizes: set[tuple[int, int]] = set()
    self._left_out: list[str] = []

  def __enter__(self) -> "DatasetWriter":
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if kind is None:
      self._finish()
    elif self._file is not None:
      self._file.close()

  @property
  def skipped(self) -> int:
    """Items that were left out so far."""
    return len(self._skipped) + len(self._left_out)

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
    if not 0 <= label < len(self._classes):
      raise InputError(
        f"image {name!r} has label {label}, outside [0, {len(self._classes)}):"
        " number the classes from 0 without gaps."
      )
    if self._file is None:
      self._file = array_record_module.ArrayRecordWriter(
        self._shard_path() + ".partial", "group_size:1,uncompressed"
      )
    data = records.encode_record(records.Record(label, name, image))
    self._file.write(data)
    self._written += len(data)
    self._count += 1
    self._labels[label] += 1
    self._sizes.add(size)
    self.position += 1
    if self._written >= self._shard_bytes:
      self._close_shard()

  def skip(self, name: str, reason: str) -> None:
    """Leaves out the next item; `skipped.txt` will list it."""
    self._left_out.append(f"{name}\t{reason}")
    self.position += 1

  def add_pairs(self, path: str) -> None:
    """Copies a verification protocol into the data set."""
    shutil.copyfile(path, os.path.join(self._directory, records.PAIRS_FILE))

  def _shard_path(self) -> str:
    name = f"images-{len(self._shards):05d}.array_record"
    return os.path.join(self._directory, name)

  def _close_shard(self) -> None:
    path = self._shard_path()
    self._file.close()
    digest = hashlib.sha256()
    with open(path + ".partial", "rb") as file:
      while block := file.read(2**20):
        digest.update(block)
      size = file.tell()
    os.replace(path + ".partial", path)
    shard = records.Shard(
      os.path.basename(path), self._count, size, digest.hexdigest()
    )
    entry = {
      "source": self._source,
      "shard": vars(shard),
      "position": self.position,
      "labels": self._labels,
      "image_sizes": sorted(self._sizes),
      "skipped": self._left_out,
    }
    with open(self._journal_path, "a", encoding="utf-8") as file:
      file.write(json.dumps(entry) + "\n")
    self._shards.append(shard)
    self._class_sizes.update(self._labels)
    self._image_sizes |= self._sizes
    self._skipped += self._left_out
    self._start_shard()

  def _finish(self) -> None:
    if self._file is not None:
      self._close_shard()
    self._skipped += self._left_out
    if not self._shards:
      raise InputError(
        f"no image was written to {self._directory!r}: check --input."
      )
    sizes = tuple(self._class_sizes[k] for k in range(len(self._classes)))
    if 0 in sizes:
      raise InputError(
        f"class {self._classes[sizes.index(0)]!r} has no readable image: leave"
        " it out of the input."
      )
    self._write_lines(records.CLASSES_FILE, self._classes)
    if self._skipped:
      self._write_lines(SKIPPED_FILE, self._skipped)
    records.write_index(
      self._directory,
      records.DatasetIndex(
        name=self._name,
        images=sum(shard.records for shard in self._shards),
        classes=len(self._classes),
        class_sizes=sizes,
        image_size=(
          next(iter(self._image_sizes)) if len(self._image_sizes) == 1 else None
        ),
        color_order=records.COLOR_ORDER,
        shards=tuple(self._shards),
      ),
    )
    os.remove(self._journal_path)

  def _write_lines(self, file_name: str, lines: Sequence[str]) -> None:
    path = os.path.join(self._directory, file_name)
    with open(path, "w", encoding="utf-8") as file:
      file.writelines(f"{line}\n" for line in lines)
