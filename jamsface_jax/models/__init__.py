"""Backbones by name: images in, embeddings out."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jamsface_jax.errors import InputError
from jamsface_jax.models.iresnet import STEM_CHANNELS, IResNet
from jamsface_jax.models.mobilefacenet import UNIT_CHANNELS, MobileFaceNet
from jamsface_jax.models.vit import HEADS, TOKEN_CHANNELS, ViT

DTYPES = ("float32", "bfloat16")

# Three families take their blocks from `stages`; the other names fix them, as
# insightface does. An IResNet's number counts its layers.
FAMILIES: dict[str, type[nn.Module]] = {
  "iresnet": IResNet,
  "mobilefacenet": MobileFaceNet,
  "vit": ViT,
}
# A width here is of the name itself; `width` multiplies it.
_NAMED = {
  "iresnet18": ("iresnet", {"stages": (2, 2, 2, 2)}),
  "iresnet34": ("iresnet", {"stages": (3, 4, 6, 3)}),
  "iresnet50": ("iresnet", {"stages": (3, 4, 14, 3)}),
  "iresnet100": ("iresnet", {"stages": (3, 13, 30, 3)}),
  "iresnet200": ("iresnet", {"stages": (6, 26, 60, 6)}),
  "mbf": ("mobilefacenet", {"stages": (1, 4, 6, 2)}),
  "mbf_large": ("mobilefacenet", {"stages": (2, 8, 12, 4), "scale": 4}),
  "vit_t": ("vit", {"stages": (12,), "width": 0.5}),
  "vit_s": ("vit", {"stages": (12,), "width": 1.0}),
  "vit_b": ("vit", {"stages": (24,), "width": 1.0}),
  "vit_l": ("vit", {"stages": (24,), "width": 1.5}),
}
MODELS = tuple(FAMILIES) + tuple(_NAMED)
# Channels of the narrowest layer at width 1, all of which must be whole
# numbers; those of a token are split over the heads.
_UNITS = {
  "iresnet": STEM_CHANNELS,
  "mobilefacenet": UNIT_CHANNELS,
  "vit": TOKEN_CHANNELS // HEADS,
}


def family(name: str) -> str:
  """Returns the key of `FAMILIES` that a name of `MODELS` belongs to."""
  return name if name in FAMILIES else _NAMED[name][0]


def make_model(
  name: str,
  *,
  embedding_size: int,
  width: float,
  stages: tuple[int, ...],
  stem_stride: int,
  squeeze_reduction: int,
  drop_path: float,
  mask_ratio: float,
  dropout: float,
  dtype: str,
  remat: bool,
  batch_norm_group: int,
) -> nn.Module:
  """Builds a backbone from the settings `config.model`.

  The module is called as `model.apply(variables, images, train=...)`, images
  float32 [B, H, W, 3] of about [-1, 1], and returns float32 [B,
  embedding_size], not normalised. Training needs `mutable=["batch_stats"]` and,
  with what is random, `rngs={"dropout": key}`.

  Args:
    name: one of `MODELS`.
    embedding_size: length of an embedding.
    width: multiplies all channel counts.
    stages: blocks per stage for the name of a family (four for
      "mobilefacenet", one for "vit"), empty for the others.
    stem_stride: of the first convolution of an IResNet, 1 (as published) or 2.
    squeeze_reduction: of squeeze and excitation in an IResNet; 0: none.
    drop_path: of a ViT, probability to leave out a path in training, [0, 1).
    mask_ratio: of a ViT, share of tokens hidden in training, [0, 1).
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
  kind, fixed = _NAMED.get(name, (name, {}))
  if name in FAMILIES:
    wanted = {"iresnet": len(stages), "mobilefacenet": 4, "vit": 1}[name]
    if not stages or min(stages) < 1 or len(stages) != wanted:
      examples = {"iresnet": "(1,1,1)", "mobilefacenet": "(1,4,6,2)"}
      raise InputError(
        f"model.stages={stages} does not describe {name!r}: give the"
        " number of blocks of each stage, such as"
        f" {examples.get(name, '(12,)')}."
      )
  elif stages:
    raise InputError(
      f"model.stages={stages} contradicts model.name={name!r},"
      f" which fixes them: leave stages empty, or use the name {kind!r}."
    )
  whole = _UNITS[kind] * fixed.get("width", 1.0)
  if not width * whole >= 1 or width * whole % 1:
    raise InputError(
      f"model.width={width} makes {width * whole:g} channels in the narrowest"
      f" part of {name!r}: use a positive multiple of 1/{whole:g}."
    )
  if stem_stride not in (1, 2):
    raise InputError(f"model.stem_stride={stem_stride} must be 1 or 2.")
  if squeeze_reduction < 0:
    raise InputError(
      f"model.squeeze_reduction={squeeze_reduction} must not be negative."
    )
  if embedding_size < 1:
    raise InputError(
      f"model.embedding_size={embedding_size} is no length: use 1 or more."
    )
  rates = {"dropout": dropout, "drop_path": drop_path, "mask_ratio": mask_ratio}
  for setting, rate in rates.items():
    if not 0 <= rate < 1:
      raise InputError(
        f"model.{setting}={rate} is no rate: use at least 0 and below 1."
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
  # What only some families have, with the value that means "as without it".
  special = {
    "stem_stride": ("iresnet", stem_stride, 1),
    "squeeze_reduction": ("iresnet", squeeze_reduction, 0),
    "drop_path": ("vit", drop_path, 0),
    "mask_ratio": ("vit", mask_ratio, 0),
  }
  options = {"scale": fixed.get("scale", 2)} if kind == "mobilefacenet" else {}
  for setting, (owner, value, neutral) in special.items():
    if kind == owner:
      options[setting] = value
    elif value != neutral:
      raise InputError(
        f"model.{setting}={value} is for {owner!r} only, not for"
        f" model.name={name!r}: leave it at {neutral}."
      )
  return FAMILIES[kind](
    stages=tuple(fixed.get("stages", stages)),
    width=width * fixed.get("width", 1.0),
    embedding_size=embedding_size,
    dropout=dropout,
    dtype=dtype,
    remat=remat,
    batch_norm_group=batch_norm_group,
    **options,
  )


def init_backbone(key: jax.Array, model: nn.Module, image_size: int) -> Any:
  """Makes the variables of a backbone: `params` and `batch_stats`."""
  # Two images: batch normalisation of one has no variance.
  images = jnp.zeros((2, image_size, image_size, 3), jnp.float32)
  return model.init(key, images, train=False)
