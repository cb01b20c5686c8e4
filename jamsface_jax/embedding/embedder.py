"""From a trained backbone to embeddings, on all devices."""

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float32, Int64, UInt8

from jamsface_jax.augmentation.augment import normalize
from jamsface_jax.data.pipeline import read_ahead
from jamsface_jax.data.records import COLOR_ORDER
from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.errors import InputError
from jamsface_jax.models import backbone_shapes
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.run.components import make_model
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

Tag = TypeVar("Tag")

# Of a processor, on which a batch is embedded in such pieces, one after the
# other: what lies between their layers stays in its caches, and its memory is
# taken once. A ViT embeds twice as many images a second as by batches of 256,
# see benchmarks/forward.py.
_IMAGES_A_CORE = 2


class Embedder:
  """Turns images into embeddings with running batch statistics.

  A row depends on its image alone, whatever else is in the batch.

  Args:
    model: the backbone.
    mesh: the (data, model) mesh; batches are split over all its devices.
    batch_size: images of a batch of all processes, a multiple of the devices.
    image_size: height and width of the images.
    flip: whether to add the embedding of the mirrored image.
    between: called before each batch; what it raises ends the embedding.
  """

  def __init__(
    self,
    model: nn.Module,
    *,
    mesh: Mesh,
    batch_size: int,
    image_size: int,
    flip: bool,
    between: Callable[[], None] | None = None,
  ):
    self._between = between
    sharding.check_divides("evaluation.batch_size", batch_size, mesh)
    self.image_size = image_size
    self.batch_size = batch_size
    self._mesh = mesh
    self._rows = sharding.local_rows(batch_size, mesh)

    def forward(
      variables: dict[str, Any], images: UInt8[Array, "b h w 3"]
    ) -> Float32[Array, "b d"]:
      pixels = normalize(images)
      embeddings = cast(Array, model.apply(variables, pixels, train=False))
      if flip:
        mirrored = pixels[:, :, ::-1]
        embeddings += cast(Array, model.apply(variables, mirrored, train=False))
      return embeddings

    computed: Callable[..., Array] = forward
    if mesh.devices.flat[0].platform == "cpu":
      cores = (os.cpu_count() or 1) / len(mesh.local_devices)
      piece = max(round(_IMAGES_A_CORE * cores), 1)
      computed = _in_pieces(forward, piece, mesh)

    # Replicated, so that every process has all rows of a batch.
    self._forward = jax.jit(
      computed,
      out_shardings=NamedSharding(mesh, sharding.REPLICATED),
      compiler_options=compiler_options(jax.default_backend()),
    )

  def embed(
    self,
    variables: dict[str, Any],
    read: Callable[[Int64[np.ndarray, " n"]], UInt8[np.ndarray, "n h w 3"]],
    count: int,
    *,
    threads: int,
  ) -> Iterator[Float32[np.ndarray, "n d"]]:
    """Embeds images 0 to `count` - 1, batch by batch.

    Args:
      variables: `params` and `batch_stats` of the backbone.
      read: maps image numbers int64 [n] to uint8 [n, H, W, 3]; called by
        threads, ahead of use, for the rows of this process.
      count: how many images there are.
      threads: how many batches are read at once.

    Yields:
      float32 [n, D], not normalised; the blocks follow the order of images.
    """
    size = self.batch_size

    def read_batch(number: int) -> tuple[int, UInt8[np.ndarray, "n h w 3"]]:
      # The last batch is filled up with its last image, to keep one shape.
      rows = np.minimum(number * size + self._rows, count - 1)
      return number, read(rows)

    batches = read_ahead(
      read_batch, start=0, stop=-(-count // size), threads=threads
    )
    for number, embeddings in self.run(variables, batches):
      yield embeddings[: count - number * size]

  def run(
    self,
    variables: dict[str, Any],
    batches: Iterable[tuple[Tag, UInt8[np.ndarray, "n h w 3"]]],
  ) -> Iterator[tuple[Tag, Float32[np.ndarray, "b d"]]]:
    """Embeds batches, each with a tag that comes out beside its embeddings.

    Args:
      variables: `params` and `batch_stats` of the backbone.
      batches: tags, and this process's rows of a batch, uint8 [n, H, W, 3].

    Yields:
      Tags, and all embeddings of a batch, float32 [B, D], not normalised.
    """
    waiting = None
    for tag, images in batches:
      if self._between:
        self._between()
      embeddings = self.start(variables, images)
      if waiting:  # One batch late: the device works while this one is taken.
        yield waiting[0], np.asarray(waiting[1])
      waiting = tag, embeddings
    if waiting:
      yield waiting[0], np.asarray(waiting[1])

  def start(
    self, variables: dict[str, Any], images: UInt8[np.ndarray, "n h w 3"]
  ) -> Float32[Array, "b d"]:
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


def _in_pieces(
  forward: Callable[..., Array], size: int, mesh: Mesh
) -> Callable[..., Array]:
  """A forward pass that takes so many images at once on each device.

  Args:
    forward: maps variables and images [B, ...] to rows [B, D].
    size: images of a piece. The last one is filled up with zeros.
    mesh: the mesh over which variables are replicated and images are split.
  """

  def on_device(variables: dict[str, Any], images: Array) -> Array:
    count = len(images)
    pieces = -(-count // size)
    if pieces <= 1:
      return forward(variables, images)
    images = jnp.pad(
      images, [(0, pieces * size - count), *[(0, 0)] * (images.ndim - 1)]
    )
    rows = jax.lax.map(
      lambda piece: forward(variables, piece),
      images.reshape(pieces, size, *images.shape[1:]),
    )
    return rows.reshape(pieces * size, -1)[:count]

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(sharding.REPLICATED, sharding.BATCH),
    out_specs=sharding.BATCH,
  )


def open_embedder(
  run: RunDirectory,
  *,
  step: int | None,
  batch_size: int,
  flip: bool,
  mesh: Mesh,
) -> tuple[Embedder, dict[str, Any], dict[str, Any]]:
  """Opens the network of a run.

  Args:
    run: the directory of a training run.
    step: the step of the checkpoint; None for the newest.
    batch_size: see `Embedder`.
    flip: see `Embedder`.
    mesh: see `Embedder`.

  Returns:
    The embedder, the variables of its network, and the checkpoint's metadata
    with its `step`.

  Raises:
    InputError: not a directory of a run, no such checkpoint, or one of a
      network that takes other colours.
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
  everywhere = NamedSharding(mesh, sharding.REPLICATED)
  variables = checkpoints.restore_item(
    step,
    "backbone",
    jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=everywhere),
      backbone_shapes(model, size),
    ),
  )
  embedder = Embedder(
    model, mesh=mesh, batch_size=batch_size, image_size=size, flip=flip
  )
  return embedder, variables, metadata


def unit_length(
  embeddings: Float32[np.ndarray, "n d"],
) -> Float32[np.ndarray, "n d"]:
  """Scales rows to length 1; a zero row stays zero."""
  norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
  return embeddings / np.maximum(norms, 1e-12)
