"""Grain pipeline whose elements are batches: batch k is a function of k.

A record at a time would cost one Python call an image; here the ids of a batch
come from one vectorised order and Grain's threads read whole batches,
several if they are small, ahead. There is no iterator state: a run that resumes
at step k starts at k.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Int

from jamsface_jax import interruption
from jamsface_jax.data.sampling import example_order
from jamsface_jax.data.sources import Source

Batch = dict[str, np.ndarray]
Element = TypeVar("Element")

_READ_AT_ONCE = 512  # Images, at least.


def read_ahead(
  read: Callable[[int], Element], *, start: int, stop: int, threads: int
) -> Iterator[Element]:
  """Yields read(start), ..., read(stop - 1), computed ahead by threads.

  Args:
    read: called from several threads at once.
    start: first argument.
    stop: one past the last argument.
    threads: how many; twice as many elements wait to be taken.

  Yields:
    The elements in order.
  """
  # Grain brings JAX, which who only reads data must not pay for.
  with interruption.postponed():
    import grain.python as grain

  options = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=2 * threads
  )
  elements = grain.MapDataset.source(_Elements(read, stop))[start:]
  yield from elements.to_iter_dataset(options)


class _Elements(Generic[Element]):
  """A function of an integer, as Grain wants it: `len` and `[k]`."""

  def __init__(self, read: Callable[[int], Element], count: int):
    self._read = read
    self._count = count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Element:
    return self._read(int(index))


def batches(
  source: Source,
  *,
  seed: int,
  sampling: str,
  batch_size: int,
  rows: Int[np.ndarray, " n"],
  start: int,
  total_steps: int,
  threads: int,
  skipped: Sequence[range] = (),
) -> Generator[Batch, None, None]:
  """Yields this process's rows of batches `start` to `total_steps` - 1.

  Args:
    source: the labelled images.
    seed: chooses the order of examples.
    sampling: see `sampling.example_order`.
    batch_size: rows of the global batch.
    rows: which of them this process needs, int64 [n].
    start: first batch.
    total_steps: number of batches of the whole run.
    threads: so many read and decode at the same time, ahead of use.
    skipped: steps whose batches are not read; step k has batch k - 1.

  Yields:
    `images` uint8 [n, H, W, 3] RGB, `labels` int32 [n], `ids` int64 [n];
    nothing at all, {}, for a step that is skipped.
  """
  order = example_order(sampling, seed=seed, source=source)
  # A read of a shard has a cost of its own, so small batches share one.
  together = -(-_READ_AT_ONCE // len(rows))

  def read(block: int) -> list[Batch]:
    first = start + block * together
    block_steps = range(first, min(first + together, total_steps))
    kept = [k for k in block_steps if not any(k + 1 in s for s in skipped)]
    if not kept:
      return [{} for _ in block_steps]
    steps = np.array(kept)
    positions = steps[:, None] * batch_size + rows[None, :]
    ids = order(positions.ravel()).reshape(positions.shape)
    images, labels = source.read(ids.ravel())
    images = images.reshape(*ids.shape, *images.shape[1:])
    labels = labels.reshape(ids.shape)
    read_batches = {
      step: {"images": image_b, "labels": label_b, "ids": id_b}
      for step, image_b, label_b, id_b in zip(
        kept, images, labels, ids, strict=True
      )
    }
    return [read_batches.get(step, {}) for step in block_steps]

  blocks = -(-(total_steps - start) // together)
  for block in read_ahead(read, start=0, stop=blocks, threads=threads):
    yield from block
