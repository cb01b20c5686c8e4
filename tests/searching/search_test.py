"""The command: folders, data sets and embeddings on both sides, mistakes."""

import csv
import json
import shutil

import numpy as np
import pytest
from conftest import assert_one_sentence

import jamsface_jax
from jamsface_jax.data.images import open_images
from jamsface_jax.searching import finding
from jamsface_jax.searching.gallery import gather
from jamsface_jax.searching.sources import StoredEmbeddings
from jamsface_jax.searching.threshold import measured
from jamsface_jax.storage.run_directory import RunDirectory

SEARCH = "jamsface_jax.search"
GIVEN = ["--threshold=0.5"]


@pytest.fixture(scope="module")
def evaluated(untrained, dataset, run, tmp_path_factory):
  """A copy of the untrained network with an evaluation of it."""
  workdir = tmp_path_factory.mktemp("evaluated") / "w"
  shutil.copytree(untrained, workdir)
  data = f"--data={dataset}:all_pairs"
  done = run("jamsface_jax.evaluate", f"--workdir={workdir}", data)
  assert done.returncode == 0, done.stderr
  return workdir


@pytest.fixture(scope="module")
def photos(image_folder, tmp_path_factory):
  """A flat folder: three images of people, and a file that is none."""
  root = tmp_path_factory.mktemp("photos")
  for number in (2, 5, 7):
    name = f"Person_{number:02d}"
    shutil.copy(
      image_folder / "images" / name / f"{name}_0002.jpg",
      root / f"{number}.jpg",
    )
  (root / "torn.jpg").write_bytes(b"\xff\xd8")
  return root


@pytest.fixture(scope="module")
def stored(untrained, image_folder, run, tmp_path_factory):
  """Embeddings of the image folder."""
  output = tmp_path_factory.mktemp("stored") / "e"
  images = f"--images={image_folder / 'images'}"
  flags = [f"--workdir={untrained}", images, f"--output={output}"]
  done = run("jamsface_jax.embed", *flags)
  assert done.returncode == 0, done.stderr
  return output


def search(run, output, *flags):
  done = run(SEARCH, *flags, f"--output={output}")
  assert done.returncode == 0, done.stderr
  found = json.loads((output / "names.json").read_text())
  with open(output / "names.csv", newline="") as file:
    rows = list(csv.DictReader(file))
  return done.stdout, found, rows


def test_folders_data_sets_and_embeddings_agree(
  run, evaluated, image_folder, dataset, photos, stored, tmp_path
):
  wanted = None
  for name, gallery in (
    ("folder", image_folder / "images"),
    ("data", dataset),
    ("stored", stored),
  ):
    stdout, found, rows = search(
      run,
      tmp_path / name,
      f"--workdir={evaluated}",
      f"--gallery={gallery}",
      f"--images={photos}",
      "--far=0.05",
    )
    assert [row["image"] for row in rows] == [
      "2.jpg",
      "5.jpg",
      "7.jpg",
      "torn.jpg",
    ]
    # The very same images: whatever the network, nobody is nearer.
    assert [row["name"] for row in rows[:3]] == [
      f"Person_{number:02d}" for number in (2, 5, 7)
    ]
    assert all(row["cosine1"] == "1.0000" for row in rows[:3])
    assert rows[0]["like1"].endswith("Person_02/Person_02_0002.jpg")
    assert rows[3]["name"] == "" and "JPEG" in rows[3]["problem"]
    assert "3 of 4 images have a name, 1 cannot be read" in stdout
    answers = [
      [(one["person"], one["cosine"]) for one in image["candidates"]]
      for image in found["images"]
    ]
    wanted = wanted or answers
    for answer, want in zip(answers, wanted, strict=True):
      assert [one[0] for one in answer] == [one[0] for one in want]
      np.testing.assert_allclose(
        [one[1] for one in answer], [one[1] for one in want], atol=2e-5
      )
    page = (tmp_path / name / "names.html").read_text()
    assert "Person_02" in page and "<img" not in page


def test_cosines_are_those_of_embeddings(run, evaluated, stored, tmp_path):
  """An oracle of one product; people by the best of their images."""
  _, found, _ = search(
    run,
    tmp_path / "f",
    f"--gallery={stored}",
    f"--images={stored}",
    "--threshold=0.5",
    "--most=4",
  )
  rows = np.load(stored / "embeddings.npy")
  names = (stored / "paths.txt").read_text().splitlines()
  people = np.array([name.split("/")[0] for name in names])
  cosines = rows @ rows.T
  for image, row in zip(found["images"], cosines, strict=True):
    best = {who: row[people == who].max() for who in dict.fromkeys(people)}
    order = sorted(best, key=lambda who: -best[who])[:4]
    assert [one["person"] for one in image["candidates"]] == order
    np.testing.assert_allclose(
      [one["cosine"] for one in image["candidates"]],
      [best[who] for who in order],
      atol=2e-6,
    )


def test_who_is_below_the_threshold_is_nobody(
  run, evaluated, stored, photos, tmp_path
):
  black = tmp_path / "black.npy"
  np.save(black, np.zeros((1, 32, 32, 3), np.uint8))
  embedder = jamsface_jax.load(str(evaluated))
  best = (embedder(np.load(black)) @ np.load(stored / "embeddings.npy").T).max()
  np.save(tmp_path / "rows.npy", embedder(np.load(black)))
  for below in (-1e-3, 1e-3):
    _, found, (row,) = search(
      run,
      tmp_path / "f",  # A second search replaces the first.
      f"--gallery={stored}",
      f"--images={tmp_path / 'rows.npy'}",
      f"--threshold={best + below}",
    )
    assert (row["name"] == "nobody") == (below > 0)
    assert (found["images"][0]["name"] is None) == (below > 0)


def test_threshold_is_that_of_the_evaluation(evaluated):
  run = RunDirectory(str(evaluated))
  found = run.evaluation.results.read_json()
  (one,) = found["sets"]
  for far in (0.5, 0.05, 0.01):
    threshold = measured(run, far)
    line = one["roc"]
    near = np.searchsorted(line["far"], far, "right") - 1
    assert threshold.cosine == line["threshold"][near]
    # By counts in steps of 0.01, which older files have alone.
    counts = np.array(one["negative_counts"])
    edges = np.linspace(-1, 1, 201)
    above = counts[edges[:-1] >= threshold.cosine].sum()
    assert above <= far * counts.sum()
  assert threshold.wrong_names(1) == pytest.approx(0.01)
  assert threshold.wrong_names(100) == pytest.approx(1 - 0.99**100)


def test_older_results_have_counts(evaluated, tmp_path):
  shutil.copytree(evaluated, tmp_path / "w")
  run = RunDirectory(str(tmp_path / "w"))
  new = measured(run, 0.05).cosine
  content = run.evaluation.results.read_json()
  del content["sets"][0]["roc"]["threshold"]
  run.evaluation.results.write_json(content)
  assert new - 0.01 < measured(run, 0.05).cosine < new + 0.02


def test_memory_is_that_of_some_images(monkeypatch, evaluated, stored):
  """Many are searched some at a time, and come out the same."""
  source = StoredEmbeddings(str(stored / "embeddings.npy"), "--images")
  people = gather(source, str(stored))
  found = []
  for most in (8192, 1):
    monkeypatch.setattr(finding, "_AT_ONCE", most)
    monkeypatch.setattr("jamsface_jax.searching.sources._STORED_AT_ONCE", 5)
    found.append(list(finding.find(source, people, k=2, threshold=0.1)))
  for one, other in zip(*found, strict=True):
    assert (one.image, one.name) == (other.image, other.name)
    for left, right in zip(one.candidates, other.candidates, strict=True):
      assert left.row == right.row
      assert left.cosine == pytest.approx(right.cosine, abs=1e-6)
  assert [one.number for one in found[0]] == list(range(37))


def test_faces_where_they_are_asked_for(
  run, evaluated, image_folder, photos, tmp_path
):
  flags = [f"--gallery={image_folder / 'images'}", f"--images={photos}"]
  search(
    run, tmp_path / "f", f"--workdir={evaluated}", *flags, "--faces",
    "--threshold=0.9",
  )  # fmt: skip
  page = (tmp_path / "f" / "names.html").read_text()
  assert page.count("<img") == 6 and "script-src" not in page


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--images=PHOTOS"], ["--gallery", "--trained_on"]),
    (
      [*GIVEN, "--images=PHOTOS", "--gallery=/nowhere"],
      ["--gallery '/nowhere'"],
    ),
    (
      [*GIVEN, "--images=/nowhere", "--gallery=STORED"],
      ["--images '/nowhere'"],
    ),
    ([*GIVEN, "--images=STORED", "--gallery=SMALL"], ["of 32 numbers", "of 4"]),
    ([*GIVEN, "--images=STORED", "--gallery=OTHER"], ["different networks"]),
    (
      [*GIVEN, "--images=STORED", "--gallery=STORED", "--faces"],
      ["--faces needs"],
    ),
    (["--images=STORED", "--gallery=STORED", "--far=1e-9"], ["too few"]),
    (["--images=STORED", "--gallery=STORED", "--far=2"], ["--far=2.0"]),
    (["--images=STORED", "--gallery=STORED", "--threshold=3"], ["no cosine"]),
    (["--images=STORED", "--gallery=STORED", "--most=0"], ["--most=0"]),
    (["--images=STORED", "--trained_on"], ["has no class weights"]),
  ],
)
def test_mistakes_are_one_sentence(
  run, evaluated, photos, stored, tmp_path, flags, parts
):
  np.save(tmp_path / "small.npy", np.eye(4, dtype=np.float32))
  other = shutil.copytree(stored, tmp_path / "other")
  meta = json.loads((other / "meta.json").read_text())
  (other / "meta.json").write_text(json.dumps(meta | {"network": "0" * 16}))
  for word, place in {
    "PHOTOS": photos,
    "STORED": stored,
    "SMALL": tmp_path / "small.npy",
    "OTHER": other,
  }.items():
    flags = [flag.replace(word, str(place)) for flag in flags]
  output = tmp_path / "f"
  done = run(SEARCH, f"--workdir={evaluated}", f"--output={output}", *flags)
  assert_one_sentence(done, *parts)
  assert not output.exists()


def test_output_among_the_photographs_is_refused(
  run, evaluated, photos, tmp_path
):
  flags = [*GIVEN, f"--images={photos}", f"--gallery={photos}"]
  done = run(
    SEARCH, f"--workdir={evaluated}", f"--output={photos / 'f'}", *flags
  )
  assert_one_sentence(done, "lies within --images")
  assert open_images(str(photos), 32, root=None, color_order=None)
  assert not (photos / "f").exists()


def test_no_threshold_without_an_evaluation(run, untrained, stored, tmp_path):
  flags = [f"--images={stored}", f"--gallery={stored}"]
  done = run(
    SEARCH, f"--workdir={untrained}", f"--output={tmp_path / 'f'}", *flags
  )
  assert_one_sentence(done, "has no evaluation", "--threshold")
