"""Variants that every recipe has: tiny, and the losses of papers."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict

from jamsface_jax.errors import InputError


def _fixed(angular: float, cosine: float, **more: Any) -> dict[str, Any]:
  return {
    "loss": "joint",
    "angular_margin": angular,
    "cosine_margin": cosine,
    "margin_power": 0.0,
    "margin_slope": 0.0,
    "margin_curve": "",
    "margin_rule": "mean",
    "held": "classes",
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
  # whose margins move at the rate and with the momentum of all parameters.
  "adaptiveface": _fixed(0.0, 0.35)
  | {"learn_cosine": True, "margin_rule": "lambda", "cosine_lambda": 70.0}
  | {"cosine_max": 1.0, "margin_rate": 1.0, "margin_momentum": 0.9}
  | {"scale": 32.0},
  "ldam": _fixed(0.0, 0.5, margin_power=0.25),
  # Margin, temperature and share of its public code's configuration.
  "kappaface": _fixed(0.8, 0.0, margin_rule="concentration", held="none")
  | {"concentration_temperature": 0.4, "concentration_share": 0.7},
  "mv_softmax": _fixed(0.5, 0.0, loss="mv_softmax")
  | {"mv_softmax.t": 1.2, "mv_softmax.easy_margin": True},
  "curricularface": _fixed(0.5, 0.0, loss="curricularface"),
  "magface": _fixed(0.0, 0.0, loss="magface") | {"magface.easy_margin": True},
  "adaface": _fixed(0.0, 0.4, loss="adaface"),
  "elasticface": _fixed(0.5, 0.0, loss="elasticface")
  | {"elasticface.deviation": 0.05, "elasticface.space": "angular"},
  "elasticface_cos": _fixed(0.0, 0.35, loss="elasticface")
  | {"elasticface.deviation": 0.05, "elasticface.space": "cosine"},
  "uniface": _fixed(0.0, 0.4, loss="uniface"),
  "jamsface": _fixed(0.3, 0.2, continuation="smooth")
  | {"learn_angular": True, "learn_cosine": True}
  | {"margin_rate": 0.02, "margin_momentum": 0.0}
  | {"angular_max": 0.8, "cosine_max": 0.6},
}


def tiny(config: ConfigDict) -> ConfigDict:
  """Shrinks a recipe so that it runs anywhere in seconds, on noise images.

  What the recipe says of losses, optimizer and precision stays.
  """
  config.log_every = 1
  config.data.directory = ""
  config.data.image_size = 32
  config.data.batch_size = 16
  shapes = {
    "i": ("iresnet", (1, 1), 1 / 8),
    "ev": ("iresnet", (1, 1), 1 / 8),
    "m": ("mobilefacenet", (1, 1, 1, 1), 1 / 8),
    "v": ("vit", (2,), 1 / 16),
    "f": ("fmobilenet", (1, 1), 1 / 8),
    "s": ("fmobilenet", (1, 1), 1 / 8),
    "ed": ("edgenext", (1, 1, 1, 1), 1 / 2),
  }
  (shape,) = (
    shapes[begin] for begin in shapes if config.model.name.startswith(begin)
  )
  config.model.name, config.model.stages, config.model.width = shape
  config.model.embedding_size = 32
  config.head.class_multiple = 64
  config.schedule.unit = "steps"
  config.schedule.length = 5.0
  config.schedule.warmup = 1.0
  config.schedule.milestones = (3.0, 4.0)
  config.evaluation.data = ""
  config.evaluation.beside = ""
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
