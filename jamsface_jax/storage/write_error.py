"""What is said when a file system refuses what is to be written."""

from jamsface_jax.errors import DISK_FULL, InputError, RunError


def write_error(flag: str, path: str, error: OSError) -> InputError | RunError:
  """The error to raise for one of the file system.

  Args:
    flag: that the path was given by.
    path: what is written to.
    error: of the file system.

  Returns:
    For a disk without room, which another path need not help, a RunError; for
    all else the user has to give another path.
  """
  text = f"{flag}={path!r} cannot be written to ({error.strerror or error})"
  if error.errno in DISK_FULL:
    return RunError(f"{text}: make room and run the same command again.")
  return InputError(f"{text}: choose another place.")
