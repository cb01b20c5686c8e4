"""From images in memory to embeddings: what `jamsface_jax.load` gives."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Float32, UInt8

from jamsface_jax.data.decoding import DecodingError, decode_image
from jamsface_jax.data.images import scaled
from jamsface_jax.detection.alignment import align_face
from jamsface_jax.detection.detector import Detector, choose_face
from jamsface_jax.detection.opening import usual_detector
from jamsface_jax.devices.sharding import make_mesh
from jamsface_jax.embedding.embedder import open_embedder, unit_length
from jamsface_jax.errors import InputError
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.run_directory import RunDirectory

# A path, an image of PIL, or an array uint8 [H, W, 3], RGB.
Image: TypeAlias = Any
_WANTED = (
  "give paths, images of PIL, or uint8 RGB arrays [H, W, 3] or [N, H, W, 3]"
)
_MOST = 256  # Images of a batch in memory, per device.


@dataclasses.dataclass(frozen=True, eq=False)
class Face:
  """A face in a photograph.

  Attributes:
    box: left, top, width and height in pixels, float [4].
    landmarks: eyes, nose tip and corners of the mouth, in pixels, float [5, 2];
      see `detection.alignment`.
    pixels: cut out upright, as the network sees it, uint8 [S, S, 3], RGB.
    embedding: float32 [D], of length 1.
  """

  box: Float[np.ndarray, "4"]
  landmarks: Float[np.ndarray, "5 2"]
  pixels: UInt8[np.ndarray, "s s 3"]
  embedding: Float32[np.ndarray, " d"]


class FaceEmbedder:
  """Turns images into embeddings; made by `jamsface_jax.load`.

  Images are aligned faces, as data_prep.align writes them; photographs go
  through `faces` or `aligned` first.

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
    self, images: Image | Sequence[Image], *, raw: bool = False
  ) -> Float32[np.ndarray, "*n d"]:
    """Embeds images; those of another size are scaled, as in training.

    Args:
      images: a path, an image of PIL, or a uint8 RGB array, [H, W, 3] or
        [N, H, W, 3]; or a list of such, whose arrays are equally large.
      raw: do not scale embeddings to length 1; their length says something of
        the quality of an image.

    Returns:
      float32 [D] for one image, [N, D] for several. The dot product of two rows
      is the cosine of their angle, unless `raw`.

    Raises:
      InputError: arrays of several sizes, or what is no image.
    """
    array = _as_array(images, self.image_size)
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

  def faces(
    self, photograph: Image, *, detector: Detector | None = None
  ) -> list[Face]:
    """Finds, cuts out and embeds all faces of a photograph.

    Args:
      photograph: a path, an image of PIL, or uint8 RGB [H, W, 3].
      detector: finds them; None for MTCNN, see `detection.mtcnn`.

    Returns:
      The faces, the largest first; none if there is none.

    Raises:
      InputError: not an image, or there is no detector.
    """
    pixels = load_image(photograph)
    boxes, landmarks = (detector or self._detector).detect(pixels)
    if not len(boxes):
      return []
    order = np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable")
    boxes, landmarks = boxes[order], landmarks[order]
    cut = [align_face(pixels, one, self.image_size) for one in landmarks]
    return [
      Face(*parts)
      for parts in zip(boxes, landmarks, cut, self(cut), strict=True)
    ]

  def aligned(
    self, photograph: Image, *, detector: Detector | None = None
  ) -> UInt8[np.ndarray, "s s 3"]:
    """Cuts out the face that a photograph is of: large and central.

    Args:
      photograph: see `faces`.
      detector: see `faces`.

    Raises:
      InputError: as in `faces`, or there is no face.
    """
    pixels = load_image(photograph)
    boxes, landmarks = (detector or self._detector).detect(pixels)
    if not len(boxes):
      what = repr(photograph) if isinstance(photograph, str) else "the image"
      raise InputError(f"{what} shows no face: give another photograph.")
    chosen = choose_face(boxes, *pixels.shape[:2])
    return align_face(pixels, landmarks[chosen], self.image_size)

  @functools.cached_property
  def _detector(self) -> Detector:
    return usual_detector()

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


def load_image(image: Image) -> UInt8[np.ndarray, "h w 3"]:
  """One image as an array, upright.

  Args:
    image: a path, an image of PIL, or uint8 RGB [H, W, 3].

  Raises:
    InputError: none of these, or a file that cannot be read.
  """
  if isinstance(image, str | os.PathLike):
    try:
      with open(image, "rb", opener=plain) as file:
        return decode_image(file.read())
    except (OSError, DecodingError) as error:
      reason = getattr(error, "strerror", None) or error
      raise InputError(
        f"image {os.fspath(image)!r} cannot be read ({reason}): give the path"
        " of an image."
      ) from None
  if _is_of_pil(image):
    image = np.asarray(image.convert("RGB"))
  if not isinstance(image, np.ndarray):
    raise InputError(f"images: {type(image).__name__} given: {_WANTED}.")
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
    raise InputError(
      f"images: {image.dtype} {list(image.shape)} given: {_WANTED}."
    )
  return image


def _is_of_pil(image: object) -> bool:
  """Whether it is an image of PIL, which need not be installed."""
  return hasattr(image, "convert") and hasattr(image, "getbands")


def _as_array(
  images: Image | Sequence[Image], size: int
) -> UInt8[np.ndarray, "*n h w 3"]:
  """Makes one uint8 array of one or several images, or says why not."""
  if isinstance(images, str | os.PathLike) or _is_of_pil(images):
    return load_image(images)
  if not isinstance(images, np.ndarray):
    if not isinstance(images, Sequence):
      raise InputError(f"images: {type(images).__name__} given: {_WANTED}.")
    images = [
      one
      if isinstance(one, np.ndarray)
      else scaled(load_image(one)[None], size)[0]
      for one in images
    ]
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
      f"images: {images.dtype} {list(images.shape)} given: {_WANTED}."
    )
  return images
