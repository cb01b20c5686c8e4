r"""Which strength of margins LFW's people ask for, fixed and learned.

The first of two comparisons at equal strength: the mean margin over images,
which is what a batch sees, is that of the row's name in both of its kinds. Its
people are not among those of the second, configs/ablation_equal.py, that it
chooses for.

Data:   as configs/lfw_small.py says.
Run:    python -m jamsface_jax.ablate --config=configs/ablation_strength.py \
            --output=build/strength --jobs=2
"""

from ml_collections import ConfigDict

STRENGTHS = (25, 50, 100, 200)  # Percent of (0.15, 0.12).


def get_config():
  """Returns what is compared; every row is a run for each seed."""
  config = ConfigDict()
  config.recipes = (
    "configs/lfw_small.py:half1",
    "configs/lfw_small.py:half2",
  )
  config.seeds = (100,)
  config.metrics = (
    "lfw_people/people_tar@1e-3",
    "lfw_people/tar@1e-3",
    "lfw_known/adjusted_accuracy",
    "train/cross_entropy",
    "train/margin_angular_image_mean",
  )
  config.reference = "fixed 100"
  config.rows = ConfigDict()
  for strength in STRENGTHS:
    margins = (
      f"head.angular_margin={0.0015 * strength:g}",
      f"head.cosine_margin={0.0012 * strength:g}",
    )
    config.rows[f"fixed {strength}"] = ("fixed_joint", *margins)
    config.rows[f"held {strength}"] = (
      "jamsface",
      *margins,
      "head.held=images",
    )
  return config
