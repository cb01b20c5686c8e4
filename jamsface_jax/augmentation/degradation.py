"""What poor cameras and links do to images: blur, loss of pixels, JPEG."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, PRNGKeyArray

from jamsface_jax.augmentation.geometry import bilinear, resample


def random_blur(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Blurs each image.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3], sharding BATCH.
    strength: at 1 the standard deviation is 1/250 to 1/50 of the height.

  Returns:
    float32 [B, H, W, 3].
  """
  most = strength * images.shape[1] / 50
  sigma_b = jax.random.uniform(
    key, (len(images),), minval=most / 5, maxval=most
  )
  return blur(images, sigma_b)


def blur(
  images: Float32[Array, "b h w 3"], sigma_b: Float32[Array, " b"]
) -> Float32[Array, "b h w 3"]:
  """Gaussian blur; at the edges the mean is over the pixels that there are.

  Args:
    images: float32 [B, H, W, 3], sharding BATCH.
    sigma_b: float32 [B], standard deviation in pixels.

  Returns:
    float32 [B, H, W, 3].
  """

  def weights(size: int) -> Float32[Array, "b {size} {size}"]:
    index = jnp.arange(size, dtype=jnp.float32)
    distance = (index[:, None] - index[None, :])[None]
    # Below a fifth of a pixel nothing blurs; 0 must not divide.
    width = jnp.maximum(sigma_b, 0.2)[:, None, None]
    gauss = jnp.exp(-0.5 * (distance / width) ** 2)
    return gauss / gauss.sum(axis=2, keepdims=True)

  _, height, across, _ = images.shape
  return resample(images, weights(height), weights(across))


def random_resolution(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Scales each image down, and up again.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3], sharding BATCH.
    strength: at 1 down to a quarter of height and width.

  Returns:
    float32 [B, H, W, 3].
  """
  scale_b = jax.random.uniform(
    key, (len(images),), minval=1.0, maxval=1.0 + 3.0 * strength
  )
  return lower_resolution(images, images.shape[1] / scale_b)


def lower_resolution(
  images: Float32[Array, "b h w 3"], height_b: Float32[Array, " b"]
) -> Float32[Array, "b h w 3"]:
  """Scales down by averaging areas, then up again bilinearly.

  Args:
    images: float32 [B, H, W, 3], sharding BATCH.
    height_b: float32 [B], the height in between, rounded to whole pixels; the
      width in between follows.

  Returns:
    float32 [B, H, W, 3].
  """
  _, height, width, _ = images.shape

  def weights(size: int) -> Float32[Array, "b {size} {size}"]:
    few_b = jnp.round(height_b * size / height).clip(1, size)[:, None]
    index = jnp.arange(size, dtype=jnp.float32)[None, :]
    # Down: what part of large pixel k is small pixel i.
    step = (size / few_b)[:, :, None]
    begin, end = index[:, :, None] * step, (index[:, :, None] + 1) * step
    small = index[:, None, :]
    overlap = jnp.minimum(end, small + 1) - jnp.maximum(begin, small)
    down = jnp.maximum(overlap, 0.0) / step
    # Up: rows of `down` from `few` on lie outside and are never looked at.
    there = (index + 0.5) * few_b / size - 0.5
    up = bilinear(jnp.minimum(there, few_b - 1), size)
    return jnp.einsum(
      "bik,bkj->bij", up, down, precision=jax.lax.Precision.HIGHEST
    )

  return resample(images, weights(height), weights(width))


def random_jpeg(
  key: PRNGKeyArray, images: Float32[Array, "b h w 3"], strength: float
) -> Float32[Array, "b h w 3"]:
  """Compresses each image.

  Args:
    key: the random key of this change.
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    strength: at 1 the quality is at least 10, at 0 it is 95.

  Returns:
    float32 [B, H, W, 3], within [-1, 1].
  """
  least = 95.0 - 85.0 * strength
  quality_b = jax.random.uniform(key, (len(images),), minval=least, maxval=95.0)
  return compress(images, quality_b)


def compress(
  images: Float32[Array, "b h w 3"], quality_b: Float32[Array, " b"]
) -> Float32[Array, "b h w 3"]:
  """What JPEG makes of images, without subsampling of colours.

  The steps are those of ITU-T T.81: YCbCr, discrete cosine transform of blocks
  of 8 x 8, rounding to multiples of the tables of its annex K, and back; the
  tables are scaled as libjpeg's `jpeg_quality_scaling` does.

  Args:
    images: float32 [B, H, W, 3] in [-1, 1], sharding BATCH.
    quality_b: float32 [B], 1 to 100.

  Returns:
    float32 [B, H, W, 3], within [-1, 1].
  """
  batch, height, width, _ = images.shape
  margins = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
  levels = jnp.round(jnp.clip(images, -1.0, 1.0) * 127.5 + 127.5)
  levels = jnp.pad(levels, margins, mode="edge")
  exact = jax.lax.Precision.HIGHEST
  rows, columns = (
    jnp.asarray(np.kron(np.eye(size // 8), _DCT), jnp.float32)
    for size in levels.shape[1:3]
  )

  # Middle grey is 0 in all three: the offset of 128 that each has cancels.
  colors = jnp.einsum("ij,bhwj->bhwi", _YCC, levels - 128.0, precision=exact)
  waves = jnp.einsum(
    "uh,bhwk,vw->buvk", rows, jnp.round(colors), columns, precision=exact
  )
  quality_b = quality_b[:, None, None, None]
  percent = jnp.where(
    quality_b < 50.0, 5000.0 / quality_b, 200.0 - 2.0 * quality_b
  )
  tables = jnp.floor((_TABLES[None] * percent + 50.0) / 100.0).clip(1, 255)
  tables = jnp.tile(tables, (1, len(rows) // 8, len(columns) // 8, 1))
  waves = jnp.round(waves / tables) * tables
  colors = jnp.einsum("uh,buvk,vw->bhwk", rows, waves, columns, precision=exact)
  colors = jnp.round(colors).clip(-128.0, 127.0)
  levels = jnp.einsum("ij,bhwj->bhwi", _YCC_BACK, colors, precision=exact)
  levels = jnp.round(levels + 128.0)[:, :height, :width]
  return jnp.clip(levels / 127.5 - 1.0, -1.0, 1.0)


# RGB to luminance and two differences of colour (ITU-T T.871).
_YCC = np.array(
  [
    [0.299, 0.587, 0.114],
    [-0.168736, -0.331264, 0.5],
    [0.5, -0.418688, -0.081312],
  ],
  np.float32,
)
_YCC_BACK = np.linalg.inv(_YCC)

# _DCT[u, i]: wave u at pixel i, orthonormal.
_DCT = np.sqrt(np.where(np.arange(8) == 0, 1 / 8, 1 / 4))[:, None] * np.cos(
  np.pi / 16 * np.outer(np.arange(8), 2 * np.arange(8) + 1)
)

_LUMINANCE = """
16 11 10 16  24  40  51  61
12 12 14 19  26  58  60  55
14 13 16 24  40  57  69  56
14 17 22 29  51  87  80  62
18 22 37 56  68 109 103  77
24 35 55 64  81 104 113  92
49 64 78 87 103 121 120 101
72 92 95 98 112 100 103  99
"""
_COLOR = """
17 18 24 47 99 99 99 99
18 21 26 66 99 99 99 99
24 26 56 99 99 99 99 99
47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
99 99 99 99 99 99 99 99
"""


def _table(text: str) -> Float32[np.ndarray, "8 8"]:
  """The numbers of a table that is written as text."""
  return np.array(text.split(), np.float32).reshape(8, 8)


# [8, 8, 3], of luminance and twice of colour.
_TABLES = np.stack([_table(t) for t in (_LUMINANCE, _COLOR, _COLOR)], axis=-1)
