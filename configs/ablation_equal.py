r"""What learned margins do, at equal strength: LFW's ten folds of people.

The mean margin over images, which is what a batch sees, is the same in all
rows of a fold. It was chosen by configs/ablation_strength.py on people of the
other half of the folds, and so was the curve of class sizes that the row of
that name has. docs/losses.md says what was to be looked at before any of these
runs was made.

Data:   as configs/lfw_small.py says, and
            curve_of() {
              cp "build/strength/lfw_small-$1/$2/seed100/margins.csv" \
                data/lfw_$1/
            }
            curve_of half1 "held 100"; curve_of half2 "held 100"
Run:    for half in first second; do
          python -m jamsface_jax.ablate --output=build/equal --jobs=2 \
              --config=configs/ablation_equal.py:$half
        done
Table:  python benchmarks/equal_strength.py --collect=build/equal
Other people:
        git clone https://github.com/zhangjunh/DR-GAN-by-pytorch
        git -C DR-GAN-by-pytorch checkout 12de9e08
        python benchmarks/other_people.py --lfw=LFW --output=CFP \
            --cfp=DR-GAN-by-pytorch/cfp-dataset
        from_folder() {
          python -m data_prep.from_folder --input=CFP --output=data/$1 "${@:2}"
        }
        from_folder cfp_all
        python -m data_prep.inspect data/cfp_all --output=build/cfp_all
        from_folder cfp_people --exclude=build/cfp_all/duplicates.tsv
        python benchmarks/equal_strength.py --collect=build/equal \
            --others=data/cfp_people
"""

from ml_collections import ConfigDict

FOLDS = {"first": range(1, 6), "second": range(6, 11)}
# Of whose people strength and curve are, and the strength, in percent of
# (0.15, 0.12): see docs/losses.md for how it was chosen.
CHOSEN_ON = {"first": ("half2", 100), "second": ("half1", 100)}


def get_config(part: str = "first"):
  """Returns what is compared; `part`: "first" or "second", five folds each."""
  half, strength = CHOSEN_ON[part]
  config = ConfigDict()
  config.recipes = tuple(f"configs/lfw_small.py:fold{k}" for k in FOLDS[part])
  config.seeds = (0, 1)
  config.metrics = (
    "lfw_people/people_tar@1e-3",
    "lfw_people/tar@1e-3",
    "lfw_people/auc",
    "lfw_known/accuracy",
    "lfw_known/adjusted_accuracy",
    "lfw_known/adjusted_accuracy_poor_half",
    "train/cross_entropy",
    "train/margin_angular_image_mean",
    "train/margin_cosine_image_mean",
  )
  config.reference = "fixed"
  margins = (
    f"head.angular_margin={0.0015 * strength:g}",
    f"head.cosine_margin={0.0012 * strength:g}",
  )
  by_images = "head.held=images"
  config.rows = ConfigDict(
    {
      "fixed": ("fixed_joint", *margins),
      "held": ("jamsface", *margins, by_images),
      # Learned in the second half of the steps alone.
      "late": ("jamsface", *margins, by_images, "head.margin_start=1000"),
      # Never learned: what `held` ended with, on other people.
      "curve": (
        "fixed_joint",
        *margins,
        by_images,
        f"head.margin_curve=data/lfw_{half}/margins.csv",
      ),
      # The other sign: rich classes have the larger margins.
      "rising": ("fixed_joint", *margins, by_images, "head.margin_slope=0.1"),
      # Never learned: of class size and of how densely embeddings lie.
      "kappa": (
        "fixed_joint",
        *margins,
        by_images,
        "head.margin_rule=concentration",
      ),
      # Learned among classes of one size alone, each counting as much.
      "within": (
        "jamsface",
        *margins,
        "head.held=sizes",
        "head.gradient_power=1.0",
        "head.margin_rate=0.2",
      ),
    }
  )
  return config
