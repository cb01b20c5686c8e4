"""Random changes to training images, on the device, inside the step.

Each example draws from its own row of the global batch, so that what it sees
does not depend on the number of devices or processes.
"""

import jax
import jax.numpy as jnp


def normalize(images: jax.Array) -> jax.Array:
  """Maps uint8 pixels to [-1, 1]: (x - 127.5) / 127.5, float32."""
  return images.astype(jnp.float32) / 127.5 - 1.0


def augment(
  key: jax.Array,
  images: jax.Array,
  *,
  flip: bool,
  shift: int,
  brightness: float,
  contrast: float,
) -> jax.Array:
  """Flips, shifts and re-lights every image at random.

  Args:
    key: of this step.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    flip: mirror half of the images.
    shift: move by up to so many pixels each way; the edge is repeated.
    brightness: add up to so much, in units of half the range of pixels.
    contrast: scale the distance from grey by a factor up to so far from 1.

  Returns:
    float32 [B, H, W, 3] in [-1, 1].
  """
  flip_key, shift_key, light_key, contrast_key = jax.random.split(key, 4)
  batch = len(images)
  if flip:
    mirrored_b = jax.random.bernoulli(flip_key, 0.5, (batch,))
    images = jnp.where(
      mirrored_b[:, None, None, None], images[:, :, ::-1], images
    )
  if shift:
    offsets = jax.random.randint(shift_key, (batch, 2), -shift, shift + 1)
    images = jax.vmap(_shift)(images, offsets)
  if contrast:
    factor_b = jax.random.uniform(
      contrast_key, (batch, 1, 1, 1), minval=1 - contrast, maxval=1 + contrast
    )
    images = images * factor_b
  if brightness:
    images = images + jax.random.uniform(
      light_key, (batch, 1, 1, 1), minval=-brightness, maxval=brightness
    )
  return jnp.clip(images, -1.0, 1.0)


def _shift(image: jax.Array, offset: jax.Array) -> jax.Array:
  """Moves one image [H, W, 3] by whole pixels, repeating its edge."""
  height, width, _ = image.shape
  rows = jnp.clip(jnp.arange(height) + offset[0], 0, height - 1)
  columns = jnp.clip(jnp.arange(width) + offset[1], 0, width - 1)
  return image[rows][:, columns]
