"""The people who are searched among, and their embeddings."""

import dataclasses
import itertools
import os
import tempfile

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.nearest import Nearest, nearest
from jamsface_jax.searching.sources import Source, StoredEmbeddings
from jamsface_jax.storage.photo_folder import EXTENSIONS


@dataclasses.dataclass(frozen=True, eq=False)
class Gallery:
  """Embeddings of people.

  Attributes:
    rows: floating-point numbers [N, D], of any length; may be a memory map.
    lengths: of the rows, float64 [N]; None if each counts as it is.
    owner: whose each row is, int64 [N]; -1 if it cannot be used.
    people: their names, by number.
    images: what each row is of, N names, in the order of the source.
    network: what made the embeddings, None if that is unknown.
  """

  rows: Float[np.ndarray, "n d"]
  lengths: Float64[np.ndarray, " n"] | None
  owner: Int64[np.ndarray, " n"]
  people: list[str]
  images: list[str]
  network: str | None

  @property
  def usable(self) -> int:
    """How many rows can be found."""
    return int((self.owner >= 0).sum())

  def nearest(self, probes: Float32[np.ndarray, "q d"], k: int) -> Nearest:
    """Finds the nearest people, exactly.

    Args:
      probes: float32 [Q, D], rows of length 1, or NaN.
      k: how many people, at most those that there are.

    Raises:
      InputError: embeddings of another size.
    """
    if probes.shape[1] != self.rows.shape[1]:
      raise InputError(
        f"--images has embeddings of {probes.shape[1]} numbers and --gallery of"
        f" {self.rows.shape[1]}: embed both with the same network."
      )
    k = min(k, len(self.people))
    return nearest(probes, self.rows, self.owner, k, lengths=self.lengths)


def gather(source: Source, scratch: str) -> Gallery:
  """Makes a gallery of all embeddings of a source.

  Args:
    source: the embeddings.
    scratch: directory on a disk, for embeddings that are made now; the file
      has no name there and ends with this process.

  Raises:
    InputError: none of them can be used.
  """
  rows: np.ndarray | None = None
  if isinstance(source, StoredEmbeddings):
    rows = source.rows
  numbers: dict[str, int] = {}
  owner, images = np.empty(len(source), np.int64), []
  lengths = np.empty(len(source))
  for part in source.parts():
    at = slice(len(images), len(images) + len(part.names))
    if rows is None:
      rows = _scratch_array(scratch, (len(source), part.rows.shape[1]))
    if not isinstance(source, StoredEmbeddings):
      rows[at] = part.rows
    lengths[at] = np.sqrt(
      np.einsum("nd,nd->n", part.rows, part.rows, dtype=np.float64)
    )
    owner[at] = [
      numbers.setdefault(name, len(numbers))
      for name in map(
        person,
        part.names,
        part.labels.tolist(),
        itertools.repeat(source.classes),
      )
    ]
    owner[at][list(part.broken)] = -1
    images += part.names
  if rows is None or not (owner >= 0).any():
    raise InputError(
      "--gallery has no image that can be read: give another one."
    )
  lengths[owner < 0] = 1.0
  return Gallery(rows, lengths, owner, list(numbers), images, source.network)


def person(name: str, label: int, classes: list[str] | None) -> str:
  """Who is in an image.

  Args:
    name: of the image.
    label: its class; -1 if unknown.
    classes: names of the classes, or None.

  Returns:
    The class's name; else that of the folder, for a file in a folder; else the
    file's own, without its ending; else the number of the class.
  """
  if classes is not None and 0 <= label < len(classes):
    return classes[label]
  if folder := os.path.dirname(name):
    return folder
  stem, ending = os.path.splitext(name)
  if ending.lower() in EXTENSIONS:
    return stem
  return name if label < 0 else f"class {label}"


def _scratch_array(
  directory: str, shape: tuple[int, int]
) -> Float32[np.ndarray, "n d"]:
  """An array on a disk: the memory may be smaller."""
  with tempfile.TemporaryFile(dir=directory) as file:
    return np.memmap(file, np.float32, "w+", shape=shape)
