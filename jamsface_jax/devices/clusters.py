"""Which cluster this process is in: what JAX's own detection says of it.

JAX knows how the workers of a TPU slice, the pods of GKE and of other
Kubernetes, the tasks of Slurm and those of Open MPI find each other; its list
of them is in private modules. Nothing here waits where there is nothing to ask:
a metadata server is asked on machines with a TPU alone, Kubernetes in the pods
of indexed jobs alone.
"""

import ipaddress
import os
import socket
import warnings
from collections.abc import Mapping
from typing import NamedTuple

from jax._src.clusters import ClusterEnv, K8sCluster, SlurmCluster

from jamsface_jax.errors import one_line

JOIN_TIMEOUT = 300  # Seconds; JAX's own, which its detection must be told.

# Each says, if it is more than one, that a launcher started several processes:
# Open MPI; MPICH, Intel MPI and Cray; MVAPICH; Flux; jsrun; torchrun; and what
# people give to JAX, which reads it not.
_COUNTS = (
  "OMPI_COMM_WORLD_SIZE",
  "PMI_SIZE",
  "MV2_COMM_WORLD_SIZE",
  "FLUX_JOB_SIZE",
  "JSM_NAMESPACE_SIZE",
  "WORLD_SIZE",
  "JAX_NUM_PROCESSES",
)
# Of Slurm, the step first: in an interactive step of one task the other is that
# of the allocation.
_SLURM_COUNTS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS")
# Lists of hosts, more than one on a TPU slice of several.
_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")
_POD_INDEX = "JOB_COMPLETION_INDEX"


class Cluster(NamedTuple):
  """A cluster that this process is in.

  Attributes:
    name: what it is.
    processes: how many processes belong together; None: it did not say.
    trouble: why it did not say, "" if it did.
  """

  name: str
  processes: int | None
  trouble: str = ""


class Place(NamedTuple):
  """Where a process stands among those of its run.

  Attributes:
    coordinator: HOST:PORT of process 0.
    process: number of this process.
    devices: local devices that are this process's; None: all.
  """

  coordinator: str
  process: int
  devices: list[int] | None


def find() -> Cluster | None:
  """The first cluster of JAX's list that says that this process is in it.

  None where none does, as on a machine by itself.
  """
  for kind in ClusterEnv._cluster_types:
    if kind.opt_in_only_method:
      continue  # Only if JAX is asked for it by name.
    name = kind.name or "Kubernetes"
    if kind is K8sCluster and _POD_INDEX not in os.environ:
      continue  # A pod by itself, which may be forbidden to ask.
    try:
      with warnings.catch_warnings():
        # That a client of Kubernetes is not installed is said in our words; of
        # what else JAX's modules are warned is not the user's to mend.
        warnings.simplefilter("ignore")
        if not kind.is_env_present():
          continue
        if kind is SlurmCluster and not _slurm_tasks(os.environ):
          return Cluster(name, 1)
        return Cluster(name, kind.get_process_count())
    except Exception as error:  # Of any client: HTTP, Kubernetes, parsing.
      return Cluster(name, None, f"{type(error).__name__}: {one_line(error)}")
  if _POD_INDEX in os.environ:
    return Cluster("Kubernetes", None, "pip install 'jax[k8s]' to ask it")
  return None


def find_place(processes: int) -> Place:
  """Asks the cluster where this process stands.

  Args:
    processes: how many there are, as `find` said.

  Raises:
    RuntimeError: the cluster does not say.
  """
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # As in `find`.
    coordinator, _, process, devices = (
      ClusterEnv.auto_detect_unset_distributed_params(
        os.environ.get("JAX_COORDINATOR_ADDRESS"),
        processes,
        None,
        None,
        None,
        JOIN_TIMEOUT,
      )
    )
  if coordinator is None or process is None:
    raise RuntimeError("the cluster does not say who is process 0")
  if "JAX_LOCAL_DEVICE_IDS" in os.environ:
    devices = None  # JAX reads it.
  return Place(coordinator, process, None if devices is None else [*devices])


def own_address(coordinator: str) -> str:
  """The address of the coordinator, if it is one of this machine's.

  So process 0 listens there, and not to every network that it is in. "" where
  it is a name, which other machines may understand in another way (Debian calls
  itself 127.0.1.1), or where addresses are translated on the way: there it must
  listen everywhere.

  Args:
    coordinator: HOST:PORT, as all processes have it.
  """
  host = coordinator.rpartition(":")[0].strip("[]")
  if host == "localhost":
    return host
  try:
    is_v6 = ipaddress.ip_address(host).version == 6
    with socket.socket(socket.AF_INET6 if is_v6 else socket.AF_INET) as trial:
      trial.bind((host, 0))
  except (ValueError, OSError):
    return ""
  return host


def started_together(environment: Mapping[str, str]) -> str:
  """The variable by which a launcher says that it started several processes.

  "" if none does. JAX may know the launcher or not.

  Args:
    environment: variables by name, as `os.environ` has them.
  """
  for name in _COUNTS:
    if _number(environment, name) > 1:
      return f"{name}={environment[name]}"
  if tasks := _slurm_tasks(environment):
    return tasks
  if _number(environment, _POD_INDEX) > 0:
    return f"{_POD_INDEX}={environment[_POD_INDEX]}"
  return ""


def belongs_together(environment: Mapping[str, str]) -> str:
  """As `started_together`, or a list of the hosts of a TPU slice."""
  if found := started_together(environment):
    return found
  for name in _HOSTS:
    if "," in environment.get(name, ""):
      return name
  if _number(environment, "MEGASCALE_NUM_SLICES") > 1:
    return "MEGASCALE_NUM_SLICES"
  return ""


def _slurm_tasks(environment: Mapping[str, str]) -> str:
  """The variable by which srun says that it started several tasks, or ""."""
  if "SLURM_STEP_NODELIST" not in environment:
    return ""  # The script of a job, not one of the tasks that srun starts.
  for name in _SLURM_COUNTS:
    if count := _number(environment, name):
      return f"{name}={count}" if count > 1 else ""
  return ""


def _number(environment: Mapping[str, str], name: str) -> int:
  """The number that a variable holds, 0 if it holds none."""
  text = environment.get(name, "")
  return int(text) if text.isdigit() else 0
