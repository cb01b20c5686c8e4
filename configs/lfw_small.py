r"""LFW at 32 x 32 pixels: real class sizes, small enough for many seeds.

LFW's own lists, images aligned to 112x112 in LFW/<Name>/. View 1, which is for
choosing, is the recipe; of view 2, which is for reporting, `:fold10` trains on
folds 1 to 9 and tests on the pairs of fold 10. Of each identity with three
images the last is kept apart, to see how people trained on are recognised.

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
    awk 'NF == 1 {fold++} NF > 1 && fold < 11' people.txt > people_1-9.txt
    awk 'NF == 1 {fold++} NF > 1 && fold == 11' people.txt > people_10.txt
    (echo 300; tail -n 600 pairs.txt) > pairs_10.txt
    lfw lfw_fold10/train --identities=people_1-9.txt \
        --min_images=2 --without_last=1
    lfw lfw_fold10/lfw_known --identities=people_1-9.txt \
        --min_images=2 --only_last=1
    lfw lfw_fold10/lfw_test --identities=people_10.txt --pairs=pairs_10.txt
Run:
    python -m jamsface_jax.main --config=configs/lfw_small.py --workdir=W
All losses: configs/ablation.py
No data: --config=configs/lfw_small.py:tiny
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full", "fold10" or "tiny"."""
  config = base_config()
  config.data.directory = "data/lfw_view1/train"
  config.data.image_size = 32
  config.data.batch_size = 128
  config.augment.shift = 1
  config.augment.contrast = 0.2
  config.model.name = "iresnet"
  config.model.stages = (1, 1, 1)
  config.model.width = 0.25
  config.model.stem_stride = 2
  config.model.embedding_size = 128
  config.head.scale = 32.0
  config.head.angular_margin = 0.15
  config.head.cosine_margin = 0.12
  config.optimizer.learning_rate = 0.1
  config.optimizer.reference_batch = 128
  config.schedule.unit = "steps"
  config.schedule.length = 800.0
  config.schedule.warmup = 40.0
  config.schedule.decay = "cosine"
  config.log_every = 200
  config.checkpoint.every = 800
  config.evaluation.data = "data/lfw_view1/lfw_test"
  config.evaluation.known = "data/lfw_view1/lfw_known"
  return choose_variant(config, variant, {"fold10": _fold10})


def _fold10(config):
  """Trains on folds 1 to 9 of view 2 and tests on fold 10."""
  config.data.directory = "data/lfw_fold10/train"
  config.evaluation.data = "data/lfw_fold10/lfw_test"
  config.evaluation.known = "data/lfw_fold10/lfw_known"
  return config
