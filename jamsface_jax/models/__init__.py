"""Backbones by name: images in, embeddings out."""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from jamsface_jax.errors import InputError
from jamsface_jax.models.edgenext import CHANNELS, HEADS, EdgeNeXt
from jamsface_jax.models.entry import MIDDLE, Entry
from jamsface_jax.models.fmobilenet import FIRST_CHANNELS, FMobileNet
from jamsface_jax.models.folding import device_lanes
from jamsface_jax.models.iresnet import STEM_CHANNELS, IResNet
from jamsface_jax.models.layers import ACTIVATIONS
from jamsface_jax.models.mobilefacenet import UNIT_CHANNELS, MobileFaceNet
from jamsface_jax.models.vit import HEADS as TOKEN_HEADS
from jamsface_jax.models.vit import TOKEN_CHANNELS, ViT

DTYPES = ("float32", "bfloat16")

# The families take their blocks from `stages`; the other names fix them, as
# insightface does. An IResNet's number counts its layers.
FAMILIES: dict[str, type[nn.Module]] = {
  "iresnet": IResNet,
  "mobilefacenet": MobileFaceNet,
  "vit": ViT,
  "fmobilenet": FMobileNet,
  "edgenext": EdgeNeXt,
}


@dataclasses.dataclass(frozen=True)
class Published:
  """What a published name fixes.

  Attributes:
    family: a key of `FAMILIES`.
    stages: blocks of each stage.
    width: the name's own, which `model.width` multiplies.
    scale: the attribute of a MobileFaceNet; no other family has it.
    separable: likewise.
    kind: the attribute of an IResNet; no other family has it.
    channels: the attribute of an EdgeNeXt; no other family has it.
    heads: likewise.
    rank_share: likewise.
  """

  family: str
  stages: tuple[int, ...]
  width: float = 1.0
  scale: int = 2
  separable: bool = False
  kind: str = "arcface"
  channels: tuple[int, ...] = CHANNELS
  heads: int = HEADS
  rank_share: float = 0.0

  @property
  def unit(self) -> int:
    """All channel counts, of heads too, are multiples of it at width 1."""
    if self.family == "edgenext":
      first, *rest = self.channels
      return math.gcd(first, *(count // self.heads for count in rest))
    return _UNITS[self.family]

  @property
  def convolutions(self) -> int:
    """How many convolutions there are, without making the network."""
    first, *later = self.stages
    match self.family:
      case "iresnet":
        shortcuts = len(self.stages) - (self.kind != "arcface")
        return 1 + 2 * sum(self.stages) + shortcuts
      case "mobilefacenet":
        beginning = 1 + self.separable if first == 1 else 3 * first
        # The stem, a block that halves before each later stage, the last two.
        return 1 + beginning + 3 * (len(later) + sum(later)) + 2
      case "fmobilenet":
        return 1 + 2 * sum(self.stages)
      case "edgenext":
        # The stem, one that halves before each later stage, one more in their
        # last blocks for each part beyond two, and the encoding.
        return 1 + 3 + sum(self.stages) + 3 + 1
    return 1  # The patches of a transformer.


PUBLISHED = {
  "iresnet18": Published("iresnet", (2, 2, 2, 2)),
  "iresnet34": Published("iresnet", (3, 4, 6, 3)),
  "iresnet50": Published("iresnet", (3, 4, 14, 3)),
  "iresnet100": Published("iresnet", (3, 13, 30, 3)),
  "iresnet200": Published("iresnet", (6, 26, 60, 6)),
  "ir18": Published("iresnet", (2, 2, 2, 2), kind="ir"),
  "ir34": Published("iresnet", (3, 4, 6, 3), kind="ir"),
  "ir50": Published("iresnet", (3, 4, 14, 3), kind="ir"),
  "ir101": Published("iresnet", (3, 13, 30, 3), kind="ir"),
  "evolve50": Published("iresnet", (3, 4, 14, 3), kind="evolve"),
  "evolve101": Published("iresnet", (3, 13, 30, 3), kind="evolve"),
  "mbf": Published("mobilefacenet", (1, 4, 6, 2)),
  "mbf_large": Published("mobilefacenet", (2, 8, 12, 4), scale=4),
  "mbf_paper": Published("mobilefacenet", (1, 4, 6, 2), scale=1),
  "mbf_separable": Published(
    "mobilefacenet", (1, 4, 6, 2), scale=1, separable=True
  ),
  "vit_t": Published("vit", (12,), width=0.5),
  "vit_s": Published("vit", (12,)),
  "vit_b": Published("vit", (24,)),
  "vit_l": Published("vit", (24,), width=1.5),
  "sface": Published("fmobilenet", (1, 2, 2, 6, 2)),
  "edgeface_xxs": Published("edgenext", (2, 2, 6, 2)),
  "edgeface_xs": Published(
    **{"family": "edgenext", "stages": (3, 3, 9, 3)},
    **{"channels": (32, 64, 100, 192), "rank_share": 0.6},
  ),
  "edgeface_s": Published(
    **{"family": "edgenext", "stages": (3, 3, 9, 3)},
    **{"channels": (48, 96, 160, 304), "heads": 8, "rank_share": 0.5},
  ),
  "edgeface_base": Published(
    **{"family": "edgenext", "stages": (3, 3, 9, 3)},
    **{"channels": (80, 160, 288, 584), "heads": 8},
  ),
}
MODELS = (*FAMILIES, *PUBLISHED)
# Channels of the narrowest layer at width 1, all of which must be whole
# numbers; those of a token are split over the heads. An EdgeNeXt's are its own.
_UNITS = {
  "iresnet": STEM_CHANNELS,
  "mobilefacenet": UNIT_CHANNELS,
  "vit": TOKEN_CHANNELS // TOKEN_HEADS,
  "fmobilenet": FIRST_CHANNELS,
}
# How many stages a family has, where it is not free, and what they look like.
_STAGES = {"mobilefacenet": 4, "vit": 1, "edgenext": 4}
# In all stages; IResNet-200 has 100. Of a million tracing would never end.
_MOST_BLOCKS = 1000
_EXAMPLES = {
  "iresnet": "(1,1,1)",
  "mobilefacenet": "(1,4,6,2)",
  "vit": "(12,)",
  "fmobilenet": "(1,2,2)",
  "edgenext": "(2,2,6,2)",
}


def family(name: str) -> str:
  """Returns the key of `FAMILIES` that a name of `MODELS` belongs to."""
  return name if name in FAMILIES else PUBLISHED[name].family


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
  activation: str = "prelu",
  side_crop: int = 0,
  pixel_mean: tuple[float, ...] = MIDDLE,
  pixel_std: tuple[float, ...] = MIDDLE,
  lanes: int = 1,
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
      "mobilefacenet" and "edgenext", one for "vit"), empty for the others.
    stem_stride: stride of an IResNet's first convolution, 1 (as published) or
      2.
    squeeze_reduction: channels for one number in between of an IResNet's
      squeeze and excitation; 0: it has none.
    drop_path: probability that a ViT leaves out a path in training, [0, 1).
    mask_ratio: share of tokens that a ViT does not see in training, [0, 1).
    dropout: rate before the embedding layer, in training, [0, 1).
    dtype: compute dtype, one of `DTYPES`; parameters are float32.
    remat: recompute each block in the backward pass, to save memory.
    batch_norm_group: examples sharing batch statistics; 0 means the whole
      global batch, and is all that an EdgeNeXt takes, which has none.
    activation: of a MobileFaceNet, "prelu" or a key of `ACTIVATIONS`.
    side_crop: columns that the network leaves out on either side.
    pixel_mean: what it takes from the pixels, in [0, 255].
    pixel_std: what it then divides them by.
    lanes: an IResNet's maps of fewer channels have pixels folded into them, see
      `models.folding`; 0: as the device of JAX likes it best, 1: none. Results
      are the same but for rounding; other families do without.

  Returns:
    The Flax module, without variables.

  Raises:
    InputError: a setting is out of range or does not fit the others.
  """
  shape = _shape(name, stages)
  whole = shape.unit * shape.width
  if not width * whole >= 1 or width * whole % 1:
    raise InputError(
      f"model.width={width} makes no whole number of channels somewhere in"
      f" {name!r}: use a positive multiple of 1/{whole:g}."
    )
  if stem_stride not in (1, 2):
    raise InputError(f"model.stem_stride={stem_stride} must be 1 or 2.")
  if lanes < 0:
    raise InputError(
      f"model.lanes={lanes} must not be negative: 0 asks the device."
    )
  if squeeze_reduction < 0:
    raise InputError(
      f"model.squeeze_reduction={squeeze_reduction} must not be negative."
    )
  if embedding_size < 1:
    raise InputError(
      f"model.embedding_size={embedding_size} is no length: use 1 or more."
    )
  _check_rates(dropout=dropout, drop_path=drop_path, mask_ratio=mask_ratio)
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
  options = _options(
    name,
    shape,
    activation=activation,
    stem_stride=stem_stride,
    squeeze_reduction=squeeze_reduction,
    drop_path=drop_path,
    mask_ratio=mask_ratio,
    batch_norm_group=batch_norm_group,
    lanes=lanes or device_lanes(jax.default_backend()),
  )
  return FAMILIES[shape.family](
    stages=shape.stages,
    entry=_entry(side_crop, pixel_mean, pixel_std),
    width=width * shape.width,
    embedding_size=embedding_size,
    dropout=dropout,
    dtype=dtype,
    remat=remat,
    batch_norm_group=batch_norm_group,
    **options,
  )


def _shape(name: str, stages: tuple[int, ...]) -> Published:
  """What a name and `model.stages` say together.

  Raises:
    InputError: the name is unknown, or the stages do not fit it.
  """
  if name not in MODELS:
    raise InputError(
      f"model.name={name!r} is unknown: use one of {', '.join(MODELS)}."
    )
  if name in FAMILIES:
    if (
      not stages
      or min(stages) < 1
      or len(stages) != _STAGES.get(name, len(stages))
    ):
      raise InputError(
        f"model.stages={stages} does not describe {name!r}: give the"
        f" number of blocks of each stage, such as {_EXAMPLES[name]}."
      )
    if sum(stages) > _MOST_BLOCKS:
      raise InputError(
        f"model.stages asks for {sum(stages):,} blocks: give at most"
        f" {_MOST_BLOCKS:,}."
      )
    return Published(name, tuple(stages))
  shape = PUBLISHED[name]
  if stages:
    raise InputError(
      f"model.stages={stages} contradicts model.name={name!r}, which fixes"
      f" them: leave stages empty, or use the name {shape.family!r}."
    )
  return shape


def _entry(
  side_crop: int, pixel_mean: tuple[float, ...], pixel_std: tuple[float, ...]
) -> Entry:
  """What a network does to images first.

  Raises:
    InputError: a setting makes no sense.
  """
  if side_crop < 0:
    raise InputError(f"model.side_crop={side_crop} must not be negative.")
  if len(pixel_mean) != 3 or len(pixel_std) != 3 or min(pixel_std) <= 0:
    raise InputError(
      f"model.pixel_mean={pixel_mean} and model.pixel_std={pixel_std} do not"
      " normalise pixels: give three numbers each, those of pixel_std above 0."
    )
  return Entry(side_crop, tuple(pixel_mean), tuple(pixel_std))


def _check_rates(**rates: float) -> None:
  """Refuses what is no rate, by the name of its setting."""
  for setting, rate in rates.items():
    if not 0 <= rate < 1:
      raise InputError(
        f"model.{setting}={rate} is no rate: use at least 0 and below 1."
      )


def _options(
  name: str,
  shape: Published,
  *,
  activation: str,
  stem_stride: int,
  squeeze_reduction: int,
  drop_path: float,
  mask_ratio: float,
  batch_norm_group: int,
  lanes: int,
) -> dict[str, Any]:
  """The attributes that only the family of a name has.

  Raises:
    InputError: a setting of another family is not at the value that means "as
      without it".
  """
  names = ("prelu", *ACTIVATIONS)
  if activation not in names:
    raise InputError(
      f"model.activation={activation!r} is unknown: use one of"
      f" {', '.join(names)}."
    )
  special = {
    "activation": ("mobilefacenet", activation, "prelu"),
    "stem_stride": ("iresnet", stem_stride, 1),
    "squeeze_reduction": ("iresnet", squeeze_reduction, 0),
    "drop_path": ("vit", drop_path, 0),
    "mask_ratio": ("vit", mask_ratio, 0),
  }
  options: dict[str, Any] = {}
  if shape.family == "mobilefacenet":
    options |= {"scale": shape.scale, "separable": shape.separable}
  if shape.family == "iresnet":
    options |= {"kind": shape.kind, "lanes": lanes}
  if shape.family == "edgenext":
    if batch_norm_group:
      raise InputError(
        f"model.batch_norm_group={batch_norm_group} makes no difference: there"
        f" is no batch normalisation in {name!r}, leave it at 0."
      )
    options |= {"channels": shape.channels, "heads": shape.heads}
    options |= {"rank_share": shape.rank_share}
  for setting, (owner, value, neutral) in special.items():
    if shape.family == owner:
      options[setting] = value
    elif value != neutral:
      raise InputError(
        f"model.{setting}={value} is for {owner!r} only, not for"
        f" model.name={name!r}: leave it at {neutral}."
      )
  return options


def init_backbone(
  key: PRNGKeyArray, model: nn.Module, image_size: int
) -> dict[str, Any]:
  """Makes the first variables of a backbone.

  Args:
    key: what the first values are drawn from.
    model: what `make_model` returned.
    image_size: height and width of the images, in pixels.

  Returns:
    `params` and `batch_stats`, trees of float32 arrays; the second is empty
    for a network without batch normalisation.
  """
  # Two images: batch normalisation of one has no variance.
  images = jnp.zeros((2, image_size, image_size, 3), jnp.float32)
  return {"batch_stats": {}, **model.init(key, images, train=False)}


def backbone_shapes(model: nn.Module, image_size: int) -> dict[str, Any]:
  """What `init_backbone` would make, without making it.

  Args:
    model: what `make_model` returned.
    image_size: height and width of the images, in pixels.

  Returns:
    `params` and `batch_stats`, trees of float32 ShapeDtypeStructs.
  """
  # A frozen dataclass has a hash, of which nn.Module's annotations do not know.
  return _backbone_shapes(model, image_size)  # ty: ignore[invalid-argument-type]


@functools.cache  # A deep network takes seconds to trace.
def _backbone_shapes(model: nn.Module, image_size: int) -> dict[str, Any]:
  return jax.eval_shape(
    lambda key: init_backbone(key, model, image_size), jax.random.key(0)
  )
