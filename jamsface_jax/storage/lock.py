"""One run at a time in a work directory."""

import contextlib
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Generator

from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.whole_file import remove_left

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextlib.contextmanager
def hold(workdir: str, lock_file: str) -> Generator[None, None, None]:
  """Holds the work directory, made if missing, for this process alone.

  The lock is `flock` on a file: the kernel lets go of it when the process
  ends, however it ends, so that no stale lock ever blocks. On NFS, Linux
  (from 2.6.12) turns it into a lock that other hosts see. File systems that
  lock per host (Lustre with localflock, most FUSE mounts of object stores) keep
  out processes of the same host only, and those without locks nobody, which is
  said in a warning.

  Args:
    workdir: the work directory, for messages; made if missing.
    lock_file: path of the file in it; its text says who holds it.

  Raises:
    InputError: another process holds it, or it cannot be written to.
  """
  try:
    os.makedirs(workdir, exist_ok=True)
    file = open(lock_file, "a+", encoding="utf-8", opener=plain)
    remove_left(workdir)
  except OSError as error:
    raise InputError(
      f"--workdir={workdir!r} cannot be written to ({error.strerror}): choose"
      " another directory."
    ) from None
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      raise InputError(
        f"--workdir={workdir!r} is in use by {file.read().strip()}: stop that"
        " run or choose another directory."
      ) from None
    except OSError as error:
      if error.errno not in _NO_LOCKS:
        raise
      print(
        f"warning: the file system of {workdir!r} has no locks"
        f" ({error.strerror}): start no second run there.",
        file=sys.stderr,
      )
    file.truncate(0)
    file.write(f"process {os.getpid()} on host {socket.gethostname()}\n")
    file.flush()
    yield
