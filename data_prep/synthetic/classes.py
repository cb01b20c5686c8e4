"""How many images each class has, and which have a wrong label."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from jamsface_jax.errors import InputError
from jamsface_jax.storage.text_lists import read_lines

DEFAULT_IMAGES = 9000


def class_sizes(
  tail: str, identities: int, images: int | None, smallest: int, largest: int
) -> Int64[np.ndarray, " c"]:
  """Sizes of the training classes, largest first.

  Args:
    tail: "zipf:S", sizes proportional to rank**-S, or "file:PATH", quantiles of
      the sizes listed there, one a line.
    identities: number of classes C.
    images: their sum; None takes the sizes of a file as they are, and
      DEFAULT_IMAGES with "zipf".
    smallest: no class has fewer images.
    largest: no class has more images.

  Returns:
    int64 [C], summing to `images` if that was given.

  Raises:
    InputError: a malformed `tail`, or bounds that the sum cannot meet.
  """
  kind, _, value = tail.partition(":")
  if kind == "zipf":
    try:
      exponent = float(value)
    except ValueError:
      exponent = -1.0
    if not 0 <= exponent < np.inf:
      raise InputError(
        f"--tail={tail!r} has no exponent of at least 0 after 'zipf:': write"
        " for example zipf:1.0."
      )
    shape = np.arange(1, identities + 1) ** -exponent
    images = DEFAULT_IMAGES if images is None else images
  elif kind == "file":
    shape = _read_sizes(tail, value)
    # Quantiles keep the shape of the distribution whatever its length.
    at = (np.arange(identities) + 0.5) / identities
    shape = np.quantile(shape, 1 - at, method="inverted_cdf")
  else:
    raise InputError(
      f"--tail={tail!r} names no tail: write zipf:EXPONENT or file:PATH."
    )
  if images is None:
    return np.clip(shape.astype(np.int64), smallest, largest)
  if not smallest * identities <= images <= largest * identities:
    raise InputError(
      f"--images={images} does not fit {identities} identities of {smallest} to"
      f" {largest} images each: choose {smallest * identities} to"
      f" {largest * identities}, or change --identities."
    )
  return _scale(shape, images, smallest, largest)


def _read_sizes(tail: str, path: str) -> np.ndarray:
  try:
    lines = [line.text for line in read_lines(path)]
    sizes = [int(line) for line in lines if line.strip()]
    found = np.array(sizes, np.int64)
  except (OSError, ValueError, OverflowError) as error:
    reason = getattr(error, "strerror", None) or str(error)
    raise InputError(
      f"--tail={tail!r} cannot be read ({reason}): give a text file with one"
      " number of images a line."
    ) from None
  if not sizes or min(sizes) < 1:
    raise InputError(
      f"--tail={tail!r} holds no sizes of at least 1: give a text file with one"
      " number of images a line."
    )
  return found


def _scale(
  shape: np.ndarray, total: int, smallest: int, largest: int
) -> np.ndarray:
  """Integers near a factor times `shape`, within the bounds, with this sum."""
  low, high = 0.0, largest / shape.min()
  for _ in range(100):
    middle = (low + high) / 2
    if np.clip(middle * shape, smallest, largest).sum() < total:
      low = middle
    else:
      high = middle
  exact = np.clip(high * shape, smallest, largest)
  sizes = np.floor(exact + 1e-6).astype(np.int64)
  # The largest remainders are rounded up, ties in favour of rich classes.
  order = np.argsort(sizes - exact, kind="stable")
  sizes[order[: total - sizes.sum()]] += 1
  return sizes


def training_labels(
  sizes: Sequence[int], mislabelled: float, rng: np.random.Generator
) -> Int64[np.ndarray, " n"]:
  """Labels of the training images, in the order of the true ones.

  Args:
    sizes: images of each class.
    mislabelled: share of images that have the label of another class, each that
      of another such image, so that classes keep their sizes.
    rng: random numbers.

  Returns:
    int64 [images].

  Raises:
    InputError: one class has so many of these that some must keep their label.
  """
  labels = np.repeat(np.arange(len(sizes)), sizes)
  wrong = rng.permutation(len(labels))[: round(mislabelled * len(labels))]
  true = labels[wrong]
  if 2 * np.bincount(true, minlength=1).max() > len(wrong):
    raise InputError(
      f"--mislabelled={mislabelled} of {len(labels)} images leaves one class"
      " with more than half of the wrong ones, which cannot all go elsewhere:"
      " use 0, a larger share or more --identities."
    )
  given = rng.permutation(true)
  while len(same := np.flatnonzero(given == true)):
    for one, other in zip(
      same, rng.integers(len(wrong), size=len(same)), strict=True
    ):
      given[[one, other]] = given[[other, one]]
  labels[wrong] = given
  return labels
