r"""Forms of learned margins compared on a long tail of synthetic faces.

Data:   as configs/synthetic_tail.py says.
Run:    python -m jamsface_jax.ablate --config=configs/ablation_margins.py \
            --output=A --jobs=2
Result: docs/losses.md.
"""

from ml_collections import ConfigDict


def get_config():
  """Returns what is compared; every row is a run for each seed."""
  config = ConfigDict()
  config.recipes = ("configs/synthetic_tail.py",)
  config.seeds = (0, 1, 2, 3, 4)
  config.metrics = (
    "synthetic_test/tar@1e-3",
    "synthetic_test/rank1",
    "synthetic_held_out/accuracy",
    "synthetic_held_out/accuracy_poor_half",
    "synthetic_held_out/accuracy_rich_half",
    "synthetic_held_out/adjusted_accuracy",
    "synthetic_held_out/adjusted_accuracy_poor_half",
    "synthetic_held_out/adjusted_accuracy_rich_half",
  )
  config.reference = "fixed"
  first = ("head.angular_margin=0.15", "head.cosine_margin=0.12")
  held = ("jamsface", *first)
  reward = (*held, "head.margin_rule=lambda")
  config.rows = ConfigDict(
    {
      "fixed": ("fixed_joint", *first),
      # Is it learning that helps, or a larger margin?
      "fixed, half": (
        "fixed_joint",
        "head.angular_margin=0.075",
        "head.cosine_margin=0.06",
      ),
      "fixed, double": (
        "fixed_joint",
        "head.angular_margin=0.3",
        "head.cosine_margin=0.24",
      ),
      "fixed, adjusted by half": (
        "fixed_joint",
        *first,
        "head.logit_adjustment=0.5",
      ),
      "fixed, adjusted": (
        "fixed_joint",
        *first,
        "head.logit_adjustment=1.0",
      ),
      "held": held,
      "held, adjusted": (*held, "head.logit_adjustment=1.0"),
      "held, double": (
        "jamsface",
        "head.angular_margin=0.3",
        "head.cosine_margin=0.24",
      ),
      "held, slow": (*held, "head.margin_rate=0.004"),
      "held, fast": (*held, "head.margin_rate=0.1"),
      "held, from half": (*held, "head.margin_start=250"),
      "held, half to double": (
        *held,
        "head.angular_min=0.075",
        "head.angular_max=0.3",
        "head.cosine_min=0.06",
        "head.cosine_max=0.24",
      ),
      "held, sigmoid": (
        *held,
        "head.margin_bounds=sigmoid",
        "head.angular_max=0.3",
        "head.cosine_max=0.24",
        "head.margin_rate=1.0",
      ),
      # Rich classes count more in the mean, so that margins fall less with n.
      "held, by root of images": (*held, "head.count_power=0.5"),
      "held, by images": (*held, "head.count_power=1.0"),
      "lambda 5": (
        *reward,
        "head.angular_lambda=5.0",
        "head.cosine_lambda=5.0",
      ),
      "lambda 5, by root of images": (
        *reward,
        "head.angular_lambda=5.0",
        "head.cosine_lambda=5.0",
        "head.count_power=0.5",
      ),
      "lambda 5, adjusted": (
        *reward,
        "head.angular_lambda=5.0",
        "head.cosine_lambda=5.0",
        "head.logit_adjustment=1.0",
      ),
      "lambda 20": (
        *reward,
        "head.angular_lambda=20.0",
        "head.cosine_lambda=20.0",
      ),
      "lambda 5 to 20": (
        *reward,
        "head.angular_lambda=5.0",
        "head.cosine_lambda=5.0",
        "head.lambda_end=4.0",
      ),
      "lambda 20 over the batch": (
        *reward,
        "head.angular_lambda=20.0",
        "head.cosine_lambda=20.0",
        "head.rewarded=batch",
      ),
    }
  )
  return config
