"""Reads `.npy` files that a stranger may have written."""

import os

import numpy as np

from jamsface_jax.errors import one_line


def map_array(path: str | os.PathLike[str]) -> np.memmap:
  """Maps an array into memory, to read.

  Its header may promise any number of elements: they must be in the file before
  memory is taken for them. An archive is no array, whatever its name.

  Args:
    path: the file.

  Raises:
    OSError: it cannot be read.
    ValueError: it is not a `.npy` file, cut off, or of Python's objects.
  """
  try:
    # Of sizes that overflow NumPy would make small ones.
    with np.errstate(over="raise"):
      return np.lib.format.open_memmap(os.fspath(path), "r")
  except (OSError, ValueError):
    raise
  except Exception as error:  # NumPy has many for a damaged header.
    raise ValueError(f"damaged: {one_line(error)}") from None


def read_array(path: str | os.PathLike[str]) -> np.ndarray:
  """Reads an array; raises what `map_array` does."""
  return np.array(map_array(path))
