"""One run at a time in a place of a bucket.

A bucket has no locks that end with a process. What it has is preconditions: an
object is written only if nobody has written it before, or since. So the holder
writes the object `lock` anew every ten seconds, each time on the condition that
the version there is its own last one. Whoever finds a lock watches it: one that
changes is held; one that has not changed for a minute is of a process that is
gone, and is taken, on the condition that it is still that version. No clocks of
two machines are compared. A holder that could not renew its lock for forty
seconds ends itself, before anyone may take it.

A process that finds the lock of one of its own machine need not wait: the
kernel knows whether that one lives.
"""

import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from jamsface_jax.errors import EXIT_FAILURE, InputError, RunError, one_line
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.bucket import Bucket, ChangedError
from jamsface_jax.storage.plain_file import plain

HELD_SECONDS = 60.0  # So long a lock outlives a process that was killed.
_BEATS = 6  # Renewals in that time.
LOCK = "lock"
_BOOT = "/proc/sys/kernel/random/boot_id"


def end_process(text: str) -> NoReturn:
  """Ends this process at once: what it wrote from now on would do harm."""
  print(f"error: {text}", file=sys.stderr, flush=True)
  os._exit(EXIT_FAILURE)


def find_holder(place: Bucket) -> str | None:
  """Whom the lock of a place names, in words; None if there is none."""
  found = place.read_version(LOCK)
  return _name(_read(found[0])) if found else None


class Lease:
  """The lock of a place; taken when it has been made.

  Args:
    place: what is locked.
    seconds: after so many without renewal it may be taken over.
    on_loss: called, by another thread, with a sentence when it is lost.
    flag: that the place was given by, for messages.

  Raises:
    InputError: another process holds it, or the place cannot be written to.
  """

  def __init__(
    self,
    place: Bucket,
    seconds: float = HELD_SECONDS,
    on_loss: Callable[[str], None] = end_process,
    flag: str = "--workdir",
  ):
    self._flag = flag
    self._on_loss = on_loss
    self._place = place
    self._seconds = seconds
    self._pause = seconds / _BEATS
    self._me = _identity()
    self._beat = 0
    self._closed = threading.Event()
    self._generation = self._take()
    self._renewed = time.monotonic()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Sees that nobody else can have taken it.

    Raises:
      RunError: it could not be renewed for too long.
    """
    silent = time.monotonic() - self._renewed
    if silent > self._seconds * 2 / 3:
      raise self._lost(f"was not renewed for {silent:.0f} s")

  def close(self) -> None:
    """Gives it back: the next process need not wait."""
    self._closed.set()
    self._thread.join()
    self._place.delete_version(LOCK, self._generation)

  def _write(self, replaces: int, patience: float) -> int:
    self._beat += 1
    text = json.dumps(self._me | {"beat": self._beat}, indent=1)
    return self._place.write(
      LOCK, text.encode(), replaces=replaces, patience=patience
    )

  def _take(self) -> int:
    """Returns the generation of the lock, now this process's."""
    replaces = 0
    while True:
      try:
        return self._write(replaces, self._seconds / 2)
      except ChangedError:
        pass
      found = self._place.read_version(LOCK)
      if found is None:  # Given back in the meantime.
        replaces = 0
        continue
      holder, generation = _read(found[0]), found[1]
      if holder.get("token") == self._me["token"]:
        return generation  # Written, and the answer was lost on its way.
      replaces = self._wait(holder, generation)

  def _wait(self, holder: dict[str, Any], generation: int) -> int:
    """Waits until a lock can be of nobody; returns the generation to replace.

    Raises:
      InputError: its holder lives.
    """
    lives = _lives(holder)
    if lives is False:
      return generation
    if lives:
      raise self._in_use(holder)
    print(
      f"{self._place.address!r} was locked by {_name(holder)}: waiting up to"
      f" {self._seconds:g} s for a sign of life.",
      file=sys.stderr,
      flush=True,
    )
    since = time.monotonic()
    while time.monotonic() - since < self._seconds:
      time.sleep(self._pause / 4)
      found = self._place.read_version(LOCK)
      if found is None:
        return 0
      if found[1] != generation:
        raise self._in_use(_read(found[0]))
    return generation

  def _in_use(self, holder: dict[str, Any]) -> InputError:
    return InputError(
      f"{self._flag}={self._place.address!r} is in use by {_name(holder)}: stop"
      " that command or choose another address."
    )

  def _renew(self) -> None:
    """Writes the lock again and again, until it is given back."""
    while not self._closed.wait(self._pause):
      begin = time.monotonic()
      try:
        self._generation = self._write(self._generation, self._pause / 2)
        self._renewed = begin
      except ChangedError:
        self._look()
      except (OSError, InputError) as error:
        if begin - self._renewed > self._seconds * 2 / 3 - self._pause:
          self._lose(f"could not be renewed ({one_line(error)})")

  def _look(self) -> None:
    """Finds out who wrote the lock: another, or this process unheard."""
    try:
      found = self._place.read_version(LOCK)
    except (OSError, InputError):
      return  # The next renewal will tell.
    holder = _read(found[0]) if found else {}
    if found and holder.get("token") == self._me["token"]:
      self._generation, self._renewed = found[1], time.monotonic()
    else:
      self._lose(f"was taken by {_name(holder)}" if found else "was removed")

  def _lost(self, why: str) -> RunError:
    return RunError(
      f"the lock of {self._place.address!r} {why}: run the same command again"
      " if no other run is there."
    )

  def _lose(self, why: str) -> None:
    self._closed.set()
    self._on_loss(str(self._lost(why)))


def _identity() -> dict[str, Any]:
  """Who this process is, in words and so that its machine can tell."""
  return {
    "host": socket.gethostname(),
    "pid": os.getpid(),
    "token": secrets.token_hex(8),
    "machine": _machine(),
    "started": _start_of(os.getpid()),
  }


def _name(holder: dict[str, Any]) -> str:
  return f"process {holder.get('pid', '?')} on host {holder.get('host', '?')}"


def _read(data: bytes) -> dict[str, Any]:
  """What a lock says; nothing of one that is not such a lock."""
  try:
    holder = plain_json.parse(data)
  except ValueError:
    return {}
  return holder if isinstance(holder, dict) else {}


def _machine() -> str | None:
  """Names the kernel since its start, and whose processes are seen."""
  try:
    with open(_BOOT, encoding="ascii", opener=plain) as file:
      return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return None


def _start_of(pid: int) -> str | None:
  """When a process began, by the kernel's clock; None if there is no such."""
  stat = f"/proc/{pid}/stat"
  try:
    with open(stat, encoding="latin-1", opener=plain) as file:
      state = file.read().rpartition(")")[2].split()
  except OSError:
    return None
  return None if state[0] in "ZX" else state[19]


def _lives(holder: dict[str, Any]) -> bool | None:
  """Whether the holder lives; None if it is not of this machine."""
  machine, pid = _machine(), holder.get("pid")
  if machine is None or holder.get("machine") != machine:
    return None
  return isinstance(pid, int) and _start_of(pid) == holder.get("started")
