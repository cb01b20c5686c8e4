"""What converters share: images checked on all cores, and the last words."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import simplejpeg

from data_prep.writer import SKIPPED_FILE
from jamsface_jax.data import decoding, records

# A batch, of which two are in memory: many small images or a few large ones.
_IMAGES_AT_ONCE = 1024
_BYTES_AT_ONCE = 32 * 2**20

T = TypeVar("T")


def positive_integer(text: str) -> int:
  """The type of a flag that counts something."""
  number = int(text)
  if number < 1:
    raise ValueError
  return number


def load_images(
  items: Iterable[tuple[T, int]],
  load: Callable[[T], bytes],
  *,
  check: bool,
  threads: int,
) -> Iterator[tuple[T, bytes, tuple[int, int] | str]]:
  """Loads images and finds their sizes, in threads and in order.

  Args:
    items: what is to be loaded, and about how many bytes each is.
    load: returns an item's encoded image; OSError if there is none.
    check: decode the images whole; otherwise look only at a JPEG's head.
    threads: how many images are worked on at once.

  Yields:
    Item, encoded image, and its (height, width) or what is wrong with it.
  """

  def load_all(batch):
    return [load_one(item) for item in batch]

  def load_one(item):
    try:
      data = load(item)
      return item, data, image_size(data, check=check)
    except decoding.DecodingError as error:
      return item, b"", str(error)
    except OSError as error:
      return item, b"", str(error.strerror)

  with ThreadPoolExecutor(threads) as pool:
    # While one batch is written, the threads work on the next.
    before = []
    for batch in chain(_batches(items), [[]]):
      # A call for every single image would cost as much as its decoding.
      share = max(1, len(batch) // (4 * threads))
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
    check: decode it whole; otherwise look only at a JPEG's head.

  Raises:
    DecodingError: not an image, or a truncated one.
  """
  if check or data[:2] != b"\xff\xd8":
    height, width, _ = decoding.decode_image(data).shape
    return height, width
  try:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
  except ValueError as error:
    raise decoding.DecodingError(f"broken JPEG: {error}") from None
  return height, width


def print_result(directory: str, skipped: int, config: str) -> None:
  """Says what a finished data set holds, and the command to train on it."""
  index = records.read_index(directory)
  print(
    f"{index.images:,} images of {index.classes:,} identities"
    f" ({min(index.class_sizes)} to {max(index.class_sizes)} each) in"
    f" {directory}"
    + (
      f"; {skipped:,} left out, see {os.path.join(directory, SKIPPED_FILE)}"
      if skipped
      else ""
    )
  )
  print(
    f"next: python -m jamsface_jax.main --config={config}"
    f" --config.data.directory={directory} --workdir=W"
  )


def _batches(items: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
  batch, size = [], 0
  for item, item_bytes in items:
    batch.append(item)
    size += item_bytes
    if len(batch) == _IMAGES_AT_ONCE or size >= _BYTES_AT_ONCE:
      yield batch
      batch, size = [], 0
  if batch:
    yield batch
