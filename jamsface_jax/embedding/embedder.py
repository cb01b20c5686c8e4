"""From a trained backbone to embeddings, on all devices."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.data.images import scaled
from jamsface_jax.data.pipeline import read_ahead
from jamsface_jax.data.records import COLOR_ORDER
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.errors import InputError
from jamsface_jax.models import init_backbone
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.run.state import make_model
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

Tag = TypeVar("Tag")

_MOST = 256  # Images of a batch in memory, per device.


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
    self.batch_size = batch_size
    self._mesh = mesh
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
      compiler_options=compiler_options(jax.default_backend()),
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
    size = self.batch_size

    def read_batch(number: int) -> tuple[int, np.ndarray]:
      # The last batch is filled up with its last image, to keep one shape.
      rows = np.minimum(number * size + self._rows, count - 1)
      return number, read(rows)

    batches = read_ahead(
      read_batch, start=0, stop=-(-count // size), threads=threads
    )
    for number, embeddings in self.run(variables, batches):
      yield embeddings[: count - number * size]

  def run(
    self, variables: dict, batches: Iterable[tuple[Tag, np.ndarray]]
  ) -> Iterator[tuple[Tag, np.ndarray]]:
    """Embeds batches, each with a tag that comes out beside its embeddings.

    Args:
      variables: `params` and `batch_stats` of the backbone.
      batches: tags and this process's rows of a batch, uint8 [n, H, W, 3].

    Yields:
      Tags and all embeddings of a batch, float32 [B, D], not normalised.
    """
    waiting = None
    for tag, images in batches:
      embeddings = self.start(variables, images)
      if waiting:  # One batch late: the device works while this one is taken.
        yield waiting[0], np.asarray(waiting[1])
      waiting = tag, embeddings
    if waiting:
      yield waiting[0], np.asarray(waiting[1])

  def start(self, variables: dict, images: np.ndarray) -> jax.Array:
    """Starts to embed one batch and does not wait for it.

    Args:
      variables: `params` and `batch_stats` of the backbone.
      images: this process's rows, uint8 [n, H, W, 3]; n is as large as for
        `batch_size`, or, on a mesh of this process alone, any multiple of its
        devices.

    Returns:
      float32 [B, D], replicated.
    """
    rows, size = self._rows, self.batch_size
    if len(images) != len(rows):
      rows, size = np.arange(len(images)), len(images)
    batch = sharding.put_batch({"images": images}, rows, size, self._mesh)
    return self._forward(variables, batch["images"])


class FaceEmbedder:
  """Turns images in memory into embeddings; made by `jamsface_jax.load`.

  Args:
    run: directory of a training run.
    step: of the checkpoint; None for the newest.
    flip: add the embedding of the mirrored image.

  Attributes:
    image_size: height and width that the network sees.
    embedding_size: D.
    color_order: of the images that it takes, "RGB".
    step: of the checkpoint.

  Raises:
    InputError: not a work directory, or no such checkpoint.
  """

  def __init__(self, run: RunDirectory, *, step: int | None, flip: bool):
    mesh = local_mesh()
    self._devices = mesh.size
    self._embedder, self._variables, metadata = load(
      run, step=step, batch_size=_MOST * mesh.size, flip=flip, mesh=mesh
    )
    self.image_size = self._embedder.image_size
    self.embedding_size = metadata["embedding_size"]
    self.color_order = metadata["color_order"]
    self.step = metadata["step"]

  def __call__(
    self, images: np.ndarray | Sequence[np.ndarray], *, raw: bool = False
  ) -> np.ndarray:
    """Embeds images; those of another size are scaled, as in training.

    Args:
      images: uint8 RGB, [H, W, 3] or [N, H, W, 3], or a list of equally large
        [H, W, 3].
      raw: do not scale embeddings to length 1; their length says something of
        the quality of an image.

    Returns:
      float32 [D] for one image, [N, D] for several. The dot product of two rows
      is the cosine of their angle, unless `raw`.

    Raises:
      InputError: images of several sizes, or not uint8 with three channels.
    """
    array = _as_array(images)
    batch = array[None] if array.ndim == 3 else array
    blocks = [np.empty((0, self.embedding_size), np.float32)]
    for count, block in self._embedder.run(
      self._variables, self._batches(batch)
    ):
      blocks.append(block[:count])
    rows = np.concatenate(blocks)
    if not raw:
      rows = unit(rows)
    return rows[0] if array.ndim == 3 else rows

  def _batches(self, images: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yields numbers of images and batches of few sizes: each compiles."""
    start = 0
    while start < len(images):
      left = -(-(len(images) - start) // self._devices)
      size = min(1 << (left - 1).bit_length(), _MOST) * self._devices
      stop = min(start + size, len(images))
      pixels = scaled(images[start:stop], self.image_size)
      filling = ((0, size - len(pixels)), (0, 0), (0, 0), (0, 0))
      yield stop - start, np.pad(pixels, filling)
      start = stop


def _as_array(images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
  """Makes one uint8 array of one or several images, or says why not."""
  if not isinstance(images, np.ndarray):
    shapes = sorted({np.shape(image) for image in images})
    if len(shapes) > 1:
      raise InputError(
        f"images: the list has images of {len(shapes)} shapes, {shapes[0]} and"
        f" {shapes[1]} among them: scale them to one size first."
      )
    images = np.asarray(images)
  if (
    images.dtype != np.uint8
    or images.ndim not in (3, 4)
    or images.shape[-1] != 3
    or 0 in images.shape[-3:]
  ):
    raise InputError(
      f"images: {images.dtype} {list(images.shape)} given: give uint8 RGB"
      " [H, W, 3] or [N, H, W, 3]."
    )
  return images


def local_mesh() -> Mesh:
  """Lays out the devices of this process alone, as `sharding.make_mesh`."""
  devices = jax.local_devices()
  return jax.make_mesh(
    (1, len(devices)),
    ("data", "model"),
    axis_types=(AxisType.Auto,) * 2,
    devices=devices,
  )


def unit(embeddings: np.ndarray) -> np.ndarray:
  """Scales rows to length 1; a zero row stays zero."""
  norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
  return embeddings / np.maximum(norms, 1e-12)


def load(
  run: RunDirectory,
  *,
  step: int | None,
  batch_size: int,
  flip: bool,
  mesh: Mesh,
) -> tuple[Embedder, dict, dict]:
  """Opens the network of a work directory.

  Args:
    run: directory of a training run.
    step: of the checkpoint; None for the newest.
    batch_size: see `Embedder`.
    flip: see `Embedder`.
    mesh: see `Embedder`.

  Returns:
    The embedder, the variables of its network, and the checkpoint's metadata
    with its `step`.

  Raises:
    InputError: not a work directory, no such checkpoint, or one of a network
      that takes other colours.
  """
  config = read_settings(run)
  checkpoints = CheckpointReader(run)
  step = checkpoints.choose(step)
  metadata = checkpoints.metadata(step) | {"step": step}
  if metadata["color_order"] != COLOR_ORDER:
    raise InputError(
      f"checkpoint {step} of {run.path!r} takes {metadata['color_order']}"
      f" images, but images decode to {COLOR_ORDER}: train or import it with"
      f" {COLOR_ORDER}."
    )
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
  embedder = Embedder(
    model, mesh=mesh, batch_size=batch_size, image_size=size, flip=flip
  )
  return embedder, variables, metadata
