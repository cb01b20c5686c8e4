"""IResNet, the residual network of face recognition, as in insightface.

Architecture and initial values follow `arcface_torch/backbones/iresnet.py` of
https://github.com/deepinsight/insightface (blocks: https://arxiv.org/abs/
2004.04989). Arrays are NHWC, so the flattened features that enter
`embedding_fc` are ordered (row, column, channel); PyTorch's are ordered
(channel, row, column).

Squeeze and excitation (https://arxiv.org/abs/1709.01507) is where and as
face.evoLVe and its successors have it: after the last batch normalisation of a
block, 1x1 convolutions without bias.

Two relatives, whose published files are many, differ in little. That of TFace,
AdaFace and CVLface ("ir") has no convolution on a shortcut that keeps the
number of channels: it takes every second pixel. That of face.evoLVe ("evolve")
lacks besides the batch normalisation before the PReLU.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from jamsface_jax.models.convolution import convolve, keep_parameters
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.folding import fold_factor, refold
from jamsface_jax.models.layers import BatchNorm, Conv, PReLU, embed_map

KINDS = ("arcface", "ir", "evolve")
STEM_CHANNELS = 64  # At width 1; also those of the first stage.


def _conv(
  channels: int,
  kernel: int,
  stride: int,
  dtype: jax.typing.DTypeLike,
  name: str,
  fold: int,
  fold_out: int,
) -> Conv:
  return Conv(
    features=channels,
    kernel_size=kernel,
    stride=stride,
    dtype=dtype,
    kernel_init=nn.initializers.normal(0.1),
    fold=fold,
    fold_out=fold_out,
    name=name,
  )


def _every(stride: int, x: Float[Array, "b h w c"]) -> Array:
  """Every such row and column; what PyTorch's max pooling of 1 pixel is."""
  if stride == 1:
    return x
  return jax.lax.slice(x, (0,) * 4, x.shape, (1, stride, stride, 1))


class SqueezeExcitation(nn.Module):
  """Scales each channel by a function of the means of all channels.

  Attributes:
    reduction: channels of the input for one number in between.
    dtype: compute dtype.
    fold: pixels that are folded in the input.
  """

  reduction: int
  dtype: jax.typing.DTypeLike
  fold: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Scales `x`, [B, H, W, C] folded; keeps dtype and shape."""
    channels = x.shape[-1] // self.fold

    def conv(size: int, name: str) -> nn.Conv:
      return nn.Conv(
        size,
        kernel_size=(1, 1),
        padding=0,
        use_bias=False,
        dtype=self.dtype,
        conv_general_dilated=convolve,
        promote_dtype=keep_parameters,
        kernel_init=nn.initializers.xavier_uniform(),
        name=name,
      )

    y = refold(x, self.fold, 1).mean((1, 2), keepdims=True)
    y = nn.relu(conv(max(channels // self.reduction, 1), "fc1")(y))
    return x * jnp.tile(nn.sigmoid(conv(channels, "fc2")(y)), self.fold)


class Block(nn.Module):
  """Residual block: BN conv BN PReLU conv BN, no activation after the sum.

  Attributes:
    channels: channels of the result.
    stride: stride of the second convolution and of the shortcut.
    kind: one of `KINDS`.
    squeeze_reduction: `reduction` of the squeeze and excitation before the sum;
      0: there is none.
    dtype: compute dtype.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
    fold: pixels that are folded in the input.
    fold_out: pixels that are to be folded in the result.
  """

  channels: int
  stride: int
  kind: str
  squeeze_reduction: int
  dtype: jax.typing.DTypeLike
  batch_norm_group: int
  fold: int = 1
  fold_out: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array, "b h w c"], train: bool
  ) -> Float[Array, "b i j f"]:
    """Maps `x` [B, H, W, C] to [B, H/stride, W/stride, channels], folded."""
    fold, fold_out = self.fold, self.fold_out

    def batch_norm(name: str, fold: int) -> BatchNorm:
      return BatchNorm(self.batch_norm_group, self.dtype, fold, name=name)

    def conv(kernel: int, stride: int, name: str, fold_out: int) -> Conv:
      return _conv(
        self.channels, kernel, stride, self.dtype, name, fold, fold_out
      )

    shortcut = x
    keeps_channels = x.shape[-1] == fold * self.channels
    if keeps_channels and self.kind != "arcface":
      shortcut = _every(self.stride, refold(x, fold, 1))
      shortcut = refold(shortcut, 1, fold_out)
    elif self.stride != 1 or not keeps_channels:
      shortcut = conv(1, self.stride, "shortcut_conv", fold_out)(x)
      shortcut = batch_norm("shortcut_bn", fold_out)(shortcut, train)
    x = batch_norm("bn1", fold)(x, train)
    x = conv(3, 1, "conv1", fold)(x)
    if self.kind != "evolve":
      x = batch_norm("bn2", fold)(x, train)
    x = PReLU(fold, name="prelu")(x)
    x = conv(3, self.stride, "conv2", fold_out)(x)
    x = batch_norm("bn3", fold_out)(x, train)
    if self.squeeze_reduction:
      x = SqueezeExcitation(
        self.squeeze_reduction, self.dtype, fold_out, name="se"
      )(x)
    return x + shortcut


class IResNet(nn.Module):
  """Maps face images to embeddings.

  The scale of the last batch normalisation, whose path ends in
  `embedding_bn/scale`, stays at its initial 1 in the published recipe: it is a
  parameter here, and the optimizer is what must leave it alone.

  Attributes:
    kind: one of `KINDS`.
    entry: what happens to images first.
    stages: number of blocks of each stage; every stage halves the image and
      doubles the channels.
    width: multiplies all channel counts; 1 means 64 after the stem.
    stem_stride: stride of the first convolution; 1 as published, 2 makes all
      that follows four times cheaper.
    squeeze_reduction: `reduction` of squeeze and excitation, 16 where it is
      used; 0: there is none.
    embedding_size: length of the result.
    dropout: rate before the embedding layer, in training.
    dtype: dtype of convolutions and activations. Parameters, batch
      statistics and the embedding layers are float32.
    remat: recompute each block in the backward pass instead of storing its
      activations.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
    lanes: maps of fewer channels have neighbouring pixels folded into them, see
      `folding`; 1: none has. Parameters and results are the same.
  """

  stages: tuple[int, ...]
  kind: str
  entry: Entry
  width: float
  stem_stride: int
  squeeze_reduction: int
  embedding_size: int
  dropout: float
  dtype: jax.typing.DTypeLike
  remat: bool
  batch_norm_group: int
  lanes: int

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
    images = self.entry(images)
    channels = round(STEM_CHANNELS * self.width)
    columns = -(-images.shape[2] // self.stem_stride)
    fold = fold_factor(channels, columns, self.lanes)
    x = _conv(channels, 3, self.stem_stride, self.dtype, "stem_conv", 1, fold)(
      images
    )
    x = BatchNorm(self.batch_norm_group, self.dtype, fold, name="stem_bn")(
      x, train
    )
    x = PReLU(fold, name="stem_prelu")(x)
    # Argument 2 is `train` (0 is the module): Python branches on it.
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    for stage, depth in enumerate(self.stages, start=1):
      channels_out = channels * 2 ** (stage - 1)
      columns = -(-columns // 2)
      fold_out = fold_factor(channels_out, columns, self.lanes)
      for i in range(1, depth + 1):
        x = block(
          channels=channels_out,
          stride=2 if i == 1 else 1,
          kind=self.kind,
          squeeze_reduction=self.squeeze_reduction,
          dtype=self.dtype,
          batch_norm_group=self.batch_norm_group,
          fold=fold,
          fold_out=fold_out,
          name=f"stage{stage}_block{i}",
        )(x, train)
        fold = fold_out
    x = refold(x, fold, 1)
    return embed_map(
      x,
      train,
      embedding_size=self.embedding_size,
      dropout=self.dropout,
      dtype=self.dtype,
      batch_norm_group=self.batch_norm_group,
    )
