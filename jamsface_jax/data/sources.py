"""Where labelled images come from: a data set, a folder, or made-up noise."""

import hashlib
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, Int64, UInt8

from jamsface_jax.data import decoding, records
from jamsface_jax.data.images import open_folder
from jamsface_jax.errors import InputError
from jamsface_jax.settings.sections import Data

_PROBES = 1024  # Records read at once to find out the order of classes.

# Images, RGB, and their labels.
Examples = tuple[UInt8[np.ndarray, "n h w 3"], Int32[np.ndarray, " n"]]


@runtime_checkable
class Source(Protocol):
  """Random access to labelled images.

  Attributes:
    num_classes: C; labels are in [0, C).
    class_sizes: images of each class, int64 [C].
    fingerprint: equal if and only if the content is.
  """

  num_classes: int
  class_sizes: Int[np.ndarray, " c"]
  fingerprint: str

  def __len__(self) -> int:
    """Returns the number of images."""

  def labels(self) -> Int32[np.ndarray, " examples"]:
    """Returns the class of every image, int32 [N]."""

  def read(self, ids: Int64[np.ndarray, " n"]) -> Examples:
    """Returns the images with these ids.

    Args:
      ids: int64 [n], each in [0, len(self)).

    Returns:
      uint8 [n, H, W, 3] RGB and int32 [n] labels.
    """


class RecordSource:
  """A data set on disk, its images scaled to one size.

  For training: any order, and a broken image ends the run. `DatasetImages` of
  `images.py` is for embedding: in order, with names, broken images marked.

  Args:
    directory: holds `dataset.json`.
    image_size: height and width of the images returned.

  Attributes:
    name: what the data set is called.
    synthetic: whether its images are of nobody.
    left_out: what of the input is not in it, see `DatasetIndex`; the rest as
      `Source` has it.
  """

  def __init__(self, directory: str, image_size: int):
    self._reader = records.RecordReader(directory)
    self._image_size = image_size
    index = self._reader.index
    # Until an image turns up that is no JPEG of it, whatever the index says.
    self._is_one_size = index.image_size == (image_size, image_size)
    self.name = index.name
    self.synthetic = index.synthetic
    self.left_out = index.left_out
    self.num_classes = index.classes
    self.class_sizes = np.array(index.class_sizes, np.int64)
    self.fingerprint = index.fingerprint()

  @property
  def directory(self) -> str:
    """Where it is on a disk."""
    return self._reader.directory

  def __len__(self) -> int:
    return len(self._reader)

  def labels(self) -> Int32[np.ndarray, " examples"]:
    """See `Source.labels`.

    One made before there was `labels.npy` mostly lists class after class. Then
    the first and the last image of each lie where the class sizes say; only if
    not is everything read.
    """
    index = self._reader.index
    if index.labels_sha256 is not None:
      return records.read_labels(self._reader.directory, index)
    ends = np.cumsum(self.class_sizes)
    in_order = np.repeat(
      np.arange(self.num_classes, dtype=np.int32), self.class_sizes
    )
    probes = np.unique([ends - self.class_sizes, ends - 1])
    for part in np.array_split(probes, -(-len(probes) // _PROBES)):
      found = [record.label for record in self._reader.read(part.tolist())]
      if np.any(found != in_order[part]):
        break
    else:
      return in_order
    every = (record.label for record in self._reader.scan())
    return np.fromiter(every, np.int32, len(self))

  def names(self) -> list[str]:
    """The names of all images, in order: reads everything once."""
    return [record.name for record in self._reader.scan()]

  def names_of(self, ids: Sequence[int]) -> list[str]:
    """The names of these images: reads them alone."""
    return [record.name for record in self._reader.read(list(ids))]

  def read(self, ids: Int64[np.ndarray, " n"]) -> Examples:
    """See `Source.read`; raises InputError naming a broken image or label."""
    size = self._image_size
    images = np.empty((len(ids), size, size, 3), np.uint8)
    labels = np.empty(len(ids), np.int32)
    for row, record in enumerate(self._reader.read(ids.tolist())):
      if not 0 <= record.label < self.num_classes:
        raise InputError(
          f"image {record.name!r} of {self._reader.directory!r} has label"
          f" {record.label}, outside [0, {self.num_classes}): write the data"
          " set again."
        )
      labels[row] = record.label
      if self._is_one_size:
        if decoding.decode_exactly(record.image, images[row]):
          continue
        self._is_one_size = False
      try:
        decoding.decode_into(record.image, images[row])
      except decoding.DecodingError as error:
        raise InputError(
          f"image {record.name!r} of {self._reader.directory!r} cannot be read"
          f" ({error}): write the data set again with --skip_bad."
        ) from None
    return images, labels


class FolderSource:
  """Image files below a folder; classes are their folders.

  Args:
    directory: the folder.
    image_size: height and width of the images returned.

  Attributes:
    directory: as given.
    broken: why each image cannot be read that was asked for and is broken, by
      its id.
  """

  def __init__(self, directory: str, image_size: int):
    self.directory = directory
    self.broken: dict[int, str] = {}
    self._files = open_folder(directory, image_size)
    self.class_sizes = np.bincount(self._files.labels)
    self.num_classes = len(self.class_sizes)
    self.fingerprint = self._files.fingerprint

  def __len__(self) -> int:
    return len(self._files)

  def labels(self) -> np.ndarray:
    """See `Source.labels`."""
    return self._files.labels.astype(np.int32)

  def names(self) -> list[str]:
    """The paths of all images below the folder, in order."""
    return self._files.names

  def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Source.read`; notes broken images, whose pixels are black."""
    found = [self._files.read(i, i + 1) for i in ids.tolist()]
    for number, one in zip(ids.tolist(), found, strict=True):
      if one.broken:
        self.broken[number] = one.broken[0]
    return np.concatenate([one.pixels for one in found]), self.labels()[ids]


class MixedSource:
  """Several sources as one, with classes of their own each.

  Args:
    sources: the classes of each are numbered after those of the ones before.
  """

  def __init__(self, sources: Sequence[Source]):
    self._sources = sources
    self._ends = np.cumsum([len(source) for source in sources])
    counts = [source.num_classes for source in sources]
    self._first_class = np.cumsum([0, *counts[:-1]]).astype(np.int32)
    self.num_classes = sum(counts)
    self.class_sizes = np.concatenate([one.class_sizes for one in sources])
    prints = " ".join(source.fingerprint for source in sources)
    self.fingerprint = hashlib.sha256(prints.encode()).hexdigest()[:16]

  def __len__(self) -> int:
    return int(self._ends[-1])

  def labels(self) -> Int32[np.ndarray, " examples"]:
    """See `Source.labels`."""
    return np.concatenate(
      [
        source.labels() + first
        for source, first in zip(self._sources, self._first_class, strict=True)
      ]
    )

  def read(self, ids: Int64[np.ndarray, " n"]) -> Examples:
    """See `Source.read`."""
    which = np.searchsorted(self._ends, ids, side="right")
    labels = np.empty(len(ids), np.int32)
    images = np.empty((len(ids), 0, 0, 3), np.uint8)
    for number in np.unique(which):
      source, rows = self._sources[number], which == number
      start = self._ends[number] - len(source)
      some_images, some_labels = source.read(ids[rows] - start)
      if not images.size:  # Now their height and width are known.
        images = np.empty((len(ids), *some_images.shape[1:]), np.uint8)
      images[rows] = some_images
      labels[rows] = some_labels + self._first_class[number]
    return images, labels


class NoiseSource:
  """Images of noise around one random pattern a class; needs no data.

  It lets every recipe run anywhere (`:tiny`), and can be learned. An image is a
  pure function of (seed, id).
  """

  def __init__(self, num_classes: int, num_images: int, image_size: int):
    self.num_classes = num_classes
    self.class_sizes = np.bincount(
      np.arange(num_images) % num_classes, minlength=num_classes
    )
    self.fingerprint = f"noise-{num_classes}-{num_images}"
    self._num_images = num_images
    self._image_size = image_size

  def __len__(self) -> int:
    return self._num_images

  def labels(self) -> Int32[np.ndarray, " examples"]:
    """See `Source.labels`."""
    examples = np.arange(self._num_images)
    return (examples % self.num_classes).astype(np.int32)

  def read(self, ids: Int64[np.ndarray, " n"]) -> Examples:
    """See `Source.read`."""
    labels = (ids % self.num_classes).astype(np.int32)
    images = [self._image(int(i)) for i in ids]
    return np.stack(images), labels

  def _image(self, example: int) -> UInt8[np.ndarray, "h w 3"]:
    size = self._image_size
    pattern = _normal([0, example % self.num_classes], (8, 8, 3))
    noise = _normal([1, example], (8, 8, 3))
    coarse = 127.5 + 40.0 * pattern + 30.0 * noise
    rows = np.arange(size) * 8 // size
    return np.clip(coarse[rows][:, rows], 0, 255).astype(np.uint8)


def _normal(key: list[int], shape: tuple[int, ...]) -> np.ndarray:
  return np.random.default_rng(key).normal(size=shape)


def open_source(settings: Data) -> Source:
  """Opens the training data that the section `data` of the settings names.

  Raises:
    InputError: a data set is missing or damaged.
  """
  if settings.directory:
    sources = [
      RecordSource(directory, settings.image_size)
      for directory in settings.directory.split(",")
    ]
    _check_sources(settings.directory, sources)
    return sources[0] if len(sources) == 1 else MixedSource(sources)
  return NoiseSource(
    settings.noise_classes, settings.noise_images, settings.image_size
  )


def _check_sources(setting: str, sources: Sequence[RecordSource]) -> None:
  """Refuses what cannot be meant: nobody to tell apart, or everybody twice."""
  prints: dict[str, str] = {}
  for source in sources:
    other = prints.setdefault(source.fingerprint, source.directory)
    if other is not source.directory:
      raise InputError(
        f"data.directory={setting!r} has the same data set twice"
        f" ({source.directory!r} has the content of {other!r}), so that each"
        " person would be two: name it once."
      )
  if sum(source.num_classes for source in sources) < 2:
    raise InputError(
      f"data.directory={setting!r} has one class, so that there is nothing to"
      " tell apart: give images of at least two people."
    )
