"""Classes in a few numbers: they are those that counting gives."""

import json

import numpy as np
import pytest
from scipy import stats

from jamsface_jax.reports import class_profile
from jamsface_jax.storage.run_directory import RunFile


def zipf(count, largest):
  return np.maximum(largest // np.arange(1, count + 1), 1)


def test_shares_of_the_largest():
  sizes = np.random.default_rng(0).permutation(zipf(1000, 500))
  top = class_profile.describe(sizes, {})["top"]
  falling = sorted(sizes.tolist(), reverse=True)
  for share, count in (("0.01", 10), ("0.1", 100), ("0.5", 500)):
    assert top[share] == pytest.approx(sum(falling[:count]) / sum(falling))


def test_the_tail_falls_from_the_largest_to_the_smallest():
  sizes = np.random.default_rng(1).permutation(zipf(5000, 800))
  tail = class_profile.describe(sizes, {})["tail"]
  falling = np.sort(sizes)[::-1]
  ranks = np.array(tail["rank"])
  assert ranks[0] == 1 and ranks[-1] == 5000 and len(ranks) <= 200
  assert (np.diff(ranks) > 0).all()
  np.testing.assert_array_equal(tail["size"], falling[ranks - 1])


def test_margins_in_bands():
  rng = np.random.default_rng(2)
  sizes = rng.integers(1, 2000, 4000)
  margins = 0.5 - 0.05 * np.log(sizes) + rng.normal(0, 0.01, 4000)
  one = class_profile.describe(sizes, {"angular": margins})
  angular = one["margins"]["angular"]
  assert angular["rank_correlation"] == pytest.approx(
    stats.spearmanr(sizes, margins).statistic
  )
  assert sum(band["classes"] for band in angular["bands"]) == 4000
  edges = np.geomspace(sizes.min(), sizes.max() + 1, 13)
  for low, high, band in zip(
    edges[:-1], edges[1:], angular["bands"][-12:], strict=False
  ):
    inside = (sizes >= low) & (sizes < high)
    if band["classes"] != inside.sum():
      continue  # An empty band was left out before it.
    assert band["median"] == pytest.approx(np.median(margins[inside]))
    assert band["low"] <= band["median"] <= band["high"]
    share = np.mean(margins[inside] <= band["high"])
    assert share == pytest.approx(0.9, abs=2 / inside.sum())


def test_sampled_classes_have_their_own_margins():
  sizes = zipf(20_000, 3000)
  margins = {"cosine": np.arange(20_000) / 1e5}
  one = class_profile.describe(sizes, margins)["margins"]["cosine"]
  sample = one["sample"]
  assert len(sample["size"]) <= 1000
  places = np.round(np.array(sample["margin"]) * 1e5).astype(int)
  np.testing.assert_array_equal(sample["size"], sizes[places])


def test_one_size_for_all_and_few_classes(tmp_path):
  profile = class_profile.describe(
    np.full(3, 7), {"angular": np.array([0.1, 0.2, 0.3], np.float32)}
  )
  assert profile["classes"] == 3 and profile["images"] == 21
  path = tmp_path / "classes.json"
  class_profile.write(RunFile(str(path)), profile)
  stored = json.loads(path.read_text())
  assert stored["margins"]["angular"]["rank_correlation"] is None
  assert stored["margins"]["angular"]["bands"][0]["median"] == pytest.approx(
    0.2
  )


def test_a_million_classes_take_no_more_room(tmp_path):
  sizes = zipf(1_000_000, 10_000)
  margins = np.random.default_rng(3).random(1_000_000)
  path = tmp_path / "classes.json"
  class_profile.write(
    RunFile(str(path)),
    class_profile.describe(sizes, {"a": margins, "b": margins}),
  )
  assert path.stat().st_size < 100_000


def test_spread_ranks():
  np.testing.assert_array_equal(class_profile.spread_ranks(5, 200), range(1, 6))
  ranks = class_profile.spread_ranks(10**6, 200)
  assert ranks[0] == 1 and ranks[-1] == 10**6
  assert np.sum(ranks <= 1000) > 30  # Both the head and the tail are seen.
  assert np.sum(ranks > 10**5) > 80
