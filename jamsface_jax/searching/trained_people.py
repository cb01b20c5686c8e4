"""The people that a network was trained on, as a gallery: class weights.

Cosines are lowered by what a softmax owes to the number of a class's images,
log(images) / scale, as `evaluation.known_people` does: more images of people
with few training images find their class. It is done by one more number in
each vector, so that the search is the same.
"""

import numpy as np
from jaxtyping import Float32

from jamsface_jax.data.records import read_classes
from jamsface_jax.data.sources import open_source
from jamsface_jax.devices.sharding import make_mesh
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.class_centres import owed_cosines
from jamsface_jax.head.parameters import WEIGHTS
from jamsface_jax.metrics.nearest import Nearest, nearest
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.run.components import make_components
from jamsface_jax.run.state import state_shapes
from jamsface_jax.searching.sources import maker
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory


class TrainedPeople:
  """What is searched for people who were trained on.

  Args:
    run: the directory of a training run, whose data are at hand.
    step: the step of the checkpoint; None for the newest.
    fingerprint: of its network, see `sources.maker`.

  Attributes:
    people: names of the classes, by number.
    images: what each row is: the class.
    network: what made the weights.

  Raises:
    InputError: no class weights, or other training data than they are of.
  """

  def __init__(self, run: RunDirectory, *, step: int | None, fingerprint: str):
    settings = read_settings(run)
    reader = CheckpointReader(run)
    step = reader.choose(step)
    classes = reader.metadata(step).get("num_classes", 0)
    if not classes:
      raise InputError(
        f"--trained_on: checkpoint {step} of {run.path!r} has no class weights,"
        " as weights that were imported: give the people as --gallery."
      )
    source = open_source(settings.data)
    if source.num_classes != classes:
      raise InputError(
        f"--trained_on: checkpoint {step} of {run.path!r} has {classes:,}"
        f" classes and data.directory {source.num_classes:,}: bring the data"
        " set back that it was trained on."
      )
    components = make_components(settings, classes, len(source))
    head = components.head
    shapes = state_shapes(components, settings.data.image_size, make_mesh(-1))
    weights = reader.restore_item(step, "head", shapes.params["head"])[WEIGHTS]
    rows = np.asarray(weights)[: classes * head.sub_centers]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    self._priors = owed_cosines(source.class_sizes, head)
    self._owner = np.arange(len(rows)) // head.sub_centers
    self._rows = np.column_stack([rows, -self._priors[self._owner]])
    self.people = _names(settings.data.directory, classes)
    self.images = [self.people[owner] for owner in self._owner]
    self.network = maker(fingerprint, flip=True)

  @property
  def usable(self) -> int:
    """How many rows can be found."""
    return len(self._rows)

  def nearest(self, probes: Float32[np.ndarray, "q d"], k: int) -> Nearest:
    """Finds the nearest people once the priors are off, exactly.

    Args:
      probes: float32 [Q, D], rows of length 1, or NaN.
      k: how many people, at most those that there are.

    Returns:
      The order is that of the lowered cosines; the cosines are as they are.
    """
    k = min(k, len(self.people))
    ones = np.ones((len(probes), 1), np.float32)
    found = nearest(np.hstack([probes, ones]), self._rows, self._owner, k)
    owed = np.where(found.owner >= 0, self._priors[found.owner], 0)
    return Nearest(found.owner, found.row, found.cosine + owed)


def _names(directories: str, classes: int) -> list[str]:
  """Names of the classes of all training data, in the order of the labels."""
  names = [
    name
    for directory in filter(None, directories.split(","))
    for name in read_classes(directory)
  ]
  return names or [f"class {number}" for number in range(classes)]
