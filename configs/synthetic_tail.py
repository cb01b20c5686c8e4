r"""A long tail of synthetic faces, small enough to compare losses over seeds.

Variants: `:flat`, the same people with 15 images each; `:mislabelled`, the long
tail with a wrong label on each tenth image.

Data (the second set is for tuning alone):
    python -m data_prep.synthesize --output=build/tail --held_out=5
    python -m data_prep.synthesize --output=build/tail_tuning --seed=1
    python -m data_prep.synthesize --output=build/tail_flat --held_out=5 \
        --tail=zipf:0
    python -m data_prep.synthesize --output=build/tail_mislabelled \
        --held_out=5 --mislabelled=0.1
Run:
    python -m jamsface_jax.main --config=configs/synthetic_tail.py --workdir=W
All losses: configs/ablation_tail.py
No data: --config=configs/synthetic_tail.py:tiny
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Settings; `variant` is "full", "flat", "mislabelled" or "tiny"."""
  config = base_config()
  config.data.directory = "build/tail/train"
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
  config.schedule.length = 500.0
  config.schedule.warmup = 50.0
  config.schedule.decay = "cosine"
  config.log_every = 100
  config.checkpoint.every = 500
  # Every image of the 200 people with every other: 2 million pairs.
  config.evaluation.data = "build/tail/test:all_pairs"
  config.evaluation.known = "build/tail/held_out"
  return choose_variant(
    config, variant, {"flat": _flat, "mislabelled": _mislabelled}
  )


def _flat(config):
  """Trains on as many images of each."""
  config.data.directory = "build/tail_flat/train"
  config.evaluation.data = "build/tail_flat/test:all_pairs"
  config.evaluation.known = "build/tail_flat/held_out"
  return config


def _mislabelled(config):
  """Trains on wrong labels; what it is tested on has none."""
  config.data.directory = "build/tail_mislabelled/train"
  config.evaluation.data = "build/tail_mislabelled/test:all_pairs"
  config.evaluation.known = "build/tail_mislabelled/held_out"
  return config
