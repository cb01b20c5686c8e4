"""The directory of a run: what lies where in it, and how each of it is written.

Nothing else in this package knows the name of a file of a run, or joins its
path. A command makes a `RunDirectory` of the user's flag; what lies below takes
that, and reads and writes through the nouns of this file. Their methods say
what is wanted of a file and not how a file system does it: what a place that
is none can do too, appending and renaming aside, is all that callers may ask.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import time
from collections.abc import Generator
from typing import IO, Any

from jamsface_jax.errors import InputError
from jamsface_jax.storage import lock, plain_json
from jamsface_jax.storage.bucket import SCHEME, Bucket, require_packages
from jamsface_jax.storage.bucket_checkpoints import BucketCheckpoints
from jamsface_jax.storage.checkpoint_folder import CheckpointFolder
from jamsface_jax.storage.durable import sync_directory, sync_tree
from jamsface_jax.storage.mirror import Mirror
from jamsface_jax.storage.mounts import refuse_mounted_bucket
from jamsface_jax.storage.paths import check_address, require_local
from jamsface_jax.storage.plain_file import make_folder, plain
from jamsface_jax.storage.set_aside import set_aside
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.storage.write_error import write_error

_EVALUATION = "evaluation"


@dataclasses.dataclass(frozen=True)
class RunFile:
  """A file of a run.

  Attributes:
    path: where it is, or will be when it has been written.
    writes: whether writing has an effect, see `RunDirectory`.
    mirror: of a run in a bucket, see `RunDirectory`.
  """

  path: str
  writes: bool = True
  mirror: Mirror | None = None

  @classmethod
  def at(cls, path: str, flag: str) -> "RunFile":
    """The one at a path, or address, that the user gives.

    Raises:
      InputError: it is the address of another object store, or of no object.
    """
    if not path.startswith(SCHEME):
      require_local(path, flag)
      return cls(path)
    require_packages(path)
    address = check_address(path, flag)
    place = Bucket(address.rpartition("/")[0])
    return cls(address, mirror=Mirror(place))

  @property
  def _name(self) -> str:
    """Its name in the run, of one in a bucket."""
    assert self.mirror
    return self.path.removeprefix(f"{self.mirror.place.address}/")

  def _to_read(self) -> str:
    """Its path on a disk, with what there is to read."""
    return self.mirror.fetch(self._name) if self.mirror else self.path

  @contextlib.contextmanager
  def _to_write(self) -> Generator[str, None, None]:
    """Its path on a disk; what was written there counts after the block."""
    if not self.mirror:
      yield self.path
      return
    yield self.mirror.path(self._name)
    self.mirror.written(self._name)

  def exists(self) -> bool:
    """Whether it is there."""
    return os.path.exists(self._to_read())

  def read_text(self) -> str:
    """Reads it as UTF-8.

    Raises:
      OSError: it cannot be read; FileNotFoundError: it is not there.
      UnicodeDecodeError: it is not UTF-8.
    """
    with open(self._to_read(), encoding="utf-8", opener=plain) as file:
      return file.read()

  def read_lines(self) -> list[str]:
    """Its lines with their ends, which a last one cut off lacks.

    What is not UTF-8 comes as surrogates, of which no text can be made.

    Raises:
      OSError: it cannot be read; FileNotFoundError: it is not there.
    """
    with open(
      self._to_read(),
      encoding="utf-8",
      errors="surrogateescape",
      newline="\n",
      opener=plain,
    ) as file:
      return file.readlines()

  def beside(self, ending: str) -> "RunFile":
    """The file of its name with something after it."""
    return dataclasses.replace(self, path=self.path + ending)

  def read_json(self) -> Any:
    """Reads the value that it holds.

    Raises:
      OSError: it cannot be read; FileNotFoundError: it is not there.
      ValueError: it is not JSON.
    """
    return plain_json.parse(self.read_text())

  @contextlib.contextmanager
  def written_whole(
    self, mode: str = "w", *, synced: bool = True
  ) -> Generator[IO[Any], None, None]:
    """Opens it for writing; it has its new content when the block has ended.

    Args:
      mode: "w" for text or "wb".
      synced: it survives a loss of power then.
    """
    if not self.writes:
      with open(os.devnull, mode) as file:
        yield file
      return
    with (
      self._to_write() as path,
      written_whole(path, mode, synced=synced) as file,
    ):
      yield file

  def write_text(self, text: str, *, synced: bool = True) -> None:
    """Replaces its content, whole or not at all."""
    with self.written_whole(synced=synced) as file:
      file.write(text)

  def write_json(
    self, value: Any, *, indent: int | None = None, synced: bool = True
  ) -> None:
    """Replaces its content by a value as JSON, whole or not at all.

    Args:
      value: made of what JSON has, which NaN is not of.
      indent: spaces of a level; None: all on one line.
      synced: it survives a loss of power then.
    """
    text = json.dumps(value, indent=indent, allow_nan=False)
    self.write_text(text, synced=synced)

  def append_line(self, text: str) -> None:
    """Adds a line at its end; a reader sees it when this returns.

    After a line that a kill has torn, it is a line of its own.
    """
    if self.writes:
      self._to_read()
      with self._to_write() as path, open(path, "ab+", opener=plain) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        torn = size and file.read(1) != b"\n"
        line = f"{text}\n".encode(errors="surrogateescape")
        file.write(b"\n" + line if torn else line)

  def sync(self) -> None:
    """Makes what was appended so far survive a loss of power.

    In a bucket the next checkpoint does, which keeps it.
    """
    if self.writes and not self.mirror:
      with open(self.path, "a", encoding="utf-8", opener=plain) as file:
        os.fsync(file.fileno())
      sync_directory(os.path.dirname(self.path))

  def held(self, flag: str) -> contextlib.AbstractContextManager[None]:
    """Lets this process alone replace it; whoever does not ask, still may.

    In a bucket it is replaced at once.

    Args:
      flag: that it was given by, for messages.

    Raises:
      InputError: another process holds it, or it cannot be written.
    """
    if self.mirror:
      return contextlib.nullcontext()
    return lock.hold_file(self.path, flag)


@dataclasses.dataclass(frozen=True)
class PictureFolder:
  """A folder of PNG files.

  Attributes:
    path: where it is.
    writes: whether writing has an effect, see `RunDirectory`.
    mirror: of a run in a bucket, see `RunDirectory`.
  """

  path: str
  writes: bool = True
  mirror: Mirror | None = None

  def create(self) -> None:
    """Makes it if it is not there."""
    if self.writes and not self.mirror:
      make_folder(self.path)

  def picture(self, name: str) -> RunFile:
    """The file of a picture, such as "training" or "scores_lfw"."""
    file = name.replace("/", "_") + ".png"
    return RunFile(os.path.join(self.path, file), self.writes, self.mirror)


@dataclasses.dataclass(frozen=True)
class EvaluationDirectory:
  """Where an evaluation by command puts what it finds.

  Attributes:
    path: where it is.
    mirror: of a run in a bucket, see `RunDirectory`.
  """

  path: str
  mirror: Mirror | None = None

  def create(self) -> None:
    """Makes it if it is not there, but no link into it."""
    if not self.mirror:
      make_folder(self.path)

  @contextlib.contextmanager
  def held(self) -> Generator[None, None, None]:
    """Holds it, made if missing, for this process alone.

    Raises:
      InputError: another process holds it, or it cannot be written to.
    """
    if self.mirror:
      yield
      return
    if os.path.islink(self.path):
      self.create()  # Says that it is one.
    with lock.hold(self.path, "--output"):
      yield

  @classmethod
  def at(cls, path: str, flag: str) -> "EvaluationDirectory":
    """The one at an address, or path that the user gives, which may be a link.

    Raises:
      InputError: it is the address of another object store.
    """
    if not path.startswith(SCHEME):
      require_local(path, flag)
      return cls(os.path.realpath(path))
    require_packages(path)
    place = Bucket(check_address(path, flag))
    return cls(place.address, Mirror(place))

  @classmethod
  def beside(cls, path: str) -> "EvaluationDirectory":
    """The one for a file of embeddings."""
    return cls(os.path.join(os.path.dirname(path), _EVALUATION))

  @property
  def results(self) -> RunFile:
    """What it measured."""
    path = os.path.join(self.path, "results.json")
    return RunFile(path, mirror=self.mirror)

  @property
  def plots(self) -> PictureFolder:
    """Curves, scores and the hardest pairs, beside the results."""
    return PictureFolder(self.path, mirror=self.mirror)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
  """Where a run keeps what it is, what it learned and what came of it.

  It is a directory, or a place in a bucket of Google Cloud Storage. There Orbax
  writes checkpoints by itself; all other files lie in a mirror, a directory of
  this process on the local disk, see `storage.mirror`.

  Args:
    flag: what the path was given by, for the sentence that refuses it.

  Attributes:
    path: as the user gave it, of a bucket without a slash at its end.
    writes: whether writing through this object has an effect. Of the processes
      of a run one writes; all run the same code, see `without_writing`.
    mirror: the local files of a run in a bucket, None of one in a directory.

  Raises:
    InputError: the path is an address of another object store, or lies where
      runs cannot be kept; packages for buckets are missing.
  """

  path: str
  writes: bool = True
  flag: dataclasses.InitVar[str] = "--workdir"
  mirror: Mirror | None = None

  def __post_init__(self, flag: str) -> None:
    if self.mirror is not None:
      return
    if not self.path.startswith(SCHEME):
      require_local(self.path, flag)
      return
    require_packages(self.path)
    place = Bucket(check_address(self.path, flag))
    object.__setattr__(self, "path", place.address)
    object.__setattr__(self, "mirror", Mirror(place))

  def _file(self, name: str) -> RunFile:
    return RunFile(os.path.join(self.path, name), self.writes, self.mirror)

  def without_writing(self) -> "RunDirectory":
    """The same for a process that reads only; what it writes is dropped.

    Checkpoints, profiles and `not_finite` are of all processes, and excepted.
    """
    return dataclasses.replace(self, writes=False)

  def exists(self) -> bool:
    """Whether there is anything in its place."""
    if self.mirror:
      return bool(self.mirror.place.list_files()) or self.checkpoints.exists()
    return os.path.exists(self.path)

  def create(self) -> None:
    """Makes the directory if it is not there."""
    if self.writes and not self.mirror:
      os.makedirs(self.path, exist_ok=True)

  @contextlib.contextmanager
  def created_whole(self) -> Generator["RunDirectory", None, None]:
    """Makes the directory under another name, its own when the block has ended.

    In a bucket it is made in its place, its settings last.

    Raises:
      InputError: it cannot be written, or an earlier attempt left something.
    """
    if self.mirror:
      with self.held():
        yield self
      return
    refuse_mounted_bucket(self.path, "--workdir")
    partial = RunDirectory(self.path.rstrip("/") + ".partial")
    try:
      os.makedirs(os.path.dirname(partial.path) or ".", exist_ok=True)
      os.mkdir(partial.path)
    except FileExistsError:
      raise InputError(
        f"{partial.path!r} is left of an import that was interrupted: remove"
        " it."
      ) from None
    except OSError as error:
      raise InputError(
        f"--workdir={self.path!r} cannot be written ({error.strerror}): choose"
        " another directory."
      ) from None
    yield partial
    sync_tree(partial.path)
    os.rename(partial.path, self.path)
    sync_directory(os.path.dirname(self.absolute))

  def set_misplaced_aside(self) -> None:
    """Moves away folders in the places of its files, and the reverse.

    Says so in a warning. A run that goes on would otherwise end, perhaps after
    all its steps, when it comes to write there.

    Raises:
      InputError: it cannot be moved.
    """
    if self.mirror or not self.writes or not os.path.isdir(self.path):
      return
    files = (
      self.metrics,
      self.launches,
      self.goodput,
      self.classes,
      self.results,
      self.report,
      self.model_card,
      self.summary,
    )
    folders = (self.checkpoints.path, self.tensorboard, self.plots.path)
    for path in (
      *(one.path for one in files if os.path.isdir(one.path)),
      *(one for one in folders if os.path.isfile(one)),
    ):
      try:
        aside = set_aside(path)
      except OSError as error:
        raise write_error("--workdir", self.path, error) from None
      what = "folder" if os.path.isdir(aside) else "file"
      print(
        f"warning: {path!r} was a {what}: moved to {aside!r}.", file=sys.stderr
      )

  def held(self) -> contextlib.AbstractContextManager[None]:
    """Holds it, made if missing, for this process alone.

    Raises:
      InputError: another process holds it, it cannot be written to, or it is on
        a mounted bucket.
    """
    if self.mirror:
      return self._held_in_bucket(self.mirror)
    if not self.writes:
      return contextlib.nullcontext()
    refuse_mounted_bucket(self.path, "--workdir")
    return lock.hold(self.path, "--workdir")

  @contextlib.contextmanager
  def _held_in_bucket(self, mirror: Mirror) -> Generator[None, None, None]:
    """The lock is of the process that writes; what others leave is sent too."""
    if not self.writes:
      yield
      mirror.publish()
      return
    with mirror.held():
      checkpoints = self.checkpoints
      assert isinstance(checkpoints, BucketCheckpoints)
      checkpoints.take_back()
      yield

  @property
  def absolute(self) -> str:
    """Its path from the root, or its address."""
    return self.path if self.mirror else os.path.abspath(self.path)

  @property
  def local(self) -> str:
    """Directory that other libraries may write to; in a bucket it is sent."""
    return self.mirror.directory if self.mirror else self.absolute

  @property
  def config(self) -> RunFile:
    """The resolved settings."""
    return self._file("config.json")

  @property
  def fine_tune(self) -> RunFile:
    """Which parts of which other run it began with, if it did."""
    return self._file("fine_tune.json")

  @property
  def metrics(self) -> RunFile:
    """The numbers of the run, an object a line."""
    return self._file("metrics.jsonl")

  @property
  def launches(self) -> RunFile:
    """How and where the run was started, each time, an object a line."""
    return self._file("starts.jsonl")

  @property
  def goodput(self) -> RunFile:
    """Wall seconds by what they went into, over all launches."""
    return self._file("goodput.json")

  @property
  def classes(self) -> RunFile:
    """Class sizes and learned margins, for the report."""
    return self._file("classes.json")

  @property
  def margin_curve(self) -> RunFile:
    """The mean margins of each class size, a table."""
    return self._file("margins.csv")

  @property
  def results(self) -> RunFile:
    """What the last evaluation in the run measured."""
    return self._file("results.json")

  @property
  def report(self) -> RunFile:
    """The page."""
    return self._file("report.html")

  @property
  def model_card(self) -> RunFile:
    """The card, which people may edit."""
    return self._file("model_card.md")

  @property
  def summary(self) -> RunFile:
    """The last lines that the run printed."""
    return self._file("summary.txt")

  @property
  def wandb_id(self) -> RunFile:
    """The run's id at Weights & Biases."""
    return self._file("wandb_id.txt")

  @property
  def ablation(self) -> RunFile:
    """Flags of the run, if a comparison runs it."""
    return self._file("ablation.json")

  def not_finite(self, step: int, process: int) -> RunFile:
    """What a process knows of a step whose loss was not finite."""
    name = f"not_finite_{step}_process_{process}.json"
    return RunFile(os.path.join(self.path, name), mirror=self.mirror)

  @property
  def plots(self) -> PictureFolder:
    """The training curve, margins and the last evaluation."""
    path = os.path.join(self.path, "plots")
    return PictureFolder(path, self.writes, self.mirror)

  @property
  def evaluation(self) -> EvaluationDirectory:
    """Where `evaluate` puts what it finds."""
    path = os.path.join(self.path, _EVALUATION)
    return EvaluationDirectory(path, self.mirror)

  @property
  def checkpoints(self) -> CheckpointFolder | BucketCheckpoints:
    """The checkpoints."""
    if self.mirror:
      return BucketCheckpoints(
        self.mirror.place.below("checkpoints"), self.mirror
      )
    return CheckpointFolder(os.path.join(self.absolute, "checkpoints"))

  def new_traces(self) -> str:
    """Directory that profiles are written below, absolute; it is made."""
    profiles = os.path.join(self.tensorboard, "plugins", "profile")
    make_folder(profiles, within=self.local)
    return self.tensorboard

  @property
  def tensorboard(self) -> str:
    """Directory of TensorBoard's files, absolute, on a disk."""
    return os.path.join(self.local, "tensorboard")

  def new_events_file(self) -> str:
    """Path of a file that TensorBoard will find; its directory is made."""
    make_folder(self.tensorboard)
    # Its writer follows links: the name ends with what nobody can foresee.
    name = (
      f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
      f".{secrets.token_hex(8)}"
    )
    return os.path.join(self.tensorboard, name)
