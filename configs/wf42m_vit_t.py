r"""JAMsFace with ViT-T on WebFace42M (2,059,906 identities, 42,474,557 images).

Network and schedule are those of insightface's arcface_torch
(wf42m_pfc03_40epoch_8gpu_vit_t): batch 4,096, AdamW at 0.001, weight decay 0.1,
40 epochs, the first 4 of them rising and the others falling linearly, paths
left out at up to 0.05, 0.3 of the classes a step. There a class that was not
sampled decays and drifts on; here it stays as it is. The means of the margins
are those of the joint margin in insightface's older sample settings (0.3 in the
angle, 0.2 in the cosine), and their rate is as large as under SGD at 0.1.

Run:     python -m jamsface_jax.main --config=configs/wf42m_vit_t.py --workdir=W
No data: --config=configs/wf42m_vit_t.py:tiny
Result:  not run.
"""

from jamsface_jax.config import base_config, choose_variant


def get_config(variant: str = "full"):
  """Returns the settings; `variant` is "full" or "tiny"."""
  config = base_config()
  config.data.directory = "data/webface42m"
  config.data.batch_size = 4096
  config.data.threads = 16
  config.model.name = "vit_t"
  config.model.drop_path = 0.05
  config.model.dtype = "bfloat16"
  config.head.scale = 64.0
  config.head.angular_margin = 0.3
  config.head.cosine_margin = 0.2
  config.head.margin_rate = 2.0
  config.head.sample_rate = 0.3
  config.head.product_dtype = "bfloat16"
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 0.001
  config.optimizer.reference_batch = 4096
  config.optimizer.weight_decay = 0.1
  config.schedule.length = 40.0
  config.schedule.warmup = 4.0
  config.schedule.decay = "polynomial"
  config.evaluation.beside = "lfw,cfp_fp,agedb_30"
  config.evaluation.every = 2000
  return choose_variant(config, variant, {})
