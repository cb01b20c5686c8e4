"""A run that begins with parts of another one."""

import dataclasses
import shlex
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from jamsface_jax.data import records
from jamsface_jax.errors import InputError, one_line
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.run.components import Components
from jamsface_jax.run.state import TrainState, state_shapes
from jamsface_jax.settings.names import meanings
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.run_directory import RunDirectory, RunFile

# Names of `--fine_tune_keep`: leaves of the head that a part consists of.
HEAD_PARTS = {
  "weights": ("weights",),
  "margins": (head_lib.ANGULAR, head_lib.COSINE),
}
BACKBONE = "backbone"

# Settings of the model that change neither the shapes nor the meaning of its
# weights; all others must agree.
_NOT_OF_WEIGHTS = (
  "dropout",
  "drop_path",
  "mask_ratio",
  "dtype",
  "remat",
  "batch_norm_group",
)


@dataclasses.dataclass(frozen=True)
class FineTune:
  """What a run began with.

  Attributes:
    workdir: absolute path of the other run.
    step: finished steps of its checkpoint.
    keep: "backbone" and names of `HEAD_PARTS`.
  """

  workdir: str
  step: int
  keep: tuple[str, ...]


def plan_fine_tune(
  run: RunDirectory, source: RunDirectory | None, keep: str
) -> FineTune | None:
  """Decides what a run begins with, once: a file of the run remembers.

  Args:
    run: directory of this run.
    source: directory of the other run; None: what is remembered.
    keep: names of the parts to keep, comma between.

  Returns:
    None for a run that begins afresh.

  Raises:
    InputError: unknown parts, nothing to begin with, or this run has begun
      otherwise.
  """
  remembered = None
  if run.fine_tune.exists():
    remembered = _read(run.fine_tune)
  if source is None:
    return remembered
  names = tuple(dict.fromkeys(filter(None, keep.split(","))))
  unknown = set(names).difference((BACKBONE, *HEAD_PARTS))
  if unknown or not names:
    raise InputError(
      f"--fine_tune_keep={keep!r} must name one or more of"
      f" {', '.join((BACKBONE, *HEAD_PARTS))}, comma between."
    )
  path = source.absolute
  if remembered:
    if (remembered.workdir, remembered.keep) != (path, names):
      raise InputError(
        f"--workdir={run.path!r} began with {', '.join(remembered.keep)} of"
        f" {remembered.workdir!r}, not with {', '.join(names)} of {path!r}:"
        " leave --fine_tune_from out or choose another --workdir."
      )
    return remembered
  if run.config.exists():
    raise InputError(
      f"--workdir={run.path!r} has a run that began without"
      f" --fine_tune_from={path!r}: leave the flag out or choose another"
      " --workdir."
    )
  reader = CheckpointReader(RunDirectory(path))
  chosen = FineTune(path, reader.choose(None), names)
  run.fine_tune.write_json(dataclasses.asdict(chosen), indent=2)
  return chosen


def _read(file: RunFile) -> FineTune:
  """Reads what a run remembers of its beginning.

  Raises:
    InputError: the file is damaged.
  """
  try:
    return plain_json.typed(file.read_json(), FineTune)
  except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
    raise InputError(
      f"{file.path!r} is damaged ({one_line(error)}): restore it or choose"
      " another --workdir."
    ) from None


def apply_fine_tune(
  chosen: FineTune,
  state: TrainState,
  settings: Settings,
  components: Components,
  mesh: Mesh,
) -> TrainState:
  """Puts the kept parts into a first state; the rest of it stays.

  Args:
    chosen: which parts of which run to keep.
    state: a first state, as created.
    settings: those of this run.
    components: those of this run.
    mesh: that of this run; the other may have had another.

  Raises:
    InputError: the other run had another model, colour order or, if parts of
      the head are kept, other classes.
    RunError: its checkpoint cannot be read.
  """
  reader = CheckpointReader(RunDirectory(chosen.workdir))
  reader.choose(chosen.step)
  _check_fits(chosen, reader.metadata(chosen.step), settings, components)
  shapes = state_shapes(components, settings.data.image_size, mesh)
  params, batch_stats = dict(state.params), state.batch_stats
  if BACKBONE in chosen.keep:
    backbone = reader.restore_item(
      chosen.step,
      "backbone",
      {"params": shapes.params["backbone"], "batch_stats": shapes.batch_stats},
    )
    params["backbone"] = backbone["params"]
    batch_stats = backbone["batch_stats"]
  kept = [leaf for part in chosen.keep for leaf in HEAD_PARTS.get(part, ())]
  if kept:
    head = reader.restore_item(chosen.step, "head", shapes.params["head"])
    params["head"] = params["head"] | {name: head[name] for name in kept}
  return state.replace(params=params, batch_stats=batch_stats)


def _check_fits(
  chosen: FineTune,
  stored: Mapping[str, Any],
  settings: Settings,
  components: Components,
) -> None:
  """Refuses parts of a run whose numbers would mean something else here."""
  other = read_settings(RunDirectory(chosen.workdir))
  pairs = {
    "color_order": (stored["color_order"], records.COLOR_ORDER),
    "data.image_size": (other.data.image_size, settings.data.image_size),
  }
  for name, value in dataclasses.asdict(settings.model).items():
    if name not in _NOT_OF_WEIGHTS:
      pairs[f"model.{name}"] = getattr(other.model, name), value
  if set(chosen.keep) & set(HEAD_PARTS):
    pairs["num_classes"] = stored["num_classes"], components.head.num_classes
    pairs["head.class_multiple"] = (
      other.head.class_multiple,
      settings.head.class_multiple,
    )
  others = {k: values for k, values in pairs.items() if values[0] != values[1]}
  if not others:
    return
  said = ", ".join(
    f"{name} {theirs!r} and this run {ours!r}"
    for name, (theirs, ours) in others.items()
  )
  flags = [
    shlex.quote(f"--config.{name}={theirs}")
    for name, (theirs, _) in others.items()
    if name in meanings()
  ]
  advice = f", as with {' '.join(flags)}" if flags else ""
  raise InputError(
    f"--fine_tune_from={chosen.workdir!r} has {said}: they must agree to keep"
    f" {', '.join(chosen.keep)}{advice}."
  )
