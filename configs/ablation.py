r"""Losses compared on LFW and its real class sizes, each tuned alike.

Data:   as configs/lfw_small.py says.
Run:    python -m jamsface_jax.ablate --config=configs/ablation.py \
            --output=A --jobs=2
Budget: four strengths of each loss, once each, on people of folds 1 to 5 of
        LFW's view 2; the best goes on to five other seeds on fold 10.
Result: docs/losses.md.
"""

from ml_collections import ConfigDict

from jamsface_jax.ablation.comparison import strengths

FACTORS = (0.25, 0.6, 1.2, 2.5)  # On what is tuned: over a tenfold range.


def get_config():
  """Returns what is compared; every row is a run for each seed."""
  config = ConfigDict()
  # Data and network.
  config.recipes = ("configs/lfw_small.py:fold10",)
  config.seeds = (0, 1, 2, 3, 4)
  config.metrics = (  # Those that the table has, of the last evaluation.
    "lfw_people/people_tar@1e-3",
    "lfw_people/tar@1e-3",
    "lfw_people/auc",
    "lfw_known/accuracy",
    "lfw_known/accuracy_poor_half",
    "lfw_known/accuracy_rich_half",
  )
  config.reference = "fixed_joint"  # Row that others are compared with.
  # Name of a row: variant of the recipe, then settings as after --config.
  config.rows = ConfigDict(
    {
      "softmax": ("softmax",),
      "cosface": ("cosface",),
      "arcface": ("arcface",),
      "fixed_joint": ("fixed_joint",),
      "adaptiveface": ("adaptiveface",),
      "curricularface": ("curricularface",),
      "adaface": ("adaface",),
      "jamsface": ("jamsface",),
      "jamsface_lambda": ("jamsface", "head.margin_rule=lambda"),
      "fixed_joint_adjusted": ("fixed_joint", "head.logit_adjustment=1.0"),
      "jamsface_adjusted": ("jamsface", "head.logit_adjustment=1.0"),
    }
  )
  config.tuning = ConfigDict()
  config.tuning.recipe = "configs/lfw_small.py:half1"
  config.tuning.seeds = (100,)
  config.tuning.metric = "lfw_people/people_tar@1e-3"
  config.tuning.settings = ()
  config.tuning.factors = FACTORS
  joint = {"head.angular_margin": 0.15, "head.cosine_margin": 0.12}
  middles = {  # What is tuned, and its middle.
    "softmax": {"optimizer.learning_rate": 0.1},
    "cosface": {"head.cosine_margin": 0.2},
    "arcface": {"head.angular_margin": 0.3},
    "fixed_joint": joint,
    "adaptiveface": {"head.cosine_lambda": 20.0},
    "curricularface": {"head.angular_margin": 0.3},
    "adaface": {"head.cosine_margin": 0.2},
    "jamsface": joint,
    "jamsface_lambda": {
      "head.angular_lambda": 10.0,
      "head.cosine_lambda": 10.0,
    },
    "fixed_joint_adjusted": joint,
    "jamsface_adjusted": joint,
  }
  config.tuning.choices = strengths(middles, FACTORS)
  return config
