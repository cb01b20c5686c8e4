"""What every test set is and gives."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jamsface_jax.metrics.groups import GroupResult
from jamsface_jax.metrics.identification import (
  Identification,
)
from jamsface_jax.metrics.score_counts import Tally
from jamsface_jax.protocols.pooling import Pooling

SEED = 0  # Of the bootstrap: the same embeddings give the same intervals.


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to judge.

  Attributes:
    fars: false accept rates at which to give TAR, those that the negatives can
      measure; None for every power of ten that they can.
    poolings: of templates.
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
    name: of the set, the prefix of its metrics.
    headline: the result in a few words.
    metrics: `<set>/accuracy`, `<set>/eer`, ...
    intervals: 95 % intervals of some of them.
    facts: what was measured on: numbers of pairs, switches.
    tally: of the scores of pairs, if pairs were compared.
    threshold: cosine from which on a pair is accepted, if one was chosen.
    searches: identifications by name.
    groups: what came out for groups of people, if the set has them.
  """

  name: str
  headline: str
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  facts: dict[str, object]
  tally: Tally | None = None
  threshold: float | None = None
  searches: dict[str, Identification] = dataclasses.field(default_factory=dict)
  groups: Sequence[GroupResult] = ()


@runtime_checkable
class TestSet(Protocol):
  """A set and how it is judged.

  Attributes:
    name: the prefix of its metrics.
    ids: the images that it needs, in the order in which it wants them, int64.
  """

  name: str
  ids: np.ndarray

  def rising_metrics(self, settings: Settings) -> list[str]:
    """Names of the metrics that are better when larger."""

  def judge(
    self, blocks: Iterable[np.ndarray], settings: Settings, *, what: str
  ) -> list[Evaluation]:
    """Judges embeddings.

    Args:
      blocks: float32 [n, D] each, together the embeddings of `ids` in order.
      settings: how.
      what: the embeddings are, for messages.

    Raises:
      InputError: embeddings that cannot be compared.
    """


def set_name(name: str, settings: Settings) -> str:
  """The name that results of single images go by."""
  return name if settings.plain else f"{name}/F{settings.flip:d}"


def prefixed(prefix: str, values: dict) -> dict:
  """The same values under names with a prefix."""
  return {f"{prefix}/{name}": value for name, value in values.items()}
