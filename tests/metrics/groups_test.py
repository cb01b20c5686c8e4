"""Groups of people, against counts by hand and loops over pairs."""

import json

import numpy as np
import pytest
from conftest import assert_one_sentence, convert

from data_prep import from_pairs
from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.metrics.groups import GroupedPairs, judge_groups
from jamsface_jax.protocols.groups_file import open_groups, read_groups

NAMES = ("a", "b")


def grouped(rows):
  """Pairs of (score, same, people, groups)."""
  scores, same, people, groups = zip(*rows, strict=True)
  (first, second), (first_group, second_group) = (
    np.array(both).T for both in (people, groups)
  )
  return GroupedPairs(
    np.array(scores),
    np.array(same, bool),
    first,
    second,
    first_group,
    second_group,
  )


def test_counts_by_hand():
  pairs = grouped(
    [
      (0.9, 1, (0, 0), (0, 0)),
      (0.4, 1, (1, 1), (0, 0)),
      (0.8, 0, (0, 1), (0, 0)),  # Two people of a, alike.
      (0.1, 0, (1, 0), (0, 0)),
      (0.2, 0, (0, 1), (0, 0)),
      (0.7, 1, (2, 2), (1, 1)),
      (0.6, 1, (2, 2), (1, 1)),
      (0.5, 0, (2, 0), (1, 0)),  # Of two groups.
      (0.3, 0, (1, 2), (0, 1)),
    ]
  )
  a, b, apart = judge_groups(
    pairs, NAMES, 0.5, {"1e-1": 0.85, "1e0": 0.2}, replicates=0, seed=0
  )
  assert (a.name, a.identities, a.positive_pairs, a.negative_pairs) == (
    "a",
    2,
    2,
    3,
  )
  assert a.metrics == {
    "accuracy": 3 / 5,
    "fmr@1e-1": 0,
    "fnmr@1e-1": 1 / 2,
    "fmr@1e0": 2 / 3,  # A score that equals the threshold is accepted.
    "fnmr@1e0": 0,
  }
  assert (b.name, b.identities, b.negative_pairs) == ("b", 1, 0)
  # No pair of two people: no FMR.
  assert b.metrics == {"accuracy": 1.0, "fnmr@1e-1": 1.0, "fnmr@1e0": 0.0}
  assert (apart.name, apart.identities) == (None, 3)
  assert apart.metrics == {"accuracy": 0.5, "fmr@1e-1": 0, "fmr@1e0": 1.0}
  assert a.intervals == b.intervals == {}


def test_intervals_are_those_of_resampled_people():
  """Against pairs repeated as often as their people are drawn."""
  rng = np.random.default_rng(1)
  people = 30
  group_of = np.arange(people) % 2
  first = rng.integers(0, people, 300)
  same = rng.random(300) < 0.4
  second = np.where(
    same, first, (first + rng.integers(1, people, 300)) % people
  )
  scores = np.where(same, 0.6, 0.2) + 0.3 * rng.normal(size=300)
  pairs = GroupedPairs(
    scores,
    same,
    first,
    second,
    group_of[first],
    group_of[second],
  )
  found = judge_groups(pairs, NAMES, 0.4, {"1e-2": 0.5}, replicates=60, seed=3)
  rng = np.random.default_rng(3)
  rows = []
  for _ in range(60):
    times = np.bincount(rng.integers(0, people, people), minlength=people)
    total, right, wrong = np.zeros((3, 2, 2))
    for k in range(300):
      if group_of[first[k]] != group_of[second[k]]:
        continue
      weight = times[first[k]] * (1 if same[k] else times[second[k]])
      place = group_of[first[k]], int(same[k])
      total[place] += weight
      right[place] += weight * ((scores[k] >= 0.4) == same[k])
      wrong[place] += weight * ((scores[k] >= 0.5) != same[k])
    rates = wrong / total
    rows.append([right.sum(1) / total.sum(1), rates[:, 0], rates[:, 1]])
  low, high = np.percentile(rows, [2.5, 97.5], axis=0)
  for number in range(2):
    for place, metric in enumerate(["accuracy", "fmr@1e-2", "fnmr@1e-2"]):
      np.testing.assert_allclose(
        found[number].intervals[metric],
        (low[place, number], high[place, number]),
        rtol=1e-12,
      )


def test_one_person_of_two_groups_is_refused():
  rows = [(0.9, 1, (0, 0), (0, 0)), (0.8, 1, (1, 1), (0, 1))]
  with pytest.raises(InputError, match="pair 2 .*'a' and 'b'"):
    judge_groups(grouped(rows), NAMES, 0.5, {}, replicates=0, seed=0)


@pytest.fixture
def groups_file(tmp_path):
  """Three groups of the people of the image folder, and one more person."""
  path = tmp_path / "people.csv"
  lines = [f'Person_{k:02d},"{"xyz"[k % 3]}, born"' for k in range(13)]
  path.write_text("\n".join(["identity,group", *lines]) + "\n")
  return path


def test_groups_from_the_folder_to_the_results(
  run, image_folder, groups_file, tmp_path
):
  data = tmp_path / "data"
  convert(image_folder, data, groups=str(groups_file))
  groups = open_groups(str(data))
  assert groups.names == ("x, born", "y, born", "z, born")
  np.testing.assert_array_equal(groups.of_class, np.arange(12) % 3)
  labels = records.read_labels(str(data), records.read_index(str(data)))
  rng = np.random.default_rng(0)
  people = rng.normal(size=(12, 8))[labels] * (labels % 3)[:, np.newaxis]
  rows = (people + rng.normal(size=(37, 8))).astype(np.float32)
  np.save(tmp_path / "e.npy", rows)
  done = run(
    "jamsface_jax.evaluate",
    f"--embeddings={tmp_path / 'e.npy'}",
    f"--protocol={data}",
    "--bootstrap=20",
    "--fars=0.1",
  )
  assert done.returncode == 0, done.stderr
  assert "tiny, group x, born: 4 people, 4 pairs of one and 0" in done.stdout
  results = json.loads((tmp_path / "evaluation/results.json").read_text())
  (one,) = results["sets"]
  named = {group["name"]: group for group in one["groups"]}
  assert list(named) == ["x, born", "y, born", "z, born", None]
  # The protocol's negatives are of neighbours in the list: of two groups.
  assert named[None]["negative_pairs"] == one["facts"]["negative_pairs"] == 12
  accepted = one["facts"]["threshold@1e-1"]
  unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
  starts = np.searchsorted(labels, np.arange(12))
  rates = [named[name]["metrics"]["fnmr@1e-1"] for name in groups.names]
  assert rates[0] > rates[1] > rates[2]
  for k, name in enumerate(groups.names):
    cosines = [
      float(unit[i] @ unit[i + 1]) for i in starts[np.arange(12) % 3 == k]
    ]
    wanted = np.mean(np.array(cosines) < accepted - 1e-6)
    assert named[name]["metrics"]["fnmr@1e-1"] == pytest.approx(wanted)
    low, high = named[name]["intervals_95"]["accuracy"]
    assert low <= named[name]["metrics"]["accuracy"] <= high


def test_groups_of_a_public_protocol(image_folder, groups_file, tmp_path):
  from_pairs.convert(
    str(image_folder / "images"),
    str(tmp_path / "data"),
    protocol="lfw",
    pairs=str(image_folder / "pairs.txt"),
    name="x",
    skip_bad=False,
    threads=1,
    groups=str(groups_file),
  )
  groups = open_groups(str(tmp_path / "data"))
  np.testing.assert_array_equal(groups.of_class, np.arange(12) % 3)


def test_a_data_set_without_groups_has_none(dataset):
  assert open_groups(dataset) is None


@pytest.mark.parametrize(
  ("lines", "parts"),
  [
    (["person,group"], "first line must be 'identity,group'"),
    (["identity,group", "A,x", "B,y", "A,y"], ":4: 'A' is in 'x' and in 'y'"),
    (["identity,group", "A,x"], "no group for 'B' and 0 other"),
    (["identity,group", "A,", "B,y"], ":2: a name is missing"),
    (["identity,group", "A,x,1"], ":2: has 3 fields"),
  ],
)
def test_mistakes(tmp_path, lines, parts):
  path = tmp_path / "groups.csv"
  path.write_text("\n".join(lines))
  with pytest.raises(InputError, match=parts):
    read_groups(str(path), ["A", "B"])


def test_a_mistake_is_found_before_anything_is_written(
  run, image_folder, tmp_path
):
  path = tmp_path / "groups.csv"
  path.write_text("identity,group\nPerson_00,x\n")
  output = tmp_path / "data"
  done = run(
    "data_prep.from_folder",
    f"--input={image_folder / 'images'}",
    f"--output={output}",
    f"--groups={path}",
  )
  assert_one_sentence(done, "no group for 'Person_01' and 10 other", "unknown")
  assert not output.exists()
