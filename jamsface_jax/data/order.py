"""Which examples make batch number k: a pure function of (seed, k).

Each epoch is a pseudo-random permutation of all examples, computed for the
wanted positions alone (a Feistel network over a power of four, walking cycles
until it lands inside), so that nothing of the size of the data set is kept and
resuming needs the step number and nothing else, on any number of processes.
"""

import numpy as np

_ROUNDS = 6


def example_ids(
  seed: int, step: int, *, batch_size: int, num_examples: int, rows: np.ndarray
) -> np.ndarray:
  """Returns the examples in some rows of a global batch.

  Batches follow each other through the epochs without a gap: one that crosses
  the end of an epoch takes the rest from the next.

  Args:
    seed: of the run.
    step: number of the batch, from 0.
    batch_size: rows of the global batch.
    num_examples: size of the data set.
    rows: the wanted rows, integers in [0, batch_size).

  Returns:
    int64, the example of each row, in [0, num_examples).
  """
  position = step * batch_size + rows.astype(np.int64)
  epoch, index = np.divmod(position, num_examples)
  ids = np.empty_like(index)
  for one in np.unique(epoch):
    here = epoch == one
    ids[here] = permute(index[here], num_examples, seed=seed, epoch=int(one))
  return ids


def permute(
  index: np.ndarray, size: int, *, seed: int, epoch: int
) -> np.ndarray:
  """Applies a pseudo-random permutation of [0, size).

  Args:
    index: int64, any shape, in [0, size).
    size: number of elements, at most 2**62.
    seed: with `epoch`, chooses the permutation.
    epoch: likewise.

  Returns:
    int64, the image of each index.
  """
  half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
  keys = np.random.SeedSequence([seed, epoch]).generate_state(
    _ROUNDS, np.uint64
  )
  image = _feistel(index.astype(np.uint64), half, keys)
  # A permutation of the larger domain, repeated until it is back inside, is a
  # permutation of the smaller one.
  while np.any(outside := image >= size):
    image[outside] = _feistel(image[outside], half, keys)
  return image.astype(np.int64)


def _feistel(
  value: np.ndarray, half: np.uint64, keys: np.ndarray
) -> np.ndarray:
  """A balanced Feistel network on 2 * half bits."""
  mask = (np.uint64(1) << half) - np.uint64(1)
  left, right = value >> half, value & mask
  for key in keys:
    left, right = right, left ^ (_mix(right, key) & mask)
  return (left << half) | right


def _mix(value: np.ndarray, key: np.uint64) -> np.ndarray:
  """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
  with np.errstate(over="ignore"):  # Arithmetic is modulo 2**64.
    z = value + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
