"""Neighbouring pixels of a row as one, with the channels of all of them.

A TPU computes with 128 channels at once, and half of that is idle where a map
has 64, as the first stage of an IResNet has. A map [B, H, W, C] folded by f is
[B, H, W/f, f C], the same numbers in the same order: channel p C + c of column
v is channel c of pixel f v + p. A convolution of it has a kernel that is made
of the plain one, in which each weight stands as often as pixels are folded, and
zeros where pixels are out of the window (ours; a form of space-to-depth, as of
https://arxiv.org/abs/1909.11065 or MLPerf's ResNet, along one axis).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LANES = 128  # Channels that a TPU computes with at once, of any kind so far.


def device_lanes(platform: str) -> int:
  """How many channels a device would have; 1: it does not care.

  Args:
    platform: as JAX names it.
  """
  return LANES if platform == "tpu" else 1


def fold_factor(channels: int, columns: int, lanes: int) -> int:
  """How many pixels of a row are folded: a power of two.

  The most that make no more than `lanes` channels and divide the columns.

  Args:
    channels: of a pixel.
    columns: of the map, not folded.
    lanes: channels that the device would have.
  """
  factor = 1
  while 2 * factor * channels <= lanes and columns % (2 * factor) == 0:
    factor *= 2
  return factor


def refold(
  x: Float[Array, "b h v fc"], factor: int, wanted: int
) -> Float[Array, "b h w gc"]:
  """Changes how many pixels are folded.

  Args:
    x: folded by `factor`, [B, H, W/factor, factor C].
    factor: pixels folded in it.
    wanted: pixels folded in the result; divides W.

  Returns:
    [B, H, W/wanted, wanted C].
  """
  if factor == wanted:
    return x
  batch, height, columns, channels = x.shape
  return x.reshape(
    batch, height, columns * factor // wanted, channels // factor * wanted
  )


def fold_kernel(
  kernel: Float[Array | np.ndarray, "k l c f"],
  stride: int,
  padding: int,
  factor: int,
  wanted: int,
) -> tuple[Float[Array, "k u ac bf"], int, int]:
  """The kernel that does on folded maps what the plain one does on plain maps.

  Pixel q of column v of the result meets with tap j pixel
  stride (wanted v + q) + j - padding of the input, which is pixel p of column
  stride wanted / factor v + u - left for one u and one p.

  Args:
    kernel: [h, w, C, F].
    stride: of the plain convolution along a row.
    padding: zeros before each row of the plain one.
    factor: pixels that are folded in the input; divides stride x wanted.
    wanted: pixels that are to be folded in the result.

  Returns:
    The kernel, [h, u, factor C, wanted F]; its stride along a row; zeros before
    each row. What it needs behind a row follows from how many columns are
    wanted.
  """
  kernel = jnp.asarray(kernel)
  rows, taps, channels, features = kernel.shape
  left = -(-padding // factor)
  last = stride * (wanted - 1) + taps - 1 - padding
  width = left + last // factor + 1
  nothing = jnp.zeros((rows, channels, features), kernel.dtype)

  def met(u: int, p: int, q: int) -> jax.Array:
    """What pixel p of column u has to do with pixel q of the result."""
    j = factor * (u - left) + p - stride * q + padding
    return kernel[:, j] if 0 <= j < taps else nothing

  blocks = [
    [
      jnp.concatenate([met(u, p, q) for q in range(wanted)], axis=-1)
      for p in range(factor)
    ]
    for u in range(width)
  ]
  folded = jnp.stack([jnp.concatenate(of_u, axis=1) for of_u in blocks], axis=1)
  return folded, stride * wanted // factor, left
