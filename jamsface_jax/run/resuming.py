"""The state that a run begins or goes on with."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from jamsface_jax.data import records
from jamsface_jax.data.sources import Source
from jamsface_jax.errors import InputError
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import Components
from jamsface_jax.run.fine_tune import FineTune, apply_fine_tune
from jamsface_jax.run.state import TrainState, create_state, state_shapes
from jamsface_jax.run.versions import versions
from jamsface_jax.settings.names import flatten
from jamsface_jax.settings.sections import Settings

# What a checkpoint says of its data and a resumed run must have too.
_GUARDED = ("data_fingerprint", "num_classes", "color_order")


class Restored(NamedTuple):
  """Where a run goes on.

  Attributes:
    state: the state to train on.
    step: finished steps, 0 for a new run.
    stored: what the checkpoint says of itself; empty for a new run.
  """

  state: TrainState
  step: int
  stored: dict[str, Any]


def describe(
  settings: Settings, source: Source, fine_tune: FineTune | None
) -> dict[str, Any]:
  """What a checkpoint says of the run that writes it, as JSON values.

  Args:
    settings: those of the run.
    source: the training data.
    fine_tune: what the run began with, if it was of another one.
  """
  return {
    "num_classes": source.num_classes,
    "num_images": len(source),
    "data_fingerprint": source.fingerprint,
    "color_order": records.COLOR_ORDER,
    "image_size": settings.data.image_size,
    "embedding_size": settings.model.embedding_size,
    # As JSON gives it back, where tuples are lists.
    "model": json.loads(json.dumps(dataclasses.asdict(settings.model))),
    "fine_tuned_from": fine_tune and dataclasses.asdict(fine_tune),
    "versions": versions(),
  }


def restore_or_init(
  settings: Settings,
  components: Components,
  mesh: Mesh,
  *,
  class_sizes: Int[np.ndarray, " n"],
  checkpoints: Checkpoints,
  metadata: Mapping[str, Any],
  fine_tune: FineTune | None,
) -> Restored:
  """Restores the newest sound state, or makes the first one.

  Args:
    settings: those of the run.
    components: those of the run.
    mesh: the (data, model) mesh, which may be another than at the last launch.
    class_sizes: images of each class of the training set.
    checkpoints: those of the run; all processes ask together.
    metadata: what this run would say of itself, see `describe`.
    fine_tune: parts of another run to begin with, or None.

  Raises:
    InputError: the checkpoint is of other data or another model.
    RunError: there are checkpoints and all are damaged.
  """
  image_size = settings.data.image_size
  step = checkpoints.newest_sound()
  if step is None:
    state = create_state(
      settings.seed, components, image_size, mesh, class_sizes
    )
    if fine_tune:
      state = apply_fine_tune(fine_tune, state, settings, components, mesh)
    return Restored(state, 0, {})
  stored = checkpoints.metadata(step)
  _check_same(step, stored, metadata)
  shapes = state_shapes(components, image_size, mesh)
  return Restored(checkpoints.restore(step, shapes), step, stored)


def _check_same(
  step: int, stored: Mapping[str, Any], metadata: Mapping[str, Any]
) -> None:
  """Refuses a checkpoint of other data or another model."""
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
