r"""Losses compared on a long tail of synthetic faces, each tuned alike.

Data:   as configs/synthetic_tail.py says.
Run:    python -m jamsface_jax.ablate --config=configs/ablation_tail.py \
            --output=A --jobs=2
Budget: four strengths of each loss, once each, on another test set; the best
        goes on to five other seeds.
Result: docs/losses.md.
"""

from ml_collections import ConfigDict

from jamsface_jax.ablation.comparison import strengths

FACTORS = (0.25, 0.6, 1.2, 2.5)  # On what is tuned: over a tenfold range.


def get_config():
  """Returns what is compared; every row is a run for each seed."""
  config = ConfigDict()
  config.recipes = ("configs/synthetic_tail.py",)
  config.seeds = (0, 1, 2, 3, 4)
  config.metrics = (
    "synthetic_test/tar@1e-3",
    "synthetic_test/eer",
    "synthetic_test/rank1",
    "synthetic_held_out/accuracy",
    "synthetic_held_out/accuracy_poor_half",
    "synthetic_held_out/accuracy_rich_half",
    "synthetic_held_out/adjusted_accuracy",
    "synthetic_held_out/adjusted_accuracy_poor_half",
    "synthetic_held_out/adjusted_accuracy_rich_half",
  )
  config.reference = "fixed_joint"
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
      "jamsface_cosine": (
        "jamsface",
        "head.learn_angular=False",
        "head.angular_margin=0",
      ),
      "jamsface_lambda": ("jamsface", "head.margin_rule=lambda"),
      "fixed_joint_adjusted": ("fixed_joint", "head.logit_adjustment=1.0"),
      "jamsface_adjusted": ("jamsface", "head.logit_adjustment=1.0"),
    }
  )
  config.tuning = ConfigDict()
  config.tuning.seeds = (100,)
  config.tuning.metric = "synthetic_test/tar@1e-3"
  config.tuning.settings = ("evaluation.data=build/tail_tuning/test:all_pairs",)
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
    "jamsface_cosine": {"head.cosine_margin": 0.2},
    "jamsface_lambda": {
      "head.angular_lambda": 10.0,
      "head.cosine_lambda": 10.0,
    },
    "fixed_joint_adjusted": joint,
    "jamsface_adjusted": joint,
  }
  config.tuning.choices = strengths(middles, FACTORS)
  return config
