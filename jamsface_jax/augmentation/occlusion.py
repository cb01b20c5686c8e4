"""Parts of the face hidden: a random box, or a mask over mouth and nose."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, PRNGKeyArray


def erase(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Random erasing (https://arxiv.org/abs/1708.04896): a box of noise.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    strength: at 1 the box has up to 0.4 of the area, never less than 0.02; its
      shape is between 3:10 and 10:3.

  Returns:
    float32 [B, H, W, 3].
  """
  area_key, shape_key, corner_key, noise_key = jax.random.split(key, 4)
  batch, height, width, _ = images.shape
  area_b = jax.random.uniform(
    area_key, (batch,), minval=0.02, maxval=0.02 + 0.38 * strength
  )
  shape_b = (10 / 3) ** jax.random.uniform(
    shape_key, (batch,), minval=-1.0, maxval=1.0
  )
  sides_b2 = jnp.sqrt(
    jnp.stack([area_b / shape_b, area_b * shape_b], axis=1)
  ).clip(max=1.0)
  corner_b2 = jax.random.uniform(corner_key, (batch, 2)) * (1.0 - sides_b2)

  def inside(axis: int, size: int) -> Bool[Array, "b {size}"]:
    middles = ((jnp.arange(size) + 0.5) / size)[None, :]
    past = middles - corner_b2[:, axis, None]
    return (past >= 0) & (past < sides_b2[:, axis, None])

  box = inside(0, height)[:, :, None] & inside(1, width)[:, None, :]
  noise = jax.random.uniform(noise_key, images.shape, minval=-1.0)
  return jnp.where(box[..., None], noise, images)


def cover(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Covers the lower face as a mask does, in one random colour.

  The shape is made for faces aligned to the usual template of 112 x 112 pixels,
  where the tip of the nose lies at 0.64 of the height and the mouth at 0.82.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    strength: at 1 the mask reaches up to 0.5 of the height, at 0 to 0.7.

  Returns:
    float32 [B, H, W, 3].
  """
  top_key, width_key, color_key = jax.random.split(key, 3)
  batch, height, width, _ = images.shape
  top_b11 = jax.random.uniform(
    top_key, (batch, 1, 1), minval=0.7 - 0.2 * strength, maxval=0.7
  )
  half_b11 = jax.random.uniform(
    width_key, (batch, 1, 1), minval=0.32, maxval=0.42
  )
  row = ((jnp.arange(height) + 0.5) / height)[None, :, None]
  aside = jnp.abs((jnp.arange(width) + 0.5) / width - 0.5)[None, None, :]
  # The upper rim sinks from the nose to the cheeks, as a parabola; the sides
  # draw in towards the chin.
  below = row >= top_b11 + 0.1 * (aside / half_b11) ** 2
  between = aside <= half_b11 * (1.0 - 0.5 * (row - top_b11))
  color = jax.random.uniform(color_key, (batch, 1, 1, 3), minval=-1.0)
  return jnp.where((below & between)[..., None], color, images)
