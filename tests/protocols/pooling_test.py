"""Templates against the field's own loop over templates and media."""

import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.protocols import pooling


def make_images(rng, count=700, templates=23, size=16):
  """Images in a random order; media numbers recur among templates."""
  which = np.r_[np.arange(templates), rng.integers(0, templates, count)]
  media = rng.integers(0, 6, len(which)) * 1_000_003
  order = rng.permutation(len(which))
  embeddings = rng.normal(size=(len(which), size)).astype(np.float32) * 4
  scores = rng.uniform(0.1, 1, len(which))
  return embeddings, which[order], media, scores


def reference(embeddings, templates, media, scores, detector, norm):
  """InsightFace's image2template_feature, from its description, in float64.

  For every template: the mean of the images of each medium, summed over media,
  then scaled to length 1; before, lengths are kept or divided out, and images
  may be multiplied by the detector's score.
  """
  features = embeddings.astype(np.float64)
  if not norm:
    features /= np.linalg.norm(features, axis=1, keepdims=True)
  if detector:
    features *= scores[:, np.newaxis]
  rows = []
  for template in np.unique(templates):
    mine, its_media = (
      features[templates == template],
      media[templates == template],
    )
    means = [mine[its_media == m].mean(axis=0) for m in np.unique(its_media)]
    row = np.sum(means, axis=0)
    rows.append(row / np.linalg.norm(row))
  return np.array(rows)


@pytest.mark.parametrize("block", [1, 300, 5000])
def test_all_settings_agree_with_the_loop(block):
  images = make_images(np.random.default_rng(block))
  embeddings, *rest = images
  pooler = pooling.TemplatePooler(*rest, poolings=pooling.ALL, what="E")
  for start in range(0, len(embeddings), block):
    pooler.add(embeddings[start : start + block])
  units = pooler.units()
  assert [str(one) for one in units] == ["D1N1", "D1N0", "D0N1", "D0N0"]
  for one, rows in units.items():
    wanted = reference(*images, detector=one.detector, norm=one.norm)
    np.testing.assert_allclose(rows, wanted, rtol=0, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
  # The settings differ by far more than that.
  assert np.abs(units[pooling.ALL[0]] - units[pooling.ALL[3]]).max() > 0.01


def test_a_long_video_counts_as_a_photograph():
  # 99 equal frames of one medium and one photograph.
  embeddings = np.array([[1, 0]] * 99 + [[0, 1]], np.float32)
  media = np.r_[np.zeros(99, int), 1]
  pooler = pooling.TemplatePooler(
    np.zeros(100, int),
    media,
    None,
    poolings=[pooling.Pooling(detector=False, norm=True)],
    what="E",
  )
  pooler.add(embeddings)
  (units,) = pooler.units().values()
  np.testing.assert_allclose(units, [[0.5**0.5, 0.5**0.5]], atol=1e-7)


def test_bad_images_and_templates_are_refused():
  plain = [pooling.Pooling(detector=False, norm=True)]
  templates, media = np.array([0, 1, 1]), np.array([0, 0, 1])
  pooler = pooling.TemplatePooler(
    templates, media, None, poolings=plain, what="E.npy"
  )
  pooler.add(np.ones((1, 3), np.float32))
  with pytest.raises(InputError, match=r"E.npy: 1 of rows 1 to 2 .* row 2;"):
    pooler.add(np.array([[1, 1, 1], [np.nan, 1, 1]], np.float32))
  pooler = pooling.TemplatePooler(
    templates, media, None, poolings=plain, what="E.npy"
  )
  pooler.add(np.array([[1, 1], [1, 0], [-1, 0]], np.float32))
  with pytest.raises(InputError, match="templates of E.npy: 1 of .* row 1;"):
    pooler.units()


@pytest.mark.parametrize("text", ["", "D1", "D2N0", "N1D1", "D1N1 "])
def test_poolings_are_written_one_way(text):
  with pytest.raises(InputError, match="D1N0"):
    pooling.parse_pooling(text)


def test_poolings_are_read_as_written():
  for one in pooling.ALL:
    assert pooling.parse_pooling(str(one)) == one
