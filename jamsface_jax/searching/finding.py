"""Searches image by image: who it is, and who else it may be."""

import dataclasses
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np

from jamsface_jax.embedding.embedder import unit_length
from jamsface_jax.errors import InputError
from jamsface_jax.searching.gallery import Gallery
from jamsface_jax.searching.sources import Part, Source
from jamsface_jax.searching.trained_people import TrainedPeople

NOBODY = "nobody"  # Who is not in the gallery, in tables.
_AT_ONCE = (
  8192  # Images that are searched together: the gallery is walked once.
)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """A person of the gallery who is like the one in an image.

  Attributes:
    person: the name.
    cosine: of the embeddings, -1 to 1.
    image: the person's image that is most alike.
    row: its number in the gallery.
  """

  person: str
  cosine: float
  image: str
  row: int


@dataclasses.dataclass(frozen=True)
class Finding:
  """What was found for an image.

  Attributes:
    image: its name.
    number: its place among the images.
    name: who it is; None for nobody.
    candidates: who is most alike, the first first.
    broken: why there is no answer; None if there is one.
  """

  image: str
  number: int
  name: str | None
  candidates: tuple[Candidate, ...]
  broken: str | None


People: TypeAlias = Gallery | TrainedPeople  # Who is searched among.


def find(
  source: Source, people: People, *, k: int, threshold: float | None
) -> Iterator[Finding]:
  """Searches all images of a source.

  Memory is that of some thousand images, whatever their number.

  Args:
    source: the images.
    people: who is searched among.
    k: how many candidates an image has, at most.
    threshold: the cosine that the first one must reach to give the name; None:
      any does.

  Raises:
    InputError: embeddings of another network.
  """
  if source.network and people.network and source.network != people.network:
    raise InputError(
      "--images and --gallery were embedded by different networks"
      f" ({source.network}; {people.network}): embed both with the same one."
    )
  number, waiting, count = 0, [], 0
  for part in source.parts():
    waiting.append(part)
    count += len(part.names)
    if count >= _AT_ONCE:
      yield from find_parts(waiting, people, number, k=k, threshold=threshold)
      number, waiting, count = number + count, [], 0
  if waiting:
    yield from find_parts(waiting, people, number, k=k, threshold=threshold)


def find_parts(
  parts: list[Part],
  people: People,
  number: int,
  *,
  k: int,
  threshold: float | None,
) -> Iterator[Finding]:
  """Searches some images together.

  Args:
    parts: their embeddings.
    people: who is searched among.
    number: of the first image.
    k: see `find`.
    threshold: see `find`.
  """
  rows = np.concatenate([part.rows for part in parts])
  found = people.nearest(unit_length(rows), k)
  places = iter(range(len(rows)))
  for part in parts:
    for position, image in enumerate(part.names):
      place = next(places)
      candidates = tuple(
        Candidate(people.people[owner], cosine, people.images[row], row)
        for owner, row, cosine in zip(
          found.owner[place].tolist(),
          found.row[place].tolist(),
          found.cosine[place].tolist(),
          strict=True,
        )
        if owner >= 0
      )
      name = None
      if candidates and (
        threshold is None or candidates[0].cosine >= threshold
      ):
        name = candidates[0].person
      yield Finding(
        image, number + place, name, candidates, part.broken.get(position)
      )
