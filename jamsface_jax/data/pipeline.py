"""Grain pipeline whose elements are batches: batch k is a function of k.

A record at a time would cost one Python call an image; here the ids of a batch
come from one vectorised permutation and Grain's threads read whole batches
ahead. There is no iterator state: a run that resumes at step k starts at k.
"""

from collections.abc import Iterator

import grain.python as grain
import numpy as np

from jamsface_jax.data.order import example_ids
from jamsface_jax.data.sources import Source

Batch = dict[str, np.ndarray]


class BatchSource:
  """Batch number k of a run, as Grain wants it: `len` and `[k]`."""

  def __init__(
    self,
    source: Source,
    *,
    seed: int,
    batch_size: int,
    rows: np.ndarray,
    total_steps: int,
  ):
    self._source = source
    self._seed = seed
    self._batch_size = batch_size
    self._rows = rows
    self._total_steps = total_steps

  def __len__(self) -> int:
    return self._total_steps

  def __getitem__(self, step: int) -> Batch:
    ids = example_ids(
      self._seed,
      int(step),
      batch_size=self._batch_size,
      num_examples=len(self._source),
      rows=self._rows,
    )
    images, labels = self._source.read(ids)
    return {"images": images, "labels": labels, "ids": ids}


def batches(
  source: Source,
  *,
  seed: int,
  batch_size: int,
  rows: np.ndarray,
  start: int,
  total_steps: int,
  threads: int,
) -> Iterator[Batch]:
  """Yields this process's rows of batches `start` to `total_steps` - 1.

  Args:
    source: the labelled images.
    seed: of the order of examples.
    batch_size: rows of the global batch.
    rows: the rows of it that this process needs, see `sharding.local_rows`.
    start: first batch.
    total_steps: number of batches of the whole run.
    threads: batches that are read and decoded at the same time, ahead of use.

  Yields:
    `images` uint8 [n, H, W, 3] RGB, `labels` int32 [n], `ids` int64 [n].
  """
  steps = BatchSource(
    source,
    seed=seed,
    batch_size=batch_size,
    rows=rows,
    total_steps=total_steps,
  )
  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  yield from grain.MapDataset.source(steps)[start:].to_iter_dataset(options)
