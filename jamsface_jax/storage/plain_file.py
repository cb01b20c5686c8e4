"""Opening files in directories that may be a stranger's.

A work directory, an output or a data set may come out of an archive, with
symbolic links, pipes and devices under the names that are read and written
here. A link is never followed to write, since what it points to is not of that
directory; a pipe or a device is never opened, since that may take for ever.
Paths that the user names may be links: only what lies below them is looked at.
"""

import errno
import os
import secrets
import stat

from jamsface_jax.errors import InputError
from jamsface_jax.storage.durable import make_directory, sync_directory


class NotPlainError(InputError, OSError):
  """Something else than a plain file or a folder lies in its place.

  An OSError too, whose `strerror` fits into the sentence of who knows more.
  """

  def __init__(self, path: str | os.PathLike[str], what: str):
    self._sentence = f"{os.fspath(path)!r} is {what}: remove it."
    super().__init__(errno.EINVAL, f"it is {what}", os.fspath(path))

  def __str__(self) -> str:
    """Returns the whole sentence."""
    return self._sentence


def plain(path: str, flags: int) -> int:
  """Opens a plain file: `open(path, mode, opener=plain)`.

  Args:
    path: the file; its folder is trusted, see `make_folder`. For files that are
      written at once there is `whole_file.written_whole`.
    flags: of `os.open`.

  Returns:
    A file descriptor.

  Raises:
    NotPlainError: it is a pipe or a device or, to be written, a link.
    OSError: the file system refuses.
  """
  if flags & os.O_ACCMODE != os.O_RDONLY:
    flags |= os.O_NOFOLLOW
  try:
    # A pipe without another end would be waited for.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
  except OSError as error:
    if error.errno in (errno.ELOOP, errno.EMLINK) and os.path.islink(path):
      raise NotPlainError(path, _LINK) from None
    if error.errno == errno.ENXIO:
      raise NotPlainError(path, _NO_FILE) from None
    raise
  kind = os.fstat(descriptor).st_mode
  # Of folders `open` says itself that they are none.
  if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
    return descriptor
  os.close(descriptor)
  raise NotPlainError(path, _NO_FILE)


_LINK = "a symbolic link, which is not followed to write"
_NO_FILE = "a pipe or a device, and no file"


def make_folder(path: str, *, within: str | None = None) -> None:
  """Makes a folder that is not there yet, without following links.

  Its name survives a loss of power.

  Args:
    path: the folder.
    within: trusted, and made too; the folders between are made and looked at
      as `path` is. None: the folder that `path` lies in.

  Raises:
    NotPlainError: a folder is a link or no folder.
    OSError: the file system refuses.
  """
  top = (os.path.dirname(path) if within is None else within) or "."
  make_directory(top)
  for part in os.path.relpath(path, top).split(os.sep):
    top = os.path.join(top, part)
    try:
      os.mkdir(top)
      sync_directory(os.path.dirname(top))
    except FileExistsError:
      kind = os.lstat(top).st_mode
      if stat.S_ISLNK(kind):
        raise NotPlainError(top, _LINK) from None
      if not stat.S_ISDIR(kind):
        raise NotPlainError(top, "no folder") from None


def partial_path(path: str) -> str:
  """A name beside a file, for what becomes it, that nobody can have guessed."""
  return f"{path}.{secrets.token_hex(8)}{PARTIAL}"


PARTIAL = ".partial"
