"""Compiles variants of a step, to choose among them."""

from typing import Any

from jamsface_jax.errors import InputError
from jamsface_jax.pods.accelerators import Topology
from jamsface_jax.pods.step_cost import StepCost, measure
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
  """Compiles a step for each size of the model axis that is asked for.

  Args:
    config: all settings.
    topology: the devices to compile for.
    num_classes: number of identities.
    num_images: number of images of the training set.
    batch_per_device: examples on each device, or None for what the settings
      say.
    models: sizes, comma between; "auto": all that fit; "": that of the
      settings.
    cache: see `step_cost.measure`.

  Raises:
    InputError: `models` is no list of sizes, or a setting does not fit.
  """
  devices = len(topology.devices)
  each = devices // topology.slices
  if models == "auto":
    wanted = [n for n in range(1, each + 1) if each % n == 0]
    # And whole slices.
    wanted += [
      n for n in range(2 * each, devices + 1, each) if devices % n == 0
    ]
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
      changes["data.batch_size"] = batch_per_device * devices
    costs.append(
      measure(
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


def compile_each(
  ways: list[tuple[str, dict[str, Any]]],
  config: Settings,
  topology: Topology,
  *,
  num_classes: int,
  num_images: int,
  cache: str,
) -> list[tuple[str, StepCost]]:
  """Compiles a step with each of several changes.

  Args:
    ways: changes, as `ways_out` and `ways_up` give them.
    config: what they change.
    topology: the devices to compile for.
    num_classes: number of identities.
    num_images: number of images of the training set.
    cache: see `step_cost.measure`.

  Returns:
    The changes in words and their cost.
  """
  return [
    (
      words,
      measure(
        replaced(config, changes),
        num_classes=num_classes,
        num_images=num_images,
        topology=topology,
        cache=cache,
      ),
    )
    for words, changes in ways
  ]


def chosen_settings(config: Settings, cost: StepCost) -> Settings:
  """The settings that a cost is of."""
  return replaced(
    config,
    {"mesh.model": cost.mesh["model"], "data.batch_size": cost.batch},
  )


def ways_out(
  config: Settings, devices: int
) -> list[tuple[str, dict[str, Any]]]:
  """Changes that may save memory: in words, and settings by name.

  Args:
    config: all settings.
    devices: how many a slice has.
  """
  model = devices if config.mesh.model == -1 else config.mesh.model
  changes: list[dict[str, Any]] = []
  if model < devices:
    changes.append({"mesh.model": devices})
    if 2 * model < devices and devices % (2 * model) == 0:
      changes.append({"mesh.model": 2 * model})
  if not config.head.fused_update:
    changes.append({"head.fused_update": True})
  if config.model.dtype == "float32":
    changes.append({"model.dtype": "bfloat16"})
  if not config.model.remat:
    changes.append({"model.remat": True})
  if config.data.batch_size % (2 * devices) == 0:
    changes.append({"data.batch_size": config.data.batch_size // 2})
  if config.head.sample_rate == 1 and config.head.fused_update:
    changes.append({"head.sample_rate": 0.1})
  if config.head.keep_mib:
    changes.append({"head.keep_mib": 0})
  return _in_words(changes)


def ways_up(
  config: Settings, topology: Topology
) -> list[tuple[str, dict[str, Any]]]:
  """Changes that may make a step faster: in words, and settings by name.

  Of images a second, since some change how many a step has; a larger batch, and
  batch normalisation of other groups, are another training.

  Args:
    config: all settings.
    topology: the devices to compile for.
  """
  devices = len(topology.devices)
  batch, group = config.data.batch_size, config.model.batch_norm_group
  changes: list[dict[str, Any]] = []
  if config.model.dtype == "float32":
    changes.append({"model.dtype": "bfloat16"})
  if config.model.remat:
    changes.append({"model.remat": False})
  if not group and devices > 1 and batch // devices > 1:
    changes.append({"model.batch_norm_group": batch // devices})
  if not config.head.keep_mib:
    changes.append({"head.keep_mib": 256})
  if topology.platform == "tpu":  # With many images a device, less may be more.
    changes.append({"model.lanes": 0 if config.model.lanes else 1})
  for factor in (2, 4):
    changes.append({"data.batch_size": factor * batch})
    if group:  # As many groups as before.
      changes[-1]["model.batch_norm_group"] = factor * group
  return _in_words(changes)


def _in_words(
  changes: list[dict[str, Any]],
) -> list[tuple[str, dict[str, Any]]]:
  return [
    (" ".join(f"{name}={value}" for name, value in change.items()), change)
    for change in changes
  ]
