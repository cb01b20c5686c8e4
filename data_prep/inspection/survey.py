"""Reads and decodes all of a data set: is it what its index says?"""

import collections
import dataclasses
import hashlib
import os
from collections.abc import (
  Sequence,
)
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from jaxtyping import Bool, Int64, UInt8, UInt64
from tqdm import tqdm

from jamsface_jax.data import decoding, records
from jamsface_jax.errors import InputError

EXAMPLES = 20  # Of what is wrong, for people; all are counted.

_AT_ONCE = 1024  # Records in memory.

_HASH_SIDE = 8

_UNREAD = np.iinfo(np.int64).min


@dataclasses.dataclass
class Errors:
  """What is wrong with the records: there may be millions.

  Attributes:
    count: how many are.
    first: a sentence for each of the first `EXAMPLES`.
  """

  count: int = 0
  first: list[str] = dataclasses.field(default_factory=list)

  def add(self, sentence: str) -> None:
    """Takes one more."""
    self.count += 1
    if self.count <= EXAMPLES:
      self.first.append(sentence)


@dataclasses.dataclass
class Survey:
  """What decoding all N images told; 25 bytes an image.

  Attributes:
    labels: int64 [N]; _UNREAD where the record could not be read.
    files: a hash of each image's bytes, uint64 [N].
    pictures: a hash of what each image shows, uint64 [N].
    sound: whether the image could be decoded, bool [N].
    image_sizes: images of each (height, width).
    grey: images whose three channels are equal.
    errors: the records that are not right.
  """

  labels: Int64[np.ndarray, " n"]
  files: UInt64[np.ndarray, " n"]
  pictures: UInt64[np.ndarray, " n"]
  sound: Bool[np.ndarray, " n"]
  image_sizes: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  grey: int = 0
  errors: Errors = dataclasses.field(default_factory=Errors)


def check_shards(
  reader: records.RecordReader, pool: ThreadPoolExecutor
) -> list[str]:
  """Compares each shard's SHA-256 with the recorded one."""

  def check(shard: records.Shard) -> bool:
    path = os.path.join(reader.directory, shard.file)
    return records.file_digest(path)[0] == shard.sha256

  shards = reader.index.shards
  right = tqdm(
    pool.map(check, shards), total=len(shards), unit="shard", disable=None
  )
  return [
    f"shard {shard.file} has another checksum than {records.INDEX_FILE} says"
    for shard, ok in zip(shards, right, strict=True)
    if not ok
  ]


def take_survey(
  reader: records.RecordReader, pool: ThreadPoolExecutor
) -> Survey:
  """Decodes every image."""
  count = len(reader)
  survey = Survey(
    labels=np.full(count, _UNREAD, np.int64),
    files=np.zeros(count, np.uint64),
    pictures=np.zeros(count, np.uint64),
    sound=np.zeros(count, bool),
  )
  with tqdm(total=count, unit="image", disable=None) as bar:
    for start in range(0, count, _AT_ONCE):
      ids = range(start, min(start + _AT_ONCE, count))
      found = pool.map(_look, read_records(reader, ids))
      for number, look in zip(ids, found, strict=True):
        _enter(survey, number, look)
        bar.update()
  return survey


def read_records(
  reader: records.RecordReader, ids: Sequence[int]
) -> list[records.Record | None]:
  """Reads records; None for each that its shard no longer gives."""
  try:
    return [*reader.read(ids)]
  except InputError:
    if len(ids) == 1:
      return [None]
    return [
      record for number in ids for record in read_records(reader, [number])
    ]


@dataclasses.dataclass(frozen=True)
class _Look:
  """What one image told; `broken` says why it could not be decoded."""

  label: int
  name: str
  file: int
  broken: str = ""
  picture: int = 0
  size: tuple[int, int] = (0, 0)
  grey: bool = False


def _look(record: records.Record | None) -> _Look | None:
  if record is None:
    return None
  head = (record.label, record.name, _hash(record.image))
  try:
    pixels = decoding.decode_image(record.image)
  except decoding.DecodingError as error:
    return _Look(*head, broken=str(error))
  red, green, blue = cv2.split(pixels)
  return _Look(
    *head,
    picture=picture_hash(pixels),
    size=pixels.shape[:2],
    grey=np.array_equal(red, green) and np.array_equal(green, blue),
  )


def picture_hash(pixels: UInt8[np.ndarray, "h w 3"]) -> int:
  """Hashes what an image shows, the same for a recompressed copy.

  The difference hash (https://www.hackerfactor.com/blog/?/archives/529) to the
  right and down; one direction alone takes different faces for the same.

  Args:
    pixels: uint8 [H, W, 3].

  Returns:
    64 bits.
  """
  grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
  # Of floats, lest rounding make neighbours equal that are not.
  small = cv2.resize(
    grey.astype(np.float32),
    (_HASH_SIDE, _HASH_SIDE),
    interpolation=cv2.INTER_AREA,
  )
  right = small[:-1, 1:] > small[:-1, :-1]
  down = small[1:, :-1] > small[:-1, :-1]
  return _hash(np.packbits([right, down]).tobytes())


def _hash(data: bytes) -> int:
  return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def _enter(survey: Survey, number: int, look: _Look | None) -> None:
  """Enters what image `number` told."""
  if look is None:
    survey.errors.add(f"record {number} cannot be read")
    return
  survey.labels[number] = look.label
  survey.files[number] = look.file
  if look.broken:
    survey.errors.add(f"image {look.name!r}: {look.broken}")
    return
  survey.sound[number] = True
  survey.pictures[number] = look.picture
  survey.image_sizes[look.size] += 1
  survey.grey += look.grey


def check_index(reader: records.RecordReader, survey: Survey) -> list[str]:
  """Compares what dataset.json says with what is there."""
  index, errors = reader.index, []
  labels = survey.labels[survey.labels != _UNREAD]
  outside = (labels < 0) | (labels >= index.classes)
  if outside.any():
    errors.append(
      f"{outside.sum()} labels lie outside [0, {index.classes}), the first is"
      f" {labels[outside][0]}"
    )
  sizes = np.bincount(labels[~outside], minlength=index.classes)
  if len(index.class_sizes) != index.classes:
    errors.append(
      f"class_sizes has {len(index.class_sizes)} entries for {index.classes}"
      " classes"
    )
  elif len(labels) == len(survey.labels):  # Else the counts cannot be right.
    errors += [
      f"class {label} has {sizes[label]} images, not {index.class_sizes[label]}"
      for label in np.flatnonzero(sizes != index.class_sizes)
    ]
  errors += _check_labels(reader, survey)
  if index.image_size is not None and any(
    size != index.image_size for size in survey.image_sizes
  ):
    errors.append(f"not every image has the image_size {index.image_size}")
  names = len(records.read_classes(reader.directory))
  if names != index.classes:
    errors.append(
      f"{records.CLASSES_FILE} has {names} lines for {index.classes} classes"
    )
  return errors


def _check_labels(reader: records.RecordReader, survey: Survey) -> list[str]:
  """Compares labels.npy, if there should be one, with the records."""
  if reader.index.labels_sha256 is None:
    return []
  try:
    labels = records.read_labels(reader.directory, reader.index)
  except InputError as error:
    return [str(error)]
  wrong = (survey.labels != _UNREAD) & (survey.labels != labels)
  return [
    f"{records.LABELS_FILE} gives record {number} label {labels[number]}, not"
    f" {survey.labels[number]}"
    for number in np.flatnonzero(wrong)[:1]
  ]
