"""What a run is before it has a state: nothing here is written or changes."""

import dataclasses
import functools
from collections.abc import Generator

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int64, UInt32

from jamsface_jax.data.pipeline import Batch, batches
from jamsface_jax.data.sources import Source, open_source
from jamsface_jax.devices import sharding
from jamsface_jax.devices.capacity import device_memory
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.evaluator import Evaluator
from jamsface_jax.head import memory
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.run import step_memory
from jamsface_jax.run.components import Components, make_components
from jamsface_jax.run.schedule import ends_pass, steps_of
from jamsface_jax.run.step_memory import StepMemory
from jamsface_jax.settings.sections import Settings
from jamsface_jax.training.step import seed_key


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
  """All that is known of a run before its directory is touched.

  Attributes:
    settings: those of the run.
    mesh: the (data, model) mesh.
    source: the training data.
    components: model, head, optimizers and schedules.
    head_cost: memory and work of the head.
    step_memory: memory of a step.
    evaluator: judges states.
    total_steps: steps of the whole run.
  """

  settings: Settings
  mesh: Mesh
  source: Source
  components: Components
  head_cost: memory.HeadCost
  step_memory: StepMemory
  evaluator: Evaluator
  total_steps: int

  @functools.cached_property
  def rows(self) -> Int64[np.ndarray, " n"]:
    """The rows of a global batch that this process has."""
    return sharding.local_rows(self.settings.data.batch_size, self.mesh)

  @functools.cached_property
  def seed(self) -> UInt32[np.ndarray, " k"]:
    """What each step is given for the seed of the run."""
    return seed_key(self.settings.seed)

  def ends_pass(self, step: int) -> bool:
    """Whether a pass over the data ends with a step, from 1."""
    return ends_pass(step, self.settings, len(self.source))

  def batches_from(self, step: int) -> Generator[Batch, None, None]:
    """Reads this process's rows of the batches after so many steps.

    Args:
      step: finished steps.
    """
    return batches(
      self.source,
      seed=self.settings.seed,
      sampling=self.settings.data.sampling,
      batch_size=self.settings.data.batch_size,
      rows=self.rows,
      start=step,
      total_steps=self.total_steps,
      threads=self.settings.data.threads,
      skipped=self.settings.data.skipped_steps,
    )

  def put(self, batch: Batch) -> dict[str, Array]:
    """Makes a global batch of this process's rows and those of the others.

    With each example goes the number of images of its class.

    Args:
      batch: rows of this process.

    Returns:
      The arrays, one example a row, sharding BATCH.
    """
    sizes = self.source.class_sizes[batch["labels"]].astype(np.int32)
    size = self.settings.data.batch_size
    return sharding.put_batch(
      {**batch, "sizes": sizes}, self.rows, size, self.mesh
    )


def prepare(settings: Settings) -> Setup:
  """Opens data and test sets, builds the components, and sees that all fits.

  Raises:
    InputError: a setting or the data is at fault, or a step does not fit.
  """
  mesh = sharding.make_mesh(settings.mesh.model)
  _check_micro_batch(settings, mesh)
  source = open_source(settings.data)
  total_steps = steps_of(settings.schedule.length, settings, len(source))
  counts = source.num_classes, len(source)
  components = make_components(settings, *counts)
  head_lib.check_mesh(components.head, mesh)
  head_cost = _estimate_head(settings, components, mesh)
  capacity = device_memory()
  memory.check_fits(head_cost, components.head, mesh, capacity)
  cost = step_memory.estimate(settings, components, mesh, head_cost)
  step_memory.check_fits(
    cost,
    settings,
    capacity,
    lambda other: _estimate_step(other, *counts, mesh),
  )
  evaluator = Evaluator(settings, components, mesh, source.class_sizes)
  _check_best(settings, evaluator)
  return Setup(
    settings=settings,
    mesh=mesh,
    source=source,
    components=components,
    head_cost=head_cost,
    step_memory=cost,
    evaluator=evaluator,
    total_steps=total_steps,
  )


def _estimate_head(
  settings: Settings, components: Components, mesh: Mesh
) -> memory.HeadCost:
  return memory.estimate(
    components.head,
    settings.data.batch_size,
    mesh,
    optimizer=components.optimizers.weights,
    fused_update=settings.head.fused_update,
  )


def _estimate_step(
  settings: Settings, num_classes: int, num_images: int, mesh: Mesh
) -> StepMemory:
  """What a step of other settings would hold.

  Raises:
    InputError: they fit neither each other nor the mesh.
  """
  _check_micro_batch(settings, mesh)
  components = make_components(settings, num_classes, num_images)
  head = _estimate_head(settings, components, mesh)
  return step_memory.estimate(settings, components, mesh, head)


def _check_micro_batch(settings: Settings, mesh: Mesh) -> None:
  """Refuses batches that the devices cannot share equally."""
  size = settings.data.batch_size // settings.optimizer.accumulation
  name = "data.batch_size / optimizer.accumulation"
  sharding.check_divides(name, size, mesh)


def _check_best(settings: Settings, evaluator: Evaluator) -> None:
  """Refuses a `keep_best` that no evaluation will measure."""
  wanted = settings.checkpoint.keep_best
  choices = evaluator.rising_metrics()
  if wanted and wanted not in choices:
    raise InputError(
      f"checkpoint.keep_best={wanted!r} is not measured by the sets of"
      f" evaluation.data: use one of {', '.join(choices) or 'none'}, or ''."
    )
