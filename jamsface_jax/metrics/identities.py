"""Who is who, from which pairs show one person.

A list of pairs names images, and not always their people; resampling needs
people.
"""

import numpy as np
from jaxtyping import Bool, Int, Int64


def find_identities(
  count: int,
  first: Int[np.ndarray, " p"],
  second: Int[np.ndarray, " p"],
  same: Bool[np.ndarray, " p"],
  labels: Int[np.ndarray, " n"] | None,
) -> Int64[np.ndarray, " n"]:
  """Identities of images: their labels, unless the pairs say otherwise.

  Args:
    count: the number of images or templates, N.
    first: index of each pair's first image, integers [P].
    second: index of each pair's second image, integers [P].
    same: whether the pair shows one person, bool [P].
    labels: what may be the identities, integers [N]; None without any.

  Returns:
    int64 [N], numbers from 0 on.
  """
  if labels is not None and np.array_equal(
    labels[first] == labels[second], same
  ):
    return np.unique(labels, return_inverse=True)[1]
  return connected_people(count, first, second, same)


def connected_people(
  count: int,
  first: Int[np.ndarray, " p"],
  second: Int[np.ndarray, " p"],
  same: Bool[np.ndarray, " p"],
) -> Int64[np.ndarray, " n"]:
  """Identities, from nothing but which pairs show one person.

  Args:
    count: the number of images, N.
    first: index of each pair's first image, integers [P].
    second: index of each pair's second image, integers [P].
    same: whether the pair shows one person, bool [P].

  Returns:
    int64 [N], numbers from 0 on: images that a chain of positive pairs joins
    share one.
  """
  root = np.arange(count)
  first, second = first[same], second[same]
  while True:
    # The smaller number spreads along the pairs; the chains then shorten.
    smaller = np.minimum(root[first], root[second])
    spread = root.copy()
    for side in first, second:
      np.minimum.at(spread, root[side], smaller)
    spread = spread[spread]
    if np.array_equal(spread, root):
      return np.unique(root, return_inverse=True)[1]
    root = spread
