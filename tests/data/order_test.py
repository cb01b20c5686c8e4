import numpy as np
import pytest

from jamsface_jax.data.order import permute, permute_each, shuffled

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
  # 10 does not divide 37: some positions cross the ends of epochs.
  ids = np.concatenate(
    [shuffled(np.arange(k, k + 10), 37, seed=0) for k in range(0, 370, 10)]
  )
  epochs = ids.reshape(10, 37)
  for epoch in epochs:
    np.testing.assert_array_equal(np.sort(epoch), np.arange(37))
  assert len({tuple(epoch) for epoch in epochs}) == 10
  for epoch in (0, 9):
    want = permute(np.arange(37), 37, seed=0, epoch=epoch)
    np.testing.assert_array_equal(epochs[epoch], want)


def test_positions_may_come_in_any_order_and_shape():
  positions = np.random.default_rng(0).permutation(120).reshape(4, 30)
  whole = shuffled(np.arange(120), 33, seed=7)
  np.testing.assert_array_equal(
    shuffled(positions, 33, seed=7), whole[positions]
  )


def test_each_range_has_permutations_of_its_own():
  sizes = np.array([1, 2, 3, 4, 5, 16, 17, 64, 100])
  size = np.repeat(sizes, sizes)
  label = np.repeat(np.arange(len(sizes)), sizes)
  index = np.concatenate([np.arange(n) for n in sizes])
  seen = []
  for turn in range(3):
    turns = np.full_like(label, turn)
    image = permute_each(index, size, seed=3, which=[label, turns])
    for one, n in enumerate(sizes):
      np.testing.assert_array_equal(np.sort(image[label == one]), np.arange(n))
    # One at a time gives the same as all together.
    for k in (0, 5, 77):
      alone = permute_each(
        index[k : k + 1],
        size[k : k + 1],
        seed=3,
        which=[label[k : k + 1], turns[k : k + 1]],
      )
      assert alone[0] == image[k]
    seen.append(image[label == 8])
  assert abs(np.corrcoef(seen[0], np.arange(100))[0, 1]) < 0.4
  assert abs(np.corrcoef(seen[0], seen[1])[0, 1]) < 0.4
  other = permute_each(index, size, seed=4, which=[label, np.zeros_like(label)])
  assert np.any(other[label == 8] != seen[0])


def test_orders_of_small_ranges_are_all_as_likely():
  turn = np.arange(6000)
  size = np.full(6000, 3)
  images = [
    permute_each(np.full(6000, k), size, seed=0, which=[turn, turn])
    for k in range(3)
  ]
  _, counts = np.unique(np.stack(images, axis=1), axis=0, return_counts=True)
  assert len(counts) == 6
  # Five standard deviations of a sixth of 6,000.
  assert np.abs(counts - 1000).max() < 5 * np.sqrt(6000 / 6 * 5 / 6)
