"""Where a comparison keeps its runs, and what it concludes of them."""

import contextlib
import dataclasses
import os

from jamsface_jax.storage import lock
from jamsface_jax.storage.run_directory import RunDirectory, RunFile


@dataclasses.dataclass(frozen=True)
class ComparisonDirectory:
  """A directory, or a place in a bucket, with a run directory for each run.

  Attributes:
    place: as the user gave it.
  """

  place: RunDirectory

  @classmethod
  def at(cls, path: str) -> "ComparisonDirectory":
    """The one at the path, or address, that --output gives.

    Raises:
      InputError: runs cannot be kept there.
    """
    return cls(RunDirectory(path, flag="--output"))

  def held(self) -> contextlib.AbstractContextManager[None]:
    """Holds it, made if missing, for this process alone; runs hold their own.

    Raises:
      InputError: another process holds it, or it cannot be written to.
    """
    if self.place.mirror:
      return self.place.mirror.held()
    return lock.hold(self.place.path, "--output")

  def trial(self, *names: str) -> RunDirectory:
    """The directory of a run below it."""
    return RunDirectory(os.path.join(self.place.path, *names), flag="--output")

  @property
  def table(self) -> RunFile:
    """The table for people, Markdown."""
    return self._file("table.md")

  @property
  def results(self) -> RunFile:
    """The table for programs."""
    return self._file("results.json")

  @property
  def figure(self) -> RunFile:
    """All seeds, means and intervals."""
    return self._file("ablation.png")

  @property
  def tuning_figure(self) -> RunFile:
    """How rows were tuned."""
    return self._file("tuning.png")

  def _file(self, name: str) -> RunFile:
    path = os.path.join(self.place.path, name)
    return RunFile(path, mirror=self.place.mirror)
