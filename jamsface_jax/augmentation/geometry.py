"""Moves and crops of images, each a linear map along rows and along columns.

Written as products with small matrices, they run on a matrix unit and need no
gather.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32, PRNGKeyArray


def resample(
  images: Float32[Array, "b h w 3"],
  rows: Float32[Array, "b i h"],
  columns: Float32[Array, "b j w"],
) -> Float32[Array, "b i j 3"]:
  """Makes pixels of weighted sums of pixels.

  Args:
    images: float32 [B, H, W, 3], sharding BATCH.
    rows: float32 [B, I, H], the weights of each new row.
    columns: float32 [B, J, W], the weights of each new column.

  Returns:
    float32 [B, I, J, 3].
  """
  # Rounded to bfloat16, as TPUs multiply unasked, pixels lose half a level.
  exact = jax.lax.Precision.HIGHEST
  images = jnp.einsum("bih,bhwk->biwk", rows, images, precision=exact)
  return jnp.einsum("bjw,biwk->bijk", columns, images, precision=exact)


def bilinear(
  positions: Float32[Array, "b i"], size: int
) -> Float32[Array, "b i {size}"]:
  """Weights of linear interpolation; beyond the edge, the edge is repeated.

  Args:
    positions: float32 [B, I], where to look; pixel i lies at i.
    size: how many pixels there are.

  Returns:
    float32 [B, I, size], sums of 1 over the last axis.
  """
  positions = jnp.clip(positions, 0, size - 1)[:, :, None]
  pixels = jnp.arange(size, dtype=jnp.float32)[None, None, :]
  distance = jnp.abs(positions - pixels)
  return jnp.maximum(1.0 - distance, 0.0)


def shift(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], most: int
) -> Float32[Array, "b h w 3"]:
  """Moves each image by whole pixels, repeating its edge.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3], sharding BATCH.
    most: the largest move each way, in pixels.

  Returns:
    float32 [B, H, W, 3].
  """

  def move(
    image: Float32[Array, "h w 3"], offset: Int32[Array, " 2"]
  ) -> Float32[Array, "h w 3"]:
    height, width, _ = image.shape
    rows = jnp.clip(jnp.arange(height) + offset[0], 0, height - 1)
    columns = jnp.clip(jnp.arange(width) + offset[1], 0, width - 1)
    return image[rows][:, columns]

  offsets = jax.random.randint(key, (len(images), 2), -most, most + 1)
  return jax.vmap(move)(images, offsets)


def random_crop(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Cuts a random box out of each image and scales it to the size of all.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3], sharding BATCH.
    strength: at 1 a box has at least half the area, and a shape between 3:4
      and 4:3.

  Returns:
    float32 [B, H, W, 3].
  """
  area_key, shape_key, corner_key = jax.random.split(key, 3)
  batch = len(images)
  area_b = jax.random.uniform(
    area_key, (batch,), minval=1.0 - 0.5 * strength, maxval=1.0
  )
  shape_b = (4 / 3) ** jax.random.uniform(
    shape_key, (batch,), minval=-strength, maxval=strength
  )
  sides_b2 = jnp.sqrt(
    jnp.stack([area_b / shape_b, area_b * shape_b], axis=1)
  ).clip(max=1.0)
  corner_b2 = jax.random.uniform(corner_key, (batch, 2)) * (1.0 - sides_b2)
  return crop(images, corner_b2, sides_b2)


def crop(
  images: Float32[Array, "b h w 3"],
  corner_b2: Float32[Array, "b 2"],
  sides_b2: Float32[Array, "b 2"],
) -> Float32[Array, "b h w 3"]:
  """Scales a box of each image to the size of all, bilinearly.

  Args:
    images: float32 [B, H, W, 3], sharding BATCH.
    corner_b2: float32 [B, 2], top and left, as parts of H and of W.
    sides_b2: float32 [B, 2], height and width of the box, as parts of H and W.

  Returns:
    float32 [B, H, W, 3].
  """

  def weights(axis: int) -> Float32[Array, "b i i"]:
    size = images.shape[1 + axis]
    middles = ((jnp.arange(size) + 0.5) / size)[None, :]
    inside = corner_b2[:, axis, None] + sides_b2[:, axis, None] * middles
    return bilinear(inside * size - 0.5, size)

  return resample(images, weights(0), weights(1))
