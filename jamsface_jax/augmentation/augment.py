"""Random changes to training images, on the device, inside the step.

Each example draws from its own row of the global batch, so that what it sees
does not depend on the number of devices or processes.
"""

import jax
import jax.numpy as jnp

from jamsface_jax.augmentation import color as color_lib
from jamsface_jax.augmentation import degradation, geometry, occlusion


def normalize(images: jax.Array) -> jax.Array:
  """Maps uint8 pixels to [-1, 1]: (x - 127.5) / 127.5, float32."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def augment(
  key: jax.Array,
  images: jax.Array,
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
) -> jax.Array:
  """Changes every image at random, in the order of the arguments.

  Args:
    key: of this step.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    flip: mirror half of the images.
    shift: move by up to so many pixels each way; the edge is repeated.
    contrast: scale the distance from grey by a factor up to so far from 1.
    brightness: add up to so much, in units of half the range of pixels.
    cover: probability of a mask-like cover, see `occlusion.cover`.
    crop: of cutting out a box, see `geometry.random_crop`.
    color: of changing the colours, see `color.random_color`.
    grey: of taking the colours away.
    blur: see `degradation.random_blur`.
    resolution: of losing pixels, see `degradation.random_resolution`.
    jpeg: of compression, see `degradation.random_jpeg`.
    erase: of a box of noise, see `occlusion.erase`.
    random_changes: beside what their probabilities say, each image gets so many
      of the eight, drawn at random: RandAugment
      (https://arxiv.org/abs/1909.13719) with these operations.
    strength: 0 to 1, of all eight.

  Returns:
    float32 [B, H, W, 3] in [-1, 1].
  """
  keys = jax.random.split(key, 13)
  flip_key, shift_key, light_key, contrast_key, random_key = keys[:5]
  batch = len(images)
  if flip:
    mirrored_b = jax.random.bernoulli(flip_key, 0.5, (batch,))
    images = jnp.where(
      mirrored_b[:, None, None, None], images[:, :, ::-1], images
    )
  if shift:
    images = geometry.shift(shift_key, images, shift)
  if contrast:
    factor_b = jax.random.uniform(
      contrast_key, (batch, 1, 1, 1), minval=1 - contrast, maxval=1 + contrast
    )
    images = images * factor_b
  if brightness:
    images = images + jax.random.uniform(
      light_key, (batch, 1, 1, 1), minval=-brightness, maxval=brightness
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
  draws_b8 = jax.random.uniform(random_key, (batch, len(changes)))
  drawn_b8 = draws_b8.argsort(axis=1).argsort(axis=1) < random_changes
  for number, (probability, change) in enumerate(changes):
    if not probability and not random_changes:
      continue
    chosen_key, change_key = jax.random.split(keys[5 + number])
    chosen_b = jax.random.bernoulli(chosen_key, probability, (batch,))
    chosen_b |= drawn_b8[:, number]
    images = jnp.where(
      chosen_b[:, None, None, None],
      change(change_key, images, strength),
      images,
    )
  return images
