"""The directory of a run: what lies where in it, and how each of it is written.

Nothing else in this package knows a name in it or joins its path. A command
makes a `RunDirectory` of the user's flag; what lies below takes that.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from typing import IO, Any

from jamsface_jax.storage import lock
from jamsface_jax.storage.whole_file import written_whole


@dataclasses.dataclass(frozen=True)
class RunFile:
  """A file of a run.

  Attributes:
    path: of the file, which need not be there.
  """

  path: str

  def exists(self) -> bool:
    """Whether it is there."""
    return os.path.exists(self.path)

  def read_text(self) -> str:
    """Reads it as UTF-8.

    Raises:
      OSError: it cannot be read.
      UnicodeDecodeError: it is not UTF-8.
    """
    with open(self.path, encoding="utf-8") as file:
      return file.read()

  def read_json(self) -> Any:
    """Reads the value that it holds; errors as `read_text` and ValueError."""
    return json.loads(self.read_text())

  @contextlib.contextmanager
  def written_whole(self, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens it for writing; it has its new content when the block has ended.

    Args:
      mode: "w" for text or "wb".
    """
    os.makedirs(os.path.dirname(self.path), exist_ok=True)
    with written_whole(self.path, mode) as file:
      yield file

  def write_text(self, text: str) -> None:
    """Replaces its content, whole or not at all."""
    with self.written_whole() as file:
      file.write(text)

  def write_json(self, value: Any, *, indent: int | None = None) -> None:
    """Replaces its content by a value as JSON, whole or not at all."""
    self.write_text(json.dumps(value, indent=indent) + "\n")

  def append_line(self, text: str) -> None:
    """Adds a line at its end."""
    with open(self.path, "a", encoding="utf-8") as file:
      file.write(text + "\n")


@dataclasses.dataclass(frozen=True)
class RunDirectory:
  """Where a run keeps what it is, what it learned and what came of it.

  Attributes:
    path: as the user gave it.
  """

  path: str

  def _file(self, *names: str) -> RunFile:
    return RunFile(os.path.join(self.path, *names))

  def exists(self) -> bool:
    """Whether the directory is there."""
    return os.path.isdir(self.path)

  def create(self) -> None:
    """Makes the directory if it is not there."""
    os.makedirs(self.path, exist_ok=True)

  def held(self) -> contextlib.AbstractContextManager[None]:
    """Holds it, made if missing, for this process alone; see `lock.hold`."""
    return lock.hold(self.path)

  @property
  def absolute(self) -> str:
    """Its path from the root."""
    return os.path.abspath(self.path)

  @property
  def config(self) -> RunFile:
    """The resolved settings."""
    return self._file("config.json")

  @property
  def fine_tune(self) -> RunFile:
    """What the run began with, if it was of another run."""
    return self._file("fine_tune.json")

  @property
  def metrics(self) -> RunFile:
    """The numbers of the run, an object a line."""
    return self._file("metrics.jsonl")

  @property
  def starts(self) -> RunFile:
    """How and where the run was started, an object a line."""
    return self._file("starts.jsonl")

  @property
  def goodput(self) -> RunFile:
    """Seconds by what they went into, over all starts."""
    return self._file("goodput.json")

  @property
  def classes(self) -> RunFile:
    """Class sizes and learned margins, for the report."""
    return self._file("classes.json")

  @property
  def results(self) -> RunFile:
    """What the last evaluation of the run measured."""
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
    """What a run of a comparison runs with."""
    return self._file("ablation.json")

  def plot(self, name: str) -> RunFile:
    """A PNG file, such as "training.png"."""
    return self._file("plots", name)

  def not_finite(self, step: int, process: int) -> RunFile:
    """What is known of a step whose loss was not finite."""
    return self._file(f"not_finite_{step}_process_{process}.json")

  @functools.cached_property
  def evaluation(self) -> "RunDirectory":
    """Where `evaluate` puts what it finds: results and plots."""
    return RunDirectory(os.path.join(self.path, "evaluation"))

  @property
  def checkpoints(self) -> str:
    """Directory of the checkpoints, absolute, one by its step."""
    return os.path.join(self.absolute, "checkpoints")

  @property
  def tensorboard(self) -> str:
    """Directory of TensorBoard's files, absolute."""
    return os.path.join(self.absolute, "tensorboard")

  @property
  def compiled(self) -> str:
    """Directory of compiled programs."""
    return os.path.join(self.path, "compiled")
