"""Closes the gaps that classes leave of which too few images can be read.

Shards are written before anyone knows that. Then what is left of such classes
is taken out of the shards, and the classes after them move up. The journal
keeps the first numbers, so that a conversion that is interrupted here goes on.
"""

import dataclasses
import os
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from array_record.python import (
  array_record_module,  # ty: ignore[missing-module-member] has no stubs.
)

from data_prep.writing.shards import FinishedShard, ShardWriter, shard_path
from jamsface_jax.data import decoding, records

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
  with ShardWriter(directory, shard.number) as writer:
    reader = array_record_module.ArrayRecordReader(
      shard_path(directory, shard.number)
    )
    for start in range(0, shard.shard.records, _AT_ONCE):
      stop = min(start + _AT_ONCE, shard.shard.records)
      for data in reader.read([*range(start, stop)]):
        record = records.decode_record(data)
        if reasons[record.label]:
          skipped.append(f"{record.name}\t{reasons[record.label]}")
          continue
        labels.append(record.label)
        size = decoding.read_size(record.image)
        number = numbers[record.label]
        writer.add(number, record.name, record.image, size)
    reader.close()
    made = writer.finish()
  if made.shard is None:
    os.remove(shard_path(directory, shard.number))
  return dataclasses.replace(
    shard,
    shard=made.shard,
    labels=np.array(labels, np.int32),
    image_sizes=made.image_sizes,
    skipped=shard.skipped + skipped,
    dropped=[*dropped.items()],
  )
