"""Checks a step for one topology, and says what it found as it goes."""

from typing import Any

from jamsface_jax.pods.accelerators import Topology
from jamsface_jax.pods.search import (
  choose,
  chosen_settings,
  compare,
  compile_each,
  ways_out,
  ways_up,
)
from jamsface_jax.pods.step_cost import StepCost
from jamsface_jax.pods.tables import (
  as_json,
  details,
  mesh_table,
  suggestions_table,
  title,
  ways_table,
  why,
)
from jamsface_jax.settings.sections import Settings

Way = tuple[str, StepCost]  # A change in words, and what it costs.


def check(
  config: Settings,
  topology: Topology,
  *,
  num_classes: int,
  num_images: int,
  batch_per_device: int | None,
  models: str,
  cache: str,
  suggest: bool = False,
) -> tuple[StepCost, dict[str, Any]]:
  """Compiles a step on all meshes asked for, and ways out if none fits.

  Where one does and `suggest` is given, what may be faster.

  Args:
    config: all settings.
    topology: the devices to compile for.
    num_classes: number of identities.
    num_images: number of images of the training set.
    batch_per_device: see `search.compare`; so `models` and `cache`.
    models: see there.
    cache: see there.
    suggest: compile what may be faster, too.

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
  now = chosen_settings(config, chosen)

  def tried(changes: list[tuple[str, dict[str, Any]]]) -> list[Way]:
    return compile_each(
      changes,
      now,
      topology,
      num_classes=num_classes,
      num_images=num_images,
      cache=cache,
    )

  out: list[Way] = []
  up: list[Way] = []
  if not chosen.fits:
    each = len(topology.devices) // topology.slices
    out = tried(ways_out(now, each))
    out.sort(key=lambda way: way[1].total)
    print(f"\n{ways_table(chosen, out)}")
  elif suggest:
    up = tried(ways_up(now, topology))
    up.sort(key=lambda way: -way[1].images_per_second)
    print(f"\n{suggestions_table(chosen, up)}")
  return chosen, {
    "topology": topology.name,
    "chosen": as_json(chosen),
    "meshes": [as_json(cost) for cost in costs],
    "ways_out": [{"settings": words, **as_json(cost)} for words, cost in out],
    "suggestions": [{"settings": words, **as_json(cost)} for words, cost in up],
  }
