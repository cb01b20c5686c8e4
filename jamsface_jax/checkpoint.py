"""Orbax behind one small face: save, restore, and read a part.

A checkpoint is named by the number of finished steps and holds four items:
`backbone`, `head`, `training` (step and optimizer) and `metadata`. So an
embedder reads the backbone alone, whatever the head weighs.
"""

import importlib.metadata
import os
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from jamsface_jax.errors import InputError, RunError
from jamsface_jax.state import TrainState

DIRECTORY = "checkpoints"


def versions() -> dict[str, str]:
  """Versions of the packages that decide what a run computes."""
  packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
  return {name: importlib.metadata.version(name) for name in packages}


class CheckpointReader:
  """The checkpoints of a work directory, to read while another may write.

  Args:
    workdir: of a training run.

  Raises:
    InputError: it has no checkpoint.
  """

  def __init__(self, workdir: str):
    directory = os.path.join(workdir, DIRECTORY)
    if not os.path.isdir(directory):
      raise InputError(
        f"{workdir!r} has no checkpoint: train first, with 'python -m"
        f" jamsface_jax.main --workdir={workdir}'."
      )
    self._open(directory, ocp.CheckpointManagerOptions(read_only=True))

  def _open(
    self, directory: str, options: ocp.CheckpointManagerOptions
  ) -> None:
    self._directory = os.path.abspath(directory)
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  def latest_step(self) -> int | None:
    """Finished steps of the newest checkpoint, None if there is none."""
    return self._manager.latest_step()

  def choose(self, step: int | None) -> int:
    """Returns the wanted step, the newest for None.

    Raises:
      InputError: there is no such checkpoint.
    """
    steps = sorted(self._manager.all_steps())
    if not steps or step not in (None, *steps):
      raise InputError(
        f"{self._directory!r} has no checkpoint"
        f"{'' if step is None else f' of step {step}'}: it has"
        f" {', '.join(map(str, steps)) or 'none'}."
      )
    return steps[-1] if step is None else step

  def metadata(self, step: int) -> dict[str, Any]:
    """Reads what was said of a checkpoint."""
    return self._restore(step, metadata=ocp.args.JsonRestore())["metadata"]

  def restore_item(self, step: int, name: str, shapes: Any) -> Any:
    """Reads one item, `backbone` or `head`, and nothing else."""
    return self._restore(step, **{name: ocp.args.StandardRestore(shapes)})[name]

  def _restore(self, step: int, **items: Any) -> Any:
    try:
      return self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # Orbax raises bare ones for damaged files.
      raise RunError(
        f"checkpoint {os.path.join(self._directory, str(step))!r} cannot be"
        f" read ({' '.join(str(error).split())[:300]}): move it away to go on"
        " from the one before."
      ) from error

  def close(self) -> None:
    """Waits for what is being written, then lets go of the directory."""
    self._manager.close()


class Checkpoints(CheckpointReader):
  """The checkpoints of the run that writes them.

  Args:
    workdir: the work directory.
    keep_last: so many of the newest are kept.
    keep_best: name of the metric whose best checkpoint is kept too, or "".
  """

  def __init__(self, workdir: str, *, keep_last: int, keep_best: str):
    policies = [preservation_policy.LatestN(keep_last)]
    if keep_best:
      policies.append(
        preservation_policy.BestN(
          get_metric_fn=lambda metrics: metrics[keep_best],
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._open(
      os.path.join(workdir, DIRECTORY),
      ocp.CheckpointManagerOptions(
        preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
        cleanup_tmp_directories=True,
      ),
    )

  def save(
    self,
    step: int,
    state: TrainState,
    metadata: dict[str, Any],
    metrics: dict[str, float],
  ) -> None:
    """Starts to write a checkpoint; returns when the state may be changed.

    Args:
      step: finished steps.
      state: what to save.
      metadata: JSON values.
      metrics: of an evaluation at this step; may be empty.
    """
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(
        **{
          name: ocp.args.StandardSave(item)
          for name, item in _items(state).items()
        },
        metadata=ocp.args.JsonSave(metadata),
      ),
      metrics=metrics or None,
    )
    if not saved:
      raise RunError(
        f"checkpoint {step} was not written to {self._directory!r}: one of this"
        " or a later step is there."
      )

  def restore(self, step: int, shapes: TrainState) -> TrainState:
    """Reads a state.

    Args:
      step: of the checkpoint.
      shapes: ShapeDtypeStructs with shardings; the mesh may be another than
        the one that saved.

    Returns:
      The state, each leaf sharded as asked.
    """
    items = self._restore(
      step,
      **{
        name: ocp.args.StandardRestore(item)
        for name, item in _items(shapes).items()
      },
    )
    return TrainState(
      step=items["training"]["step"],
      params={
        "backbone": items["backbone"]["params"],
        "head": items["head"],
      },
      batch_stats=items["backbone"]["batch_stats"],
      opt_state=items["training"]["opt_state"],
    )


def _items(state: TrainState) -> dict[str, Any]:
  return {
    "backbone": {
      "params": state.params["backbone"],
      "batch_stats": state.batch_stats,
    },
    "head": state.params["head"],
    "training": {"step": state.step, "opt_state": state.opt_state},
  }
