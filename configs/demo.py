r"""Demo: a small network on the faces that data_prep.synthesize draws.

Run:       make demo
By hand:   python -m data_prep.synthesize --output=build/demo/data
           python -m jamsface_jax.main --config=configs/demo.py --workdir=W
No data:   --config=configs/demo.py:tiny
Time and result: see the README.
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full" or "tiny"."""
  config = base_config()
  config.data.directory = "build/demo/data/train"
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
  config.schedule.length = 400.0
  config.schedule.warmup = 40.0
  config.schedule.decay = "cosine"
  config.checkpoint.every = 200
  config.evaluation.data = "build/demo/data/test"
  return choose_variant(config, variant, {})
