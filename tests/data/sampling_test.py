from collections import Counter

import numpy as np
import pytest

from jamsface_jax.data.order import shuffled
from jamsface_jax.data.sampling import example_order

# Class 2 has no image; the others come in no order.
LABELS = np.random.default_rng(0).permutation(
  np.repeat([0, 1, 3, 4, 5], [1, 4, 25, 100, 9])
)


class Labelled:
  num_classes = 6
  class_sizes = np.bincount(LABELS, minlength=6)
  fingerprint = "labels"

  def __len__(self):
    return len(LABELS)

  def labels(self):
    return LABELS.astype(np.int32)

  def read(self, ids):
    raise NotImplementedError  # An order needs no image.


def order(sampling, seed=0):
  return example_order(sampling, seed=seed, source=Labelled())


def test_uniform_is_a_permutation_an_epoch():
  positions = np.arange(300)
  np.testing.assert_array_equal(
    order("uniform", 3)(positions), shuffled(positions, len(LABELS), seed=3)
  )


def test_balanced_classes_come_once_a_round():
  classes = LABELS[order("class_balanced")(np.arange(5 * 400))]
  for one in classes.reshape(400, 5):
    np.testing.assert_array_equal(np.sort(one), [0, 1, 3, 4, 5])
  assert len({tuple(one) for one in classes.reshape(400, 5)}) > 90  # Of 120.


def test_square_root_counts():
  # 16 times 1 + 2 + 5 + 10 + 3.
  ids = order("square_root")(np.arange(2 * 16 * 21))
  for one in np.split(ids, 2):
    counts = Counter(LABELS[one].tolist())
    assert counts == {0: 16, 1: 32, 3: 80, 4: 160, 5: 48}


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["class_balanced", "square_root"])
def test_images_of_a_class_take_turns(sampling):
  """However many positions: no image twice more often than another."""
  per_round = {"class_balanced": 5, "square_root": 16 * 21}[sampling]
  rounds = 100 * 9 * 25 // per_round * 2
  ids = order(sampling)(np.arange(rounds * per_round))
  for label in (0, 1, 3, 4, 5):
    mine = ids[LABELS[ids] == label]
    counts = np.bincount(mine, minlength=len(LABELS))[LABELS == label]
    assert counts.min() > 0
    assert counts.max() - counts.min() <= 1
  if sampling == "class_balanced":  # Visits come in the order of time.
    mine = ids[LABELS[ids] == 5]
    turns = mine[: len(mine) // 9 * 9].reshape(-1, 9)
    assert all(len(set(turn)) == 9 for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 0.9 * len(turns)


@pytest.mark.parametrize(
  "sampling", ["uniform", "class_balanced", "square_root"]
)
def test_order_is_a_function_of_seed_and_position(sampling):
  positions = np.random.default_rng(1).integers(10**12, size=500)
  whole = order(sampling)(positions)
  assert whole.min() >= 0 and whole.max() < len(LABELS)
  alone = [int(order(sampling)(p[None])[0]) for p in positions[:40]]
  assert alone == whole[:40].tolist()
  assert np.mean(order(sampling, seed=1)(positions) != whole) > 0.5
