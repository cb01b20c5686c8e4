"""From a trained backbone to embeddings, on all devices."""

from collections.abc import Callable, Iterator

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jamsface_jax import sharding
from jamsface_jax.checkpoint import CheckpointReader
from jamsface_jax.compiling import compiler_options
from jamsface_jax.config import read_config
from jamsface_jax.data.augmentation import normalize
from jamsface_jax.data.pipeline import read_ahead
from jamsface_jax.state import init_backbone, make_model


class Embedder:
  """Turns images into embeddings with running batch statistics.

  A row depends on its image alone, whatever else is in the batch.

  Args:
    model: backbone.
    mesh: batches are split over all its devices.
    batch_size: global, a multiple of the devices.
    image_size: height and width of the images.
    flip: add the embedding of the mirrored image.
  """

  def __init__(
    self,
    model: nn.Module,
    *,
    mesh: Mesh,
    batch_size: int,
    image_size: int,
    flip: bool,
  ):
    sharding.check_divides("evaluation.batch_size", batch_size, mesh)
    self.image_size = image_size
    self._mesh = mesh
    self._batch_size = batch_size
    self._rows = sharding.local_rows(batch_size, mesh)

    def forward(variables, images):
      images = normalize(images)
      embeddings = model.apply(variables, images, train=False)
      if flip:
        mirrored = images[:, :, ::-1]
        embeddings += model.apply(variables, mirrored, train=False)
      return embeddings

    # Replicated, so that every process has all rows of a batch.
    self._forward = jax.jit(
      forward,
      out_shardings=NamedSharding(mesh, sharding.REPLICATED),
      compiler_options=compiler_options(),
    )

  def embed(
    self,
    variables: dict,
    read: Callable[[np.ndarray], np.ndarray],
    count: int,
    *,
    threads: int,
  ) -> Iterator[np.ndarray]:
    """Embeds images 0 to `count` - 1, batch by batch.

    Args:
      variables: `params` and `batch_stats` of the backbone.
      read: maps image numbers int64 [n] to uint8 [n, H, W, 3]; called by
        threads, ahead of use, for the rows of this process.
      count: number of images.
      threads: batches read at once.

    Yields:
      float32 [n, D], not normalised; the blocks follow the order of images.
    """
    size = self._batch_size

    def read_batch(number: int) -> np.ndarray:
      # The last batch is filled up with its last image, to keep one shape.
      return read(np.minimum(number * size + self._rows, count - 1))

    def take(number: int, embeddings: jax.Array) -> np.ndarray:
      return np.asarray(embeddings)[: count - number * size]

    waiting = None
    local = read_ahead(
      read_batch, start=0, stop=-(-count // size), threads=threads
    )
    for number, images in enumerate(local):
      batch = sharding.put_batch(
        {"images": images}, self._rows, size, self._mesh
      )
      embeddings = self._forward(variables, batch["images"])
      if waiting:  # One batch late: the device works while this one is taken.
        yield take(*waiting)
      waiting = number, embeddings
    if waiting:
      yield take(*waiting)


def unit(embeddings: np.ndarray) -> np.ndarray:
  """Scales rows to length 1; a zero row stays zero."""
  norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
  return embeddings / np.maximum(norms, 1e-12)


def load(
  workdir: str, *, step: int | None, batch_size: int, flip: bool, mesh: Mesh
) -> tuple[Embedder, dict, dict]:
  """Opens the network of a work directory.

  Args:
    workdir: of a training run.
    step: of the checkpoint; None for the newest.
    batch_size: see `Embedder`.
    flip: see `Embedder`.
    mesh: see `Embedder`.

  Returns:
    The embedder, the variables of its network, and the checkpoint's metadata
    with its `step`.

  Raises:
    InputError: not a work directory, or no such checkpoint.
  """
  config = read_config(workdir)
  checkpoints = CheckpointReader(workdir)
  step = checkpoints.choose(step)
  model, size = make_model(config), config.data.image_size
  shapes = jax.eval_shape(
    lambda key: init_backbone(key, model, size), jax.random.key(0)
  )
  everywhere = NamedSharding(mesh, sharding.REPLICATED)
  variables = checkpoints.restore_item(
    step,
    "backbone",
    jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere),
      shapes,
    ),
  )
  metadata = checkpoints.metadata(step) | {"step": step}
  checkpoints.close()
  embedder = Embedder(
    model, mesh=mesh, batch_size=batch_size, image_size=size, flip=flip
  )
  return embedder, variables, metadata
