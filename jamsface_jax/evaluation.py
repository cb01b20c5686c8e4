"""Evaluation of a network on test sets, while it trains and afterwards."""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.inference import Embedder
from jamsface_jax.pooling import parse_pooling
from jamsface_jax.protocols import (
  ALL_PAIRS,
  AllPairs,
  Evaluation,
  Settings,
  TemplateSet,
  TestSet,
  open_protocols,
)
from jamsface_jax.state import Parts, TrainState


@dataclasses.dataclass(frozen=True)
class Task:
  """A protocol over the images of a data set."""

  source: RecordSource
  test_set: TestSet

  def evaluate(
    self,
    embedder: Embedder,
    variables: dict,
    settings: Settings,
    *,
    threads: int,
  ) -> list[Evaluation]:
    """Embeds the images on all devices and judges the embeddings.

    Args:
      embedder: of the network.
      variables: of the network.
      settings: how to judge.
      threads: batches of images read at once.
    """
    return self.test_set.judge(
      self._embed(embedder, variables, threads),
      settings,
      what=f"embeddings of {self.test_set.name}",
    )

  def _embed(self, embedder, variables, threads) -> Iterator[np.ndarray]:
    ids = self.test_set.ids

    def read(numbers: np.ndarray) -> np.ndarray:
      images, _ = self.source.read(ids[numbers])
      return images

    return embedder.embed(variables, read, len(ids), threads=threads)


def open_tasks(data: str, image_size: int) -> list[Task]:
  """Opens test sets.

  Args:
    data: directories of data sets with a comma between; "" for none. With
      ':all_pairs' behind it, all images of one are compared.
    image_size: height and width that the network sees.

  Raises:
    InputError: not a data set, no protocol that fits, or two sets of one name.
  """
  tasks: dict[str, list[Task]] = {}
  for place in filter(None, data.split(",")):
    directory = place.removesuffix(f":{ALL_PAIRS}")
    source = RecordSource(directory, image_size)
    if source.name in tasks:
      raise InputError(
        f"data set {directory!r} has the name {source.name!r} of another: write"
        " it again with another --name, since metrics are told apart by it."
      )
    if place == directory:
      found = open_protocols(
        source.name, directory, len(source), source.names, source.labels
      )
    else:
      found = [AllPairs(source.name, source.labels())]
    tasks[source.name] = [Task(source, one) for one in found]
  return [task for of_set in tasks.values() for task in of_set]


class Evaluator:
  """Evaluates states on the sets of `config.evaluation`."""

  def __init__(self, config: ConfigDict, parts: Parts, mesh: Mesh):
    chosen = config.evaluation
    self._settings = Settings(
      fars=chosen.fars,
      poolings=[parse_pooling(chosen.pooling)],
      flip=chosen.flip,
      plain=True,
      replicates=0,
    )
    self._threads = config.data.threads
    self._tasks = open_tasks(chosen.data, config.data.image_size)
    for task in self._tasks:
      if isinstance(task.test_set, TemplateSet):
        task.test_set.check(self._settings.poolings)
    self._embedder = Embedder(
      parts.model,
      mesh=mesh,
      batch_size=chosen.batch_size,
      image_size=config.data.image_size,
      flip=chosen.flip,
    )

  def rising_metrics(self) -> list[str]:
    """Names of the metrics that are better when larger."""
    return [
      name
      for task in self._tasks
      for name in task.test_set.rising_metrics(self._settings)
    ]

  def run(self, state: TrainState) -> list[Evaluation]:
    """Evaluates one state on every set."""
    variables = {
      "params": state.params["backbone"],
      "batch_stats": state.batch_stats,
    }
    return [
      evaluation
      for task in self._tasks
      for evaluation in task.evaluate(
        self._embedder, variables, self._settings, threads=self._threads
      )
    ]
