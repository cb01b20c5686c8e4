"""Joining several processes into one run."""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import sys
import threading
from collections.abc import Generator, Mapping

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from jamsface_jax.devices import clusters, notices
from jamsface_jax.devices.ending import PROCESS_TIMEOUT, ending_together
from jamsface_jax.errors import InputError, RunError, one_line

# What the service that processes meet at says of one that does not come.
_ABSENT = ("DEADLINE_EXCEEDED", "UNAVAILABLE")
_EXCHANGE_MS = 3_600_000
_exchanges: collections.Counter[str] = collections.Counter()
_exchanging = threading.Lock()

_FLAGS = "--coordinator, --num_processes and --process_id"


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that `joined` reads."""
  add = parser.add_argument
  add(
    "--distributed",
    choices=("auto", "on", "off"),
    default="auto",
    help="join several processes; auto: if the cluster says that there are",
  )
  add("--coordinator", help="HOST:PORT of process 0, if nothing else says it")
  add("--num_processes", type=int, help="how many")
  add("--process_id", type=int, help="which one this is")
  add(
    "--process_timeout",
    type=float,
    default=PROCESS_TIMEOUT,
    help="seconds of silence after which a process counts as dead and all end",
  )


@contextlib.contextmanager
def joined(arguments: argparse.Namespace) -> Generator[None]:
  """A context in which this process is one of those that the flags speak of.

  Raises:
    InputError: see `initialize`.
  """
  with notices.listening() as heard:
    initialize(
      arguments.distributed,
      coordinator=arguments.coordinator,
      num_processes=arguments.num_processes,
      process_id=arguments.process_id,
      timeout=arguments.process_timeout,
    )
    with ending_together(heard, arguments.process_timeout):
      yield


def check_same(facts: Mapping[str, object], flags: str) -> None:
  """Refuses processes that were not given the same command.

  Args:
    facts: what must agree, as values of JSON.
    flags: names of the flags that may be to blame.

  Raises:
    InputError: they do not agree.
  """
  if jax.process_count() == 1:
    return
  digest = hashlib.sha256(json.dumps(facts).encode()).digest()
  digests = multihost_utils.process_allgather(np.frombuffer(digest, np.uint8))
  if np.any(digests != digests[0]):
    raise InputError(
      f"{flags} or another flag is not the same for all processes: give all the"
      " same command and shared storage."
    )


def exchange(name: str, text: str) -> list[str]:
  """Gives a text to all processes of the run and gets theirs.

  It goes by way of the key-value store of process 0, not by the devices: any
  thread may call it while steps are computed.

  Args:
    name: what it is about, the same in all processes; the times that it was
      used are counted, and must be the same too.
    text: that of this process, at most a few MiB.

  Returns:
    The texts by process.

  Raises:
    RunError: a process did not say its own for an hour.
  """
  client = jax_distributed.global_state.client
  if client is None:
    return [text]
  with _exchanging:
    _exchanges[name] += 1
    key = f"jamsface/exchange/{name}/{_exchanges[name]}"
  try:
    client.key_value_set(f"{key}/{jax.process_index()}", text)
    return [
      client.blocking_key_value_get(f"{key}/{process}", _EXCHANGE_MS)
      for process in range(jax.process_count())
    ]
  except jax.errors.JaxRuntimeError as error:
    raise RunError(
      f"processes of this run have lost touch ({one_line(error)}): start all"
      " again."
    ) from error


def refuse_several(command: str) -> None:
  """Refuses a command that a launcher has started several times.

  Args:
    command: name of the command.

  Raises:
    InputError: the launcher says so.
  """
  if found := clusters.started_together(os.environ):
    raise InputError(
      f"{command} is the work of one process, but several were started"
      f" together ({found}): start it once, without srun or with --ntasks=1."
    )


def initialize(
  mode: str,
  *,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float = PROCESS_TIMEOUT,
) -> None:
  """Joins the processes of a run, if there are several.

  Args:
    mode: "on", "off", or "auto": if a flag or the cluster says that there are
      several processes.
    coordinator: HOST:PORT of process 0; None where the cluster tells.
    num_processes: number of processes; None where the cluster tells.
    process_id: number of this process, from 0; None where the cluster tells.
    timeout: seconds after which a silent process counts as dead.

  Raises:
    InputError: the flags do not fit together, or nothing says who belongs to
      the run although there are several processes.
    RunError: not all processes came.
  """
  explicit = (coordinator, num_processes, process_id)
  some = any(value is not None for value in explicit)
  if some and any(value is None for value in explicit):
    raise InputError(f"{_FLAGS} go together: give all three or none.")
  if mode == "off" and some:
    raise InputError(
      "--distributed=off contradicts --coordinator: leave one of them out."
    )
  if mode == "off":
    return
  if coordinator is None or num_processes is None or process_id is None:
    processes = _count_processes(must=mode == "on")
    if processes == 1:
      return
    try:
      place = clusters.find_place(processes)
    except Exception as error:  # Of any client: HTTP, Kubernetes, parsing.
      raise _not_together(error) from None
    _join(place, processes, timeout, detect_devices=False)
  else:
    place = clusters.Place(coordinator, process_id, None)
    _join(place, num_processes, timeout, detect_devices=True)


def _count_processes(*, must: bool) -> int:
  """Asks the cluster how many processes this run has.

  Args:
    must: whether it is an error that nothing says so.

  Raises:
    InputError: there are several, and JAX cannot tell who they are.
  """
  cluster = clusters.find()
  together = clusters.belongs_together(os.environ)
  if cluster and cluster.processes and (cluster.processes > 1 or not together):
    return cluster.processes
  trouble = f" ({cluster.name}: {cluster.trouble})" if cluster else ""
  if together:
    raise InputError(
      f"{together} says that several processes belong together, but JAX cannot"
      f" tell who they are{trouble}: give {_FLAGS}, or --distributed=off if"
      " each is to be a run of its own."
    )
  if must:
    raise InputError(
      "--distributed=on, but nothing says which processes belong together"
      f"{trouble}: give {_FLAGS}, or --distributed=off for one process."
    )
  if cluster:
    print(
      f"warning: one process alone, since its cluster does not answer{trouble}:"
      " --distributed=on insists, --distributed=off does not ask.",
      file=sys.stderr,
    )
  return 1


def _join(
  place: clusters.Place, processes: int, timeout: float, *, detect_devices: bool
) -> None:
  """Starts `jax.distributed`.

  Args:
    place: where this process stands.
    processes: how many there are.
    timeout: seconds after which a silent process counts as dead.
    detect_devices: whether JAX is to ask the cluster which devices are this
      process's.
  """
  # Told of SIGTERM by `training.preemption`, once there is something to save.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    jax.distributed.initialize(
      place.coordinator,
      processes,
      place.process,
      place.devices,
      cluster_detection_method=None if detect_devices else "deactivate",
      # Second to `ending_together`, which says more.
      heartbeat_timeout_seconds=int(2 * timeout) + 1,
      initialization_timeout=clusters.JOIN_TIMEOUT,
      coordinator_bind_address=_bind_address(place.coordinator),
    )
  except (ValueError, RuntimeError, OSError) as error:
    raise _not_together(error) from None


def _bind_address(coordinator: str) -> str | None:
  """Where process 0 is to listen, None where JAX decides."""
  if "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
    return None  # JAX reads it.
  return coordinator if clusters.own_address(coordinator) else None


def _not_together(error: Exception) -> InputError | RunError:
  """What to say of processes that did not come together."""
  text = one_line(error)
  if any(word in text for word in _ABSENT):
    return RunError(
      f"not all processes of this run came together ({text}): see what the"
      " others say, and start all again."
    )
  return InputError(
    f"the processes of this run did not come together ({text}): give {_FLAGS},"
    " or --distributed=off."
  )
