"""Closes the gaps that classes leave of which too few images can be read.

Shards are written before anyone knows that. Then what is left of such classes
is taken out of the shards, and the classes after them move up. The journal
keeps the first numbers, so that a conversion that is interrupted here goes on.
"""

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from data_prep.writing.shards import FinishedShard, ShardWriter, shard_path
from jamsface_jax.data import decoding, records
from jamsface_jax.data.open_shards import open_reader
from jamsface_jax.errors import InputError, one_line

_AT_ONCE = 1024  # Records in memory.


def small_classes(
  shards: Sequence[FinishedShard], classes: int, min_images: int
) -> dict[int, int] | None:
  """Finds the classes with too few images.

  Args:
    shards: all shards of the data set.
    classes: how many classes there are.
    min_images: images that a class needs.

  Returns:
    How many images each of those classes has, by its number; None if an
    interrupted attempt decided otherwise, of files that have changed since.
  """
  found = np.zeros(classes, np.int64)
  before = {}
  for one in shards:
    found += np.bincount(one.labels, minlength=classes)
    before |= dict(one.dropped)
  small = np.flatnonzero(found < min_images).tolist()
  if not before:
    return {label: int(found[label]) for label in small}
  return before if before.keys() >= set(small) else None


def new_numbers(classes: int, dropped: Collection[int]) -> list[int]:
  """The new number of each class; -1 of those that are left out."""
  gone = np.zeros(classes, np.int64)
  gone[list(dropped)] = 1
  numbers = np.arange(classes) - np.cumsum(gone)
  return np.where(gone, -1, numbers).tolist()


def close_gaps(
  directory: str,
  shard: FinishedShard,
  dropped: Mapping[int, int],
  numbers: Sequence[int],
  reasons: Sequence[str],
) -> FinishedShard:
  """Writes a shard again, without the images of some classes.

  Args:
    directory: the data set.
    shard: what it was.
    dropped: the classes that are left out, as from `small_classes`.
    numbers: the new number of each class, see `new_numbers`.
    reasons: why each class is left out, "" of those that are not.

  Returns:
    What it is now.
  """
  if shard.shard is None:
    return dataclasses.replace(shard, dropped=[*dropped.items()])
  labels, skipped = [], []
  path = shard_path(directory, shard.number)
  with ShardWriter(directory, shard.number) as writer:
    try:
      for record, size in _read(path, shard.shard.records, len(reasons)):
        if reason := reasons[record.label]:
          skipped.append(f"{record.name}\t{reason}")
          continue
        labels.append(record.label)
        writer.add(numbers[record.label], record.name, record.image, size)
    except ValueError as error:
      # Of its size and hash, as the journal says, and yet no shard.
      raise InputError(
        f"shard {path!r} is not one of this conversion ({one_line(error)}):"
        f" delete {directory!r} and convert again."
      ) from None
    made = writer.finish()
  if made.shard is None:
    os.remove(path)
  return dataclasses.replace(
    shard,
    shard=made.shard,
    labels=np.array(labels, np.int32),
    image_sizes=made.image_sizes,
    skipped=shard.skipped + skipped,
    dropped=[*dropped.items()],
  )


def _read(
  path: str, count: int, classes: int
) -> Iterator[tuple[records.Record, tuple[int, int]]]:
  """Yields the records of a shard, and the (height, width) of each image.

  Raises:
    ValueError: it is no shard, or has not so many records of these classes.
  """
  reader = open_reader(path)
  for start in range(0, count, _AT_ONCE):
    stop = min(start + _AT_ONCE, count)
    try:
      block = reader.read([*range(start, stop)])
    except RuntimeError as error:
      raise ValueError(str(error)) from None
    for data in block:
      record = records.decode_record(data)
      if not 0 <= record.label < classes:
        raise ValueError(f"{record.label} is no class")
      yield record, decoding.read_size(record.image)
  reader.close()  # Of what is no shard this raises again.
