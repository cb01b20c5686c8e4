"""What every test set takes and gives: settings in, evaluations out.

A test set says which images it needs and judges their embeddings, which may
come from a network here or from another system. Embeddings arrive in blocks,
and only what the protocol needs of them is kept.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Int64

from jamsface_jax.metrics.groups import GroupResult
from jamsface_jax.metrics.identification import Identification
from jamsface_jax.metrics.people import PeopleRates
from jamsface_jax.metrics.score_counts import ScoreCounts
from jamsface_jax.protocols.pooling import Pooling

Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class JudgingSettings:
  """How to judge.

  Attributes:
    fars: false accept rates at which to give TAR, those that the negatives can
      measure; None for every power of ten that they can.
    poolings: the ways to pool the images of a template.
    flip: whether embeddings are flip sums; None if nobody knows.
    plain: results go by the plain name of the set, of several poolings those of
      the first; all others have the switches in their name.
    replicates: resamples of the identities for intervals; 0 for none.
  """

  fars: Sequence[float] | None
  poolings: Sequence[Pooling]
  flip: bool | None
  plain: bool
  replicates: int


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """What came out of one protocol on one set.

  Attributes:
    name: the name of the result, which begins those of its metrics.
    headline: the result in a few words.
    metrics: `<set>/accuracy`, `<set>/eer`, ...
    intervals: 95 % intervals of some of them.
    facts: what was measured on: numbers of pairs, switches.
    score_counts: what is kept of the scores of pairs, if pairs were compared.
    threshold: cosine from which on a pair is accepted, if one was chosen.
    searches: identifications by name.
    groups: what came out for groups of people, if the set has them.
    people: what came out for each person, where all images are compared.
  """

  name: str
  headline: str
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  facts: dict[str, Any]
  score_counts: ScoreCounts | None = None
  threshold: float | None = None
  searches: dict[str, Identification] = dataclasses.field(default_factory=dict)
  groups: Sequence[GroupResult] = ()
  people: PeopleRates | None = None


@runtime_checkable
class TestSet(Protocol):
  """A set and how it is judged.

  Attributes:
    name: the name of the set, which begins those of its metrics.
    ids: the images that it needs, in the order in which it wants them, int64.
  """

  name: str
  ids: Int64[np.ndarray, " n"]

  def rising_metrics(self, settings: JudgingSettings) -> list[str]:
    """Names of the metrics that are better when larger."""
    ...

  def judge(
    self,
    blocks: Iterable[Float[np.ndarray, "k d"]],
    settings: JudgingSettings,
    *,
    what: str,
  ) -> list[Evaluation]:
    """Judges embeddings.

    Args:
      blocks: floating-point numbers [k, D] each, together the embeddings of
        `ids` in order.
      settings: how to judge.
      what: what the embeddings are, for messages.

    Raises:
      InputError: embeddings that cannot be compared.
    """
    ...


@runtime_checkable
class Divisible(TestSet, Protocol):
  """A test set that some of its images can be taken out of."""

  def without(
    self, images: Int[np.ndarray, " k"]
  ) -> tuple["Divisible", dict[str, int]]:
    """The set without what needs some images.

    Args:
      images: their numbers, int [K].

    Returns:
      The set that is left, whose `ids` are some of those of this one and in
      its order, and how many images, pairs, ... were left out, by what they
      are.

    Raises:
      InputError: what is left is no protocol.
    """
    ...


def collected(
  blocks: Iterable[Float[np.ndarray, "k d"]], count: int
) -> Float[np.ndarray, "n d"]:
  """The rows of all blocks as one array.

  Its memory is taken with the first block, written to, and never taken twice:
  what does not fit is known before a million images are embedded.

  Args:
    blocks: floating-point numbers [k, D] each; they have `count` rows together.
    count: N.

  Returns:
    [N, D], the dtype of the first block.
  """
  rows, end = np.empty((0, 0)), 0
  for block in blocks:
    if not end:
      rows = np.full((count, block.shape[1]), 0, block.dtype)
    rows[end : end + len(block)] = block
    end += len(block)
  return rows


def result_name(name: str, settings: JudgingSettings) -> str:
  """The name that a result of single images goes by."""
  return name if settings.plain else f"{name}/F{settings.flip:d}"


def prefixed(prefix: str, values: Mapping[str, Value]) -> dict[str, Value]:
  """The same values under names with a prefix."""
  return {f"{prefix}/{name}": value for name, value in values.items()}


def with_left_out(one: Evaluation, counts: Mapping[str, int]) -> Evaluation:
  """Says with a result what of the test set it was not measured on.

  Args:
    one: the result.
    counts: how many images, pairs, ... were left out, by what they are.
  """
  if not counts:
    return one
  said = ", ".join(f"{n:,} {name}" for name, n in counts.items())
  return dataclasses.replace(
    one,
    headline=f"{one.headline}; left out: {said}",
    facts=one.facts | {"left_out": dict(counts)},
  )
