"""Evaluation of a network on its test sets while it trains."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int64, UInt8

from jamsface_jax.embedding.embedder import Embedder
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.class_centres import (
  centre_angles,
  class_priors,
  nearest_classes,
)
from jamsface_jax.evaluation.known_people import (
  KnownPeople,
  open_known_people,
)
from jamsface_jax.evaluation.tasks import Task, open_tasks
from jamsface_jax.head.parameters import WEIGHTS
from jamsface_jax.protocols.pooling import parse_pooling
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import Evaluation, JudgingSettings
from jamsface_jax.run.components import Components
from jamsface_jax.run.state import TrainState
from jamsface_jax.settings.sections import Settings

# Measured at every evaluation, whatever else is.
CENTRE_ANGLE = "train/centre_angle_mean"


class EvaluationDropped(Exception):
  """An evaluation was given up, since the run is to stop."""


class Evaluator:
  """Evaluates states on the sets of `settings.evaluation`.

  Args:
    settings: the settings of the run.
    components: the network, its head and how they are trained.
    mesh: the (data, model) mesh.
    class_sizes: how many training images each class has, int [C].

  Raises:
    InputError: a test set that cannot be opened, or that the settings do not
      fit.
  """

  def __init__(
    self,
    settings: Settings,
    components: Components,
    mesh: Mesh,
    class_sizes: Int64[np.ndarray, " c"],
  ):
    chosen = settings.evaluation
    self._settings = JudgingSettings(
      fars=chosen.fars,
      poolings=[parse_pooling(chosen.pooling)],
      flip=chosen.flip,
      plain=True,
      replicates=0,
    )
    self._threads = settings.data.threads
    self._tasks = open_tasks(chosen.data, settings.data.image_size)
    self._known_people = open_known_people(
      chosen.known,
      settings.data.directory,
      settings.data.image_size,
      class_sizes,
    )
    _check_names(self._tasks, self._known_people)
    for task in self._tasks:
      if isinstance(task.test_set, TemplateSet):
        task.test_set.check(self._settings.poolings)
    self._nearest = jax.jit(
      partial(nearest_classes, head=components.head, mesh=mesh)
    )
    self._angles = jax.jit(
      partial(centre_angles, head=components.head, mesh=mesh)
    )
    if self._known_people:
      self._priors = class_priors(class_sizes, head=components.head, mesh=mesh)
    self._embedder = Embedder(
      components.model,
      mesh=mesh,
      batch_size=chosen.batch_size,
      image_size=settings.data.image_size,
      flip=chosen.flip,
      between=self._between_batches,
    )
    self._stopping: Callable[[], bool] | None = None

  def _between_batches(self) -> None:
    if self._stopping and self._stopping():
      raise EvaluationDropped

  def rising_metrics(self) -> list[str]:
    """Names of the metrics that are better when larger."""
    return [
      name
      for task in self._tasks
      for name in task.test_set.rising_metrics(self._settings)
    ] + [name for one in self._known_people for name in one.rising_metrics()]

  def run(
    self, state: TrainState, stopping: Callable[[], bool] | None = None
  ) -> list[Evaluation]:
    """Evaluates one state on every set; all processes must call it.

    Args:
      state: what is judged.
      stopping: asked between batches whether to give up; all processes must
        get the same answer. None: it is not given up.

    Raises:
      EvaluationDropped: it was given up.
    """
    self._stopping = stopping
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
      self._judge_known_people(one, variables, state.params["head"][WEIGHTS])
      for one in self._known_people
    ]

  def _judge_known_people(
    self,
    people: KnownPeople,
    variables: dict[str, Any],
    weights: Float32[Array, "r d"],
  ) -> Evaluation:
    """Compares every image with all classes, a batch at a time."""

    def read(numbers: Int64[np.ndarray, " n"]) -> UInt8[np.ndarray, "n h w 3"]:
      images, _ = people.source.read(numbers)
      return images

    size, count = self._embedder.batch_size, len(people.source)
    true_cosines, hardest_cosines, adjusted_right = [], [], []
    for number, block in enumerate(
      self._embedder.embed(variables, read, count, threads=self._threads)
    ):
      # The last block is filled up, to keep one shape.
      rows = np.minimum(number * size + np.arange(size), count - 1)
      true, other = (
        np.asarray(cosine_vb)[:, : len(block)]
        for cosine_vb in self._nearest(
          weights,
          block[rows - number * size],
          people.labels[rows],
          self._priors,
        )
      )
      true_cosines.append(true[0])
      hardest_cosines.append(other[0])
      adjusted_right.append(true[1] > other[1])
    return people.judge(
      np.concatenate(true_cosines),
      np.concatenate(hardest_cosines),
      np.concatenate(adjusted_right),
    )

  def measure_centres(self, state: TrainState) -> dict[str, float]:
    """How far class centres lie from the nearest other, degrees, as metrics."""
    angles = np.asarray(self._angles(state.params["head"][WEIGHTS]))
    return {
      CENTRE_ANGLE: float(angles.mean()),
      "train/centre_angle_min": float(angles.min()),
    }


def _check_names(tasks: list[Task], known_people: list[KnownPeople]) -> None:
  """Refuses known people with the name of another set."""
  names = [task.test_set.name for task in tasks]
  for one in known_people:
    if one.name in names:
      raise InputError(
        f"evaluation.known has a set of the name {one.name!r}, which another"
        " has too: write it again with another --name, since metrics are told"
        " apart by it."
      )
    names.append(one.name)
