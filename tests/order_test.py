import numpy as np
import pytest

from jamsface_jax.data.order import example_ids, permute

M64 = 2**64 - 1


def slow_permute(index, size, seed, epoch):
  """The same network on Python integers, one at a time."""
  half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
  keys = np.random.SeedSequence([seed, epoch]).generate_state(6, np.uint64)
  value = index
  while True:
    left, right = value >> half, value & (2**half - 1)
    for key in keys:
      z = (right + int(key)) & M64
      z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & M64
      z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & M64
      z ^= z >> 31
      left, right = right, left ^ (z & (2**half - 1))
    value = (left << half) | right
    if value < size:
      return value


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 4097])
def test_permutes_everything_and_equals_the_slow_way(size):
  image = permute(np.arange(size), size, seed=3, epoch=1)
  np.testing.assert_array_equal(np.sort(image), np.arange(size))
  want = [slow_permute(i, size, 3, 1) for i in range(min(size, 50))]
  np.testing.assert_array_equal(image[:50], want)


def test_large_sizes_stay_inside():
  size = 42_474_557
  image = permute(np.arange(0, size, 1001), size, seed=0, epoch=0)
  assert image.min() >= 0 and image.max() < size
  assert len(np.unique(image)) == len(image)
  # Spread evenly: the standard error of the mean is 0.29 / sqrt(42,432).
  assert abs(image.mean() / size - 0.5) < 0.007


def test_looks_random():
  image = permute(np.arange(10_000), 10_000, seed=0, epoch=0)
  assert abs(np.corrcoef(np.arange(10_000), image)[0, 1]) < 0.04
  assert np.mean(np.diff(image) == 1) < 0.01


def test_seed_and_epoch_change_the_order():
  base = permute(np.arange(100), 100, seed=0, epoch=0)
  assert np.any(base != permute(np.arange(100), 100, seed=1, epoch=0))
  assert np.any(base != permute(np.arange(100), 100, seed=0, epoch=1))


def test_every_epoch_sees_every_example_once():
  # 10 does not divide 37: batches cross the ends of epochs.
  rows = np.arange(10)
  ids = np.concatenate(
    [
      example_ids(0, step, batch_size=10, num_examples=37, rows=rows)
      for step in range(37)
    ]
  )
  epochs = ids.reshape(10, 37)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(37))
  assert len({tuple(epoch) for epoch in epochs}) == 10


@pytest.mark.parametrize("processes", [1, 2, 5])
def test_processes_share_one_order(processes):
  whole = example_ids(7, 3, batch_size=20, num_examples=33, rows=np.arange(20))
  parts = [
    example_ids(7, 3, batch_size=20, num_examples=33, rows=rows)
    for rows in np.split(np.arange(20), processes)
  ]
  np.testing.assert_array_equal(np.concatenate(parts), whole)
