r"""Losses compared at equal strength: LFW's ten folds of people.

Strength of a margin is what it takes off the cosine of an image whose angle to
its own class is 60 degrees, where these networks end: 0.255 in the mean over
images, that of the joint margin (0.15, 0.12) of configs/ablation_equal.py. So
no row is tuned, and none has a budget of its own. docs/losses.md says what was
to be looked at before any of these runs was made.

Data:   as configs/lfw_small.py says.
Run:    python -m jamsface_jax.ablate --config=configs/ablation.py \
            --output=build/equal --jobs=2
Table:  python benchmarks/equal_strength.py --collect=build/equal
"""

import math

from ml_collections import ConfigDict

# The joint margin, and those of one kind that take as much off at 60 degrees.
ANGULAR, COSINE = 0.15, 0.12
AT = math.pi / 3
TAKEN = round(math.cos(AT) - math.cos(AT + ANGULAR) + COSINE, 3)
ANGULAR_ALONE = round(math.acos(math.cos(AT) - TAKEN) - AT, 3)


def get_config():
  """Returns what is compared; every row is a run for each fold and seed."""
  config = ConfigDict()
  config.recipes = tuple(f"configs/lfw_small.py:fold{k}" for k in range(1, 11))
  config.seeds = (0, 1)
  config.metrics = (  # Those that the table has, of the last evaluation.
    "lfw_people/people_tar@1e-3",
    "lfw_people/tar@1e-3",
    "lfw_people/auc",
    "lfw_known/accuracy",
    "lfw_known/adjusted_accuracy",
    "lfw_known/adjusted_accuracy_poor_half",
    "train/cross_entropy",
  )
  config.reference = "fixed"  # Row that others are compared with.
  angular = f"head.angular_margin={ANGULAR_ALONE}"
  cosine = f"head.cosine_margin={TAKEN}"
  # Name of a row: variant of the recipe, then settings as after --config.
  config.rows = ConfigDict(
    {
      "fixed": (
        "fixed_joint",
        f"head.angular_margin={ANGULAR}",
        f"head.cosine_margin={COSINE}",
      ),
      "softmax": ("softmax",),
      "arcface": ("arcface", angular),
      "cosface": ("cosface", cosine),
      "adaface": ("adaface", cosine),
      "curricularface": ("curricularface", angular),
      # AdaptiveFace's margins: learned, of the cosine alone; its mean is held
      # where its authors reward large ones.
      "held_cosine": (
        "jamsface",
        "head.angular_margin=0",
        "head.learn_angular=False",
        cosine,
        "head.held=images",
      ),
    }
  )
  return config
