r"""Losses compared on LFW: 1,184 identities, a small network, 5 seeds.

Data: as configs/lfw_cpu.py says.
Run:  python -m jamsface_jax.ablate --config=configs/ablation.py --output=A
Time: one run at a time, 2 cores: about 10 minutes each; --jobs=2 runs two.
Result: not run.
"""

from ml_collections import ConfigDict


def get_config():
  """Returns what is compared; every row is a run for each seed."""
  config = ConfigDict()
  config.recipes = ("configs/lfw_cpu.py",)  # Data and network.
  config.seeds = (0, 1, 2, 3, 4)
  config.metrics = (  # Those that the table has, of the last evaluation.
    "lfw_dev_test/accuracy",
    "lfw_dev_test/tar@1e-2",
    "lfw_dev_test/eer",
  )
  config.reference = "cosface"  # Row that others are compared with.
  # Name of a row: variant of the recipe, then settings as after --config.
  config.rows = ConfigDict(
    {
      "softmax": ("softmax",),
      "normface": ("normface",),
      "cosface": ("cosface", "head.cosine_margin=0.2"),
      "arcface": ("arcface", "head.angular_margin=0.3"),
      "fixed_joint": (
        *("fixed_joint", "head.angular_margin=0.15"),
        "head.cosine_margin=0.12",
      ),
      "adaptiveface": ("adaptiveface",),
      "ldam": ("ldam",),
      "curricularface": ("curricularface", "head.angular_margin=0.3"),
      "adaface": ("adaface", "head.cosine_margin=0.2"),
      "jamsface": (
        *("jamsface", "head.angular_margin=0.15"),
        "head.cosine_margin=0.12",
      ),
    }
  )
  return config
