"""What a step holds on each device, known before anything is compiled.

An estimate, see `run.activations`; tests compare it with the compiler's own.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jamsface_jax.errors import InputError
from jamsface_jax.head import memory as head_memory
from jamsface_jax.head.memory import HeadCost
from jamsface_jax.run.activations import count_activations
from jamsface_jax.run.components import Components
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings


@dataclasses.dataclass(frozen=True)
class StepMemory:
  """Bytes that a device holds at once in a step.

  Attributes:
    backbone: its parameters and batch statistics.
    optimizer: momentum and the like for them.
    gradients: of the backbone; twice if micro-batches are summed up.
    activations: what is kept of the forward for the backward.
    images: of the batch, as bytes and as they enter the network.
    head: all of the head.
  """

  backbone: int
  optimizer: int
  gradients: int
  activations: int
  images: int
  head: int

  @property
  def total(self) -> int:
    """Bytes in all."""
    return sum(dataclasses.astuple(self))

  def __str__(self) -> str:
    parts = {
      "backbone": self.backbone,
      "its optimizer": self.optimizer,
      "gradients": self.gradients,
      "activations": self.activations,
      "images": self.images,
      "head": self.head,
    }
    return ", ".join(
      f"{name} {head_memory.to_text(count)}" for name, count in parts.items()
    )


def estimate(
  settings: Settings, components: Components, mesh: Mesh, head: HeadCost
) -> StepMemory:
  """Estimates what each device of a mesh holds in a step.

  Args:
    settings: those of the run.
    components: what the run is made of.
    mesh: the (data, model) mesh.
    head: what the head costs, see `head.memory.estimate`.
  """
  size, batch = settings.data.image_size, settings.data.batch_size
  shapes = state_shapes(components, size, mesh)
  micro_batch = batch // settings.optimizer.accumulation
  parameters = _bytes(shapes.params["backbone"])
  pixels = size * size * 3 * batch // mesh.size
  return StepMemory(
    backbone=parameters + _bytes(shapes.batch_stats),
    optimizer=_bytes(shapes.opt_state["backbone"]),
    gradients=parameters * (1 if micro_batch == batch else 2),
    activations=_activations(components, shapes, size, micro_batch, mesh),
    images=pixels * (1 + jnp.dtype(jnp.float32).itemsize),
    head=head.total,
  )


def check_fits(
  cost: StepMemory,
  settings: Settings,
  memory: int,
  estimate_of: Callable[[Settings], StepMemory],
) -> None:
  """Refuses a step that no device could hold, with settings that it could.

  Args:
    cost: what `estimate` returned.
    settings: those of the run.
    memory: bytes that a device may hold.
    estimate_of: `estimate` of other settings.

  Raises:
    InputError: names the bytes, and what fits.
  """
  if cost.total <= memory:
    return
  ways = []
  for changes in _smaller(cost, settings, memory):
    try:
      total = estimate_of(replaced(settings, changes)).total
    except InputError:  # Not for this network or this mesh.
      continue
    if total <= memory:
      flags = " ".join(f"{name}={value}" for name, value in changes.items())
      ways.append(f"{flags} ({head_memory.to_text(total)})")
  if not ways:
    ways = ["a smaller network, such as model.name=mbf, or more devices"]
  raise InputError(
    f"data.batch_size={settings.data.batch_size}: a step of"
    f" {settings.model.name} needs about {head_memory.to_text(cost.total)} on"
    f" each device ({cost}), which has {head_memory.to_text(memory)}: use"
    f" {'; or '.join(ways[:3])}."
  )


def _smaller(
  cost: StepMemory, settings: Settings, memory: int
) -> Iterator[dict[str, Any]]:
  """Settings that need less, the mildest of each kind that may do."""
  of_images = cost.activations + cost.images
  room = memory - (cost.total - of_images)
  if room > 0:
    parts = 2 ** math.ceil(math.log2(of_images / room))
    yield {"data.batch_size": settings.data.batch_size // parts}
    micro_batches = settings.optimizer.accumulation * 2 * parts
    yield {"optimizer.accumulation": micro_batches}
  yield {"model.name": "mbf"}
  yield {"model.remat": True}
  yield {"model.remat": True, "model.dtype": "bfloat16"}


def _activations(
  components: Components,
  shapes: Any,
  size: int,
  micro_batch: int,
  mesh: Mesh,
) -> int:
  """Bytes that the backward needs of the forward, on each device."""

  def embed(variables: Any, images: jax.Array, key: jax.Array) -> Any:
    return components.model.apply(
      variables,
      images,
      train=True,
      mutable=["batch_stats"],
      rngs={"dropout": key},
    )

  variables = {
    "params": shapes.params["backbone"],
    "batch_stats": shapes.batch_stats,
  }
  images = jax.ShapeDtypeStruct((micro_batch, size, size, 3), jnp.float32)
  program = jax.make_jaxpr(embed)(variables, images, jax.random.key(0))
  parameters = len(jax.tree.leaves(variables))
  on_cpu = mesh.devices.flat[0].platform == "cpu"
  of_all = count_activations(program, parameters, on_cpu=on_cpu)
  return of_all // mesh.size


def _bytes(tree: Any) -> int:
  """Bytes of all arrays of a tree."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
