r"""LFW on a laptop CPU: a small network on 1,184 identities, in minutes.

Data (images aligned to 112x112, LFW's own lists):
    python -m data_prep.from_folder --input=LFW --output=data/lfw_train \
        --identities=peopleDevTrain.txt --min_images=2
    python -m data_prep.from_folder --input=LFW --output=data/lfw_dev_test \
        --identities=peopleDevTest.txt --pairs=pairsDevTest.txt
Run:
    python -m jamsface_jax.main --config=configs/lfw_cpu.py --workdir=W
Another loss, the same in everything else: --config=configs/lfw_cpu.py:normface
No data: --config=configs/lfw_cpu.py:tiny
Time and result: see the README.
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full" or "tiny"."""
  config = base_config()
  config.data.directory = "data/lfw_train"
  config.data.image_size = 56
  config.data.batch_size = 128
  config.augment.shift = 2
  config.augment.contrast = 0.2
  config.model.name = "iresnet"
  config.model.stages = (1, 1, 1)
  config.model.width = 0.5
  config.model.stem_stride = 2
  config.model.embedding_size = 128
  config.head.scale = 32.0
  config.head.angular_margin = 0.15
  config.head.cosine_margin = 0.12
  config.optimizer.learning_rate = 0.1
  config.optimizer.reference_batch = 128
  config.schedule.unit = "steps"
  config.schedule.length = 2000.0
  config.schedule.warmup = 100.0
  config.schedule.decay = "cosine"
  config.checkpoint.every = 500
  config.evaluation.data = "data/lfw_dev_test"
  config.evaluation.every = 500
  return choose_variant(config, variant, {})
