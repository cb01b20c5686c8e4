r"""JAMsFace with IResNet-50 on CASIA-WebFace.

10,572 identities, 490,623 images.

The schedule is that of ArcFace for this data: batch 512, SGD at 0.1, weight
decay 5e-4, 32,000 steps, the rate divided by 10 at 20,000 and 28,000. The means
of the margins are those of the joint margin in insightface's older sample
settings (0.3 in the angle, 0.2 in the cosine).

Run:     python -m jamsface_jax.main --config=configs/casia_r50.py --workdir=W
No data: --config=configs/casia_r50.py:tiny
Result:  not run.
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full" or "tiny"."""
  config = base_config()
  config.data.directory = "data/casia_webface"
  config.data.batch_size = 512
  config.data.threads = 16
  config.model.name = "iresnet50"
  config.model.dtype = "bfloat16"
  config.head.scale = 64.0
  config.head.angular_margin = 0.3
  config.head.cosine_margin = 0.2
  config.head.product_dtype = "bfloat16"
  config.optimizer.learning_rate = 0.1
  config.optimizer.reference_batch = 512
  config.optimizer.weight_decay = 5e-4
  config.schedule.unit = "steps"
  config.schedule.length = 32000.0
  config.schedule.decay = "step"
  config.schedule.milestones = (20000.0, 28000.0)
  config.schedule.factor = 0.1
  config.evaluation.beside = "lfw,cfp_fp,agedb_30"
  config.evaluation.every = 2000
  return choose_variant(config, variant, {})
