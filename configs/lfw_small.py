r"""LFW at 32 x 32 pixels: real class sizes, small enough for many seeds.

LFW's own lists, images aligned to 112x112 in LFW/<Name>/. View 1, which is for
choosing, is the recipe. Of view 2, which is for reporting, `:fold1` to
`:fold10` train on nine folds of people and test on the tenth, so that each of
LFW's people is tested once; `:half1` and `:half2` train on four folds of one
half and test on its fifth, to choose for folds of the other half. Of each
identity with three images the last is kept apart, to see how people trained on
are recognised; of those tested at most ten images count.

Data:
    lfw() {
      python -m data_prep.from_folder --input=LFW --output=data/$1 "${@:2}"
    }
    lfw lfw_view1/train --identities=peopleDevTrain.txt \
        --min_images=2 --without_last=1
    lfw lfw_view1/lfw_known --identities=peopleDevTrain.txt \
        --min_images=2 --only_last=1
    lfw lfw_view1/lfw_test --identities=peopleDevTest.txt \
        --pairs=pairsDevTest.txt
    folds() {  # People of some folds of LFW's list: folds 1 4.
      awk -v a=$1 -v b=$2 'NF == 1 {k++} NF > 1 && k > a && k <= b + 1' \
        people.txt
    }
    set_of() {  # What $1_train.txt and $1_test.txt name: set_of fold3.
      lfw lfw_$1/train --identities=$1_train.txt \
        --min_images=2 --without_last=1
      lfw lfw_$1/lfw_known --identities=$1_train.txt \
        --min_images=2 --only_last=1
      lfw lfw_$1/lfw_people --identities=$1_test.txt --max_images=10
    }
    for k in 1 2 3 4 5 6 7 8 9 10; do
      (folds 1 $((k - 1)); folds $((k + 1)) 10) > fold${k}_train.txt
      folds $k $k > fold${k}_test.txt
      set_of fold$k
    done
    folds 1 4 > half1_train.txt; folds 5 5 > half1_test.txt
    folds 6 9 > half2_train.txt; folds 10 10 > half2_test.txt
    set_of half1; set_of half2
Run:
    python -m jamsface_jax.main --config=configs/lfw_small.py --workdir=W
All losses: configs/ablation.py; learned margins: configs/ablation_equal.py
No data: --config=configs/lfw_small.py:tiny
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; variants: "full", "fold1", "half1", "r50", "tiny"."""
  config = base_config()
  config.data.directory = "data/lfw_view1/train"
  config.data.image_size = 32
  config.data.batch_size = 128
  config.model.name = "iresnet"
  config.model.stages = (1, 1, 1)
  config.model.width = 0.25
  config.model.stem_stride = 2
  config.model.embedding_size = 128
  config.head.scale = 16.0
  config.head.angular_margin = 0.15
  config.head.cosine_margin = 0.12
  config.optimizer.learning_rate = 0.2
  config.optimizer.reference_batch = 128
  config.schedule.unit = "steps"
  config.schedule.length = 2000.0
  config.schedule.warmup = 100.0
  config.schedule.decay = "cosine"
  config.log_every = 200
  config.checkpoint.every = 2000
  config.evaluation.data = "data/lfw_view1/lfw_test"
  config.evaluation.known = "data/lfw_view1/lfw_known"
  parts = [f"fold{k}" for k in range(1, 11)] + ["half1", "half2"]
  variants = {one: _of(one) for one in parts} | {"r50": _on_a_gpu}
  return choose_variant(config, variant, variants)


def _on_a_gpu(config):
  """IResNet-50 at 112 x 112 pixels: `:r50`, `:r50,fold3`."""
  config.data.image_size = 112
  config.data.threads = 16
  config.model.name = "iresnet50"
  config.model.stages = ()
  config.model.width = 1.0
  config.model.stem_stride = 1
  config.model.embedding_size = 512
  config.model.dtype = "bfloat16"
  config.head.product_dtype = "bfloat16"
  return config


def _of(part):
  def change(config):
    """Trains on folds of view 2, tests on all pairs of another's people."""
    config.data.directory = f"data/lfw_{part}/train"
    config.evaluation.data = f"data/lfw_{part}/lfw_people:all_pairs"
    config.evaluation.known = f"data/lfw_{part}/lfw_known"
    return config

  return change
