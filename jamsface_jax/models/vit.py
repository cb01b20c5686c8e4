"""Vision transformer for faces, as in insightface.

Architecture and initial values follow `arcface_torch/backbones/vit.py` of
https://github.com/deepinsight/insightface: patches of 9 pixels, no class token,
ReLU6, and an embedding head that reads all tokens at once.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32

from jamsface_jax.errors import InputError
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.layers import (
  BatchNorm,
  Linear,
  Linears,
  relu6,
  torch_linear_init,
)

PATCH = 9  # Pixels; 12 x 12 patches in 108 of 112 pixels.
TOKEN_CHANNELS = 512  # At width 1.
HEADS = 8
FEATURE_EPSILON = 2e-5  # Of the batch normalisations of the embedding head.
_INIT = nn.initializers.normal(0.02)


class Attention(nn.Module):
  """Self-attention over all tokens; the softmax is float32.

  Attributes:
    dtype: compute dtype of the linear layers.
  """

  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
    """Maps `x` [B, T, D] to the same shape."""
    batch, tokens, channels = x.shape
    # Heads before tokens: XLA:CPU would move them in each product, and took
    # 2.3 times as long for all of the attention (32 images, jaxlib 0.10.2).
    query, key, value = (
      part.astype(jnp.float32).reshape(batch, tokens, HEADS, -1).swapaxes(1, 2)
      for part in Linears(channels, 3, self.dtype, _INIT, name="qkv")(x)
    )
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key)
    weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5)
    x = jnp.einsum("bhqk,bhkd->bhqd", weights, value).swapaxes(1, 2)
    return Linear(channels, self.dtype, kernel_init=_INIT, name="proj")(
      x.reshape(batch, tokens, channels)
    )


class Block(nn.Module):
  """Attention and two linear layers, each on a residual path.

  Attributes:
    drop_path: probability that a path of an example is left out, in training.
    dtype: compute dtype of the linear layers; the sums are float32.
  """

  drop_path: float
  dtype: jax.typing.DTypeLike

  @nn.compact
  def __call__(
    self, x: Float[Array, "b t d"], train: bool
  ) -> Float32[Array, "b t d"]:
    """Maps `x` [B, T, D] to the same shape."""

    def keep(path: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
      # A whole path of an example at once: https://arxiv.org/abs/1603.09382.
      return nn.Dropout(
        self.drop_path, broadcast_dims=(1, 2), deterministic=not train
      )(path)

    def dense(channels: int, name: str) -> Linear:
      return Linear(channels, self.dtype, kernel_init=_INIT, name=name)

    y = _layer_norm("norm1")(x)
    x = x + keep(Attention(self.dtype, name="attn")(y))
    y = _layer_norm("norm2")(x)
    y = dense(4 * x.shape[-1], "fc1")(y)
    return x + keep(dense(x.shape[-1], "fc2")(relu6(y)))


class ViT(nn.Module):
  """Maps face images to embeddings.

  Attributes:
    stages: number of blocks, as a tuple of one.
    entry: what happens to images first.
    width: multiplies the channels of a token; 1 means 512.
    drop_path: probability that a residual path of the last block is left out,
      in training; it rises linearly from 0 in the first.
    mask_ratio: share of tokens that training hides from the blocks, at random
      per example; a learned token takes their places before the head.
    embedding_size: length of the result.
    dropout: rate before the embedding layers, in training; 0 as published.
    dtype: dtype of the linear layers of the blocks; the rest is float32.
    remat: recompute each block in the backward pass instead of storing its
      activations.
    batch_norm_group: examples per statistics group of the embedding head; 0
      means the whole batch.
  """

  stages: tuple[int, ...]
  entry: Entry
  width: float
  drop_path: float
  mask_ratio: float
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
      images: float32 [B, H, W, 3], about [-1, 1]; what is left over of the
        height and width beyond whole patches is not looked at.
      train: use and update batch statistics (mutable collection
        "batch_stats"), hide tokens and paths (rng "dropout").

    Returns:
      Embeddings, float32 [B, embedding_size], not normalised.

    Raises:
      InputError: an image is smaller than a patch; or in training, if
        `batch_norm_group` does not divide B.
    """
    if min(images.shape[1:3]) < PATCH:
      raise InputError(
        f"data.image_size={min(images.shape[1:3])} is smaller than a patch of"
        f" a ViT: use {PATCH} or more."
      )
    images = self.entry(images)
    channels = round(TOKEN_CHANNELS * self.width)
    (depth,) = self.stages
    init = torch_linear_init(fan_in=3 * PATCH**2)
    x = nn.Conv(
      features=channels,
      kernel_size=(PATCH, PATCH),
      strides=PATCH,
      padding="VALID",
      kernel_init=init,
      bias_init=init,
      name="patch_embed",
    )(images)
    x = x.reshape(x.shape[0], -1, channels)
    tokens = x.shape[1]
    x = x + self.param("pos_embed", _INIT, (1, tokens, channels))
    # There even when nothing is hidden, as in published files.
    mask_token = self.param("mask_token", _INIT, (1, 1, channels))
    hiding = train and self.mask_ratio > 0
    if hiding:
      noise = jax.random.uniform(self.make_rng("dropout"), x.shape[:2])
      order = jnp.argsort(noise, axis=1)
      x = _first_tokens(x, order, int(tokens * (1 - self.mask_ratio)))
    # Argument 2 is `train` (0 is the module): Python branches on it.
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    for i in range(1, depth + 1):
      rate = self.drop_path * (i - 1) / max(depth - 1, 1)
      x = block(rate, self.dtype, name=f"block{i}")(x, train)
    x = _layer_norm("norm")(x)
    if hiding:
      x = _put_back(x, order, mask_token)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = x.reshape(x.shape[0], -1)
    for size, number in ((channels, 1), (self.embedding_size, 2)):
      x = nn.Dense(
        size,
        use_bias=False,
        dtype=jnp.float32,
        kernel_init=_INIT,
        name=f"feature{number}_fc",
      )(x)
      x = BatchNorm(
        self.batch_norm_group,
        jnp.float32,
        epsilon=FEATURE_EPSILON,
        name=f"feature{number}_bn",
      )(x, train)
    return x


def _first_tokens(
  x: Float32[Array, "b t d"], order: Int32[Array, "b t"], count: int
) -> Float32[Array, "b k d"]:
  """The tokens that come first in an order, another one for each example."""
  return jnp.take_along_axis(x, order[:, :count, None], axis=1)


def _put_back(
  x: Float32[Array, "b k d"],
  order: Int32[Array, "b t"],
  mask_token: Float32[Array, "1 1 d"],
) -> Float32[Array, "b t d"]:
  """Undoes `_first_tokens`; what it left out is the mask token."""
  batch, count, channels = x.shape
  hidden = jnp.broadcast_to(
    mask_token, (batch, order.shape[1] - count, channels)
  )
  places = jnp.argsort(order, axis=1)[:, :, None]
  return jnp.take_along_axis(
    jnp.concatenate([x, hidden], axis=1), places, axis=1
  )


def _layer_norm(name: str) -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name=name)
