"""A disk that loses power: what was not synced is gone.

A stand-in, for a test cannot pull a plug. Who vouches for it: fsync(2), by
which a file's content is safe once `fsync` of it has returned, and its name
once `fsync` of its directory has; and the study of what file systems do besides
(Pillai and others, OSDI 2014; CrashMonkey, OSDI 2018). These do more or less
than they must, so that there are two disks after a loss of power: `names` says
whether the names are those that were synced, or all that there were.
"""

import os
import shutil
import stat

NAMES = ("synced", "current")


class Disk:
  """All that is synced below a directory from now on.

  Args:
    monkeypatch: of pytest.
    root: the directory, on the disk with all that it holds by now.
  """

  def __init__(self, monkeypatch, root):
    self._root = str(root)
    self._content = {}  # By number of the file.
    self._names = {}  # By number of the directory: name to number.
    self._kept = []  # Open, so that no number is given to another file.
    for folder, _, files in os.walk(self._root):
      for name in files:
        self._note(os.open(os.path.join(folder, name), os.O_RDONLY))
      self._note(os.open(folder, os.O_RDONLY))
    for name in ("fsync", "fdatasync"):
      monkeypatch.setattr(os, name, lambda file: self._note(os.dup(_fd(file))))

  def _note(self, handle):
    self._kept.append(handle)
    status = os.fstat(handle)
    if stat.S_ISDIR(status.st_mode):
      self._names[status.st_ino] = {
        name: os.stat(name, dir_fd=handle, follow_symlinks=False).st_ino
        for name in os.listdir(handle)
      }
    else:
      with open(f"/proc/self/fd/{handle}", "rb") as file:
        self._content[status.st_ino] = file.read()

  def after_loss(self, copy, names):
    """Writes what is left after a loss of power right now.

    Args:
      copy: the new directory.
      names: one of `NAMES`.
    """
    shutil.rmtree(copy, ignore_errors=True)
    os.mkdir(copy)
    self._write(self._root, os.stat(self._root).st_ino, str(copy), names)

  def _write(self, place, number, copy, names):
    found = self._names.get(number, {})
    if names == "current":
      found = {
        n: os.lstat(os.path.join(place, n)).st_ino for n in os.listdir(place)
      }
    for name, child in found.items():
      is_folder = child in self._names or os.path.isdir(
        os.path.join(place, name)
      )
      if is_folder:
        os.mkdir(os.path.join(copy, name))
        self._write(
          os.path.join(place, name), child, os.path.join(copy, name), names
        )
      else:
        with open(os.path.join(copy, name), "wb") as file:
          file.write(self._content.get(child, b""))

  def close(self):
    """Lets go of all files."""
    for handle in self._kept:
      os.close(handle)


def _fd(file):
  return file if isinstance(file, int) else file.fileno()
