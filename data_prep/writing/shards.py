"""The shards of a data set, each written by whoever has its images."""

import contextlib
import dataclasses
import hashlib
import os
import sys
from array import array
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
from array_record.python import (
  array_record_module,  # ty: ignore[missing-module-member] has no stubs.
)
from jaxtyping import Int32

from jamsface_jax.data import records
from jamsface_jax.errors import RunError, one_line
from jamsface_jax.storage.durable import sync_directory, sync_file
from jamsface_jax.storage.plain_file import partial_path
from jamsface_jax.storage.plain_json import typed


def shard_file(number: int) -> str:
  """The name of the shard with this number, from 0."""
  return f"images-{number:05d}.array_record"


def shard_path(directory: str, number: int) -> str:
  """Where the shard with this number lies."""
  return os.path.join(directory, shard_file(number))


@dataclasses.dataclass(frozen=True)
class FinishedShard:
  """What became of a run of items.

  Attributes:
    number: which shard it is, from 0.
    items: how many there were, added or skipped.
    names: SHA-256 of their names, see `digest_names`.
    shard: its file; None if all were skipped.
    labels: the class of each of its records, int32 [n]; as the conversion
      numbered them, whatever was `dropped` later.
    image_sizes: the different (height, width) of its images.
    skipped: a line for each item that was left out; none where the journal
      keeps them, see `DatasetAssembler`.
    inputs: changes whenever a file does that the items were read from; "" where
      `source` of the data set tells that.
    dropped: the classes whose gaps are closed in the file, each with how many
      images it had, see `class_gaps`.
  """

  number: int
  items: int
  names: str
  shard: records.Shard | None
  labels: Int32[np.ndarray, " n"]
  image_sizes: list[tuple[int, int]]
  skipped: list[str]
  inputs: str = ""
  dropped: list[tuple[int, int]] = dataclasses.field(default_factory=list)

  @property
  def skips(self) -> int:
    """How many items were left out."""
    return self.items - len(self.labels)

  def to_json(self) -> dict[str, Any]:
    """What `from_json` reads."""
    shard = self.shard and vars(self.shard)
    return vars(self) | {"shard": shard, "labels": self.labels.tolist()}

  @classmethod
  def from_json(cls, fields: dict[str, Any]) -> "FinishedShard":
    """The inverse of `to_json`."""
    shard = fields["shard"]
    return cls(
      number=typed(fields["number"], int),
      items=typed(fields["items"], int),
      names=typed(fields["names"], str),
      shard=None if shard is None else typed(shard, records.Shard),
      labels=np.array(typed(fields["labels"], list[int]), np.int32),
      image_sizes=typed(fields["image_sizes"], list[tuple[int, int]]),
      skipped=typed(fields["skipped"], list[str]),
      inputs=typed(fields.get("inputs", ""), str),
      dropped=typed(fields.get("dropped", []), list[tuple[int, int]]),
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
    self._path = shard_path(directory, number)
    self._partial = partial_path(self._path)  # Its writer follows links.
    self._file: array_record_module.ArrayRecordWriter | None = None
    self._names: list[str] = []
    self._labels = array("i")
    self._sizes: set[tuple[int, int]] = set()
    self._skipped = array("i")  # Positions, and why: most reasons are equal.
    self._reasons: list[str] = []

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
    self._skipped.append(len(self._names))
    self._reasons.append(sys.intern(reason))
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
      skipped=[
        f"{self._names[position]}\t{reason}"
        for position, reason in zip(self._skipped, self._reasons, strict=True)
      ],
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
