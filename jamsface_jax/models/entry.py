"""What happens to images before the first layer of a published network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

MIDDLE = (127.5, 127.5, 127.5)  # Of pixels, and half of their range.


class Entry(nn.Module):
  """Leaves out columns, and normalises as a network was trained.

  Images come as `pixel / 127.5 - 1`. A network that was trained with another
  mean or deviation gets its own, instead of another first convolution: that
  could not stand for zeros beside the image. The middle columns of images on
  ArcFace's template, 112x112, are SphereFace's 112x96.

  Attributes:
    side_crop: columns left out on either side.
    pixel_mean: what is taken from red, green and blue pixels, in [0, 255].
    pixel_std: what they are then divided by.
  """

  side_crop: int = 0
  pixel_mean: tuple[float, ...] = MIDDLE
  pixel_std: tuple[float, ...] = MIDDLE

  @property
  def is_plain(self) -> bool:
    """Whether pixels stay as they come."""
    return (self.pixel_mean, self.pixel_std) == (MIDDLE, MIDDLE)

  def line(self) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand of what comes, float32 [3] each."""
    mean, std = np.array(self.pixel_mean), np.array(self.pixel_std)
    factor, summand = 127.5 / std, (127.5 - mean) / std
    return factor.astype(np.float32), summand.astype(np.float32)

  @nn.compact
  def __call__(
    self, images: Float32[Array | np.ndarray, "b h w 3"]
  ) -> Float32[Array | np.ndarray, "b h v 3"]:
    """Maps `images` [B, H, W, 3] to [B, H, W - 2 side_crop, 3]."""
    if self.side_crop:
      images = jax.lax.slice_in_dim(
        jnp.asarray(images),
        self.side_crop,
        images.shape[2] - self.side_crop,
        axis=2,
      )
    if self.is_plain:
      return images
    factor, summand = (numbers[None, None, None] for numbers in self.line())
    return images * factor + summand
