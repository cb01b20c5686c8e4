"""Verification person by person: everybody counts the same.

Pairs of one person grow with the square of their images, so that a TAR over
pairs is that of a few who were photographed often.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float64, Int, Int64


@dataclasses.dataclass(frozen=True, eq=False)
class PeopleRates:
  """How often each person's pairs are accepted.

  Attributes:
    labels: class of each person who has a pair, integers [P], rising.
    pairs: how many pairs each has, int64 [P].
    tars: by the name of a threshold, such as "tar@1e-3", the share of each
      person's pairs that it accepts, float64 [P].
  """

  labels: Int[np.ndarray, " p"]
  pairs: Int64[np.ndarray, " p"]
  tars: Mapping[str, Float64[np.ndarray, " p"]]

  def means(self) -> dict[str, float]:
    """The mean over people, as metrics: "people_tar@1e-3", ..."""
    return {
      f"people_{name}": float(tar.mean()) for name, tar in self.tars.items()
    }


def people_rates(
  scores: Float[np.ndarray, " n"],
  labels: Int[np.ndarray, " n"],
  thresholds: Mapping[str, float],
) -> PeopleRates:
  """Counts the accepted pairs of each person.

  Args:
    scores: of the pairs that show one person, [N].
    labels: the class of that person, integers [N].
    thresholds: by their names; a pair is accepted from it on, and a threshold
      that is infinite accepts none.
  """
  people, who, pairs = np.unique(
    labels, return_inverse=True, return_counts=True
  )
  return PeopleRates(
    people,
    pairs,
    {
      name: np.bincount(who, scores >= threshold, len(people)) / pairs
      for name, threshold in thresholds.items()
    },
  )
