"""Checks a step for one topology, and says what it found as it goes."""

from typing import Any

from jamsface_jax.pods.accelerators import Topology
from jamsface_jax.pods.search import choose, compare, save_memory
from jamsface_jax.pods.step_cost import StepCost
from jamsface_jax.pods.tables import (
  as_json,
  details,
  mesh_table,
  title,
  ways_table,
  why,
)
from jamsface_jax.settings.sections import Settings


def check(
  config: Settings,
  topology: Topology,
  *,
  num_classes: int,
  num_images: int,
  batch_per_device: int | None,
  models: str,
  cache: str,
) -> tuple[StepCost, dict[str, Any]]:
  """Compiles a step on all meshes asked for, and ways out if none fits.

  Args:
    config: all settings.
    topology: the devices to compile for.
    num_classes: number of identities.
    num_images: number of images of the training set.
    batch_per_device: see `search.compare`; so `models` and `cache`.
    models: see there.
    cache: see there.

  Returns:
    The cost of the best mesh, and all of it for JSON.

  Raises:
    InputError: the settings do not fit the topology.
  """
  costs = compare(
    config,
    topology,
    num_classes=num_classes,
    num_images=num_images,
    batch_per_device=batch_per_device,
    models=models,
    cache=cache,
  )
  chosen = choose(costs)
  print(f"\n{title(config, topology, chosen, num_classes)}\n")
  if len(costs) > 1:
    print(f"{mesh_table(costs)}\n\n{why(chosen, costs)}\n")
  print(details(chosen, topology))
  ways: list[tuple[str, StepCost]] = []
  if not chosen.fits:
    ways = save_memory(
      config,
      topology,
      chosen,
      num_classes=num_classes,
      num_images=num_images,
      cache=cache,
    )
    print(f"\n{ways_table(chosen, ways)}")
  return chosen, {
    "topology": topology.name,
    "chosen": as_json(chosen),
    "meshes": [as_json(cost) for cost in costs],
    "ways_out": [{"settings": words, **as_json(cost)} for words, cost in ways],
  }
