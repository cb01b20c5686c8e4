"""Joining several processes into one run."""

import os
from collections.abc import Mapping

import jax

from jamsface_jax.errors import InputError

# Each says, if it is more than one, that a launcher started several processes.
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")


def initialize(
  mode: str,
  *,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
) -> None:
  """Starts `jax.distributed` if it is asked for.

  Args:
    mode: "on", "off", or "auto": if a flag or the environment says that there
      are several processes.
    coordinator: HOST:PORT of process 0; None where the environment tells.
    num_processes: likewise.
    process_id: likewise.

  Raises:
    InputError: the flags do not fit together.
  """
  explicit = (coordinator, num_processes, process_id)
  some = any(value is not None for value in explicit)
  if some and any(value is None for value in explicit):
    raise InputError(
      "--coordinator, --num_processes and --process_id go together: give all"
      " three or none."
    )
  if mode == "off" and some:
    raise InputError(
      "--distributed=off contradicts --coordinator: leave one of them out."
    )
  if mode == "off" or (mode == "auto" and not some and not several(os.environ)):
    return
  jax.distributed.initialize(coordinator, num_processes, process_id)


def several(environment: Mapping[str, str]) -> bool:
  """Whether the environment says that this process is one of several."""
  for name in _COUNTS:
    if environment.get(name, "").isdigit() and int(environment[name]) > 1:
      return True
  hosts = environment.get("TPU_WORKER_HOSTNAMES", "")
  return "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environment
