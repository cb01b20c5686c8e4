"""What several galleries come to."""

import numpy as np

from jamsface_jax.protocols.pooling import Pooling
from jamsface_jax.protocols.template_files import SubjectList, Templates
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import JudgingSettings

POOLING = Pooling(detector=False, norm=True)
SETTINGS = JudgingSettings(
  fars=None, poolings=[POOLING], flip=None, plain=True, replicates=0
)


def judged(galleries):
  """Twelve templates of an image, two of each person, searched among some."""
  people = np.arange(12) // 2
  rng = np.random.default_rng(0)
  rows = np.eye(6)[people] + 0.6 * rng.normal(size=(12, 6))
  first, second = np.triu_indices(12, 1)
  lists = [
    SubjectList(f"G{number}", chosen, people[chosen])
    for number, chosen in enumerate(galleries, start=1)
  ]
  probes = np.arange(1, 12, 2)
  templates = Templates(
    templates=np.arange(12),
    media=np.zeros(12, np.int64),
    scores=None,
    first=first,
    second=second,
    same=people[first] == people[second],
    galleries=lists,
    probes=[SubjectList("mixed", probes, people[probes])],
  )
  (one,) = TemplateSet("ijb", templates).judge(
    [rows.astype(np.float32)], SETTINGS, what="e"
  )
  return one


def test_the_mean_is_over_galleries():
  one = judged([np.arange(0, 6, 2), np.arange(6, 12, 2)])
  for metric in "rank1", "rank5":
    each = [one.metrics[f"ijb/mixed/G{k}/{metric}"] for k in (1, 2)]
    assert one.metrics[f"ijb/mixed/{metric}"] == np.mean(each)


def test_what_one_gallery_cannot_measure_has_no_mean():
  """All probes have a mate in the second gallery: it has no TPIR."""
  one = judged([np.array([0]), np.arange(0, 12, 2)])
  assert one.metrics["ijb/mixed/G1/rank1"] in (0, 1)
  assert not any("G2/tpir" in name for name in one.metrics)
  assert "ijb/mixed/rank1" in one.metrics
  assert not any(name.startswith("ijb/mixed/tpir") for name in one.metrics)
