"""Numbers of a run to Weights & Biases too, if `wandb.project` asks for it."""

import dataclasses
import os
import secrets
from collections.abc import Mapping

from jamsface_jax import interruption
from jamsface_jax.errors import InputError, one_line
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory


def open_wandb(settings: Settings, run: RunDirectory) -> "WandbLog | None":
  """Opens the log there if the settings ask for one and the run is written to.

  Args:
    settings: those of the run.
    run: directory of the run.

  Raises:
    InputError: see `WandbLog`.
  """
  if not settings.wandb.project or not run.writes:
    return None
  return WandbLog(settings, run)


class WandbLog:
  """A run there, the same one however often this one is started again.

  Where the network is not to be used, WANDB_MODE=offline keeps all in
  `W/wandb`, for `wandb sync` to send.

  Args:
    settings: all of them, which are shown with the run; `settings.wandb` says
      where it goes.
    run: directory of the run, which keeps its id.

  Raises:
    InputError: the package wandb is missing, or refuses.
  """

  def __init__(self, settings: Settings, run: RunDirectory):
    project = settings.wandb.project
    try:
      with interruption.postponed():
        import wandb  # Here: most runs do without.
    except ImportError:
      raise InputError(
        f"wandb.project={project!r} needs the package wandb: type pip install"
        " 'jamsface-jax[wandb]', or leave wandb.project empty."
      ) from None
    try:
      self._run = wandb.init(
        project=project,
        entity=settings.wandb.entity or None,
        name=os.path.basename(run.absolute),
        id=_run_id(run),
        resume="allow",
        dir=run.local,
        config=dataclasses.asdict(settings),
        settings=wandb.Settings(console="off"),
      )
    except wandb.Error as error:
      raise InputError(
        f"wandb.project={project!r}: W&B refuses"
        f" ({one_line(error, None)}): type wandb login, or set"
        " WANDB_MODE=offline."
      ) from None
    # W&B's own count would refuse the steps that a resumed run does again.
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, metrics: Mapping[str, float]) -> None:
    """Sends one line; see `metric_writer.MetricWriter`."""
    self._run.log({"step": step, **metrics})

  def close(self) -> None:
    """Sends what is still in memory."""
    self._run.finish()


def _run_id(run: RunDirectory) -> str:
  """The id of the run, drawn at its first launch and kept with it."""
  if run.wandb_id.exists():
    try:
      return run.wandb_id.read_text().strip()
    except ValueError:  # Not UTF-8.
      raise InputError(
        f"{run.wandb_id.path!r} is damaged: move it away, for another curve."
      ) from None
  drawn = secrets.token_hex(4)
  run.wandb_id.write_text(drawn + "\n")
  return drawn
