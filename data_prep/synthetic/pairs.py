"""Verification pairs of drawn people, in ten folds."""

import numpy as np

from jamsface_jax.errors import InputError
from jamsface_jax.storage.whole_file import written_whole

FOLDS = 10


def verification_pairs(
  identities: int, images: int, pairs: int, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Chooses pairs for ten folds that share no identity.

  Args:
    identities: number of identities, numbered from 0.
    images: images of each, numbered from 1.
    pairs: total number, half of the same identity.
    rng: random numbers.

  Returns:
    For each fold its positives (identity, image, image), int64 [n, 3], and its
    negatives (identity, image, identity, image), int64 [n, 4]; no pair occurs
    twice.

  Raises:
    InputError: there are not so many different pairs.
  """
  each = pairs // (2 * FOLDS)
  if pairs < 2 * FOLDS or pairs % (2 * FOLDS):
    raise InputError(
      f"--pairs={pairs} is not a positive multiple of {2 * FOLDS} (ten folds,"
      " two halves): choose 6000, for example."
    )
  if identities < 2 * FOLDS:
    raise InputError(
      f"--test_identities={identities} is too few for {FOLDS} folds of at least"
      f" 2 identities: choose at least {2 * FOLDS}."
    )
  first, second = np.triu_indices(images, 1)
  fewest = identities // FOLDS
  most = fewest * min(len(first), (fewest - 1) * images**2 // 2)
  if each > most:
    raise InputError(
      f"--pairs={pairs} are more than {identities} test identities of {images}"
      f" images have: choose at most {2 * FOLDS * most}, or more"
      " --test_identities."
    )
  folds = []
  for members in np.array_split(rng.permutation(identities), FOLDS):
    chosen = rng.choice(len(members) * len(first), each, replace=False)
    who, which = np.divmod(np.sort(chosen), len(first))
    positives = [members[who], first[which] + 1, second[which] + 1]
    one, other = np.triu_indices(len(members), 1)
    chosen = rng.choice(len(one) * images**2, each, replace=False)
    who, i, j = np.unravel_index(np.sort(chosen), (len(one), images, images))
    negatives = [members[one[who]], i + 1, members[other[who]], j + 1]
    folds.append((np.stack(positives, 1), np.stack(negatives, 1)))
  return folds


def write_pairs(
  path: str, folds: list[tuple[np.ndarray, np.ndarray]], first: int
) -> None:
  """Writes LFW's `pairs.txt`; `first` is the number of identity 0."""
  with written_whole(path) as file:
    file.write(f"{len(folds)}\t{len(folds[0][0])}\n")
    for positives, negatives in folds:
      for who, i, j in positives.tolist():
        file.write(f"{person_name(first + who)}\t{i}\t{j}\n")
      for one, i, other, j in negatives.tolist():
        one, other = person_name(first + one), person_name(first + other)
        file.write(f"{one}\t{i}\t{other}\t{j}\n")


def person_name(identity: int) -> str:
  """What the identity of this number is called."""
  return f"id_{identity:05d}"
