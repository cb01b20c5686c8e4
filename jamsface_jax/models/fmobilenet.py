"""MobileNet's first form as face recognition has it.

It is insightface's `fmobilenet` of its MXNet times, which SFace
(https://arxiv.org/abs/2205.12010) was published with in OpenCV's
`face_recognition_sface_2021dec.onnx`: MobileNet (https://arxiv.org/abs/1704.04861)
with PReLU, a first convolution without stride, and the end of an IResNet.
"""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float32

from jamsface_jax.models.entry import Entry
from jamsface_jax.models.layers import embed_map
from jamsface_jax.models.mobilefacenet import ConvBlock

FIRST_CHANNELS = 32  # All channel counts are multiples of it, at width 1.


class FMobileNet(nn.Module):
  """Maps face images to embeddings.

  A block is a 3x3 convolution within each channel and a 1x1 convolution, both
  with batch normalisation and PReLU.

  Attributes:
    stages: blocks of each stage; every stage doubles the channels, and every
      one but the first halves the image.
    entry: what happens to images first.
    width: multiplies all channel counts.
    embedding_size: length of the result.
    dropout: rate before the embedding layer, in training.
    dtype: dtype of convolutions and activations. Parameters, batch
      statistics and the embedding layers are float32.
    remat: recompute each block in the backward pass instead of storing its
      activations.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
  """

  stages: tuple[int, ...]
  entry: Entry
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
    # Argument 2 is `train` (0 is the module): Python branches on it.
    block = (
      nn.remat(ConvBlock, static_argnums=(2,)) if self.remat else ConvBlock
    )
    conv = partial(
      block, dtype=self.dtype, batch_norm_group=self.batch_norm_group
    )
    channels = round(FIRST_CHANNELS * self.width)
    x = conv(channels, kernel=3, name="stem")(self.entry(images), train)
    for stage, depth in enumerate(self.stages, start=1):
      for i in range(1, depth + 1):
        name = f"stage{stage}_block{i}"
        x = conv(
          x.shape[-1],
          kernel=3,
          stride=2 if i == 1 < stage else 1,
          groups=x.shape[-1],
          name=f"{name}_depthwise",
        )(x, train)
        x = conv(channels * 2**stage, name=f"{name}_point")(x, train)
    return embed_map(
      x,
      train,
      embedding_size=self.embedding_size,
      dropout=self.dropout,
      dtype=self.dtype,
      batch_norm_group=self.batch_norm_group,
    )
