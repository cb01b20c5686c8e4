r"""Your own faces: tens to thousands of photographs, a CPU or one GPU.

So few teach no network what a face is: begin with published weights
(docs/export.md), of which this keeps the backbone. Without --fine_tune_from it
runs too, but learns these people alone, and tells others hardly apart.

Data:
    python -m data_prep.align --input=PHOTOS --output=out/faces
    python -m data_prep.from_folder --input=out/faces --output=data/mine
Run:
    python -m jamsface_jax.main --config=configs/small.py:r50 --workdir=W \
        --config.data.directory=data/mine --fine_tune_from=runs/r50
Without weights: --config=configs/small.py
No data: --config=configs/small.py:tiny
Result: no accuracy measured. 27 drawn photographs of 6 people, from nothing:
142 s of training on two cores (f3b851d), photographs to names in four minutes.

The rate is a tenth of that of training, so that the network stays near what it
was; scale and margins are those of about a thousand people.
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full", "tiny" or a network."""
  config = base_config()
  config.data.directory = "data/mine"
  config.data.batch_size = 16
  config.augment.contrast = 0.2
  config.model.name = "mbf"
  config.head.scale = 32.0
  config.head.angular_margin = 0.15
  config.head.cosine_margin = 0.12
  config.optimizer.learning_rate = 0.01
  config.optimizer.reference_batch = 64
  config.schedule.length = 20.0
  config.schedule.warmup = 2.0
  config.schedule.decay = "cosine"
  config.log_every = 10
  config.checkpoint.every = 200
  networks = {"r18": _r18, "r50": _r50, "r100": _r100, "vit_t": _vit_t}
  return choose_variant(config, variant, networks)


def _r18(config):
  """IResNet-18 instead of MobileFaceNet."""
  config.model.name = "iresnet18"
  return config


def _r50(config):
  """IResNet-50 instead of MobileFaceNet."""
  config.model.name = "iresnet50"
  return config


def _r100(config):
  """IResNet-100 instead of MobileFaceNet."""
  config.model.name = "iresnet100"
  return config


def _vit_t(config):
  """ViT-T instead of MobileFaceNet."""
  config.model.name = "vit_t"
  return config
