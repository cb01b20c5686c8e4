"""Compiles variants of a step, to choose among them."""

from typing import Any

from jamsface_jax.errors import InputError
from jamsface_jax.pods import step_cost
from jamsface_jax.pods.chips import Topology
from jamsface_jax.pods.step_cost import StepCost
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings


def compare(
  config: Settings,
  topology: Topology,
  *,
  num_classes: int,
  num_images: int,
  batch_per_device: int | None,
  models: str,
  cache: str,
) -> list[StepCost]:
  """Compiles a step for each size of the model axis that is asked for."""
  each = len(topology.devices) // topology.slices
  if models == "auto":
    wanted = [n for n in range(1, each + 1) if each % n == 0]
    padded = -(-num_classes // config.head.class_multiple)
    padded *= config.head.class_multiple
    wanted = [n for n in wanted if padded % n == 0]
  elif models:
    if not all(word.isdigit() for word in models.split(",")):
      raise InputError(
        f"--mesh={models!r} is no list of sizes: use such as 4,16 or auto."
      )
    wanted = [int(word) for word in models.split(",")]
  else:
    wanted = [config.mesh.model]
  costs = []
  for model in wanted:
    changes: dict[str, Any] = {"mesh.model": model}
    if batch_per_device is not None:
      changes["data.batch_size"] = batch_per_device * len(topology.devices)
    costs.append(
      step_cost.measure(
        replaced(config, changes),
        num_classes=num_classes,
        num_images=num_images,
        topology=topology,
        cache=cache,
      )
    )
  return costs


def choose(costs: list[StepCost]) -> StepCost:
  """The best mesh: one that fits, and of those the fastest; else the least."""
  fitting = [cost for cost in costs if cost.fits]
  if not fitting:
    return min(costs, key=lambda cost: cost.total)
  # Where no time is known, what is sent and moved decides.
  return min(fitting, key=lambda c: (c.seconds, c.sent + c.moved))


def save_memory(
  config: Settings,
  topology: Topology,
  cost: StepCost,
  *,
  num_classes: int,
  num_images: int,
  cache: str,
) -> list[tuple[str, StepCost]]:
  """Compiles each way out, and sorts them by what they save, most first."""
  base = replaced(
    config,
    {"mesh.model": cost.mesh["model"], "data.batch_size": cost.batch},
  )
  each = len(topology.devices) // topology.slices
  found = [
    (
      words,
      step_cost.measure(
        replaced(base, changes),
        num_classes=num_classes,
        num_images=num_images,
        topology=topology,
        cache=cache,
      ),
    )
    for words, changes in step_cost.ways_out(base, each)
  ]
  return sorted(found, key=lambda way: way[1].total)
