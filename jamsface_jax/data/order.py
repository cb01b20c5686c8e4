"""Pseudo-random orders that are pure functions of a seed and a position.

Each epoch is a pseudo-random permutation, computed for the wanted positions
alone (a Feistel network over a power of four, walking cycles until it lands
inside), so that nothing of the size of the data set is kept and resuming needs
the step number and nothing else, on any number of processes.
"""

import numpy as np
from jaxtyping import Int64, UInt64

_ROUNDS = 6


def shuffled(
  positions: Int64[np.ndarray, "*shape"], size: int, *, seed: int
) -> Int64[np.ndarray, "*shape"]:
  """Goes through [0, size) again and again, each time in another order.

  Args:
    positions: int64, any shape, from 0; epochs follow without a gap.
    size: number of elements.
    seed: chooses the orders.

  Returns:
    int64, the element at each position.
  """
  epoch, index = np.divmod(positions, size)
  elements = np.empty_like(index)
  for one in np.unique(epoch):
    here = epoch == one
    elements[here] = permute(index[here], size, seed=seed, epoch=int(one))
  return elements


def permute(
  index: Int64[np.ndarray, "*shape"], size: int, *, seed: int, epoch: int
) -> Int64[np.ndarray, "*shape"]:
  """Applies a pseudo-random permutation of [0, size).

  Args:
    index: int64, any shape, in [0, size).
    size: number of elements, at most 2**52.
    seed: chooses the permutation, together with `epoch`.
    epoch: chooses it too.

  Returns:
    int64, the image of each index.
  """
  half = _half_bits(np.array(size))
  keys = np.random.SeedSequence([seed, epoch]).generate_state(
    _ROUNDS, np.uint64
  )
  image = _feistel(index.astype(np.uint64), half, keys)
  # A permutation of the larger domain, repeated until it is back inside, is a
  # permutation of the smaller one.
  while np.any(outside := image >= size):
    image[outside] = _feistel(image[outside], half, keys)
  return image.astype(np.int64)


def permute_each(
  index: Int64[np.ndarray, " n"],
  size: Int64[np.ndarray, " n"],
  *,
  seed: int,
  which: list[Int64[np.ndarray, " n"]],
) -> Int64[np.ndarray, " n"]:
  """Applies a pseudo-random permutation of its own range to each index.

  Args:
    index: int64 [n], in [0, size).
    size: int64 [n], at most 2**52.
    seed: chooses each permutation, together with `which`.
    which: numbers that tell the permutations apart, int64 [n] each, from 0.

  Returns:
    int64 [n], the image of each index.
  """
  key = np.random.SeedSequence(seed).generate_state(1, np.uint64)
  for number in which:
    key = _mix(number.astype(np.uint64), key)
  keys = np.stack(
    [_mix(number, key) for number in np.arange(_ROUNDS, dtype=np.uint64)]
  )
  half = _half_bits(size)
  image = _feistel(index.astype(np.uint64), half, keys)
  while np.any(outside := image >= size):
    image[outside] = _feistel(image[outside], half[outside], keys[:, outside])
  return image.astype(np.int64)


def _half_bits(
  size: Int64[np.ndarray, "*shape"],
) -> UInt64[np.ndarray, "*shape"]:
  """Half the bits of the smallest power of four above every index."""
  bits = np.frexp(np.maximum(size - 1, 1).astype(np.float64))[1]
  return np.asarray((bits + 1) // 2, np.uint64)


def _feistel(
  value: UInt64[np.ndarray, "*shape"],
  half: UInt64[np.ndarray, "..."],
  keys: UInt64[np.ndarray, "rounds ..."],
) -> UInt64[np.ndarray, "*shape"]:
  """A balanced Feistel network on 2 * half bits, a round for each of keys."""
  mask = (np.uint64(1) << half) - np.uint64(1)
  left, right = value >> half, value & mask
  for key in keys:
    left, right = right, left ^ (_mix(right, key) & mask)
  return np.asarray((left << half) | right)


def _mix(
  value: UInt64[np.ndarray, "..."] | np.uint64,
  key: UInt64[np.ndarray, "..."] | np.uint64,
) -> UInt64[np.ndarray, "..."]:
  """The finaliser of SplitMix64 (Steele, Lea, Flood 2014)."""
  with np.errstate(over="ignore"):  # Arithmetic is modulo 2**64.
    z = value + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
