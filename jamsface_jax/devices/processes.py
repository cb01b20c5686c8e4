"""Joining several processes into one run, and ending them together."""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Generator, Mapping
from typing import NoReturn, Protocol, runtime_checkable

import jax
import numpy as np
from jax._src import distributed as jax_distributed
from jax.experimental import multihost_utils

from jamsface_jax.errors import (
  EXIT_BAD_INPUT,
  EXIT_FAILURE,
  InputError,
  RunError,
  one_line,
)

PROCESS_TIMEOUT = 30.0  # Seconds of silence, where no flag says otherwise.

_EXCHANGE_MS = 3_600_000
_exchanges: collections.Counter[str] = collections.Counter()
_exchanging = threading.Lock()

# Each says, if it is more than one, that a launcher started several processes.
_COUNTS = ("OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")
# Lists of hosts, more than one on a TPU slice of several.
_HOSTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds the flags that `joined` reads."""
  add = parser.add_argument
  add(
    "--distributed",
    choices=("auto", "on", "off"),
    default="auto",
    help="join several processes; auto: if the environment says so",
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
  initialize(
    arguments.distributed,
    coordinator=arguments.coordinator,
    num_processes=arguments.num_processes,
    process_id=arguments.process_id,
    timeout=arguments.process_timeout,
  )
  with ending_together(arguments.process_timeout):
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
    InputError: Slurm or Open MPI says so.
  """
  if _started_together(os.environ):
    raise InputError(
      f"{command} is the work of one process, but several were started"
      " together: start it once, without srun or with --ntasks=1."
    )


def initialize(
  mode: str,
  *,
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout: float = PROCESS_TIMEOUT,
) -> None:
  """Starts `jax.distributed` if it is asked for.

  Args:
    mode: "on", "off", or "auto": if a flag or the environment says that there
      are several processes.
    coordinator: HOST:PORT of process 0; None where the environment tells.
    num_processes: number of processes; None where the environment tells.
    process_id: number of this process, from 0; None where the environment
      tells.
    timeout: seconds after which a silent process counts as dead.

  Raises:
    InputError: the flags do not fit together, or the environment does not say
      who belongs to the run.
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
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      coordinator_bind_address=_bind_address(coordinator),
      # Second to `ending_together`, which says more.
      heartbeat_timeout_seconds=int(2 * timeout) + 1,
    )
  except (ValueError, RuntimeError) as error:
    raise InputError(
      f"the processes of this run did not come together ({error}): give"
      " --coordinator, --num_processes and --process_id, or --distributed=off."
    ) from None


def _bind_address(coordinator: str | None) -> str | None:
  """Where process 0 listens: at home alone, if all processes are there.

  Else on all interfaces, as JAX does (None): the address by which others find
  process 0 need not be one of its own.
  """
  host = (coordinator or "").rpartition(":")[0].strip("[]")
  at_home = host in ("localhost", "::1") or host.startswith("127.")
  return coordinator if at_home else None


def several(environment: Mapping[str, str]) -> bool:
  """Whether the environment says that this process is one of several.

  Args:
    environment: variables by name, as `os.environ` has them.
  """
  if _started_together(environment):
    return True
  if any("," in environment.get(name, "") for name in _HOSTS):
    return True
  return "MEGASCALE_COORDINATOR_ADDRESS" in environment


def _started_together(environment: Mapping[str, str]) -> bool:
  """Whether a launcher has started several tasks, this one among them."""
  for name in _COUNTS:
    if name == "SLURM_NTASKS" and "SLURM_STEP_NODELIST" not in environment:
      continue  # The script of a job, not one of the tasks that srun starts.
    if environment.get(name, "").isdigit() and int(environment[name]) > 1:
      return True
  return False


@contextlib.contextmanager
def ending_together(timeout: float = PROCESS_TIMEOUT) -> Generator[None]:
  """A context that ends every process of a run when one fails or dies.

  Without it the others would wait in a collective for the one that is gone. A
  process that fails tells the others why, and they end with its exit code and
  a sentence that names it. Process 0 listens for signs of life: one that gives
  none is named, and all end with exit code 1. When process 0 itself dies, JAX
  aborts the others at once, naming the 'leader task'.

  Args:
    timeout: seconds of silence after which a process counts as dead; all ends
      come within twice that time.
  """
  client = jax_distributed.global_state.client
  if client is None:
    yield
    return
  watch = _Watch(client, jax.process_index(), jax.process_count(), timeout)
  try:
    yield
  except InputError as error:
    watch.fail(str(error), EXIT_BAD_INPUT)
  except SystemExit:
    raise
  except BaseException as error:
    of_collective = isinstance(
      error if not isinstance(error, RunError) else error.__cause__,
      jax.errors.JaxRuntimeError,
    )
    if of_collective:
      # What another process died of, or that it died, is more worth saying.
      print(
        "error: processes of this run have lost touch"
        f" ({one_line(error)}): waiting to learn of whom.",
        file=sys.stderr,
        flush=True,
      )
      time.sleep(timeout + 3 * watch.interval)
    if isinstance(error, RunError):
      watch.fail(str(error), EXIT_FAILURE)
    text = f"{type(error).__name__}: {error}"
    watch.fail(text, EXIT_FAILURE, traceback.format_exc())
  else:
    watch.close()


@runtime_checkable
class _Store(Protocol):
  """What is asked of the key-value store, a private class of JAX."""

  def key_value_set(
    self, key: str, value: str, allow_overwrite: bool = False
  ) -> None: ...

  def key_value_try_get(self, key: str) -> str: ...

  def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class _Watch:
  """Signs of life and last words, in the key-value store of process 0.

  JAX has that store for itself, and for Orbax: its module is a private one.

  Args:
    client: the store.
    process: number of this process.
    processes: number of processes of the run.
    timeout: seconds of silence after which a process counts as dead.

  Attributes:
    interval: seconds between signs of life.
  """

  def __init__(
    self, client: _Store, process: int, processes: int, timeout: float
  ) -> None:
    self._client = client
    self._process = process
    self._processes = processes
    self._timeout = timeout
    self.interval = min(timeout / 10, 3.0)
    self._beats: dict[str, tuple[str, float]] = {}
    self._silent = 0
    self._ending = threading.Lock()
    self._closed = threading.Event()
    self._who = f"pid {os.getpid()} on {socket.gethostname()}"
    self._set(f"jamsface/who/{process}", self._who)
    self._set(f"jamsface/beat/{process}", "0")
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()

  def _set(self, key: str, value: str) -> None:
    self._client.key_value_set(key, value, allow_overwrite=True)

  def _get(self, key: str) -> str | None:
    try:
      return self._client.key_value_try_get(key)
    except jax.errors.JaxRuntimeError as error:
      if "NOT_FOUND" in str(error):
        return None
      raise

  def _listen(self) -> None:
    """Gives signs of life and reads those of others, until all is done."""
    beat = 0
    while not self._closed.wait(self.interval):
      beat += 1
      try:
        self._set(f"jamsface/beat/{self._process}", str(beat))
        words = self._get("jamsface/words")
        if words is None and self._process == 0:
          words = self._find_silent()
      except jax.errors.JaxRuntimeError as error:
        words = f"{EXIT_FAILURE} process 0 cannot be reached ({error})"
      if words:
        code, _, text = words.partition(" ")
        self._leave(int(code), text)

  def _find_silent(self) -> str | None:
    """Last words on a process that gives no sign of life; None if all do."""
    now = time.monotonic()
    ended = {
      key.rpartition("/")[2]
      for key, _ in self._client.key_value_dir_get("jamsface/ended/")
    }
    for key, beat in self._client.key_value_dir_get("jamsface/beat/"):
      process = key.rpartition("/")[2]
      last, since = self._beats.get(process, (None, now))
      if beat != last:
        since = now
      self._beats[process] = beat, since
      if now - since > self._timeout and process not in ended:
        words = (
          f"{EXIT_FAILURE} process {process} of {self._processes}"
          f" ({self._get(f'jamsface/who/{process}')}) was silent for"
          f" {self._timeout:g} s and counts as dead: start all again."
        )
        self._set("jamsface/words", words)
        self._silent += 1
        return words
    return None

  def fail(self, text: str, code: int, details: str = "") -> NoReturn:
    """Tells the others of this process's failure, and ends it.

    Args:
      text: a sentence that says why.
      code: exit code of all.
      details: what this process alone prints before it, such as a traceback.
    """
    name = f"process {self._process} of {self._processes} ({self._who})"
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      if self._get("jamsface/words") is None:
        self._set("jamsface/words", f"{code} {name}: {text}")
    self._leave(code, text, details)

  def _leave(self, code: int, text: str, details: str = "") -> NoReturn:
    """Ends this process, without the goodbyes that wait for the others."""
    if not self._ending.acquire(blocking=False):
      threading.Event().wait()  # Another thread is ending the process.
    print(f"{details}error: {text}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    with contextlib.suppress(jax.errors.JaxRuntimeError):
      self._set(f"jamsface/ended/{self._process}", str(code))
      # The words are in this process: it is the last to go.
      limit = time.monotonic() + 3 * self.interval + 2
      while self._process == 0 and time.monotonic() < limit:
        ended = self._client.key_value_dir_get("jamsface/ended/")
        if len(ended) + self._silent == self._processes:
          break
        time.sleep(self.interval / 4)
    os._exit(code)

  def close(self) -> None:
    """Ends the watch, as this process has done its work."""
    self._set(f"jamsface/ended/{self._process}", "0")
    self._closed.set()
    self._thread.join()
