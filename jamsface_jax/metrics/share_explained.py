"""How much of one number follows from another."""

import numpy as np
from jaxtyping import Int, Real


def share_explained(
  groups: Int[np.ndarray, " n"], values: Real[np.ndarray, " n"]
) -> float:
  """The share of the variance that lies between groups, eta squared.

  Args:
    groups: the group of each value, by any number.
    values: finite.

  Returns:
    From 0, where all groups have one mean, to 1, where each has one value; NaN
    where there is one group, or all values are equal to the rounding of
    float32.
  """
  values = values.astype(np.float64)
  centred = values - values.mean()
  total = centred @ centred
  if len(np.unique(groups)) < 2:
    return float("nan")
  if total <= len(values) * (1e-6 * np.abs(values).max(initial=0.0)) ** 2:
    return float("nan")
  _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
  sums = np.bincount(group, centred)
  return float((sums**2 / counts).sum() / total)
