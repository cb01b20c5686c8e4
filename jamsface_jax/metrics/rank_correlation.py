"""Whether one number rises with another, by their ranks."""

import numpy as np
from jaxtyping import Float64, Real
from numpy.typing import ArrayLike


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
  """Spearman's rank correlation (https://doi.org/10.2307/1412159).

  Args:
    x: numbers [N], finite.
    y: numbers [N], finite.

  Returns:
    Pearson's correlation of the ranks, tied values sharing their mean rank,
    from -1 to 1; NaN where `x` or `y` has fewer than two distinct values.

  Raises:
    ValueError: other shapes, or a number that is not finite.
  """
  x, y = np.asarray(x), np.asarray(y)
  if x.shape != y.shape or x.ndim != 1:
    raise ValueError(f"Expected two vectors [N]; got {x.shape} and {y.shape}.")
  if not (np.isfinite(x).all() and np.isfinite(y).all()):
    raise ValueError("Values that are not finite have no rank.")
  x, y = _centred_ranks(x), _centred_ranks(y)
  spread = np.sqrt((x @ x) * (y @ y))
  return float(x @ y / spread) if spread > 0 else float("nan")


def _centred_ranks(
  values: Real[np.ndarray, " n"],
) -> Float64[np.ndarray, " n"]:
  """Ranks less their mean; tied values share the mean of their ranks."""
  _, inverse, counts = np.unique(
    values, return_inverse=True, return_counts=True
  )
  ranks = np.cumsum(counts) - (counts - 1) / 2
  return ranks[inverse] - (len(values) + 1) / 2
