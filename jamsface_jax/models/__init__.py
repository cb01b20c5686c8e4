"""Backbones by name: images in, embeddings out."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn

from jamsface_jax.errors import InputError
from jamsface_jax.models.iresnet import STEM_CHANNELS, IResNet

DTYPES = ("float32", "bfloat16")

# "iresnet" takes its depth from `stages`; the number of the others counts the
# layers.
MODELS: dict[str, Callable[..., nn.Module]] = {
  "iresnet": IResNet,
  "iresnet18": partial(IResNet, stages=(2, 2, 2, 2)),
  "iresnet34": partial(IResNet, stages=(3, 4, 6, 3)),
  "iresnet50": partial(IResNet, stages=(3, 4, 14, 3)),
  "iresnet100": partial(IResNet, stages=(3, 13, 30, 3)),
  "iresnet200": partial(IResNet, stages=(6, 26, 60, 6)),
}


def make_model(
  name: str,
  *,
  embedding_size: int,
  width: float,
  stages: tuple[int, ...],
  stem_stride: int,
  dropout: float,
  dtype: str,
  remat: bool,
  batch_norm_group: int,
) -> nn.Module:
  """Builds a backbone from the settings `config.model`.

  The module is called as `model.apply(variables, images, train=...)`, images
  float32 [B, H, W, 3] of about [-1, 1], and returns float32 [B,
  embedding_size], not normalised. Training needs `mutable=["batch_stats"]` and,
  with dropout, `rngs={"dropout": key}`.

  Args:
    name: a key of `MODELS`.
    embedding_size: length of an embedding.
    width: multiplies all channel counts.
    stages: blocks per stage for "iresnet", empty for a name with a number.
    stem_stride: of the first convolution, 1 (as published) or 2.
    dropout: rate before the embedding layer, in training, [0, 1).
    dtype: compute dtype, one of `DTYPES`; parameters are float32.
    remat: recompute each block in the backward pass, to save memory.
    batch_norm_group: examples sharing batch statistics; 0 means the whole
      global batch.

  Returns:
    The Flax module, without variables.

  Raises:
    InputError: a setting is out of range or does not fit the others.
  """
  if name not in MODELS:
    raise InputError(
      f"model.name={name!r} is unknown: use one of {', '.join(MODELS)}."
    )
  constructor = MODELS[name]
  if name == "iresnet":
    if not stages or min(stages) < 1:
      raise InputError(
        f"model.stages={stages} does not describe an 'iresnet': give the"
        " number of blocks of each stage, such as (1,1,1)."
      )
    constructor = partial(constructor, stages=tuple(stages))
  elif stages:
    raise InputError(
      f"model.stages={stages} contradicts model.name={name!r},"
      " which fixes them: leave stages empty, or use the name 'iresnet'."
    )
  channels = STEM_CHANNELS * width
  if channels < 1 or channels != round(channels):
    raise InputError(
      f"model.width={width} makes {channels} channels in the first"
      f" stage: use a positive multiple of 1/{STEM_CHANNELS}."
    )
  if stem_stride not in (1, 2):
    raise InputError(f"model.stem_stride={stem_stride} must be 1 or 2.")
  if embedding_size < 1:
    raise InputError(
      f"model.embedding_size={embedding_size} is no length: use 1 or more."
    )
  if not 0 <= dropout < 1:
    raise InputError(
      f"model.dropout={dropout} is no rate: use at least 0 and below 1."
    )
  if dtype not in DTYPES:
    raise InputError(
      f"model.dtype={dtype!r} is not supported: use one of {', '.join(DTYPES)}."
    )
  if batch_norm_group < 0 or batch_norm_group == 1:
    # One example has no variance in the embedding layer.
    raise InputError(
      f"model.batch_norm_group={batch_norm_group} gives no statistics:"
      " use 2 or more examples, or 0 for the whole batch."
    )
  return constructor(
    embedding_size=embedding_size,
    width=width,
    stem_stride=stem_stride,
    dropout=dropout,
    dtype=dtype,
    remat=remat,
    batch_norm_group=batch_norm_group,
  )
