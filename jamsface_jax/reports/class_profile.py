"""What is told of the classes: their sizes, and the margins they learned.

However many classes there are, what is kept of them has one size, so that it
can be written at each evaluation.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int64

from jamsface_jax.metrics.rank_correlation import rank_correlation
from jamsface_jax.storage.run_directory import RunFile

_BANDS = 12  # Of class size.
_RANKS = 200  # Points of the long tail.
_SAMPLE = 1000  # Classes shown one by one.
_TOP = (0.01, 0.1, 0.5)


def describe(
  class_sizes: Int[np.ndarray, " c"],
  margins: Mapping[str, Float[np.ndarray, " c"]],
) -> dict[str, Any]:
  """Sums up the classes.

  Args:
    class_sizes: images of each class, at least 1.
    margins: the margins of each class by their kind.

  Returns:
    JSON values: "classes" and "images" in all; "tail", sizes of some classes
    from the largest on with their "rank" from 1; "top", the share of images
    that the largest hundredth, tenth and half of the classes hold; "margins",
    for each kind the "rank_correlation" with class size, None among equal
    values, "bands" of similar size with tenth, half and nine tenths of their
    margins, and a "sample" of classes, large ones drawn more often.
  """
  order = np.argsort(-class_sizes, kind="stable")
  falling = class_sizes[order]
  ranks = spread_ranks(len(falling), _RANKS)
  total = int(falling.sum())
  shown = order[spread_ranks(len(order), _SAMPLE) - 1]
  return {
    "classes": len(falling),
    "images": total,
    "tail": {"rank": ranks.tolist(), "size": falling[ranks - 1].tolist()},
    "top": {
      f"{share:g}": int(falling[: max(1, round(share * len(falling)))].sum())
      / total
      for share in _TOP
    },
    "margins": {
      kind: {
        "rank_correlation": _or_none(rank_correlation(class_sizes, values)),
        "bands": _bands(class_sizes, values),
        "sample": {
          "size": class_sizes[shown].tolist(),
          "margin": values[shown].astype(np.float64).round(6).tolist(),
        },
      }
      for kind, values in margins.items()
    },
  }


def write(file: RunFile, profile: Mapping[str, Any]) -> None:
  """Writes a profile, whole or not at all."""
  file.write_json(profile)


def spread_ranks(count: int, most: int) -> Int64[np.ndarray, " r"]:
  """Ranks from 1 to `count`: half of them even in rank, half in its logarithm.

  Returns:
    int64, rising, at most `most`, the first and the last among them.
  """
  if count <= most:
    return np.arange(1, count + 1)
  even = np.linspace(1, count, most // 2)
  logarithmic = np.geomspace(1, count, most - most // 2)
  return np.unique(np.concatenate([even, logarithmic]).round().astype(np.int64))


def _or_none(value: float) -> float | None:
  """None for NaN, which JSON does not have."""
  return None if np.isnan(value) else value


def _bands(
  sizes: Int[np.ndarray, " c"], margins: Float[np.ndarray, " c"]
) -> list[dict[str, float]]:
  """Classes in equal parts of logarithmic size."""
  edges = np.geomspace(sizes.min(), sizes.max() + 1, _BANDS + 1)
  part = np.digitize(sizes, edges[1:-1])
  bands = []
  for number in np.unique(part):
    classes = part == number
    low, middle, high = np.quantile(margins[classes], (0.1, 0.5, 0.9))
    bands.append(
      {
        "size": float(np.median(sizes[classes])),
        "classes": int(classes.sum()),
        "low": float(low),
        "median": float(middle),
        "high": float(high),
      }
    )
  return bands
