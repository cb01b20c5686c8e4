r"""Learned margins where the data differ: equal classes, and wrong labels.

Data:   as configs/synthetic_tail.py says.
Run:    python -m jamsface_jax.ablate --config=configs/ablation_data.py \
            --output=A --jobs=2
Result: docs/losses.md.
"""

from ml_collections import ConfigDict


def get_config():
  """Returns what is compared; every row is a run for each seed."""
  config = ConfigDict()
  config.recipes = (
    "configs/synthetic_tail.py",
    "configs/synthetic_tail.py:flat",
    "configs/synthetic_tail.py:mislabelled",
  )
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
  config.rows = ConfigDict(
    {
      "fixed": ("fixed_joint", *first),
      "held": held,
      "held, by images": (*held, "head.count_power=1.0"),
      "lambda 5": (
        *held,
        "head.margin_rule=lambda",
        "head.angular_lambda=5.0",
        "head.cosine_lambda=5.0",
      ),
    }
  )
  return config
