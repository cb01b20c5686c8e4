"""`config.json`, the settings of a run in its directory."""

import dataclasses
import json
import os
import sys

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.settings.names import flatten, settings_from, values
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.plan import conflicts
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.storage.write_error import write_error

# A resumed run may change these. Most do not change what is learned; skipped
# and rejected steps do, where a run could not go on otherwise. What
# `data.directory` holds is compared by content, not by path.
_FREE = (
  "mesh",
  "checkpoint",
  "evaluation",
  "log_every",
  "data.threads",
  "data.directory",
  "data.skip_steps",
  "optimizer.reject_in_a_row",
  "profile_steps",
  "wandb",
)


def check_or_save(settings: Settings, run: RunDirectory) -> None:
  """Compares the settings with the stored ones, or stores them if none are.

  Args:
    settings: what this run was started with.
    run: the run's directory, made if missing.

  Raises:
    InputError: the directory is that of a run with other settings, or cannot
      be written to.
  """
  if run.config.exists():
    _check_same(settings, run)
  else:
    if run.checkpoints.exists() and run.checkpoints.steps():
      print(
        f"warning: {run.config.path!r} was missing: written again with the"
        " settings of this command, which may be others.",
        file=sys.stderr,
      )
    text = json.dumps(dataclasses.asdict(settings), indent=2, sort_keys=True)
    try:
      run.create()
      run.config.write_text(text + "\n")
    except OSError as error:
      raise write_error("--workdir", run.path, error) from None


def read_settings(run: RunDirectory) -> Settings:
  """Reads the settings that a run was started with.

  Raises:
    InputError: the directory is not that of a run.
  """
  path = run.config.path
  try:
    stored = run.config.read_json()
    if not isinstance(stored, dict):
      raise ValueError("it is no object")
  except FileNotFoundError:
    raise InputError(
      f"{run.path!r} is not a work directory (it has no"
      f" {os.path.basename(path)}): give the --workdir of a training run."
    ) from None
  except (OSError, ValueError, RecursionError) as error:
    raise InputError(
      f"{path!r} is damaged ({one_line(error)}): restore it or choose another"
      " --workdir."
    ) from None
  try:
    return settings_from(flatten(stored))
  except KeyError as error:
    raise InputError(
      f"{path!r} has the setting {error.args[0]!r}, which this version does not"
      " know: use the version that wrote it."
    ) from None
  except TypeError as error:
    raise InputError(
      f"{path!r} has {error} in this version: use the version that wrote it."
    ) from None


def _check_same(settings: Settings, run: RunDirectory) -> None:
  stored, asked = values(read_settings(run)), values(settings)
  free = [
    name
    for name in asked
    if any(name == one or name.startswith(f"{one}.") for one in _FREE)
  ]
  if different := conflicts(stored, asked, free):
    raise InputError(
      f"the run in {run.path!r} has other settings ({different}): choose"
      " another --workdir or give the same settings."
    )
