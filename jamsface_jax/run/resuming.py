"""The state that a run begins or goes on with."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jamsface_jax.data import records
from jamsface_jax.data.sources import Source
from jamsface_jax.errors import InputError
from jamsface_jax.run import fine_tune
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import Components
from jamsface_jax.run.fine_tune import FineTune
from jamsface_jax.run.state import TrainState, create_state, state_shapes
from jamsface_jax.run.versions import versions
from jamsface_jax.settings.names import flatten
from jamsface_jax.settings.sections import Settings

# What a checkpoint says of its data and a resumed run must have too.
_GUARDED = ("data_fingerprint", "num_classes", "color_order")


def describe(
  config: Settings, source: Source, beginning: FineTune | None
) -> dict[str, Any]:
  """What a checkpoint says of the run that wrote it."""
  return {
    "num_classes": source.num_classes,
    "num_images": len(source),
    "data_fingerprint": source.fingerprint,
    "color_order": records.COLOR_ORDER,
    "image_size": config.data.image_size,
    "embedding_size": config.model.embedding_size,
    # As JSON gives it back, where tuples are lists.
    "model": json.loads(json.dumps(dataclasses.asdict(config.model))),
    "fine_tuned_from": beginning and dataclasses.asdict(beginning),
    "versions": versions(),
  }


def begin(
  config: Settings,
  components: Components,
  mesh: Mesh,
  class_sizes: np.ndarray,
  checkpoints: Checkpoints,
  metadata: Mapping[str, Any],
  beginning: FineTune | None,
) -> tuple[TrainState, int, dict[str, Any]]:
  """Makes the first state, or restores the newest sound one.

  Returns:
    The state, its number of finished steps, and what its checkpoint says.

  Raises:
    InputError: the checkpoint is of other data or another model.
  """
  step = checkpoints.newest_sound()
  if step is None:
    state = create_state(
      *(config.seed, components, config.data.image_size, mesh), class_sizes
    )
    if beginning:
      state = fine_tune.begin_with(beginning, state, config, components, mesh)
    return state, 0, {}
  stored = checkpoints.metadata(step)
  theirs, ours = flatten(stored), flatten(metadata)
  conflicts = [
    f"{name} {theirs.get(name)!r} and not {value!r}"
    for name, value in ours.items()
    if name in _GUARDED or name.startswith("model.")
    if theirs.get(name) != value
  ]
  if conflicts:
    raise InputError(
      f"checkpoint {step} of this run has {', '.join(conflicts)}: give the same"
      " data and settings or choose another --workdir."
    )
  shapes = state_shapes(components, config.data.image_size, mesh)
  return checkpoints.restore(step, shapes), step, stored
