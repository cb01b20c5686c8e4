"""The network of a run, opened when the first image has to be embedded."""

import functools
from typing import Any

import jax

from jamsface_jax.devices.sharding import make_mesh
from jamsface_jax.embedding.embedder import Embedder, open_embedder
from jamsface_jax.embedding.writing import fingerprint
from jamsface_jax.errors import InputError
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory


class Network:
  """What turns images into embeddings, if there are any.

  Args:
    run: the directory of a training run; None if there is none.
    step: the step of the checkpoint; None for the newest.

  Attributes:
    step: as given.
  """

  def __init__(self, run: RunDirectory | None, *, step: int | None):
    self._run = run
    self.step = step

  @property
  def run(self) -> RunDirectory:
    """The run.

    Raises:
      InputError: there is none.
    """
    if self._run is None:
      raise InputError(
        "--workdir is needed where there are images to embed: give that of a"
        " training run, or the output of jamsface_jax.embed on both sides."
      )
    return self._run

  @functools.cached_property
  def _settings(self) -> Settings:
    return read_settings(self.run)

  @functools.cached_property
  def _opened(self) -> tuple[Embedder, dict[str, Any], dict[str, Any]]:
    return open_embedder(
      self.run,
      step=self.step,
      batch_size=self._settings.evaluation.batch_size,
      flip=True,
      mesh=make_mesh(-1, jax.local_devices()),
    )

  @property
  def embedder(self) -> Embedder:
    """Runs the network."""
    return self._opened[0]

  @property
  def variables(self) -> dict[str, Any]:
    """The parameters of the network."""
    return self._opened[1]

  @functools.cached_property
  def fingerprint(self) -> str:
    """As `meta.json` of embeddings has it."""
    return fingerprint(self.variables)

  @property
  def image_size(self) -> int:
    """Height and width of the images that it takes."""
    return self._settings.data.image_size

  @property
  def threads(self) -> int:
    """Batches read at once."""
    return self._settings.data.threads
