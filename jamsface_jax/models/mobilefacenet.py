"""MobileFaceNet, the small network of face recognition.

Architecture, initial values and what stays in float32 follow
`arcface_torch/backbones/mobilefacenet.py` of
https://github.com/deepinsight/insightface (https://arxiv.org/abs/1804.07573),
where it is called `mbf`. At `scale` 1 it is the network of the paper, whose
published files have PReLU or ReLU6.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jamsface_jax.models.convolution import convolve, keep_parameters
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.layers import ACTIVATIONS, BatchNorm, PReLU

UNIT_CHANNELS = 64  # All channel counts are multiples of it, at width 1.


class ConvBlock(nn.Module):
  """Convolution without bias, batch normalisation, activation.

  Attributes:
    channels: channels of the result.
    dtype: compute dtype.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
    kernel: height and width of the kernel; 0 means the whole image, unpadded.
    stride: steps of the convolution along height and width.
    groups: groups of channels that the convolution keeps apart.
    activation: "prelu", a key of `ACTIVATIONS`, or "" for none.
  """

  channels: int
  dtype: jax.typing.DTypeLike
  batch_norm_group: int
  kernel: int = 1
  stride: int = 1
  groups: int = 1
  activation: str = "prelu"

  @nn.compact
  def __call__(
    self, x: Float[Array | np.ndarray, "b h w c"], train: bool
  ) -> Float[Array, "b i j f"]:
    """Maps `x` [B, H, W, C] to [B, H/stride, W/stride, channels]."""
    size = (self.kernel, self.kernel) if self.kernel else x.shape[1:3]
    # Kaiming's normal initial values for ReLU, by the number of outputs.
    spread = (2 / (self.channels * size[0] * size[1])) ** 0.5
    x = nn.Conv(
      features=self.channels,
      kernel_size=size,
      strides=self.stride,
      padding=self.kernel // 2,
      feature_group_count=self.groups,
      use_bias=False,
      kernel_init=nn.initializers.normal(spread),
      dtype=self.dtype,
      conv_general_dilated=convolve,
      promote_dtype=keep_parameters,
      name="conv",
    )(x)
    x = BatchNorm(self.batch_norm_group, self.dtype, name="bn")(x, train)
    if self.activation == "prelu":
      return PReLU(name="prelu")(x)
    return ACTIVATIONS[self.activation](x) if self.activation else x


class Bottleneck(nn.Module):
  """Expand by 1x1, 3x3 within each channel, project by 1x1.

  Attributes:
    channels: channels of the result.
    expanded: channels in between.
    stride: steps of the middle convolution; at 1 the input is added to the
      result.
    dtype: compute dtype.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
    activation: of the first two, see `ConvBlock`.
  """

  channels: int
  expanded: int
  stride: int
  dtype: jax.typing.DTypeLike
  batch_norm_group: int
  activation: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], train: bool
  ) -> Float[Array, "b i j f"]:
    """Maps `x` [B, H, W, C] to [B, H/stride, W/stride, channels]."""
    conv = partial(
      ConvBlock,
      dtype=self.dtype,
      batch_norm_group=self.batch_norm_group,
      activation=self.activation,
    )
    y = conv(self.expanded, name="expand")(x, train)
    y = conv(
      self.expanded,
      kernel=3,
      stride=self.stride,
      groups=self.expanded,
      name="depthwise",
    )(y, train)
    y = conv(self.channels, activation="", name="project")(y, train)
    return x + y if self.stride == 1 else y


class MobileFaceNet(nn.Module):
  """Maps face images to embeddings.

  Attributes:
    stages: blocks of the four stages, each after the one that halves the image;
      the first stage with a single block is a convolution in 64 groups instead.
    entry: what happens to images first.
    scale: multiplies the channels that blocks exchange, not those within.
    activation: "prelu" or a key of `ACTIVATIONS`.
    separable: the convolution in groups that is the first stage has ReLU, and a
      1x1 convolution with ReLU after it, as MobileNet's.
    width: multiplies all channel counts.
    embedding_size: length of the result.
    dropout: rate before the embedding layer, in training; 0 as published.
    dtype: dtype of convolutions and activations, without the last 1x1
      convolution and what follows, which are float32 as published. Parameters
      and batch statistics are float32.
    remat: recompute each block in the backward pass instead of storing its
      activations.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
  """

  stages: tuple[int, ...]
  entry: Entry
  scale: int
  activation: str
  separable: bool
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
      images: float32 [B, H, W, 3], about [-1, 1].
      train: use and update batch statistics (mutable collection
        "batch_stats"), and drop out (rng "dropout").

    Returns:
      Embeddings, float32 [B, embedding_size], not normalised.

    Raises:
      InputError: in training, if `batch_norm_group` does not divide B.
    """
    unit = round(UNIT_CHANNELS * self.width)
    narrow, wide = unit * self.scale, 2 * unit * self.scale
    # Argument 2 is `train` (0 is the module): Python branches on it.
    block = Bottleneck
    if self.remat:
      block = nn.remat(Bottleneck, static_argnums=(2,))
    settings = {
      "dtype": self.dtype,
      "batch_norm_group": self.batch_norm_group,
      "activation": self.activation,
    }
    block, conv = partial(block, **settings), partial(ConvBlock, **settings)
    conv32 = partial(conv, dtype=jnp.float32)

    images = self.entry(images)
    x = conv(narrow, kernel=3, stride=2, name="stem")(images, train)
    # Channels of a stage, those within the block that halves the image, and
    # those within the others.
    plan = (
      (narrow, 0, 2 * unit),
      (narrow, 2 * unit, 2 * unit),
      (wide, 4 * unit, 4 * unit),
      (wide, 8 * unit, 4 * unit),
    )
    for stage, (channels, halving, within) in enumerate(plan, start=1):
      if halving:
        x = block(channels, halving, stride=2, name=f"stage{stage}_down")(
          x, train
        )
      elif self.stages[0] == 1:
        if self.separable:
          conv1 = partial(conv, activation="relu")
        else:
          conv1 = conv
        x = conv1(channels, kernel=3, groups=unit, name="stage1_conv")(x, train)
        if self.separable:
          x = conv1(channels, name="stage1_point")(x, train)
        continue
      for i in range(1, self.stages[stage - 1] + 1):
        x = block(channels, within, stride=1, name=f"stage{stage}_block{i}")(
          x, train
        )
    x = conv32(8 * unit, name="last")(x, train)
    # The whole image in one window per channel: 7 x 7 at 112 pixels.
    x = conv32(8 * unit, kernel=0, groups=8 * unit, activation="", name="pool")(
      x, train
    )
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = nn.Dense(
      self.embedding_size,
      use_bias=False,
      dtype=jnp.float32,
      kernel_init=nn.initializers.normal((2 / self.embedding_size) ** 0.5),
      name="embedding_fc",
    )(x.reshape(x.shape[0], -1))
    # Unlike IResNet's, its scale is learned: hence another name.
    return BatchNorm(self.batch_norm_group, jnp.float32, name="output_bn")(
      x, train
    )
