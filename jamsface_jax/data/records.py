"""The data set on disk: ArrayRecord shards described by `dataset.json`.

A data set is a directory. Each record of a shard holds one image as it was
encoded (JPEG, PNG), its class and its name; `dataset.json` says what the shards
hold; `labels.npy` repeats the classes of all records; `classes.txt` has the
class names, line number = label; an optional `pairs.txt` is a verification
protocol over the images.
"""

import dataclasses
import errno
import hashlib
import itertools
import json
import os
import struct
import weakref
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from jamsface_jax import shell
from jamsface_jax.data.local_copy import local_copy
from jamsface_jax.data.open_shards import close_shards, open_shard
from jamsface_jax.errors import InputError, RunError, one_line
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.paths import require_local
from jamsface_jax.storage.plain_array import read_array
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.text_lists import NotTextError, read_lines
from jamsface_jax.storage.whole_file import written_whole

INDEX_FILE = "dataset.json"
CLASSES_FILE = "classes.txt"
LABELS_FILE = "labels.npy"
PAIRS_FILE = "pairs.txt"
FORMAT = 1
COLOR_ORDER = "RGB"

_SCAN = 1024  # Records read at once in a scan.
_owners = itertools.count()
_HEADER = struct.Struct("<qH")  # Label, bytes in the name.


@dataclasses.dataclass(frozen=True)
class Record:
  """One image: its class, its name (a relative path), its encoded bytes."""

  label: int
  name: str
  image: bytes


def encode_record(record: Record) -> bytes:
  """Packs a record: int64 label, uint16 length, name in UTF-8, image bytes."""
  name = record.name.encode("utf-8")
  return _HEADER.pack(record.label, len(name)) + name + record.image


def decode_record(data: bytes) -> Record:
  """Unpacks what `encode_record` packed.

  Raises:
    ValueError: the bytes are not such a record.
  """
  if len(data) < _HEADER.size:
    raise ValueError(f"{len(data)} bytes are too few for a record")
  label, name_length = _HEADER.unpack_from(data)
  end = _HEADER.size + name_length
  if len(data) < end:
    raise ValueError(f"the name needs {end} bytes of {len(data)}")
  return Record(label, data[_HEADER.size : end].decode("utf-8"), data[end:])


@dataclasses.dataclass(frozen=True)
class Shard:
  """One ArrayRecord file of a data set."""

  file: str
  records: int
  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class DatasetIndex:
  """What `dataset.json` says.

  Attributes:
    name: the prefix of the data set's metrics, e.g. "lfw".
    images: number of images, the sum over `shards`.
    classes: number of classes C; labels are 0 to C - 1.
    class_sizes: images of each class, C integers.
    image_size: (height, width) of every image, or None if they differ.
    color_order: what decoded pixels are, always "RGB".
    shards: the files, in the order of their records.
    labels_sha256: that of `labels.npy`; None in a data set made before there
      was such a file.
    synthetic: its images are drawn, of nobody: anyone may see them.
    left_out: how many images, classes, pairs, ... of the input are not here, by
      what they are; `skipped.txt` lists the images. Empty if all are here.
  """

  name: str
  images: int
  classes: int
  class_sizes: tuple[int, ...]
  image_size: tuple[int, int] | None
  color_order: str
  shards: tuple[Shard, ...]
  labels_sha256: str | None = None
  synthetic: bool = False
  left_out: Mapping[str, int] = dataclasses.field(default_factory=dict)

  def fingerprint(self) -> str:
    """A short hash of the content: equal if and only if the shards are."""
    digest = hashlib.sha256()
    for shard in self.shards:
      digest.update(f"{shard.records} {shard.sha256}\n".encode())
    return digest.hexdigest()[:16]


def file_digest(path: str) -> tuple[str, int]:
  """Returns the SHA-256 of a file and the number of its bytes."""
  with open(path, "rb", opener=plain) as file:
    return hashlib.file_digest(file, "sha256").hexdigest(), file.tell()


def write_labels(directory: str, labels: Int32[np.ndarray, " n"]) -> str:
  """Writes `labels.npy`, whole or not at all.

  Args:
    directory: the data set.
    labels: the classes of all records in order, int32 [N].

  Returns:
    The SHA-256 of the file.
  """
  path = os.path.join(directory, LABELS_FILE)
  with written_whole(path, "wb") as file:
    np.save(file, labels)
  return file_digest(path)[0]


def read_labels(directory: str, index: DatasetIndex) -> Int32[np.ndarray, " n"]:
  """Reads `labels.npy` of a data set whose index has its checksum.

  Returns:
    The class of each record, int32 [N].

  Raises:
    InputError: the file is missing or not the one that the index describes.
  """
  path = os.path.join(directory, LABELS_FILE)
  try:
    if file_digest(path)[0] != index.labels_sha256:
      raise ValueError(f"another checksum than {INDEX_FILE} says")
    labels = read_array(path)
    if labels.dtype != np.int32 or labels.shape != (index.images,):
      raise ValueError(f"{labels.dtype} {labels.shape}")
    return labels
  except FileNotFoundError:
    raise InputError(f"{path!r} is missing: copy the data set again.") from None
  except (OSError, ValueError) as error:
    raise InputError(
      f"{path!r} is damaged ({one_line(error)}): copy the data set again."
    ) from None


def write_index(directory: str, index: DatasetIndex) -> None:
  """Writes `dataset.json`, whole or not at all."""
  path = os.path.join(directory, INDEX_FILE)
  fields = {"format": FORMAT, **dataclasses.asdict(index)}
  if not index.left_out:
    del fields["left_out"]
  with written_whole(path) as file:
    json.dump(fields, file)


def read_index(directory: str) -> DatasetIndex:
  """Reads `dataset.json` and checks that the shards it names are there.

  Raises:
    InputError: no data set there, or a missing, truncated or altered file.
  """
  require_local(directory, "data.directory")
  path = os.path.join(directory, INDEX_FILE)
  if not os.path.isdir(directory):
    raise InputError(
      f"data set {directory!r} is not a directory: give the --output of a"
      " data_prep command."
    )
  try:
    with open(path, "rb", opener=plain) as file:
      index = parse_index(file.read(), path)
  except FileNotFoundError:
    raise InputError(
      f"{directory!r} is not a data set (it has no {INDEX_FILE}): make one with"
      f" '{shell.name('data_prep.from_folder')}'."
    ) from None
  for shard in index.shards:
    _check_shard(directory, shard)
  return index


def parse_index(text: bytes, path: str) -> DatasetIndex:
  """Reads what `dataset.json` holds, and not the shards that it names.

  Args:
    text: the content of the file.
    path: of the file, for messages.

  Raises:
    InputError: it is damaged, or says what cannot be.
  """
  try:
    fields = plain_json.parse(text)
    if fields["format"] != FORMAT:
      raise ValueError("unknown format")
    index = plain_json.typed(fields, DatasetIndex)
    np.array(index.class_sizes, np.int64)  # No class has more images.
  except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
    raise InputError(
      f"{path!r} is damaged ({error}): write the data set again."
    ) from None
  if index.color_order != COLOR_ORDER:
    raise InputError(
      f"{path!r} has color_order {index.color_order!r}, but images decode to"
      f" {COLOR_ORDER}: write the data set again."
    )
  if index.images != sum(shard.records for shard in index.shards):
    raise InputError(
      f"{path!r} counts {index.images} images but its shards hold"
      f" {sum(shard.records for shard in index.shards)}: write it again."
    )
  return index


def read_classes(directory: str) -> list[str]:
  """Returns the class names; the position is the label."""
  path = os.path.join(local_copy(directory), CLASSES_FILE)
  try:
    return [line.text for line in read_lines(path)]
  except FileNotFoundError:
    raise InputError(f"{path!r} is missing: copy the data set again.") from None
  except (OSError, NotTextError) as error:
    raise InputError(
      f"{path!r} is damaged ({one_line(error)}): copy the data set again."
    ) from None


class RecordReader:
  """Random access to the records of a data set, safe to share by threads.

  Args:
    directory: the data set; one in a bucket is copied first.

  Attributes:
    directory: where it is on a disk.
    index: what it says of itself.
  """

  def __init__(self, directory: str):
    self.directory = local_copy(directory)
    self.index = read_index(self.directory)
    counts = [shard.records for shard in self.index.shards]
    self._starts = np.cumsum([0, *counts])
    self._owner = next(_owners)
    weakref.finalize(self, close_shards, self._owner)

  def __len__(self) -> int:
    return self.index.images

  def read(self, ids: Sequence[int]) -> list[Record]:
    """Reads the records with these ids, in this order.

    Raises:
      InputError: a shard is damaged where the records lie.
      RunError: the process has too many files open.
    """
    try:
      return [decode_record(data) for data in self._read(np.asarray(ids))]
    except (ValueError, RuntimeError, IndexError, OSError) as error:
      if os.strerror(errno.EMFILE) in str(error):
        raise RunError(
          f"a shard of {self.directory!r} cannot be opened (too many open"
          " files): raise the limit, 'ulimit -n 4096', and start again."
        ) from None
      raise InputError(
        f"a shard of {self.directory!r} is damaged ({one_line(error)}): copy"
        " the data set again."
      ) from None

  def _read(self, ids: np.ndarray) -> list[bytes]:
    """Reads with one call a shard, however many records it gives."""
    shards = np.searchsorted(self._starts, ids, side="right") - 1
    data = [b""] * len(ids)
    for shard in np.unique(shards).tolist():
      rows = np.flatnonzero(shards == shard)
      positions = (ids[rows] - self._starts[shard]).tolist()
      path = os.path.join(self.directory, self.index.shards[shard].file)
      found = open_shard(self._owner, path).read(positions)
      for row, one in zip(rows.tolist(), found, strict=True):
        data[row] = one
    return data

  def scan(self) -> Iterator[Record]:
    """Yields all records in order, a block at a time."""
    for start in range(0, len(self), _SCAN):
      yield from self.read(range(start, min(start + _SCAN, len(self))))


def _check_shard(directory: str, shard: Shard) -> None:
  """Refuses a shard that is missing or has another length than recorded."""
  path = os.path.join(directory, shard.file)
  try:
    size = os.path.getsize(path)
  except OSError:
    raise InputError(
      f"shard {path!r} is missing: copy the data set again."
    ) from None
  if size != shard.bytes:
    raise InputError(
      f"shard {path!r} has {size} bytes instead of {shard.bytes}: copy the data"
      " set again."
    )
