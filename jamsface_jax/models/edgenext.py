"""EdgeNeXt, the network that EdgeFace was published with.

Architecture and initial values follow `timm/models/edgenext.py` of
https://github.com/huggingface/pytorch-image-models (EdgeNeXt,
https://arxiv.org/abs/2206.10589); linear layers as products of two of low rank
follow `backbones/timmfr.py` of https://github.com/otroshi/edgeface (EdgeFace,
https://arxiv.org/abs/2307.01838). There is no batch normalisation in it: no
statistics are kept.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jamsface_jax.errors import InputError
from jamsface_jax.models.convolution import convolve, keep_parameters
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.layers import Linear

CHANNELS = (24, 48, 88, 168)  # Of each stage, at width 1.
HEADS = 4
SCALES = (1, 2, 3, 4)  # Parts of the channels in a stage's last block.
KERNELS = (3, 5, 7, 9)  # Rows and columns within each channel, by stage.
SMALLEST = 32  # Pixels, of which the last stage's map has one.
_PATCH = 4  # Pixels of the stem.
_ENCODED = 32  # Sines and cosines for a row, and as many for a column.
_EPSILON = 1e-6  # Of normalisations.
_FIRST_FACTOR = 1e-6  # Of what a path adds to its residual.
_INIT = nn.initializers.truncated_normal(0.02)


class Factor(nn.Module):
  """Multiplies by a learned factor for each channel or head.

  Attributes:
    shape: of the factors.
    initial: the first value of all.

  Parameter `factor`: float32 `shape`.
  """

  shape: tuple[int, ...]
  initial: float

  @nn.compact
  def __call__(self, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Multiplies `x`, whose last axes are those of the factors."""
    init = nn.initializers.constant(self.initial)
    factor = self.param("factor", init, self.shape)
    return x * jnp.broadcast_to(factor, x.shape)


class Gelu(nn.Module):
  """x times the share of a normal distribution below x; no parameters."""

  def __call__(self, x: Float[Array, "*s"]) -> Float[Array, "*s"]:
    """Applies it to `x`, keeps dtype and shape."""
    # Training then keeps x alone: a seventh less of all memory in a step.
    return jax.checkpoint(lambda x: nn.gelu(x, approximate=False))(x)


class LowRankLinear(nn.Module):
  """A linear map of the last axis as a product of two, by way of few numbers.

  Attributes:
    channels: length of the last axis of the result.
    rank_share: how many numbers there are in between, of the smaller side's.
    dtype: compute dtype.
  """

  channels: int
  rank_share: float
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s f"]:
    """Maps `x` [B, ..., C] to [B, ..., channels]."""
    rank = max(2, int(min(x.shape[-1], self.channels) * self.rank_share))
    x = Linear(rank, self.dtype, _INIT, use_bias=False, name="linear1")(x)
    return Linear(self.channels, self.dtype, _INIT, name="linear2")(x)


def _linear(
  channels: int, rank_share: float, dtype: jax.typing.DTypeLike, name: str
) -> nn.Module:
  """A linear layer; of a rank below the smaller side's, if a share is given."""
  if not rank_share:
    return Linear(channels, dtype, _INIT, name=name)
  return LowRankLinear(channels, rank_share, dtype, name=name)


def _layer_norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=_EPSILON, dtype=jnp.float32, name=name)


def _depthwise(
  channels: int, kernel: int, dtype: jax.typing.DTypeLike, name: str
) -> nn.Conv:
  """A convolution within each channel that keeps the size of the map."""
  return nn.Conv(
    features=channels,
    kernel_size=(kernel, kernel),
    padding=kernel // 2,
    feature_group_count=channels,
    kernel_init=_INIT,
    dtype=dtype,
    conv_general_dilated=convolve,
    promote_dtype=keep_parameters,
    name=name,
  )


class CrossCovariance(nn.Module):
  """Attention of channels to channels, over all tokens, in heads.

  Cosines between channels take the place of products between tokens: the work
  grows with the tokens, not with their square. They and the softmax are
  float32.

  Attributes:
    heads: groups of channels that see each other.
    rank_share: see `EdgeNeXt`.
    dtype: compute dtype of the linear layers.
  """

  heads: int
  rank_share: float
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b t c"]:
    """Maps `x` [B, T, C] to the same shape."""
    batch, tokens, channels = x.shape
    linear = partial(_linear, rank_share=self.rank_share, dtype=self.dtype)
    x = linear(3 * channels, name="qkv")(x)
    x = x.astype(jnp.float32).reshape(batch, tokens, 3, self.heads, -1)
    query, key, value = (x[:, :, k] for k in range(3))  # [B, T, heads, d].
    scores = jnp.einsum("bthd,bthe->bhde", _unit(query), _unit(key))
    scores = Factor((self.heads, 1, 1), 1.0, name="temperature")(scores)
    x = jnp.einsum("bhde,bthe->bthd", jax.nn.softmax(scores), value)
    x = x.reshape(batch, tokens, channels)
    return linear(channels, name="proj")(x)


def _unit(x: Float[Array, "b t h d"]) -> Float[Array, "b t h d"]:
  """Each channel over the tokens, of length 1; zeros stay."""
  # The root of a sum of zeros has no gradient.
  square = jnp.sum(jnp.square(x), axis=1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class Encoding(nn.Module):
  """Adds to a map where in it a place is.

  By sines and cosines of its row and its column, of 16 wavelengths each, which
  a 1x1 convolution maps to the channels.
  """

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Adds to `x` [B, H, W, C]."""
    place = nn.Conv(
      x.shape[-1], (1, 1), kernel_init=_INIT, name="token_projection"
    )
    return x + place(waves(*x.shape[1:3])[None])


def waves(height: int, width: int) -> Float32[np.ndarray, "h w 64"]:
  """What `Encoding` maps to the channels of a map."""
  exponents = 2 * (np.arange(_ENCODED) // 2) / _ENCODED
  wavelengths = 10_000**exponents

  def along(count: int) -> np.ndarray:
    part = np.arange(1, count + 1) / (count + 1e-6) * 2 * math.pi
    angles = part[:, None] / wavelengths
    angles[:, 0::2] = np.sin(angles[:, 0::2])
    angles[:, 1::2] = np.cos(angles[:, 1::2])
    return angles

  shape = (height, width, _ENCODED)
  rows = np.broadcast_to(along(height)[:, None], shape)
  columns = np.broadcast_to(along(width)[None], shape)
  return np.concatenate([rows, columns], axis=-1).astype(np.float32)


class SplitConvs(nn.Module):
  """Convolutions of parts of the channels, each of its part and the last's sum.

  A convolution within each channel, 3x3, runs over the first part; the next one
  over its result and the second part, added up; and so on. The last part stays.

  Attributes:
    parts: how many there are, 2 or more, all but the last of one size.
    dtype: compute dtype.
  """

  parts: int
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maps `x` [B, H, W, C] to the same shape."""
    size = -(-x.shape[-1] // self.parts)
    bounds = list(range(size, x.shape[-1], size))
    *parts, last = jnp.split(x, bounds, axis=-1)
    done: list[Array] = []
    for k, part in enumerate(parts):
      part = done[-1] + part if done else part
      conv = _depthwise(size, 3, self.dtype, name=f"conv{k + 1}")
      done.append(conv(part).astype(x.dtype))
    return jnp.concatenate([*done, last], axis=-1)


class Block(nn.Module):
  """Within each channel, then within each place, on a residual path.

  What is added up is float32: the first factors, of a millionth, would be lost
  in bfloat16.

  Attributes:
    kernel: rows and columns of the convolution; 0 for a stage's last block,
      which has `SplitConvs` and `CrossCovariance` instead.
    parts: of those.
    encoded: whether they see where a place is.
    heads: see `CrossCovariance`.
    rank_share: see `EdgeNeXt`.
    dtype: compute dtype of convolutions and linear layers.
  """

  kernel: int
  parts: int
  encoded: bool
  heads: int
  rank_share: float
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: Float32[Array, "b h w c"]) -> Float32[Array, "b h w c"]:
    """Maps `x` [B, H, W, C] to the same shape."""
    batch, height, width, channels = x.shape

    def scaled(y: Float[Array, "b t c"], name: str) -> Float32[Array, "b t c"]:
      gamma = Factor((channels,), _FIRST_FACTOR, name=name)
      return gamma(y.astype(jnp.float32))

    if self.kernel:
      y = _depthwise(channels, self.kernel, self.dtype, "conv_dw")(x)
      y = y.reshape(batch, height * width, channels)
    else:
      y = SplitConvs(self.parts, self.dtype, name="convs")(x)
      if self.encoded:
        y = Encoding(name="pos_embd")(y)
      y = y.reshape(batch, height * width, channels)
      attention = CrossCovariance(
        self.heads, self.rank_share, self.dtype, name="xca"
      )
      y = y + scaled(attention(_layer_norm("norm_xca")(y)), "gamma_xca")
    linear = partial(_linear, rank_share=self.rank_share, dtype=self.dtype)
    y = _layer_norm("norm")(y)
    y = linear(4 * channels, name="fc1")(y)
    y = linear(channels, name="fc2")(Gelu(name="gelu")(y))
    return x + scaled(y, "gamma").reshape(x.shape)


class EdgeNeXt(nn.Module):
  """Maps face images to embeddings.

  Attributes:
    stages: blocks of the four stages; every stage but the first halves the map
      and ends with attention.
    entry: what happens to images first.
    channels: of the maps of each stage, at width 1.
    heads: groups of channels that see each other.
    rank_share: linear layers are products of two, of this share of the rank
      that they could have; 0: they are not.
    width: multiplies all channel counts.
    embedding_size: length of the result.
    dropout: rate before the embedding layer, in training; 0 as published.
    dtype: dtype of the convolutions and linear layers of the blocks; the rest
      is float32.
    remat: recompute each block in the backward pass instead of storing its
      activations.
    batch_norm_group: not used: there is no batch normalisation.
  """

  stages: tuple[int, ...]
  entry: Entry
  channels: tuple[int, ...]
  heads: int
  rank_share: float
  width: float
  embedding_size: int
  dropout: float
  dtype: jax.typing.DTypeLike
  remat: bool
  batch_norm_group: int

  @nn.compact
  def __call__(
    self, images: Float32[Array | np.ndarray, "b h w 3"], train: bool
  ) -> Float32[Array, "b d"]:
    """Embeds a batch.

    Args:
      images: float32 [B, H, W, 3], about [-1, 1]; rows and columns beyond whole
        patches and pairs of them are not looked at.
      train: drop out (rng "dropout").

    Returns:
      Embeddings, float32 [B, embedding_size], not normalised.

    Raises:
      InputError: an image is smaller than `SMALLEST`.
    """
    if min(images.shape[1:3]) < SMALLEST:
      raise InputError(
        f"data.image_size={min(images.shape[1:3])} leaves no map at the end of"
        f" an EdgeNeXt: use {SMALLEST} or more."
      )
    block = nn.remat(Block) if self.remat else Block
    x = self.entry(images)
    for number, depth in enumerate(self.stages, start=1):
      channels = round(self.channels[number - 1] * self.width)
      if number > 1:
        x = _layer_norm(f"stage{number}_norm")(x)
      x = nn.Conv(
        channels,
        (_PATCH, _PATCH) if number == 1 else (2, 2),
        strides=_PATCH if number == 1 else 2,
        padding=0,
        kernel_init=_INIT,
        conv_general_dilated=convolve,
        promote_dtype=keep_parameters,
        name=f"stage{number}_conv",
      )(x)
      if number == 1:
        x = _layer_norm("stem_norm")(x)
      for i in range(1, depth + 1):
        attends = i == depth and number > 1
        x = block(
          kernel=0 if attends else KERNELS[number - 1],
          parts=SCALES[number - 1],
          encoded=number == 2,
          heads=self.heads,
          rank_share=self.rank_share,
          dtype=self.dtype,
          name=f"stage{number}_block{i}",
        )(x)
    x = jnp.mean(x, axis=(1, 2))
    x = _layer_norm("final_norm")(x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return _linear(
      self.embedding_size, self.rank_share, jnp.float32, name="embedding_fc"
    )(x)
