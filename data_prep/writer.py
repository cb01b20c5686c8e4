"""Writes a data set: shards first, `dataset.json` last.

Shards appear under their final name only when complete; a directory without
`dataset.json` is not a data set, so an interrupted conversion is never read.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from types import TracebackType

from array_record.python import array_record_module

from jamsface_jax.data import records
from jamsface_jax.errors import InputError

SHARD_BYTES = 256 * 2**20


class DatasetWriter:
  """Collects records into shards; use as a context manager.

  Args:
    directory: where the data set goes; made if missing, refused if it holds a
      data set already.
    name: prefix of the data set's metrics, e.g. "lfw".
    classes: class names, position = label.
    shard_bytes: a shard is closed when it holds this many bytes.
  """

  def __init__(
    self,
    directory: str,
    *,
    name: str,
    classes: Sequence[str],
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
    self._directory = directory
    self._name = name
    self._classes = list(classes)
    self._class_sizes = [0] * len(self._classes)
    self._shard_bytes = shard_bytes
    self._shards: list[records.Shard] = []
    self._image_sizes: set[tuple[int, int]] = set()
    self._file = None

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

  def add(
    self, label: int, name: str, image: bytes, size: tuple[int, int]
  ) -> None:
    """Appends one image.

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
      path = self._shard_path() + ".partial"
      self._file = array_record_module.ArrayRecordWriter(
        path, "group_size:1,uncompressed"
      )
      self._written = self._count = 0
    data = records.encode_record(records.Record(label, name, image))
    self._file.write(data)
    self._written += len(data)
    self._count += 1
    self._class_sizes[label] += 1
    self._image_sizes.add(size)
    if self._written >= self._shard_bytes:
      self._close_shard()

  def add_pairs(self, path: str) -> None:
    """Copies a verification protocol into the data set."""
    shutil.copyfile(path, os.path.join(self._directory, records.PAIRS_FILE))

  def _shard_path(self) -> str:
    name = f"images-{len(self._shards):05d}.array_record"
    return os.path.join(self._directory, name)

  def _close_shard(self) -> None:
    path = self._shard_path()
    self._file.close()
    self._file = None
    digest = hashlib.sha256()
    with open(path + ".partial", "rb") as file:
      while block := file.read(2**20):
        digest.update(block)
      size = file.tell()
    os.replace(path + ".partial", path)
    self._shards.append(
      records.Shard(
        os.path.basename(path), self._count, size, digest.hexdigest()
      )
    )

  def _finish(self) -> None:
    if self._file is not None:
      self._close_shard()
    if not self._shards:
      raise InputError(
        f"no image was written to {self._directory!r}: check --input."
      )
    if 0 in self._class_sizes:
      empty = self._classes[self._class_sizes.index(0)]
      raise InputError(
        f"class {empty!r} has no readable image: leave it out of the input."
      )
    classes_path = os.path.join(self._directory, records.CLASSES_FILE)
    with open(classes_path, "w", encoding="utf-8") as file:
      file.writelines(f"{name}\n" for name in self._classes)
    records.write_index(
      self._directory,
      records.DatasetIndex(
        name=self._name,
        images=sum(shard.records for shard in self._shards),
        classes=len(self._classes),
        class_sizes=tuple(self._class_sizes),
        image_size=(
          next(iter(self._image_sizes)) if len(self._image_sizes) == 1 else None
        ),
        color_order=records.COLOR_ORDER,
        shards=tuple(self._shards),
      ),
    )
