r"""JAMsFace with IResNet-100 on Glint360K (360,232 identities).

The schedule is that of insightface's arcface_torch for this data: batch 1,024,
SGD at 0.1, weight decay 1e-4, 20 epochs falling linearly to 0. The means of the
margins are those of the joint margin in insightface's older sample settings
(0.3 in the angle, 0.2 in the cosine).

Run:     python -m jamsface_jax.main --workdir=W \
             --config=configs/glint360k_r100.py
No data: --config=configs/glint360k_r100.py:tiny
Result:  not run.
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full" or "tiny"."""
  config = base_config()
  config.data.directory = "data/glint360k"
  config.data.batch_size = 1024
  config.data.threads = 16
  config.model.name = "iresnet100"
  config.model.dtype = "bfloat16"
  config.head.scale = 64.0
  config.head.angular_margin = 0.3
  config.head.cosine_margin = 0.2
  config.head.product_dtype = "bfloat16"
  config.optimizer.learning_rate = 0.1
  config.optimizer.reference_batch = 1024
  config.optimizer.weight_decay = 1e-4
  config.schedule.length = 20.0
  config.schedule.decay = "polynomial"
  config.evaluation.beside = "lfw,cfp_fp,agedb_30"
  config.evaluation.every = 2000
  return choose_variant(config, variant, {})
