"""Images to embed, in one order: a folder, a list, a data set or an array."""

import dataclasses
import hashlib
import os
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from jamsface_jax.data import decoding, records
from jamsface_jax.data.folders import read_file, walk
from jamsface_jax.data.local_copy import local_copy
from jamsface_jax.errors import InputError, one_line
from jamsface_jax.storage.file_state import file_state
from jamsface_jax.storage.photo_folder import EXTENSIONS
from jamsface_jax.storage.plain_array import map_array
from jamsface_jax.storage.text_lists import NotTextError, escape, read_lines

_PROBES = 1024  # Images of an array that its listing reads.


@dataclasses.dataclass(frozen=True)
class Block:
  """A run of images as a network sees them.

  Attributes:
    pixels: uint8 [n, size, size, 3], RGB; zero where an image is broken.
    names: n, as the input calls them.
    labels: int64 [n].
    broken: why an image cannot be read, by its position in the block.
  """

  pixels: UInt8[np.ndarray, "n h w 3"]
  names: list[str]
  labels: Int64[np.ndarray, " n"]
  broken: dict[int, str]


@runtime_checkable
class Images(Protocol):
  """Images in a fixed order; `read` may be called from several threads.

  Attributes:
    fingerprint: another one if the input has changed; tells a copy of it from
      the original where files are not read whole, see `file_state`.
    listing: likewise, of what copies have in common: enough to see that other
      processes mean the same input, not that it has stayed the same.
    aside: what lies there and is no image, for people; "" if nothing.
  """

  fingerprint: str
  listing: str
  aside: str

  def __len__(self) -> int:
    """Returns the number of images, broken ones included."""

  def read(self, start: int, stop: int) -> Block:
    """Returns images `start` to `stop` - 1."""


def open_images(
  path: str, size: int, *, root: str | None, color_order: str | None
) -> Images:
  """Opens whatever holds images.

  Args:
    path: a folder, a data set, a .npy array, an image, or a text file with a
      path a line; a folder or a data set may be in a bucket.
    size: height and width wanted; other sizes are scaled, as in training.
    root: what the paths of a list are relative to; None for the list's folder.
    color_order: what the colours of an array are, which does not say it; None
      for all others.

  Raises:
    InputError: none of these, nothing in it, or the wrong colour order.
  """
  path = local_copy(path)
  is_array = os.path.isfile(path) and path.endswith(".npy")
  is_image = os.path.isfile(path) and path.lower().endswith(EXTENSIONS)
  is_list = os.path.isfile(path) and not is_array and not is_image
  if root is not None and not is_list:
    raise InputError(
      f"--root={root!r} belongs to a list, and --images {path!r} is none: leave"
      " it out."
    )
  if color_order is not None and not is_array:
    raise InputError(
      f"--color_order={color_order} belongs to an array, and --images {path!r}"
      " is none: leave it out."
    )
  if is_array:
    return ArrayImages(path, size, color_order)
  if is_image:
    folder, name = os.path.split(path)
    return FileImages(folder, [name], size)
  if is_list:
    return open_list(path, size, root or os.path.dirname(path))
  if not os.path.isdir(path):
    raise InputError(
      f"--images {path!r} does not exist: give a folder, a data set, a .npy"
      " array, or a text file with a path on each line."
    )
  if os.path.exists(os.path.join(path, records.INDEX_FILE)):
    return DatasetImages(path, size)
  return open_folder(path, size)


def open_folder(directory: str, size: int) -> "FileImages":
  """Opens all images below a folder, sorted by path.

  Args:
    directory: the folder.
    size: height and width wanted.

  Raises:
    InputError: there is none.
  """
  found = walk(directory)
  names = sorted(found.images + found.odd)
  aside = found.aside()
  if not names:
    raise InputError(
      f"--images {directory!r} has no image ({', '.join(EXTENSIONS)})"
      + (f" but {aside}" if aside else "")
      + ": give another folder."
    )
  return FileImages(directory, names, size, aside=aside)


def open_list(path: str, size: int, root: str) -> "FileImages":
  """Opens the images that a text file names, in its order.

  Args:
    path: the text file, UTF-8, a path on each line; after a tab anything.
    size: height and width wanted.
    root: what its paths are relative to.

  Raises:
    InputError: not a text file, an empty line, or none of the images is there.
  """
  try:
    # What follows a tab is for people, as in all lists of images.
    names = [line.text.split("\t")[0].strip() for line in read_lines(path)]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"--images {path!r} is not a text file ({one_line(error)}): give a list"
      " with a path on each line, a folder, a data set or a .npy array."
    ) from None
  while names and not names[-1]:
    del names[-1]
  if not names:
    raise InputError(f"--images {path!r} is empty: give a list of paths.")
  if not all(names):
    raise InputError(
      f"--images {path!r} names no image in line {names.index('') + 1}: take"
      " the empty line out."
    )
  images = FileImages(root, names, size)
  if images.missing == len(names):
    raise InputError(
      f"--images {path!r} names {names[0]!r} and no file that exists below"
      f" {root or '.'!r}: give the folder of its paths as --root."
    )
  return images


class FileImages:
  """Image files; labels number their folders in the order of names.

  A name that cannot be in a list is escaped where it is said.

  Args:
    root: what the names are relative to.
    names: the files, in the order wanted.
    size: height and width wanted.
    aside: what else lies there, for people.

  Attributes:
    names: the files, as given.
    aside: as given.
    labels: int64 [N].
    fingerprint: a hash of names and states of the files, see `file_state`.
    listing: a hash of names and sizes.
    missing: how many do not exist.
  """

  def __init__(
    self, root: str, names: list[str], size: int, *, aside: str = ""
  ):
    self._root = root
    self.names = names
    self.aside = aside
    self._size = size
    folders = [os.path.dirname(name) for name in names]
    _, self.labels = np.unique(folders, return_inverse=True)
    listed, states = hashlib.sha256(), hashlib.sha256()
    self.missing = 0
    for name in names:
      state = file_state(os.path.join(root, name))
      self.missing += state.size < 0
      listed.update(f"{state.size} {name}\n".encode(errors="surrogateescape"))
      states.update(f"{state}\n".encode())
    self.listing = listed.hexdigest()[:16]
    self.fingerprint = _hash(self.listing, states.hexdigest())

  def __len__(self) -> int:
    return len(self.names)

  def read(self, start: int, stop: int) -> Block:
    """See `Images.read`."""
    names = self.names[start:stop]
    pixels, broken = _decode(map(self.content, names), len(names), self._size)
    names = [escape(name) for name in names]
    return Block(pixels, names, self.labels[start:stop], broken)

  def name(self, number: int) -> str:
    """The name of an image as it is said."""
    return escape(self.names[number])

  def content(self, name: str) -> bytes | str:
    """Returns the content of a file, or why there is none."""
    try:
      return read_file(self._root, name)
    except (OSError, ValueError, MemoryError) as error:
      return getattr(error, "strerror", None) or one_line(error) or "no memory"


class DatasetImages:
  """The images of a data set, in its order."""

  aside = ""

  def __init__(self, directory: str, size: int):
    self._reader = records.RecordReader(directory)
    self._size = size
    self.listing = self._reader.index.fingerprint()
    # What the index says of the shards is so only until one is written over.
    directory = self._reader.directory
    paths = [os.path.join(directory, s.file) for s in self._reader.index.shards]
    self.fingerprint = _hash(self.listing, *map(str, map(file_state, paths)))

  def __len__(self) -> int:
    return len(self._reader)

  def read(self, start: int, stop: int) -> Block:
    """See `Images.read`."""
    block = self._reader.read(range(start, stop))
    pixels, broken = _decode(
      (record.image for record in block), len(block), self._size
    )
    labels = np.array([record.label for record in block], np.int64)
    return Block(pixels, [record.name for record in block], labels, broken)


class ArrayImages:
  """The images of a .npy file, memory-mapped; named by their rows.

  An array says nothing of classes, so all labels are -1, and nothing of its
  colour order, so the user has to. Its listing reads some of the images.

  Args:
    path: uint8 [N, H, W, 3].
    size: height and width wanted.
    color_order: what its last axis is, or None if the user did not say.
  """

  aside = ""

  def __init__(self, path: str, size: int, color_order: str | None):
    try:
      self._array = map_array(path)
    except (OSError, ValueError) as error:
      raise InputError(
        f"--images {path!r} is not a sound .npy file ({one_line(error)}): save"
        " it again with numpy.save."
      ) from None
    shape, dtype = self._array.shape, self._array.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or 0 in shape:
      raise InputError(
        f"--images {path!r} is {dtype} {list(shape)}: save images as uint8"
        " [N, H, W, 3]."
      )
    if color_order is None:
      raise InputError(
        f"--images {path!r} is an array, which does not record its colours: say"
        f" what they are with --color_order={records.COLOR_ORDER}."
      )
    if color_order != records.COLOR_ORDER:
      raise InputError(
        f"--images {path!r} is {color_order}, but the network was trained with"
        f" {records.COLOR_ORDER}: save images[..., ::-1] instead."
      )
    self._size = size
    probes = np.unique(np.linspace(0, len(self) - 1, _PROBES).astype(np.int64))
    digest = hashlib.sha256(f"{shape}".encode())
    for probe in probes:
      digest.update(self._array[probe].tobytes())
    self.listing = digest.hexdigest()[:16]
    self.fingerprint = _hash(self.listing, str(file_state(path)))

  def __len__(self) -> int:
    return len(self._array)

  def read(self, start: int, stop: int) -> Block:
    """See `Images.read`."""
    pixels = scaled(self._array[start:stop], self._size)
    labels = np.full(stop - start, -1, np.int64)
    return Block(pixels, list(map(str, range(start, stop))), labels, {})


def scaled(
  images: UInt8[np.ndarray, "n h w 3"], size: int
) -> UInt8[np.ndarray, "n {size} {size} 3"]:
  """Scales images as `decoding.decode_into` does.

  Args:
    images: uint8 [n, H, W, 3].
    size: height and width wanted.

  Returns:
    uint8 [n, size, size, 3], a copy.
  """
  if images.shape[1:3] == (size, size):
    return np.array(images)
  pixels = np.empty((len(images), size, size, 3), np.uint8)
  for image, row in zip(images, pixels, strict=True):
    decoding.scale_into(np.ascontiguousarray(image), row)
  return pixels


def _hash(*texts: str) -> str:
  return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _decode(
  images: Iterable[bytes | str], count: int, size: int
) -> tuple[UInt8[np.ndarray, "n h w 3"], dict[int, str]]:
  """Decodes images; one that is a text is broken for this reason."""
  pixels = np.empty((count, size, size, 3), np.uint8)
  broken = {}
  for position, image in enumerate(images):
    try:
      if isinstance(image, str):
        raise decoding.DecodingError(image)
      decoding.decode_into(image, pixels[position])
    except decoding.DecodingError as error:
      broken[position] = one_line(error)
      pixels[position] = 0
  return pixels, broken
