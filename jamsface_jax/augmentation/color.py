"""Random changes of the colours of images."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PRNGKeyArray

# NTSC: what is light, and two axes of colour across it; columns of RGB.
_YIQ = np.array(
  [
    [0.299, 0.587, 0.114],
    [0.5959, -0.2746, -0.3213],
    [0.2115, -0.5227, 0.3112],
  ],
  np.float32,
)
_RGB = np.linalg.inv(_YIQ)


def random_color(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Changes brightness, contrast, saturation and hue of each image.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    strength: at 1 the brightness moves by up to 0.4 of half the range of
      pixels, contrast and saturation scale by up to 0.4 from 1, and the hue
      turns by up to a tenth of the circle.

  Returns:
    float32 [B, H, W, 3], within [-1, 1].
  """
  draws_4b = strength * jax.random.uniform(
    key, (4, len(images)), minval=-1.0, maxval=1.0
  )
  return adjust_color(
    images,
    brightness_b=0.4 * draws_4b[0],
    contrast_b=1.0 + 0.4 * draws_4b[1],
    saturation_b=1.0 + 0.4 * draws_4b[2],
    hue_b=0.1 * draws_4b[3],
  )


def adjust_color(
  images: Float32[Array, "b h w 3"],
  *,
  brightness_b: Float32[Array, " b"],
  contrast_b: Float32[Array, " b"],
  saturation_b: Float32[Array, " b"],
  hue_b: Float32[Array, " b"],
) -> Float32[Array, "b h w 3"]:
  """Changes colours: one matrix an image, in the coordinates YIQ.

  Args:
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    brightness_b: float32 [B], added last.
    contrast_b: float32 [B], scales the distance from middle grey.
    saturation_b: float32 [B], scales the distance from the grey of the pixel.
    hue_b: float32 [B], turns the colours, in circles.

  Returns:
    float32 [B, H, W, 3], within [-1, 1].
  """
  angle_b = 2 * jnp.pi * hue_b
  along_b = contrast_b * saturation_b * jnp.cos(angle_b)
  across_b = contrast_b * saturation_b * jnp.sin(angle_b)
  none_b = jnp.zeros_like(angle_b)
  yiq_b33 = jnp.stack(
    [
      contrast_b,
      none_b,
      none_b,
      none_b,
      along_b,
      -across_b,
      none_b,
      across_b,
      along_b,
    ],
    axis=1,
  ).reshape(-1, 3, 3)
  exact = jax.lax.Precision.HIGHEST
  rgb_b33 = jnp.einsum("ij,bjk,kl->bil", _RGB, yiq_b33, _YIQ, precision=exact)
  images = jnp.einsum("bij,bhwj->bhwi", rgb_b33, images, precision=exact)
  return jnp.clip(images + brightness_b[:, None, None, None], -1.0, 1.0)


def grey(images: Float32[Array, "b h w 3"]) -> Float32[Array, "b h w 3"]:
  """Takes the colours away: Y of YIQ in each channel.

  Args:
    images: float32 [B, H, W, 3], sharding BATCH.

  Returns:
    float32 [B, H, W, 3].
  """
  light = jnp.matmul(images, _YIQ[0], precision=jax.lax.Precision.HIGHEST)
  return jnp.broadcast_to(light[..., None], images.shape)
