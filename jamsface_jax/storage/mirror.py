"""The small files of a run in a bucket, on the local disk.

A run appends to files, replaces them, hands their paths to other libraries: all
that a disk can and a bucket cannot. So they lie in a directory of this process,
which is removed when it ends, and the bucket has what was published of them:

  RUN/config.json, metrics.jsonl, report.html, plots/...   as they were last
                                                           published, for people
  RUN/checkpoints/N/run/...        as they were when checkpoint N was completed

A run that goes on from checkpoint N takes what belongs to steps from there, so
that files and state are of one instant, whatever came after it. Settings and
the history of launches are written once or only grow: they are published as
they are written.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Generator, Mapping

from jamsface_jax.errors import InputError
from jamsface_jax.storage.bucket import Bucket
from jamsface_jax.storage.lease import Lease
from jamsface_jax.storage.user_cache import cache_directory

# What belongs to a step of the run.
_OF_STEPS = ("metrics.jsonl", "goodput.json", "results.json", "classes.json")
# What belongs to the run. With it a checkpoint says all of its run.
_OF_RUN = (
  "config.json",
  "fine_tune.json",
  "starts.jsonl",
  "wandb_id.txt",
  "ablation.json",
)
_EDITED = "model_card.md"  # By people, perhaps: it must be seen.
# Published as they are written.
AT_ONCE = _OF_RUN

_HELD = ".held"  # Of the directory: a process that lives has locked it.


class Mirror:
  """The local files of a run in a bucket.

  While the run is held, here is what counts, and `publish` sends what has
  changed; otherwise each file is asked for when it is read, and sent when it
  has been written.

  Args:
    place: where the run is.
  """

  def __init__(self, place: Bucket):
    self.place = place
    self._directory: str | None = None
    self._lease: Lease | None = None
    self._sent: dict[str, tuple[int, int]] = {}
    self._making = threading.Lock()
    self._sending = threading.Lock()

  @property
  def directory(self) -> str:
    """The local directory, made when it is first asked for."""
    with self._making:
      if self._directory is None:
        self._directory, held = _make_directory(cache_directory("runs"))
        weakref.finalize(self, _remove, self._directory, held)
      return self._directory

  def path(self, name: str) -> str:
    """Where a file lies on the local disk; its folder is made."""
    path = os.path.join(self.directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return path

  def fetch(self, name: str) -> str:
    """Sees that a file is as it should be read; returns its local path."""
    path = self.path(name)
    if self._lease is None:
      with contextlib.suppress(FileNotFoundError):
        os.remove(path)
      with contextlib.suppress(FileNotFoundError):
        self.place.download({name: path})
        # What was read must not be sent again: it may be old by then.
        self._sent[name] = _stamp(path)
    return path

  def written(self, name: str) -> None:
    """Takes note that a file was written here."""
    if self._lease is None or name in AT_ONCE:
      self._send([name])

  @contextlib.contextmanager
  def held(self) -> Generator[None, None, None]:
    """Holds the run for this process alone; publishes all in the end.

    Raises:
      InputError: another process holds it, or it cannot be written to.
    """
    lease = Lease(self.place)
    try:
      self._take_run()
      self._lease = lease
      try:
        yield
      except BaseException:
        with contextlib.suppress(OSError, InputError):
          self.publish()  # What is known of it; the error is what counts.
        raise
      self.publish()
    finally:
      self._lease = None
      lease.close()

  def _take_run(self) -> None:
    """Takes from the bucket what belongs to the run, before it is held."""
    there = self.place.list_files()
    self._download({n: n for n in (*_OF_RUN, _EDITED) if n in there})

  def take_back(self, run_files: Mapping[str, str]) -> None:
    """Takes back what belongs to steps, and what of the run is missing.

    Args:
      run_files: names of the files in a checkpoint, in the bucket, by their
        names here.
    """
    missing = [
      name
      for name in _OF_RUN
      if not os.path.exists(os.path.join(self.directory, name))
    ]
    if not run_files:  # A run that was copied from a disk.
      run_files = {name: name for name in self.place.list_files()}
    wanted = (*_OF_STEPS, *missing)
    self._download({n: run_files[n] for n in wanted if n in run_files})

  def _download(self, names: Mapping[str, str]) -> None:
    """Downloads objects by the names of the files that they become."""
    self.place.download(
      {there: self.path(name) for name, there in names.items()}
    )
    for name in names:
      self._sent[name] = _stamp(self.path(name))

  def check(self) -> None:
    """Sees that the run is still this process's.

    Raises:
      RunError: its lock could not be renewed for too long.
    """
    if self._lease:
      self._lease.check()

  def for_checkpoint(self) -> dict[str, str]:
    """Local paths of what goes into a checkpoint, by name."""
    paths = {n: os.path.join(self.directory, n) for n in _OF_RUN + _OF_STEPS}
    return {n: path for n, path in paths.items() if os.path.exists(path)}

  def publish(self) -> None:
    """Sends all that has changed since it was last sent."""
    found = []
    for folder, _, names in os.walk(self.directory):
      for name in names:
        path = os.path.relpath(os.path.join(folder, name), self.directory)
        found.append(path.replace(os.sep, "/"))
    self._send([n for n in found if n != _HELD and not n.endswith(".partial")])

  def _send(self, names: list[str]) -> None:
    """Sends those of these files that have changed."""
    with self._sending:
      stamps = {name: _stamp(self.path(name)) for name in names}
      changed = {n: s for n, s in stamps.items() if self._sent.get(n) != s}
      self.place.upload({name: self.path(name) for name in changed})
      self._sent |= changed


def _stamp(path: str) -> tuple[int, int]:
  """What changes when a file is written."""
  status = os.stat(path)
  return status.st_mtime_ns, status.st_size


def _make_directory(parent: str) -> tuple[str, int]:
  """Makes a directory of this process; removes those of dead ones.

  Returns:
    Its path, and the handle of a file in it that this process has locked.
  """
  for name in os.listdir(parent):
    with contextlib.suppress(OSError):
      handle = os.open(os.path.join(parent, name, _HELD), os.O_RDWR)
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(os.path.join(parent, name), ignore_errors=True)
      finally:
        os.close(handle)
  path = tempfile.mkdtemp(dir=parent)
  handle = os.open(os.path.join(path, _HELD), os.O_RDWR | os.O_CREAT, 0o600)
  fcntl.flock(handle, fcntl.LOCK_EX)
  return path, handle


def _remove(directory: str, held: int) -> None:
  shutil.rmtree(directory, ignore_errors=True)
  os.close(held)
