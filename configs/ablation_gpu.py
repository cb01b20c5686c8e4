r"""Learned margins at equal strength with IResNet-50 at 112 pixels, on a GPU.

The rows of configs/ablation_equal.py that matter most, at its strength and its
curve (that of 32 pixels), on a network that people train: nothing is chosen on
this one.

Data:   as configs/ablation_equal.py says, images of 112x112.
Run:    for half in first second; do
          python -m jamsface_jax.ablate --output=build/gpu \
              --config=configs/ablation_gpu.py:$half
        done
Table:  python benchmarks/equal_strength.py --collect=build/gpu \
            --runs=build/gpu/runs.json
Result: not run.
"""

from ml_collections import ConfigDict

FOLDS = {"first": range(1, 6), "second": range(6, 11)}
CURVE_OF = {"first": "half2", "second": "half1"}  # Of other people.
MARGINS = ("head.angular_margin=0.15", "head.cosine_margin=0.12")
BY_IMAGES = "head.held=images"


def get_config(part: str = "first"):
  """Returns what is compared; `part`: "first" or "second", five folds each."""
  config = ConfigDict()
  config.recipes = tuple(
    f"configs/lfw_small.py:r50,fold{k}" for k in FOLDS[part]
  )
  config.seeds = (0,)
  config.metrics = (
    "lfw_people/people_tar@1e-3",
    "lfw_people/tar@1e-3",
    "lfw_people/auc",
    "lfw_known/adjusted_accuracy",
    "train/cross_entropy",
    "train/margin_angular_image_mean",
  )
  config.reference = "fixed"
  fixed = ("fixed_joint", *MARGINS)
  curve = f"head.margin_curve=data/lfw_{CURVE_OF[part]}/margins.csv"
  config.rows = ConfigDict(
    {
      "fixed": fixed,
      "held": ("jamsface", *MARGINS, BY_IMAGES),
      "curve": (*fixed, BY_IMAGES, curve),
      "kappa": (*fixed, BY_IMAGES, "head.margin_rule=concentration"),
    }
  )
  return config
