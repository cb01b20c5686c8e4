"""Encoded images: loaded in threads, and looked at."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

from jamsface_jax.data import decoding

Item = TypeVar("Item")
# An item, its encoded image, and its (height, width) or what is wrong with it.
Loaded = tuple[Item, bytes, tuple[int, int] | str]


# A batch, of which two are in memory: many small images or a few large ones.
_IMAGES_AT_ONCE = 1024

_BYTES_AT_ONCE = 32 * 2**20
# For a batch: more than there are threads, so that none is idle at its end.
_CALLS = 128


def load_images(
  items: Iterable[tuple[Item, int]],
  load: Callable[[Item], bytes],
  pool: ThreadPoolExecutor,
  *,
  check: bool,
) -> Iterator[Loaded[Item]]:
  """Loads images and finds their sizes, in threads and in order.

  Args:
    items: what is to be loaded, and about how many bytes each is.
    load: returns an item's encoded image; OSError if there is none.
    pool: the threads; who loads again and again keeps them, since the allocator
      may keep memory for each new one.
    check: decode the images whole; otherwise look only at its head.

  Yields:
    Item, encoded image, and its (height, width) or what is wrong with it.
  """

  def load_all(batch: list[Item]) -> list[Loaded[Item]]:
    return [load_one(item) for item in batch]

  def load_one(item: Item) -> Loaded[Item]:
    try:
      data = load(item)
      return item, data, image_size(data, check=check)
    except decoding.DecodingError as error:
      return item, b"", str(error)
    except (OSError, MemoryError) as error:
      return item, b"", str(getattr(error, "strerror", "no memory for it"))

  # While one batch is written, the threads work on the next.
  before = []
  runs = batches(items, _IMAGES_AT_ONCE, _BYTES_AT_ONCE)
  for batch in chain(runs, [[]]):
    # A call for every single image would cost as much as its decoding.
    share = max(1, len(batch) // _CALLS)
    begun = [
      pool.submit(load_all, batch[k : k + share])
      for k in range(0, len(batch), share)
    ]
    for done in before:
      yield from done.result()
    before = begun


def image_size(data: bytes, *, check: bool) -> tuple[int, int]:
  """Returns the (height, width) of an encoded image.

  Args:
    data: the image.
    check: decode it whole; otherwise look only at its head.

  Raises:
    DecodingError: not an image, or a truncated one.
  """
  if check:
    height, width, _ = decoding.decode_image(data).shape
    return height, width
  return decoding.read_size(data)


def batches(
  items: Iterable[tuple[Item, int]], most: int, enough_bytes: int
) -> Iterator[list[Item]]:
  """Runs of items, each closed when it has so many items or bytes."""
  batch, size = [], 0
  for item, item_bytes in items:
    batch.append(item)
    size += item_bytes
    if len(batch) == most or size >= enough_bytes:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
