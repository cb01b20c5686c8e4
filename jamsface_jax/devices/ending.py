"""Ending several processes together, when one of them fails or dies."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from typing import NoReturn, Protocol, runtime_checkable

import jax
from jax._src import distributed as jax_distributed

from jamsface_jax.devices import clusters
from jamsface_jax.devices.notices import Notices
from jamsface_jax.errors import (
  EXIT_BAD_INPUT,
  EXIT_FAILURE,
  EXIT_INTERRUPTED,
  InputError,
  RunError,
  one_line,
)

# Reads a line from its input; if that ends before, says its first argument.
_TELL = 'read -r line && exit 0; printf "%s\\n" "$0" >&2; exit 3'
_TOLD = 3
_LINE_SECONDS = 5.0  # In which process 0 can be reached, if it can.
PROCESS_TIMEOUT = 30.0  # Seconds of silence, where no flag says otherwise.


@contextlib.contextmanager
def ending_together(
  heard: Notices, timeout: float = PROCESS_TIMEOUT
) -> Generator[None]:
  """A context that ends every process of a run when one fails or dies.

  Without it the others would wait in a collective for the one that is gone. A
  process that fails, or is told to go before there is anything to save, tells
  the others why, and they end with its exit code and a sentence that names it.
  Process 0 listens for signs of life: one that gives none is named, and all end
  with exit code 1. The death of process 0 itself the others see by the
  connection that they have to it.

  Args:
    heard: tells of SIGTERM and SIGHUP.
    timeout: seconds of silence after which a process counts as dead; all ends
      come within twice that time.

  Raises:
    InputError: JAX knows of other processes, but nobody has joined them.
  """
  client = jax_distributed.global_state.client
  if client is None:
    if jax.process_count() > 1:  # libtpu tells it of the other hosts.
      raise InputError(
        f"this is process {jax.process_index()} of {jax.process_count()}, but"
        " they have not joined: give --distributed=on."
      )
    yield
    return
  watch = _Watch(client, jax.process_index(), jax.process_count(), timeout)
  heard.leave_by(watch.fail)
  try:
    yield
  except InputError as error:
    watch.fail(f"error: {error}", EXIT_BAD_INPUT)
  except SystemExit:
    raise
  except KeyboardInterrupt:
    watch.fail("interrupted.", EXIT_INTERRUPTED)
  except BaseException as error:
    if _is_of_collective(error):
      # What another process died of, or that it died, is more worth saying.
      print(
        "error: processes of this run have lost touch"
        f" ({one_line(error)}): waiting to learn of whom.",
        file=sys.stderr,
        flush=True,
      )
      time.sleep(timeout + 3 * watch.interval)
    if isinstance(error, RunError):
      watch.fail(f"error: {error}", error.exit_code)
    text = f"error: {type(error).__name__}: {error}"
    watch.fail(text, EXIT_FAILURE, traceback.format_exc())
  else:
    watch.close()


def _is_of_collective(error: BaseException) -> bool:
  """Whether JAX has raised it, or is behind it."""
  cause = error.__cause__ if isinstance(error, RunError) else error
  return isinstance(cause, jax.errors.JaxRuntimeError)


@runtime_checkable
class _Store(Protocol):
  """What is asked of the key-value store, a private class of JAX."""

  def key_value_set(
    self, key: str, value: str, allow_overwrite: bool = False
  ) -> None: ...

  def key_value_try_get(self, key: str) -> str: ...

  def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

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
    self._lines: list[socket.socket] = []
    self._teller: subprocess.Popen[bytes] | None = None
    self._ending = threading.Lock()
    self._closed = threading.Event()
    self._who = f"pid {os.getpid()} on {socket.gethostname()}"
    self._set(f"jamsface/who/{process}", self._who)
    self._set(f"jamsface/beat/{process}", "0")
    self._thread = threading.Thread(target=self._listen, daemon=True)
    self._thread.start()
    self._hold_line()

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
        self._leave(int(code), f"error: {text}")

  def _hold_line(self) -> None:
    """Keeps a connection between process 0 and each other, idle.

    When process 0 dies its system closes them, at once, and the others end.
    JAX sees its death in the same moment, and aborts: so what is to be said of
    it is left to a shell, which needs no turn of Python's and outlives the
    abort. A port that cannot be reached leaves it at JAX's own words.
    """
    address = str(jax_distributed.global_state.coordinator_address)
    with contextlib.suppress(OSError, jax.errors.JaxRuntimeError):
      if self._process == 0:
        host = clusters.own_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        server = socket.create_server((host, 0), family=family)
        self._set("jamsface/line", str(server.getsockname()[1]))
        self._start(self._accept, server)
        return
      port = self._client.blocking_key_value_get("jamsface/line", 60_000)
      who = self._client.blocking_key_value_get("jamsface/who/0", 60_000)
      host = address.rpartition(":")[0].strip("[]")
      name = f"process 0 of {self._processes} ({who})"
      sentence = f"error: {name} has died: start all again."
      place = host, int(port)
      with socket.create_connection(place, _LINE_SECONDS) as line:
        line.setblocking(True)  # As the shell wants it.
        self._teller = subprocess.Popen(
          ["sh", "-c", _TELL, sentence],
          stdin=line.fileno(),
          start_new_session=True,
        )
      self._start(self._wait_for, self._teller)

  def _start(self, work: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=work, args=arguments, daemon=True).start()

  def _accept(self, server: socket.socket) -> None:
    """Holds the ends of process 0."""
    while True:
      self._lines.append(server.accept()[0])

  def _wait_for(self, teller: "subprocess.Popen[bytes]") -> None:
    """Ends this process once it was told of the death of process 0."""
    if teller.wait() == _TOLD and not self._ending.locked():
      os._exit(EXIT_FAILURE)

  def _let_go(self) -> None:
    """Keeps the end of this process from being taken for a death."""
    for line in self._lines:
      with contextlib.suppress(OSError):
        line.sendall(b"\n")
    if self._teller:
      self._teller.kill()

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
        words = text.removeprefix("error: ")
        self._set("jamsface/words", f"{code} {name}: {words}")
    self._leave(code, text, details)

  def _leave(self, code: int, text: str, details: str = "") -> NoReturn:
    """Ends this process, without the goodbyes that wait for the others."""
    if not self._ending.acquire(blocking=False):
      threading.Event().wait()  # Another thread is ending the process.
    with contextlib.suppress(OSError):  # Of a terminal that is gone.
      print(f"{details}{text}", file=sys.stderr, flush=True)
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
    self._let_go()
    os._exit(code)

  def close(self) -> None:
    """Ends the watch, as this process has done its work."""
    self._set(f"jamsface/ended/{self._process}", "0")
    self._closed.set()
    self._thread.join()
    self._let_go()
