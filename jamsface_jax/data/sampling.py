"""Which example stands at position i of a run: uniform, or fair to classes.

Whatever the sampling, it is a pure function of (seed, i) without state, so that
runs resume anywhere and processes agree without talking.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int32, Int64

from jamsface_jax.data.order import permute_each, shuffled
from jamsface_jax.data.sources import Source

# Square roots are rounded to a sixteenth.
_RESOLUTION = 16


def example_order(
  sampling: str, *, seed: int, source: Source
) -> Callable[[Int64[np.ndarray, " n"]], Int64[np.ndarray, " n"]]:
  """Returns the function from positions to examples.

  Args:
    sampling: "uniform": every image equally often, once an epoch.
      "class_balanced": every class equally often, once a round. "square_root":
      a class of n images as often as the square root of n. In the latter two
      the images of one class take turns.
    seed: the seed of the run.
    source: the labelled images.

  Returns:
    From int64 positions [n] to int64 examples [n].
  """
  if sampling == "uniform":
    return lambda positions: shuffled(positions, len(source), seed=seed)
  sizes = source.class_sizes
  if sampling == "class_balanced":
    visits = np.minimum(sizes, 1)  # None of an empty class.
  else:
    visits = np.rint(_RESOLUTION * np.sqrt(sizes)).astype(np.int64)
  return ByClass(source.labels(), visits, seed=seed)


class ByClass:
  """Visits classes so many times a round, and their images in turn.

  A round is a permutation of all its visits. A class that has n images shows
  them all, in a permutation of their own, in each n visits.

  Args:
    labels: the class of each example, int32 [N].
    visits: how often each class is visited in a round, int64 [C].
    seed: chooses the order.
  """

  def __init__(
    self,
    labels: Int32[np.ndarray, " examples"],
    visits: Int64[np.ndarray, " c"],
    *,
    seed: int,
  ):
    self._seed = seed
    self._examples = np.argsort(labels, kind="stable")  # Class after class.
    self._sizes = np.bincount(labels, minlength=len(visits))
    self._first = np.cumsum(self._sizes) - self._sizes
    self._visits = visits
    self._ends = np.cumsum(visits)

  def __call__(
    self, positions: Int64[np.ndarray, " n"]
  ) -> Int64[np.ndarray, " n"]:
    """See `example_order`."""
    round_length = int(self._ends[-1])
    slot = shuffled(positions, round_length, seed=self._seed)
    label = np.searchsorted(self._ends, slot, side="right")
    visits = self._visits[label]
    visit = positions // round_length * visits
    visit += slot - (self._ends[label] - visits)
    size = self._sizes[label]
    turn, index = np.divmod(visit, size)
    index = permute_each(index, size, seed=self._seed, which=[label, turn])
    return self._examples[self._first[label] + index]
