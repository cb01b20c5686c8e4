"""Random changes to training images, on the device, inside the step.

Each example draws from its own row of the global batch, so that what it sees
does not depend on the number of devices or processes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PRNGKeyArray, UInt8

from jamsface_jax.augmentation import color as color_lib
from jamsface_jax.augmentation import degradation, geometry, occlusion


def normalize(
  images: UInt8[Array | np.ndarray, "*shape"],
) -> Float32[Array | np.ndarray, "*shape"]:
  """Maps pixels to [-1, 1]: (x - 127.5) / 127.5.

  Args:
    images: uint8, any shape and sharding.

  Returns:
    float32, of the same shape and sharding.
  """
  return images.astype(jnp.float32) / 127.5 - 1.0


def augment(
  key: PRNGKeyArray,
  images: Float32[Array, "b h w 3"],
  *,
  flip: bool,
  shift: int,
  contrast: float,
  brightness: float,
  cover: float,
  crop: float,
  color: float,
  grey: float,
  blur: float,
  resolution: float,
  jpeg: float,
  erase: float,
  random_changes: int,
  strength: float,
) -> Float32[Array, "b h w 3"]:
  """Changes every image at random, in the order of the arguments.

  Args:
    key: the random key of this step.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    flip: mirror half of the images.
    shift: move by up to so many pixels each way; the edge is repeated.
    contrast: scale the distance from grey by a factor up to so far from 1.
    brightness: add up to so much, in units of half the range of pixels.
    cover: probability of a mask-like cover, see `occlusion.cover`.
    crop: probability of cutting out a box, see `geometry.random_crop`.
    color: probability of other colours, see `color.random_color`.
    grey: probability of no colours, see `color.grey`.
    blur: probability of a blur, see `degradation.random_blur`.
    resolution: probability of fewer pixels, see
      `degradation.random_resolution`.
    jpeg: probability of compression, see `degradation.random_jpeg`.
    erase: probability of a box of noise, see `occlusion.erase`.
    random_changes: beside what their probabilities say, each image gets so many
      of the eight, drawn at random: RandAugment
      (https://arxiv.org/abs/1909.13719) with these operations.
    strength: how far the eight go, 0 to 1.

  Returns:
    float32 [B, H, W, 3] in [-1, 1].
  """
  keys = jax.random.split(key, 13)
  flip_key, shift_key, brightness_key, contrast_key, draw_key = keys[:5]
  if flip:
    images = _mirror_half(flip_key, images)
  if shift:
    images = geometry.shift(shift_key, images, shift)
  if contrast:
    images = images * _number_each(
      contrast_key, len(images), 1 - contrast, 1 + contrast
    )
  if brightness:
    images = images + _number_each(
      brightness_key, len(images), -brightness, brightness
    )
  images = jnp.clip(images, -1.0, 1.0)

  changes = (
    (cover, occlusion.cover),
    (crop, geometry.random_crop),
    (color, color_lib.random_color),
    (grey, lambda key, images, strength: color_lib.grey(images)),
    (blur, degradation.random_blur),
    (resolution, degradation.random_resolution),
    (jpeg, degradation.random_jpeg),
    (erase, occlusion.erase),
  )
  # The smallest of eight draws are as many different ones.
  draws_b8 = jax.random.uniform(draw_key, (len(images), len(changes)))
  drawn_b8 = draws_b8.argsort(axis=1).argsort(axis=1) < random_changes
  for number, (probability, change) in enumerate(changes):
    if not probability and not random_changes:
      continue
    chosen_key, change_key = jax.random.split(keys[5 + number])
    chosen_b = jax.random.bernoulli(chosen_key, probability, (len(images),))
    chosen_b |= drawn_b8[:, number]
    images = jnp.where(
      chosen_b[:, None, None, None],
      change(change_key, images, strength),
      images,
    )
  return images


def _mirror_half(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"]
) -> Float32[Array, "b h w 3"]:
  """Swaps left and right of each image with probability 1/2."""
  mirrored_b = jax.random.bernoulli(key, 0.5, (len(images),))
  return jnp.where(mirrored_b[:, None, None, None], images[:, :, ::-1], images)


def _number_each(
  key: PRNGKeyArray, batch: int, least: float, most: float
) -> Float32[Array, "{batch} 1 1 1"]:
  """A random number for each image."""
  return jax.random.uniform(key, (batch, 1, 1, 1), minval=least, maxval=most)
