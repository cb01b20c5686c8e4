"""From images in memory to embeddings: what `jamsface_jax.load` gives."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jaxtyping import Float32, UInt8

from jamsface_jax.data.images import scaled
from jamsface_jax.devices.sharding import make_mesh
from jamsface_jax.embedding.embedder import open_embedder, unit_length
from jamsface_jax.errors import InputError
from jamsface_jax.storage.run_directory import RunDirectory

_MOST = 256  # Images of a batch in memory, per device.


class FaceEmbedder:
  """Turns images in memory into embeddings; made by `jamsface_jax.load`.

  Args:
    run: the directory of a training run.
    step: the step of the checkpoint; None for the newest.
    flip: whether to add the embedding of the mirrored image.

  Attributes:
    image_size: height and width that the network sees.
    embedding_size: how many numbers an embedding has, D.
    color_order: the colour order of the images that it takes, "RGB".
    step: the step of the checkpoint.

  Raises:
    InputError: not a work directory, or no such checkpoint.
  """

  def __init__(self, run: RunDirectory, *, step: int | None, flip: bool):
    mesh = make_mesh(-1, jax.local_devices())
    self._devices = mesh.size
    self._embedder, self._variables, metadata = open_embedder(
      run,
      step=step,
      batch_size=_MOST * mesh.size,
      flip=flip,
      mesh=mesh,
    )
    self.image_size = self._embedder.image_size
    self.embedding_size = metadata["embedding_size"]
    self.color_order = metadata["color_order"]
    self.step = metadata["step"]

  def __call__(
    self, images: np.ndarray | Sequence[np.ndarray], *, raw: bool = False
  ) -> Float32[np.ndarray, "*n d"]:
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
      rows = unit_length(rows)
    return rows[0] if array.ndim == 3 else rows

  def _batches(
    self, images: UInt8[np.ndarray, "n h w 3"]
  ) -> Iterator[tuple[int, UInt8[np.ndarray, "m s s 3"]]]:
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


def _as_array(
  images: np.ndarray | Sequence[np.ndarray],
) -> UInt8[np.ndarray, "*n h w 3"]:
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
