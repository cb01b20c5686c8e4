"""Evaluation of a network on test sets, while it trains and afterwards."""

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh

from jamsface_jax.data.images import open_folder
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.embedding.embedder import Embedder
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import known_people
from jamsface_jax.head.parameters import WEIGHTS
from jamsface_jax.protocols.all_pairs import ALL_PAIRS, AllPairs
from jamsface_jax.protocols.opening import open_list, open_protocols
from jamsface_jax.protocols.pooling import parse_pooling
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import Evaluation, Settings, TestSet
from jamsface_jax.run.state import Parts, TrainState
from jamsface_jax.settings import sections

# Measured at every evaluation, whatever else is.
CENTRE_ANGLE = "train/centre_angle_mean"


@runtime_checkable
class Images(Protocol):
  """Random access to images, as `data.sources.Source` has it."""

  def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images with these ids, uint8 [n, H, W, 3], and labels."""


class FolderSource:
  """Image files below a folder; classes are their folders.

  Args:
    directory: the folder.
    image_size: height and width of the images returned.

  Attributes:
    names: relative paths, sorted.
    labels: int64 [N].
  """

  def __init__(self, directory: str, image_size: int):
    self._directory = directory
    self._files = open_folder(directory, image_size)
    self.names, self.labels = self._files.names, self._files.labels

  def read(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See `Images.read`; raises InputError naming a broken image."""
    found = [self._files.read(i, i + 1) for i in ids.tolist()]
    for one in found:
      if one.broken:
        raise InputError(
          f"image {one.names[0]!r} of {self._directory!r} cannot be read"
          f" ({one.broken[0]}): mend or delete it."
        )
    return np.concatenate([one.pixels for one in found]), self.labels[ids]


@dataclasses.dataclass(frozen=True)
class Task:
  """A protocol over images."""

  source: Images
  test_set: TestSet

  def evaluate(
    self,
    embedder: Embedder,
    variables: dict,
    settings: Settings,
    *,
    threads: int,
    judges: bool = True,
  ) -> list[Evaluation]:
    """Embeds the images on all devices and judges the embeddings.

    All processes must call it: each reads and embeds a part of every batch.

    Args:
      embedder: of the network.
      variables: of the network.
      settings: how to judge.
      threads: batches of images read at once.
      judges: whether this process does; False: it only embeds.

    Returns:
      Nothing if it does not judge.
    """
    blocks = self._embed(embedder, variables, threads)
    if not judges:
      for _ in blocks:
        pass
      return []
    return self.test_set.judge(
      blocks, settings, what=f"embeddings of {self.test_set.name}"
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


def open_folder_task(directory: str, protocol: str, image_size: int) -> Task:
  """Opens a folder of images as a test set.

  Args:
    directory: the folder.
    protocol: a pairs.txt or search.csv over the paths of its images, or
      "all_pairs", with its sub-folders as people.
    image_size: height and width that the network sees.

  Raises:
    InputError: no folder of images, or no protocol that fits.
  """
  if not os.path.isdir(directory):
    raise InputError(
      f"--data {directory!r} is not a folder: with --protocol, give one of"
      " images."
    )
  source = FolderSource(directory, image_size)
  if protocol == ALL_PAIRS:
    name = os.path.basename(os.path.abspath(directory))
    return Task(source, AllPairs(name, source.labels))
  return Task(source, open_list(protocol, source.names))


class Evaluator:
  """Evaluates states on the sets of `config.evaluation`."""

  def __init__(
    self,
    config: sections.Settings,
    parts: Parts,
    mesh: Mesh,
    class_sizes: np.ndarray,
  ):
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
    self._known = known_people.open_known(
      *(chosen.known, config.data.directory, config.data.image_size),
      class_sizes,
    )
    names = [task.source.name for task in self._tasks]
    for known in self._known:
      if known.name in names:
        raise InputError(
          f"evaluation.known has a set of the name {known.name!r}, which"
          " another has too: write it again with another --name, since metrics"
          " are told apart by it."
        )
      names.append(known.name)
    on_head = {"head": parts.head, "mesh": mesh}
    self._nearest = jax.jit(partial(known_people.nearest_classes, **on_head))
    if self._known:
      self._priors = known_people.priors(class_sizes, **on_head)
    self._angles = jax.jit(partial(known_people.centre_angles, **on_head))
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
    ] + [name for known in self._known for name in known.rising_metrics()]

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
    ] + [
      self._judge_known(known, variables, state.params["head"][WEIGHTS])
      for known in self._known
    ]

  def _judge_known(self, known, variables, weights) -> Evaluation:
    def read(numbers: np.ndarray) -> np.ndarray:
      images, _ = known.source.read(numbers)
      return images

    size, count = self._embedder.batch_size, len(known.source)
    found = []
    for number, block in enumerate(
      self._embedder.embed(variables, read, count, threads=self._threads)
    ):
      # The last block is filled up, to keep one shape.
      rows = np.minimum(number * size + np.arange(size), count - 1)
      true, other = (
        np.asarray(cosine)[:, : len(block)]
        for cosine in self._nearest(
          *(weights, block[rows - number * size], known.labels[rows]),
          self._priors,
        )
      )
      found.append([true[0], other[0], true[1] > other[1]])
    return known.judge(*map(np.concatenate, zip(*found, strict=True)))

  def measure_centres(self, state: TrainState) -> dict[str, float]:
    """How far class centres lie from the nearest other, degrees, as metrics."""
    angles = np.asarray(self._angles(state.params["head"][WEIGHTS]))
    return {
      CENTRE_ANGLE: float(angles.mean()),
      "train/centre_angle_min": float(angles.min()),
    }
