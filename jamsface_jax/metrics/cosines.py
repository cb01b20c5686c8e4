"""Cosines of embeddings: of some pairs, of millions, of all with all.

Some pairs are computed in float64. Millions are read off a product of matrices
in float32, tile by tile: where one pair in twenty is wanted, multiplying two
blocks of rows takes less time than fetching the rows of each of its pairs.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float32, Float64, Int, Shaped

from jamsface_jax.errors import InputError

# Rows and columns of a tile: 8 MB of float32, to read pairs off in cache.
TILE = 1024, 2048


def row_lengths(
  embeddings: Float[np.ndarray, "n d"], *, first: int, what: str
) -> Float64[np.ndarray, " n"]:
  """Lengths of rows, summed in float64.

  Args:
    embeddings: floating-point numbers [N, D]; may be a memory map larger than
      the memory.
    first: number of the first row, for the message.
    what: what the rows are, for the message: a file, or embeddings of a set.

  Returns:
    float64 [N].

  Raises:
    InputError: a row is not finite, or is zero and has no direction.
  """
  lengths = np.empty(len(embeddings))
  for rows in _chunks(len(embeddings), embeddings.shape[1]):
    lengths[rows] = np.sqrt(_dot(embeddings[rows], embeddings[rows]))
  # A float64 sum of squared float32 cannot overflow: only bad rows fail here.
  bad = np.flatnonzero(~np.isfinite(lengths) | (lengths == 0))
  if len(bad):
    raise InputError(
      f"{what}: {len(bad)} of rows {first} to {first + len(lengths) - 1} are"
      f" not finite or all zero, the first of them row {first + bad[0]}; embed"
      " those images again with parameters that are finite."
    )
  return lengths


def unit_rows(
  embeddings: Float[np.ndarray, "n d"], *, what: str
) -> Float32[np.ndarray, "n d"]:
  """Rows scaled to length 1, float32 [N, D].

  Args:
    embeddings: floating-point numbers [N, D].
    what: see `row_lengths`.

  Raises:
    InputError: see `row_lengths`.
  """
  lengths = row_lengths(embeddings, first=0, what=what)
  units = np.empty(embeddings.shape, np.float32)
  for rows in _chunks(*embeddings.shape):
    units[rows] = embeddings[rows] / lengths[rows, np.newaxis]
  return units


def pair_cosines(
  embeddings: Float[np.ndarray, "n d"],
  first: Int[np.ndarray, " p"],
  second: Int[np.ndarray, " p"],
  *,
  what: str,
) -> Float64[np.ndarray, " p"]:
  """The cosine between the two embeddings of each pair.

  Sums run in float64 and each embedding is divided by its own length, so that
  rows normalised in float32 leave no trace of their rounding. Pairs are walked
  in chunks, so `embeddings` may be a memory map larger than the memory.

  Args:
    embeddings: float32 [N, D], a row per image.
    first: index of each pair's first image, integers [P].
    second: index of each pair's second image, integers [P].
    what: see `row_lengths`.

  Returns:
    The cosines, float64 [P], within [-1, 1].

  Raises:
    InputError: an embedding is not finite, or is zero and has no direction.
  """
  lengths = row_lengths(embeddings, first=0, what=what)
  cosines = np.empty(len(first))
  for pairs in _chunks(len(first), embeddings.shape[1]):
    i, j = first[pairs], second[pairs]
    cosines[pairs] = _dot(embeddings[i], embeddings[j])
    cosines[pairs] /= lengths[i] * lengths[j]
  return np.clip(cosines, -1, 1)


def many_pair_cosines(
  units: Float32[np.ndarray, "n d"],
  first: Int[np.ndarray, " p"],
  second: Int[np.ndarray, " p"],
) -> Float32[np.ndarray, " p"]:
  """The cosine of each pair, for millions of pairs of thousands of rows.

  Pairs are sorted by the tile that has them, and tiles without any are skipped.

  Args:
    units: float32 [N, D], rows of length 1.
    first: index of each pair's first row, integers [P].
    second: index of each pair's second row, integers [P].

  Returns:
    float32 [P], in the order of the pairs.
  """
  # The cosine is symmetric: half of the tiles have all pairs.
  low, high = np.minimum(first, second), np.maximum(first, second)
  rows, columns = TILE
  across = -(-len(units) // columns)
  tiles = -(-len(units) // rows) * across
  tile = low // rows * across + high // columns
  # NumPy sorts 16 bits by radix, in a quarter of the time.
  tile = tile.astype(np.uint16 if tiles <= 2**16 else np.int64)
  order = np.argsort(tile, kind="stable")
  ends = np.cumsum(np.bincount(tile, minlength=tiles))
  cosines = np.empty(len(order), np.float32)
  for number in np.flatnonzero(np.diff(ends, prepend=0)):
    start, stop = (ends[number - 1] if number else 0), ends[number]
    pairs = order[start:stop]
    top, left = number // across * rows, number % across * columns
    right = units[left : left + columns]
    product = units[top : top + rows] @ right.T
    place = (low[pairs] - top) * len(right) + (high[pairs] - left)
    cosines[pairs] = product.ravel()[place]
  return cosines


def tiles(
  rows: Shaped[np.ndarray, "m d"], columns: Shaped[np.ndarray, "n d"]
) -> Iterator[tuple[slice, slice]]:
  """The tiles of the product of two matrices, row after row.

  Args:
    rows: the first matrix, [M, D].
    columns: the second matrix, transposed, [N, D].

  Yields:
    Which rows and which columns a tile takes.
  """
  for top in range(0, len(rows), TILE[0]):
    for left in range(0, len(columns), TILE[1]):
      yield slice(top, top + TILE[0]), slice(left, left + TILE[1])


def _chunks(count: int, size: int) -> list[slice]:
  """Slices over `count` rows of `size` numbers, about 4 million at a time."""
  step = max(1, 2**22 // max(1, size))
  return [slice(i, min(i + step, count)) for i in range(0, count, step)]


def _dot(
  a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "n d"]
) -> Float64[np.ndarray, " n"]:
  """Inner products of rows in float64, without a float64 copy of the rows."""
  return np.einsum("nd,nd->n", a, b, dtype=np.float64)
