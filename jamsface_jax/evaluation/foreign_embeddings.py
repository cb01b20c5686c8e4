"""Embeddings that another system made: a .npy file, judged as ours are."""

import os
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int, Int64

from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.all_pairs import ALL_PAIRS, AllPairs
from jamsface_jax.protocols.opening import open_list, open_protocols
from jamsface_jax.protocols.test_set import TestSet
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_array import map_array, read_array
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.text_lists import NotTextError, read_lines

NAMES_FILE = "paths.txt"
LABELS_FILE = "labels.npy"
META_FILE = "meta.json"

_BLOCK_ROWS = 4096
_PROBES = 1000  # Rows looked at to tell whether all have length 1.


class Sum:
  """Two arrays of embeddings, added row by row as they are read.

  Args:
    first: floating-point numbers [N, D].
    second: likewise [N, D].
    path: the file of the second array, for messages.

  Raises:
    InputError: arrays of different shapes.
  """

  def __init__(
    self,
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m k"],
    path: str,
  ):
    if first.shape != second.shape:
      raise InputError(
        f"{path}: holds {list(second.shape)} numbers and --embeddings"
        f" {list(first.shape)}; give the same images in the same order."
      )
    self._first, self._second = first, second

  def __len__(self) -> int:
    return len(self._first)

  def __getitem__(
    self, rows: slice | Int64[np.ndarray, " r"]
  ) -> Float[np.ndarray, "r d"]:
    return _wide(self._first[rows]) + _wide(self._second[rows])


Rows: TypeAlias = Float[np.ndarray, "n d"] | Sum


def open_embeddings(path: str) -> Float[np.ndarray, "n d"]:
  """Maps a file of embeddings into memory.

  Args:
    path: a .npy file of floating-point numbers [N, D].

  Raises:
    InputError: it cannot be read, or is something else.
  """
  try:
    rows = map_array(path)
  except OSError as error:
    raise InputError(
      f"{path}: cannot be read ({error.strerror or error}); give a .npy file."
    ) from None
  except (ValueError, EOFError) as error:
    raise InputError(
      f"{path}: is not a .npy file of numbers ({error}); write one with"
      " numpy.save."
    ) from None
  if rows.ndim != 2 or rows.dtype.kind != "f" or 0 in rows.shape:
    raise InputError(
      f"{path}: holds {rows.dtype} {list(rows.shape)}; embeddings are"
      " floating-point numbers [N, D]."
    )
  return rows


def blocks(
  rows: Rows, ids: Int[np.ndarray, " r"]
) -> Iterator[Float[np.ndarray, "k d"]]:
  """Yields the rows with these numbers, at least float32, some at a time."""
  in_order = np.array_equal(ids, np.arange(len(ids)))
  for start in range(0, len(ids), _BLOCK_ROWS):
    stop = min(start + _BLOCK_ROWS, len(ids))
    chosen = slice(start, stop) if in_order else ids[start:stop]
    yield _wide(rows[chosen])


def are_units(rows: Rows) -> bool:
  """Whether embeddings have length 1, so that their lengths say nothing."""
  probes = np.unique(np.linspace(0, len(rows) - 1, _PROBES).astype(np.int64))
  lengths = np.linalg.norm(_wide(rows[probes]), axis=1)
  return bool(np.all(np.abs(lengths - 1) < 1e-2))


def is_flip_sum(path: str) -> bool | None:
  """What the `meta.json` of jamsface_jax.embed says; None without one."""
  try:
    with open(_beside(path, META_FILE), encoding="utf-8", opener=plain) as file:
      return bool(plain_json.parse(file.read())["flip"])
  except (OSError, ValueError, KeyError, TypeError):
    return None


def open_test_sets(
  protocol: str, path: str, rows: Float[np.ndarray, "n d"]
) -> list[TestSet]:
  """Opens the protocol that embeddings are to be judged by.

  Args:
    protocol: what names it, see the command jamsface_jax.evaluate.
    path: the file of the embeddings; names and classes lie beside it.
    rows: the embeddings, floating-point numbers [N, D].

  Raises:
    InputError: no such protocol, or one of other images.
  """
  if protocol == ALL_PAIRS:
    labels = read_labels(_beside(path, LABELS_FILE))
    _check_count(path, rows, LABELS_FILE, len(labels))
    return [AllPairs(ALL_PAIRS, labels)]
  directory = protocol.removesuffix(f":{ALL_PAIRS}")
  if os.path.isfile(directory):
    names_path = _beside(path, NAMES_FILE)
    names = read_names(names_path)
    _check_count(path, rows, names_path, len(names))
    return [open_list(protocol, names)]
  # Images are not read, so their size does not matter.
  source = RecordSource(directory, image_size=1)
  _check_count(path, rows, directory, len(source))
  if protocol == directory:
    return open_protocols(
      source.name, directory, len(source), source.names, source.labels
    )
  return [AllPairs(source.name, source.labels())]


def read_names(path: str) -> list[str]:
  """Reads a name a line."""
  try:
    return [line.text for line in read_lines(path)]
  except (OSError, NotTextError) as error:
    raise InputError(
      f"{path}: cannot be read ({error}); a protocol in a file needs the names"
      " of the embeddings' images there, one a line."
    ) from None


def read_labels(path: str) -> Int[np.ndarray, " n"]:
  """Reads the class of every row, integers [N]."""
  try:
    labels = read_array(path)
  except (OSError, ValueError, EOFError) as error:
    raise InputError(
      f"{path}: cannot be read ({error}); all_pairs needs the classes of the"
      " embeddings' images there."
    ) from None
  if labels.ndim != 1 or labels.dtype.kind not in "iu":
    raise InputError(
      f"{path}: holds {labels.dtype} {list(labels.shape)}; classes are integers"
      " [N]."
    )
  return labels


def _check_count(
  path: str, rows: Float[np.ndarray, "n d"], images_path: str, count: int
) -> None:
  if len(rows) != count:
    raise InputError(
      f"{path}: has {len(rows):,} rows, but {images_path} has {count:,} images;"
      " give embeddings of all its images, in its order."
    )


def _beside(path: str, name: str) -> str:
  return os.path.join(os.path.dirname(path), name)


def _wide(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
  """The same numbers, float32 where they were float16."""
  return np.asarray(rows, np.promote_types(rows.dtype, np.float32))
