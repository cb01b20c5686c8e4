"""One writer at a time: of a work directory, of an output, of a file."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Generator

from jamsface_jax.errors import InputError
from jamsface_jax.storage.durable import make_directory
from jamsface_jax.storage.paths import require_local
from jamsface_jax.storage.photo_folder import refuse_photographs
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.whole_file import remove_left
from jamsface_jax.storage.write_error import write_error

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def hold(directory: str, flag: str) -> Generator[None, None, None]:
  """Holds a directory for this process alone, to write into it.

  The lock is `flock` on a file in it: the kernel lets go of it when the process
  ends, however it ends, so that no stale lock ever blocks. On NFS, Linux
  (from 2.6.12) turns it into a lock that other hosts see. File systems that
  lock per host (Lustre with localflock, most FUSE mounts of object stores) keep
  out processes of the same host only, and those without locks nobody, which is
  said in a warning.

  Whoever holds it has also seen, before any work, that it can be written to.

  Args:
    directory: made if missing, and taken away again if nothing came into it.
    flag: that it was given by, for messages.

  Raises:
    InputError: another process holds it, it cannot be written to, it has
      somebody's photographs, or is the address of an object store.
    RunError: the disk is full.
  """
  require_local(directory, flag)
  refuse_photographs(directory, flag)
  is_new = not os.path.lexists(directory)
  try:
    make_directory(directory)
    remove_left(directory)
  except OSError as error:
    raise write_error(flag, directory, error) from None
  try:
    with _held(directory, os.path.join(directory, LOCK_FILE), flag):
      yield
  finally:
    if is_new:
      with contextlib.suppress(OSError):  # It is not empty.
        os.rmdir(directory)


@contextlib.contextmanager
def hold_file(path: str, flag: str) -> Generator[None, None, None]:
  """The same for a single file that will be written, with a lock beside it.

  Args:
    path: the file, which need not be there; its directory is.
    flag: that it was given by, for messages.

  Raises:
    InputError: another process writes it, or it cannot be written.
    RunError: the disk is full.
  """
  require_local(path, flag)
  if os.path.isdir(path):
    error = OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise write_error(flag, path, error)
  with _held(path, f"{path}.{LOCK_FILE}", flag):
    yield


@contextlib.contextmanager
def _held(place: str, lock_file: str, flag: str) -> Generator[None, None, None]:
  try:
    handle = _lock(place, lock_file)
  except BlockingIOError:
    raise InputError(
      f"{flag}={place!r} is in use by {_holder(lock_file)}: wait for its end,"
      " stop it, or choose another place."
    ) from None
  except OSError as error:
    raise write_error(flag, place, error) from None
  try:
    yield
  finally:
    # Removed while it is held; who waits with the old file looks for a new one.
    with contextlib.suppress(OSError):
      os.remove(lock_file)
    os.close(handle)


def _lock(place: str, lock_file: str) -> int:
  """Opens and locks the file; its text says who has.

  Raises:
    BlockingIOError: another process has.
    OSError: it cannot be written to.
  """
  while True:
    handle = plain(lock_file, os.O_RDWR | os.O_CREAT)
    try:
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        if error.errno not in _NO_LOCKS:
          raise
        print(
          f"warning: the file system of {place!r} has no locks"
          f" ({error.strerror}): start no second writer there.",
          file=sys.stderr,
        )
      if _is_still_there(handle, lock_file):
        text = f"process {os.getpid()} on host {socket.gethostname()}\n"
        os.truncate(handle, 0)
        os.write(handle, text.encode())
        return handle
    except BaseException:
      os.close(handle)
      raise
    os.close(handle)  # The one before had finished and taken it away.


def _is_still_there(handle: int, path: str) -> bool:
  """Whether an open file still has its name."""
  try:
    return os.path.samestat(os.fstat(handle), os.lstat(path))
  except FileNotFoundError:
    return False


def _holder(lock_file: str) -> str:
  """Who holds a lock, in words."""
  with contextlib.suppress(OSError):
    with open(
      lock_file, encoding="utf-8", errors="replace", opener=plain
    ) as file:
      if text := file.read(200).strip():
        return text
  return "another process"
