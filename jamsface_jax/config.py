"""Every setting, with its default and its meaning, in one place.

  python -m jamsface_jax.config configs/X.py[:VARIANT] [--config.NAME=VALUE]

prints all settings of a recipe: what each is, where it came from, what it
means. A recipe in configs/ overrides `base_config()` and nothing else; no
setting has another default anywhere.
"""

import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jamsface_jax.errors import InputError, run_command
from jamsface_jax.settings import recipe_flags
from jamsface_jax.storage.run_directory import RunDirectory

# A resumed run may change these; they do not change what is learned. What
# `data.directory` holds is compared by content, not by path.
_FREE = (
  *("mesh", "checkpoint", "evaluation", "log_every", "data.threads"),
  *("profile_steps", "wandb"),
)
_FREE_TO_MOVE = ("data.directory",)


def base_config() -> ConfigDict:
  """Returns all settings with their defaults."""
  config = ConfigDict()
  config.seed = 0  # Of initial values, order of examples, augmentation.
  config.log_every = 20  # Steps between lines of metrics.
  config.deterministic = False  # GPUs: the same bits at every run, slower.
  config.profile_steps = ""  # Trace steps such as "10:15", both included.

  config.data = ConfigDict()
  # A data set, or several by commas, each with classes of its own.
  config.data.directory = ""  # Data sets, comma between; "": noise images.
  config.data.sampling = "uniform"  # Or "class_balanced", "square_root".
  config.data.image_size = 112  # Height and width that the network sees.
  config.data.batch_size = 1024  # Global: over all devices and processes.
  config.data.threads = 2  # Batches read and decoded at once, per process.
  config.data.noise_classes = 64  # Classes of the noise images.
  config.data.noise_images = 512  # How many of them.

  config.augment = ConfigDict()
  config.augment.flip = True  # Mirror half of the images.
  config.augment.shift = 0  # Pixels, each way.
  config.augment.brightness = 0.0  # Of half the range of pixels, each way.
  config.augment.contrast = 0.0  # Factor up to so far from 1.
  config.augment.cover = 0.0  # Probability of a mask over mouth and nose.
  config.augment.crop = 0.0  # Probability: cut out a box, scale it up.
  config.augment.color = 0.0  # Of other brightness, contrast, saturation, hue.
  config.augment.grey = 0.0  # Of no colours.
  config.augment.blur = 0.0  # Of Gaussian blur.
  config.augment.resolution = 0.0  # Of scaling down and up again.
  config.augment.jpeg = 0.0  # Of strong compression.
  config.augment.erase = 0.0  # Of a box of noise.
  config.augment.random_changes = 0  # RandAugment: so many of these eight too.
  config.augment.strength = 0.5  # Of the eight, 0 to 1.

  config.model = ConfigDict()
  config.model.name = "iresnet50"  # One of models.MODELS.
  config.model.embedding_size = 512  # Numbers in an embedding.
  config.model.width = 1.0  # Multiplies all channel counts.
  config.model.stages = ()  # Blocks per stage, if the name does not fix them.
  config.model.stem_stride = 1  # Of IResNet: as published; 2: 4 times cheaper.
  config.model.squeeze_reduction = 0  # Of IResNet: 16 is usual; 0: no squeeze.
  config.model.drop_path = 0.0  # Of ViT: probability to leave out a path.
  config.model.mask_ratio = 0.0  # Of ViT: share of tokens hidden in training.
  config.model.dropout = 0.0  # Before the embedding layer.
  config.model.dtype = "float32"  # Or "bfloat16": compute; parameters stay.
  config.model.remat = False  # Recompute blocks in the backward pass.
  config.model.batch_norm_group = 0  # Examples per statistics; 0: all.

  config.head = ConfigDict()
  config.head.loss = "joint"  # Or another of `losses`, see docs/losses.md.
  config.head.scale = 64.0  # Of the cosines in the softmax.
  config.head.logit_adjustment = 0.0  # Logits: + this times log(class size).
  config.head.angular_margin = 0.3  # Radians: first value, and mean if held.
  config.head.cosine_margin = 0.2  # Likewise, in the cosine space.
  config.head.margin_power = 0.0  # First margins fall as (class size)^-this.
  config.head.learn_angular = True  # False: frozen at the first value.
  config.head.learn_cosine = True  # Likewise.
  config.head.margin_rule = "mean"  # Hold the means (ours), or "lambda".
  config.head.angular_lambda = 5.0  # Strength, for margin_rule "lambda".
  config.head.cosine_lambda = 5.0  # Likewise.
  config.head.lambda_end = 1.0  # Factor on both at the end; linear from 1.
  config.head.rewarded = "classes"  # Whose mean "lambda" rewards; or "batch".
  config.head.count_power = 0.0  # In both means a class counts as size^this.
  config.head.angular_min = 0.0  # Learned margins stay in [min, max].
  config.head.angular_max = 0.8  # Likewise.
  config.head.cosine_min = 0.0  # Likewise.
  config.head.cosine_max = 0.6  # Likewise.
  config.head.margin_bounds = "box"  # Cut off there, or "sigmoid": slow down.
  config.head.margin_start = 0.0  # Of schedule.unit: until then they rest.
  config.head.margin_rate = 0.02  # Margin learning rate over the main one.
  config.head.continuation = "smooth"  # Beyond pi - a; or "published".
  config.head.straight_through = False  # Slope 1 in the cosine, not the true.
  config.head.sub_centers = 1  # Weight rows of a class; the nearest counts.
  config.head.learn_scale = False  # Move the scale as margins are moved.
  config.head.ignore_above = 1.0  # Other classes of larger cosine; 1: none.
  config.head.sample_rate = 1.0  # Share of the other classes that a step sees.
  config.head.weigh_sample = False  # Let the drawn stand for the rest.
  config.head.skip_below = 0.0  # Gradients of smaller probabilities; 0: none.
  config.head.fused_update = True  # Update the weights as gradients come.
  config.head.clip_norm = 0.0  # Of the weights' gradient; 0: never.
  config.head.class_multiple = 1024  # Classes are padded to a multiple of it.
  config.head.chunk_classes = 0  # Classes walked at once; 0: as suits devices.
  config.head.keep_mib = 256  # Room for cosines kept for the backward.
  config.head.product_dtype = "float32"  # Or "bfloat16": the big product.
  # Below: of the loss of that name, in the letters of its paper.
  config.head.combined = ConfigDict()
  config.head.combined.m = 1.0  # Multiplies the angle.
  config.head.sphereface = ConfigDict()
  config.head.sphereface.m = 4.0  # Multiplies the angle.
  config.head.sphereface.lambda_max = 1000.0  # First weight of cos t.
  config.head.sphereface.lambda_min = 5.0  # Last weight of cos t.
  config.head.mv_softmax = ConfigDict()
  config.head.mv_softmax.t = 1.2  # Hard classes: t cos + t - 1.
  config.head.curricularface = ConfigDict()
  config.head.curricularface.momentum = 0.01  # Share of a step in t.
  config.head.magface = ConfigDict()
  config.head.magface.l_a = 10.0  # Smallest length of an embedding.
  config.head.magface.u_a = 110.0  # Largest length.
  config.head.magface.l_m = 0.45  # Margin of the smallest, radians.
  config.head.magface.u_m = 0.8  # Margin of the largest, radians.
  config.head.magface.lambda_g = 35.0  # Strength of the penalty on lengths.
  config.head.adaface = ConfigDict()
  config.head.adaface.h = 0.333  # Multiplies the standardised length.
  config.head.adaface.momentum = 0.01  # Share of a step in the statistics.
  config.head.elasticface = ConfigDict()
  config.head.elasticface.deviation = 0.05  # Of the drawn margins.
  config.head.elasticface.space = "angular"  # Or "cosine": which is drawn.
  config.head.uniface = ConfigDict()
  config.head.uniface.weight = 1.0  # Of the other classes.

  config.optimizer = ConfigDict()
  config.optimizer.name = "sgd"  # Or "adamw"; margins have sgd.
  config.optimizer.learning_rate = 0.1  # At `reference_batch`.
  config.optimizer.reference_batch = 1024  # The rate scales by batch / this.
  config.optimizer.momentum = 0.9  # Of sgd, not on margins.
  config.optimizer.betas = (0.9, 0.999)  # Of adamw: its two means' decay.
  config.optimizer.eps = 1e-8  # Of adamw: added to the root.
  config.optimizer.weight_decay = 5e-4  # Never on margins.
  config.optimizer.decay_vectors = True  # Also biases, BN, PReLU.
  config.optimizer.clip_norm = 5.0  # Of the backbone's gradient; 0: never.
  config.optimizer.accumulation = 1  # Micro-batches in a batch.
  config.optimizer.reject_in_a_row = 0  # Steps not finite; 0: stop at once.

  config.schedule = ConfigDict()
  config.schedule.unit = "epochs"  # Of the three below: "epochs" or "steps".
  config.schedule.length = 20.0  # Of the run.
  config.schedule.warmup = 0.0  # Linear, from 0.
  config.schedule.milestones = ()  # Where decay "step" multiplies by factor.
  config.schedule.decay = "polynomial"  # Or "step", "cosine", "constant".
  config.schedule.power = 1.0  # Of decay "polynomial".
  config.schedule.factor = 0.1  # Of decay "step".

  config.mesh = ConfigDict()
  config.mesh.model = -1  # Devices that share the classes; -1: all.

  config.checkpoint = ConfigDict()
  config.checkpoint.every = 1000  # Steps.
  config.checkpoint.keep_last = 2  # So many of the newest.
  config.checkpoint.keep_best = ""  # A metric such as "lfw/accuracy", or "".

  config.evaluation = ConfigDict()
  config.evaluation.data = ""  # Data sets with a protocol, comma between.
  config.evaluation.known = ""  # Data sets of new images of classes trained on.
  config.evaluation.every = 0  # Steps; 0: at the end only.
  config.evaluation.batch_size = 256  # Global.
  config.evaluation.flip = True  # Add the embedding of the mirrored image.
  # TAR at these FARs; a set leaves out those it has too few negatives for.
  config.evaluation.fars = (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # 0 < FAR <= 1.
  # Templates (IJB): detector score and feature norm, 1 for with, 0 for without.
  config.evaluation.pooling = "D1N1"  # One of D1N1, D1N0, D0N1, D0N0.

  config.wandb = ConfigDict()
  config.wandb.project = ""  # Of Weights & Biases, to log there too; "": not.
  config.wandb.entity = ""  # User or team there; "": that of the login.
  return config


def _fixed(angular: float, cosine: float, **more) -> dict[str, Any]:
  return {
    "loss": "joint",
    "angular_margin": angular,
    "cosine_margin": cosine,
    "margin_power": 0.0,
    "learn_angular": False,
    "learn_cosine": False,
    "continuation": "published",
    "straight_through": False,
    **more,
  }


# Losses by the word that chooses one as a variant of any recipe, with the
# margins of their papers where these give one. Scales are left to the recipe,
# since they belong to the number of classes, but for losses that fix theirs.
PUBLISHED = {
  "softmax": _fixed(0.0, 0.0, loss="softmax"),
  "normface": _fixed(0.0, 0.0),
  "sphereface": _fixed(0.0, 0.0, loss="sphereface"),
  # Multiplier and scale of the authors' public code.
  "sphereface_r": _fixed(0.0, 0.0, loss="combined", straight_through=True)
  | {"combined.m": 1.7, "scale": 30.0},
  "cosface": _fixed(0.0, 0.35),
  "arcface": _fixed(0.5, 0.0),
  "fixed_joint": _fixed(0.3, 0.2, continuation="smooth"),
  # (m1, m2, m3) of ArcFace's section on combined margins.
  "combined": _fixed(0.3, 0.2, loss="combined") | {"combined.m": 1.0},
  "adacos": _fixed(0.0, 0.0, loss="adacos"),
  # Strength, scale and bounds of its one public implementation, FaceX-Zoo's,
  # whose margins move at the rate of all parameters.
  "adaptiveface": _fixed(0.0, 0.35)
  | {"learn_cosine": True, "margin_rule": "lambda", "cosine_lambda": 70.0}
  | {"cosine_max": 1.0, "margin_rate": 1.0, "scale": 32.0},
  "ldam": _fixed(0.0, 0.5, margin_power=0.25),
  "mv_softmax": _fixed(0.5, 0.0, loss="mv_softmax") | {"mv_softmax.t": 1.2},
  "curricularface": _fixed(0.5, 0.0, loss="curricularface"),
  "magface": _fixed(0.0, 0.0, loss="magface"),
  "adaface": _fixed(0.0, 0.4, loss="adaface"),
  "elasticface": _fixed(0.5, 0.0, loss="elasticface")
  | {"elasticface.deviation": 0.05, "elasticface.space": "angular"},
  "elasticface_cos": _fixed(0.0, 0.35, loss="elasticface")
  | {"elasticface.deviation": 0.05, "elasticface.space": "cosine"},
  "uniface": _fixed(0.0, 0.4, loss="uniface"),
  "jamsface": _fixed(0.3, 0.2, continuation="smooth")
  | {"learn_angular": True, "learn_cosine": True, "margin_rule": "mean"}
  | {"margin_rate": 0.02, "angular_max": 0.8, "cosine_max": 0.6},
}


def tiny(config: ConfigDict) -> ConfigDict:
  """Shrinks a recipe so that it runs anywhere in seconds, on noise images.

  What the recipe says of losses, optimizer and precision stays.
  """
  from jamsface_jax import models  # Here: settings are read without JAX.

  config.log_every = 1
  config.data.directory = ""
  config.data.image_size = 32
  config.data.batch_size = 16
  config.model.name, config.model.stages, config.model.width = {
    "iresnet": ("iresnet", (1, 1), 1 / 8),
    "mobilefacenet": ("mobilefacenet", (1, 1, 1, 1), 1 / 8),
    "vit": ("vit", (2,), 1 / 16),
  }[models.family(config.model.name)]
  config.model.embedding_size = 32
  config.head.class_multiple = 64
  config.schedule.unit = "steps"
  config.schedule.length = 5.0
  config.schedule.warmup = 1.0
  config.schedule.milestones = (3.0, 4.0)
  config.evaluation.data = ""
  config.evaluation.known = ""
  config.evaluation.batch_size = 16
  config.checkpoint.keep_best = ""
  return config


def choose_variant(
  config: ConfigDict,
  variant: str,
  variants: Mapping[str, Callable[[ConfigDict], ConfigDict]],
) -> ConfigDict:
  """Applies the variants of a recipe that `--config=FILE:VARIANT` names.

  Args:
    config: the recipe; it is the variant "full".
    variant: "full", "tiny", a loss of `PUBLISHED` or a key of `variants`; or
      several with commas between. "help" lists them and exits.
    variants: further ones, each a change of the recipe.

  Raises:
    InputError: there is no such variant.
  """
  changes = {"full": lambda same: same, "tiny": tiny, **variants}
  if variant == "help":
    meanings = {"full": "The recipe as it is."}
    for name, change in {"tiny": tiny, **variants}.items():
      meanings[name] = (change.__doc__ or "").strip().split("\n")[0]
    lines = [f"  :{name:12} {text}" for name, text in meanings.items()]
    print("\n".join(["variants:", *lines]))
    print(f"losses, as :NAME or :tiny,NAME: {', '.join(PUBLISHED)}")
    sys.exit(0)
  for word in variant.split(","):
    if word in PUBLISHED:
      config.head.update_from_flattened_dict(PUBLISHED[word])
    elif word in changes:
      config = changes[word](config)
    else:
      raise InputError(
        f"--config: variant {word!r} is unknown: use one of"
        f" {', '.join(changes)}, or a loss: {', '.join(PUBLISHED)}."
      )
  return config


def validate(config: ConfigDict) -> None:
  """Refuses settings that cannot be meant, before anything is built.

  Raises:
    InputError: names the setting, what is wrong, and what it may be.
  """
  from jamsface_jax import models  # Here: settings need no JAX.
  from jamsface_jax.head import losses

  positive = (
    "log_every",
    "data.image_size",
    "data.batch_size",
    "data.threads",
    "head.scale",
    "head.class_multiple",
    "head.sub_centers",
    "head.sample_rate",
    "optimizer.learning_rate",
    "optimizer.reference_batch",
    "optimizer.eps",
    "optimizer.accumulation",
    "schedule.length",
    "checkpoint.every",
    "checkpoint.keep_last",
    "evaluation.batch_size",
  )
  not_negative = (
    "seed",
    "augment.shift",
    "augment.brightness",
    "augment.contrast",
    "augment.random_changes",
    "head.angular_margin",
    "head.cosine_margin",
    "head.margin_power",
    "head.count_power",
    "head.logit_adjustment",
    "head.margin_rate",
    "head.margin_start",
    "head.lambda_end",
    "head.angular_min",
    "head.cosine_min",
    "optimizer.momentum",
    "optimizer.weight_decay",
    "optimizer.clip_norm",
    "optimizer.reject_in_a_row",
    "head.clip_norm",
    "head.chunk_classes",
    "head.keep_mib",
    "head.skip_below",
    "schedule.warmup",
    "evaluation.every",
  )
  for name in positive:
    if not _get(config, name) > 0:
      raise InputError(f"{name}={_get(config, name)} must be above 0.")
  for name in not_negative:
    if not _get(config, name) >= 0:
      raise InputError(f"{name}={_get(config, name)} must not be negative.")
  for name in (
    *("cover", "crop", "color", "grey", "blur", "resolution", "jpeg", "erase"),
    "strength",
  ):
    if not 0 <= config.augment[name] <= 1:
      raise InputError(
        f"augment.{name}={config.augment[name]} must be between 0 and 1."
      )
  if config.augment.random_changes > 8:
    raise InputError(
      f"augment.random_changes={config.augment.random_changes} must be at most"
      " 8, the number of changes to draw from."
    )
  choices = {
    "data.sampling": ("uniform", "class_balanced", "square_root"),
    "head.loss": losses.NAMES,
    "head.elasticface.space": ("angular", "cosine"),
    "optimizer.name": ("sgd", "adamw"),
    "head.margin_rule": ("mean", "lambda"),
    "head.rewarded": ("classes", "batch"),
    "head.margin_bounds": ("box", "sigmoid"),
    "head.continuation": ("smooth", "published"),
    "head.product_dtype": ("float32", "bfloat16"),
    "schedule.unit": ("epochs", "steps"),
    "schedule.decay": ("polynomial", "step", "cosine", "constant"),
  }
  for name, allowed in choices.items():
    if _get(config, name) not in allowed:
      raise InputError(
        f"{name}={_get(config, name)!r} is unknown: use one of"
        f" {', '.join(allowed)}."
      )
  for kind in ("angular", "cosine"):
    first, lower, upper = (
      config.head[f"{kind}_{which}"] for which in ("margin", "min", "max")
    )
    if config.head[f"learn_{kind}"] and not lower <= first <= upper > lower:
      raise InputError(
        f"head.{kind}_margin={first} is outside of head.{kind}_min={lower} to"
        f" head.{kind}_max={upper}: learned margins need their mean inside"
        " their bounds, and room between these."
      )
  if config.head.count_power and config.head.rewarded == "batch":
    raise InputError(
      f"head.count_power={config.head.count_power} weighs all classes, but"
      " head.rewarded='batch' counts those of the batch by their images: set"
      " head.count_power=0 or head.rewarded=classes."
    )
  betas = config.optimizer.betas
  if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
    raise InputError(
      f"optimizer.betas={betas} must be two numbers, at least 0 and below 1."
    )
  if config.head.sample_rate > 1:
    raise InputError(
      f"head.sample_rate={config.head.sample_rate} must be at most 1, which is"
      " all classes."
    )
  for name, off in (("weigh_sample", False), ("logit_adjustment", 0)):
    if config.head[name] and config.head.loss == "uniface":
      raise InputError(
        f"head.{name}={config.head[name]} weighs classes in one sum, but"
        " head.loss='uniface' counts each on its own: set"
        f" head.{name}={off}."
      )
  if config.head.logit_adjustment and config.data.sampling == "class_balanced":
    raise InputError(
      f"head.logit_adjustment={config.head.logit_adjustment} makes up for"
      " classes that are seen more often, but data.sampling='class_balanced'"
      " shows all alike: set one of them back."
    )
  if config.data.batch_size % config.optimizer.accumulation:
    raise InputError(
      f"optimizer.accumulation={config.optimizer.accumulation} does not divide"
      f" data.batch_size={config.data.batch_size}: use a divisor of it."
    )
  if config.optimizer.accumulation > 1 and config.head.fused_update:
    raise InputError(
      f"optimizer.accumulation={config.optimizer.accumulation} needs the sum of"
      " gradients, which head.fused_update never holds: set"
      " head.fused_update=False."
    )
  if config.head.sample_rate < 1 and not config.head.fused_update:
    raise InputError(
      f"head.sample_rate={config.head.sample_rate} updates the sampled classes"
      " alone, which needs head.fused_update=True: set it, or sample all."
    )
  if not config.head.angular_margin < 3.14:
    raise InputError(
      f"head.angular_margin={config.head.angular_margin} is in radians and must"
      " be below pi."
    )
  profiled_steps(config)  # Refuses what it cannot read.
  models.make_model(**config.model)  # Refuses what it cannot build.
  if not config.schedule.warmup < config.schedule.length:
    raise InputError(
      f"schedule.warmup={config.schedule.warmup} leaves nothing of"
      f" schedule.length={config.schedule.length}: shorten the warm-up."
    )


def steps_of(amount: float, config: ConfigDict, num_images: int) -> int:
  """Turns an amount of `schedule.unit` into steps, rounded up."""
  if config.schedule.unit == "steps":
    return -int(-amount // 1)
  return -int(-amount * num_images // config.data.batch_size)


def profiled_steps(config: ConfigDict) -> range:
  """Steps to trace.

  Raises:
    InputError: `profile_steps` is not two numbers of steps, rising.
  """
  text = config.profile_steps
  if not text:
    return range(0)
  first, _, last = text.partition(":")
  if not (first.isdigit() and last.isdigit() and 0 < int(first) <= int(last)):
    raise InputError(
      f"profile_steps={text!r} names no steps: give the first and the last,"
      " such as '10:15'."
    )
  return range(int(first), int(last) + 1)


def check_or_save(config: ConfigDict, run: RunDirectory) -> None:
  """Compares the settings with `config.json`, or writes it if there is none.

  Args:
    config: of this run.
    run: directory of this run, made if missing.

  Raises:
    InputError: the work directory belongs to a run with other settings, or
      cannot be written to.
  """
  if run.config.exists():
    _check_same(config, run)
  else:
    try:
      run.create()
      run.config.write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    except OSError as error:
      raise InputError(
        f"--workdir={run.path!r} cannot be written to ({error.strerror}):"
        " choose another directory."
      ) from None


def read_config(run: RunDirectory) -> ConfigDict:
  """Reads the settings of a work directory.

  Raises:
    InputError: it is not a work directory.
  """
  path = run.config.path
  try:
    stored = run.config.read_json()
  except FileNotFoundError:
    raise InputError(
      f"{run.path!r} is not a work directory (it has no"
      f" {os.path.basename(path)}): give the --workdir of a training run."
    ) from None
  except ValueError as error:
    raise InputError(
      f"{path!r} is damaged ({error}): restore it or choose another --workdir."
    ) from None
  config = base_config()
  for name, value in flatten(stored).items():
    parent, _, key = name.rpartition(".")
    section = _get(config, parent) if parent else config
    if key not in section:
      raise InputError(
        f"{path!r} has the setting {name!r}, which this version does not know:"
        " use the version that wrote it."
      )
    try:
      section[key] = tuple(value) if isinstance(value, list) else value
    except TypeError:
      raise InputError(
        f"{path!r} has {name}={value!r}, which is of another kind in this"
        " version: use the version that wrote it."
      ) from None
  return config


def _check_same(config: ConfigDict, run: RunDirectory) -> None:
  stored = flatten(read_config(run).to_dict())
  asked = flatten(config.to_dict())
  conflicts = [
    f"{name} is {stored[name]!r} there and {asked[name]!r} here"
    for name in asked
    if stored[name] != asked[name]
    and name not in _FREE_TO_MOVE
    and not any(name == free or name.startswith(free + ".") for free in _FREE)
  ]
  if conflicts:
    raise InputError(
      f"the run in {run.path!r} has other settings"
      f" ({'; '.join(conflicts)}): choose another --workdir or give the same"
      " settings."
    )


def meanings() -> dict[str, str]:
  """What each setting means: the comment beside it in `base_config`.

  In the order of the settings there; what is meant likewise is said in full.
  """
  source = inspect.getsource(base_config)
  found, before = {}, ""
  for name, text in re.findall(
    r"^  config\.(\S+) = .*?  # (.*)$", source, re.M
  ):
    if text == "Likewise.":
      text = before
    elif text.startswith("Likewise"):
      text = f"{before} {text}"
    else:
      before = text
    found[name] = text
  return found


def overridden(command: Sequence[str]) -> set[str]:
  """The settings that a command line sets, "--config.data.threads=4" say."""
  found = (re.match(r"--?(?:no)?config\.([\w.]+)", one) for one in command)
  return {match[1] for match in found if match}


def flatten(tree: Mapping, prefix: str = "") -> dict:
  """Turns nested settings into one mapping: {"data.threads": 2, ...}."""
  flat = {}
  for key, value in tree.items():
    if isinstance(value, dict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat


def source_of(name: str, value: object, command: Sequence[str]) -> str:
  """Where the value of a setting came from.

  Args:
    name: "data.threads", say.
    value: of the run.
    command: words of the command line of the run.

  Returns:
    "command line", "recipe" or "default".
  """
  if name in overridden(command):
    return "command line"
  return "recipe" if value != _get(base_config(), name) else "default"


def table(config: ConfigDict, command: Sequence[str]) -> str:
  """Every setting in a line: value, where it is from, what it means.

  Args:
    config: the settings.
    command: see `source_of`.
  """
  base, rows = base_config(), []
  for name, meaning in meanings().items():
    value = _get(config, name)
    source = source_of(name, value, command)
    if source != "default":
      source += f" (default {_get(base, name)!r})"
    rows.append((name, repr(value), source, meaning))
  widths = [max(len(row[k]) for row in rows) for k in range(3)]
  return "\n".join(
    "  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows
  )


def main() -> int:
  """Prints the settings of a recipe.

  Raises:
    InputError: no recipe, or one that cannot be read.
  """
  argv = sys.argv
  values = flags.FlagValues()
  recipe_flags.define_config(values)
  if len(argv) > 1 and not argv[1].startswith("-"):
    argv = [argv[0], f"--config={argv[1]}", *argv[2:]]
  print(table(recipe_flags.parse(argv, "jamsface_jax.config", values), argv))
  return 0


def _get(config: ConfigDict, name: str):
  for key in name.split("."):
    config = config[key]
  return config


if __name__ == "__main__":
  run_command(main)
