"""Embeddings to search with, or in: of images, or stored ones."""

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Int64

from jamsface_jax.data.images import Images, open_images
from jamsface_jax.data.local_copy import local_copy
from jamsface_jax.data.records import INDEX_FILE, read_classes
from jamsface_jax.detection.opening import usual_detector
from jamsface_jax.detection.photographs import open_faces
from jamsface_jax.embedding.files import (
  EMBEDDINGS_FILE,
  LABELS_FILE,
  META_FILE,
  PATHS_FILE,
)
from jamsface_jax.embedding.image_blocks import embed_blocks
from jamsface_jax.errors import InputError, one_line
from jamsface_jax.run.progress import ImageProgress
from jamsface_jax.searching.network import Network
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_array import map_array, read_array
from jamsface_jax.storage.plain_file import plain

_STORED_AT_ONCE = 4096  # Rows.


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """A run of embeddings.

  Attributes:
    names: n, of their images.
    labels: their classes, int64 [n]; -1 if unknown.
    rows: float32 [n, D], of any length; NaN where there is none.
    broken: why an image cannot be read, by its position.
  """

  names: list[str]
  labels: Int64[np.ndarray, " n"]
  rows: Float32[np.ndarray, "n d"]
  broken: dict[int, str]


def open_source(
  path: str,
  flag: str,
  network: Network,
  title: str,
  align: str | None = None,
) -> "Source":
  """Opens embeddings, or images to be embedded.

  Args:
    path: the output of jamsface_jax.embed or a .npy file of floating-point
      numbers [N, D]; else what `open_images` takes.
    flag: that it was given by, for messages.
    network: embeds images.
    title: what they are, for the progress.
    align: find the faces of images first, see `PhotographFaces`.

  Raises:
    InputError: none of these, or a damaged one.
  """
  stored = os.path.join(path, EMBEDDINGS_FILE)
  if os.path.isfile(stored):
    return StoredEmbeddings(stored, flag)
  if _is_float_array(path):
    return StoredEmbeddings(path, flag)
  try:
    images = open_images(path, network.image_size, root=None, color_order=None)
  except InputError as error:
    error.args = (str(error).replace("--images", flag),)
    raise
  if align is not None:
    images = open_faces(
      images,
      usual_detector(),
      flag=flag,
      size=network.image_size,
      which=align,
      numbered=True,
      threads=network.threads,
    )
  local = local_copy(path)
  has_classes = os.path.isfile(os.path.join(local, INDEX_FILE))
  classes = read_classes(local) if has_classes else None
  return EmbeddedImages(images, classes, network, title)


def maker(fingerprint: str, *, flip: bool) -> str:
  """What made embeddings, in words.

  Args:
    fingerprint: of the network.
    flip: whether the embedding of the mirror image was added.
  """
  return f"{fingerprint} {'with' if flip else 'without'} mirror images"


class EmbeddedImages:
  """Images, embedded as they are walked, in their order.

  Args:
    images: the images.
    classes: names of their classes, or None.
    network: embeds them.
    title: what they are, for the progress.

  Attributes:
    images: as given.
    classes: as given.
  """

  def __init__(
    self,
    images: Images,
    classes: list[str] | None,
    network: Network,
    title: str,
  ):
    self.images = images
    self.classes = classes
    self._network = network
    self._title = title

  def __len__(self) -> int:
    return len(self.images)

  @property
  def network(self) -> str | None:
    """What makes them, see `maker`."""
    return maker(self._network.fingerprint, flip=True)

  def parts(self) -> Iterator[Part]:
    """Yields all of them in order, once."""
    network, count = self._network, len(self)
    size = network.embedder.batch_size
    spans = [(k, min(k + size, count)) for k in range(0, count, size)]
    with ImageProgress(count, title=self._title, quiet=False) as progress:
      for _, block, rows in embed_blocks(
        self.images,
        network.embedder,
        network.variables,
        spans,
        threads=network.threads,
      ):
        rows = np.array(rows, np.float32)
        rows[list(block.broken)] = np.nan
        yield Part(block.names, block.labels, rows, block.broken)
        progress.advance(len(block.names))


class StoredEmbeddings:
  """Embeddings in files, mapped into memory.

  Args:
    path: the .npy file, of floating-point numbers [N, D]; names, classes and
      what made them lie beside it, if they are known.
    flag: that it was given by, for messages.

  Attributes:
    rows: the array.
    images: None: they are not at hand.
    classes: None: their names are not known.

  Raises:
    InputError: not such files.
  """

  def __init__(self, path: str, flag: str):
    self.images = None
    self.classes = None
    self._path = path
    try:
      self.rows: Float[np.ndarray, "n d"] = map_array(path)
    except (OSError, ValueError) as error:
      raise InputError(
        f"{flag}={path!r} is not a sound .npy file ({one_line(error)}): write"
        " it again with jamsface_jax.embed."
      ) from None
    if (
      self.rows.ndim != 2
      or self.rows.dtype.kind != "f"
      or 0 in (self.rows.shape)
    ):
      raise InputError(
        f"{flag}={path!r} holds {self.rows.dtype} {list(self.rows.shape)}:"
        " embeddings are floating-point numbers [N, D]."
      )
    self._flag = flag
    self._labels = self._read_labels()
    self._names = self._read_names()
    self._meta = self._read_meta()

  def __len__(self) -> int:
    return len(self.rows)

  @property
  def network(self) -> str | None:
    """What made them, see `maker`; None if that is unknown."""
    found = self._meta.get("network")
    if not isinstance(found, str):
      return None
    return maker(found, flip=bool(self._meta.get("flip")))

  def parts(self) -> Iterator[Part]:
    """Yields all of them in order, once."""
    for start in range(0, len(self), _STORED_AT_ONCE):
      part = slice(start, start + _STORED_AT_ONCE)
      rows = np.asarray(self.rows[part], np.float32)
      broken = {
        position: "it has no embedding"
        for position in np.flatnonzero(~_is_sound(rows)).tolist()
      }
      if broken:
        rows = np.array(rows)
        rows[list(broken)] = np.nan
      yield Part(self._names[part], self._labels[part], rows, broken)

  def _beside(self, name: str) -> str:
    return os.path.join(os.path.dirname(self._path), name)

  def _read_names(self) -> list[str]:
    path = self._beside(PATHS_FILE)
    if not os.path.lexists(path):
      return [str(row) for row in range(len(self))]
    try:
      # Names are those of files, which need not be UTF-8.
      with open(
        path, encoding="utf-8", errors="surrogateescape", opener=plain
      ) as file:
        names = file.read().split("\n")
    except OSError as error:
      raise self._unreadable(path, error) from None
    if names[-1] == "":
      names.pop()
    self._check_count(path, len(names))
    return names

  def _read_labels(self) -> Int64[np.ndarray, " n"]:
    path = self._beside(LABELS_FILE)
    if not os.path.lexists(path):
      return np.full(len(self), -1)
    try:
      labels = read_array(path)
    except (OSError, ValueError) as error:
      raise self._unreadable(path, error) from None
    if labels.dtype.kind not in "iu":
      raise InputError(
        f"{path!r} holds {labels.dtype}: classes are integers [N]."
      )
    self._check_count(path, len(labels) if labels.ndim == 1 else -1)
    return labels.astype(np.int64)

  def _read_meta(self) -> dict[str, Any]:
    path = self._beside(META_FILE)
    if not os.path.lexists(path):
      return {}
    try:
      with open(path, encoding="utf-8", opener=plain) as file:
        found = plain_json.parse(file.read())
      return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError) as error:
      raise self._unreadable(path, error) from None

  def _unreadable(self, path: str, error: Exception) -> InputError:
    return InputError(
      f"{path!r} cannot be read ({one_line(error)}): embed the images again."
    )

  def _check_count(self, path: str, count: int) -> None:
    if count != len(self):
      raise InputError(
        f"{self._flag}={self._path!r} has {len(self):,} rows, but {path!r} does"
        " not have as many entries: embed the images again."
      )


Source: TypeAlias = EmbeddedImages | StoredEmbeddings


def _is_sound(rows: Float32[np.ndarray, "n d"]) -> np.ndarray:
  return np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)


def _is_float_array(path: str) -> bool:
  """Whether a path is a .npy file that is not one of images."""
  if not (path.endswith(".npy") and os.path.isfile(path)):
    return False
  try:
    return map_array(path).dtype != np.uint8
  except (OSError, ValueError):
    return True  # Which says why not.
