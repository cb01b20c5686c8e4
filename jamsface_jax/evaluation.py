"""Verification of a network on a data set that has pairs."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jamsface_jax import report, verification
from jamsface_jax.data import records
from jamsface_jax.data.pairs import Pairs, read_pairs
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.inference import Embedder
from jamsface_jax.state import Parts, TrainState


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """What came out on one set.

  Attributes:
    name: of the set, the prefix of its metrics.
    metrics: `<set>/accuracy`, `<set>/eer`, ...
    scores: cosine of each pair, float64 [P].
    same: whether the pair is one person, bool [P].
  """

  name: str
  metrics: dict[str, float]
  scores: np.ndarray
  same: np.ndarray


class VerificationSet:
  """A data set with a `pairs.txt`, opened once and evaluated often.

  Args:
    directory: of the data set.
    image_size: height and width that the network sees.

  Raises:
    InputError: not a data set, no pairs, or pairs that do not fit.
  """

  def __init__(self, directory: str, image_size: int):
    self._source = RecordSource(directory, image_size)
    self.name = self._source.name
    path = os.path.join(directory, records.PAIRS_FILE)
    if not os.path.exists(path):
      raise InputError(
        f"data set {directory!r} has no {records.PAIRS_FILE}: write it again"
        " with 'data_prep.from_folder --pairs=FILE'."
      )
    pairs = read_pairs(path, self._source.names())
    # Only images that a pair names are embedded, each once.
    self._ids, where = np.unique(
      np.concatenate([pairs.first, pairs.second]), return_inverse=True
    )
    first, second = np.split(where, 2)
    self._pairs = Pairs(first, second, pairs.same, pairs.folds)

  def _images(self, numbers: np.ndarray) -> np.ndarray:
    images, _ = self._source.read(self._ids[numbers])
    return images

  def evaluate(
    self,
    embedder: Embedder,
    variables: dict,
    *,
    fars: Sequence[float],
    threads: int,
  ) -> Evaluation:
    """Embeds the images and scores the pairs by cosine.

    Args:
      embedder: of the network.
      variables: of the network.
      fars: false accept rates at which the true accept rate is given.
      threads: batches of images read at once.
    """
    blocks = embedder.embed(
      variables, self._images, len(self._ids), threads=threads
    )
    embeddings = np.concatenate(list(blocks))
    pairs = self._pairs
    scores = verification.pair_scores(embeddings, pairs.first, pairs.second)
    metrics = verification.verify(scores, pairs.same, pairs.folds, fars)
    return Evaluation(
      name=self.name,
      metrics={f"{self.name}/{name}": v for name, v in metrics.items()},
      scores=scores,
      same=pairs.same,
    )


def open_sets(directories: str, image_size: int) -> list[VerificationSet]:
  """Opens data sets with pairs.

  Args:
    directories: with a comma between; "" for none.
    image_size: height and width that the network sees.

  Raises:
    InputError: see `VerificationSet`, or two sets share a name.
  """
  sets: dict[str, VerificationSet] = {}
  for directory in filter(None, directories.split(",")):
    one = VerificationSet(directory, image_size)
    if one.name in sets:
      raise InputError(
        f"data set {directory!r} has the name {one.name!r} of another: write it"
        " again with another --name, since metrics are told apart by it."
      )
    sets[one.name] = one
  return list(sets.values())


class Evaluator:
  """Evaluates states on the sets of `config.evaluation`."""

  def __init__(self, config: ConfigDict, parts: Parts, mesh: Mesh):
    settings = config.evaluation
    self._fars = settings.fars
    self._threads = config.data.threads
    self._sets = open_sets(settings.data, config.data.image_size)
    self._embedder = Embedder(
      parts.model,
      mesh=mesh,
      batch_size=settings.batch_size,
      image_size=config.data.image_size,
      flip=settings.flip,
    )

  def rising_metrics(self) -> list[str]:
    """Names of the metrics that are better when larger."""
    rising = ["accuracy", "auc", *map(verification.tar_name, self._fars)]
    return [f"{one.name}/{name}" for one in self._sets for name in rising]

  def run(self, state: TrainState) -> list[Evaluation]:
    """Evaluates one state on every set."""
    variables = {
      "params": state.params["backbone"],
      "batch_stats": state.batch_stats,
    }
    return [
      one.evaluate(
        self._embedder, variables, fars=self._fars, threads=self._threads
      )
      for one in self._sets
    ]


def plot_evaluations(directory: str, evaluations: list[Evaluation]) -> None:
  """Draws the ROC of all sets, and the scores of each, as PNG files."""
  if not evaluations:
    return
  os.makedirs(directory, exist_ok=True)
  report.plot_roc(
    {one.name: verification.roc(one.scores, one.same) for one in evaluations},
    os.path.join(directory, "roc.png"),
  )
  for one in evaluations:
    report.plot_scores(
      one.scores,
      one.same,
      one.metrics[f"{one.name}/threshold"],
      os.path.join(directory, f"scores_{one.name}.png"),
    )
