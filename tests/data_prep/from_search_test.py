"""TinyFace in its own layout, folders of one's own, and what can be wrong."""

import csv
import json

import cv2
import numpy as np
import pytest
import scipy.io
from conftest import assert_one_sentence

from data_prep import from_search
from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.opening import open_protocols
from jamsface_jax.protocols.search_set import SearchSet


def draw(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  seed = sum(map(ord, path.name))
  pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
  cv2.imwrite(str(path), pixels)


@pytest.fixture
def tinyface(tmp_path):
  root = tmp_path / "Testing_Set"
  people = {
    "Probe": [("7_1.jpg", 7), ("9_1.jpg", 9), ("7_2.jpg", 7)],
    "Gallery_Match": [("7_3.jpg", 7), ("9_2.jpg", 9)],
  }
  for folder, images in people.items():
    for name, _ in images:
      draw(root / folder / name)
    key = "probe" if folder == "Probe" else "gallery"
    stem = "probe" if folder == "Probe" else "gallery_match"
    names = np.array([[name] for name, _ in images], dtype=object)
    ids = np.array([[subject] for _, subject in images], np.uint16)
    scipy.io.savemat(
      root / f"{stem}_img_ID_pairs.mat",
      {f"{key}_set": names, f"{key}_ids": ids},
    )
  for name in ("a.jpg", "b.jpg"):
    draw(root / "Gallery_Distractor" / name)
  return root


def convert(source, directory, *, skip_bad=False):
  from_search.convert(
    str(source), str(directory), name="t", skip_bad=skip_bad, threads=1
  )
  reader = records.RecordReader(str(directory))
  found = list(reader.scan())
  with open(directory / "search.csv", newline="") as file:
    rows = [tuple(row) for row in csv.reader(file)]
  classes = records.read_classes(str(directory))
  assert rows[0] == ("image", "subject", "role")
  return found, rows[1:], classes


def open_search(directory, found):
  (one,) = open_protocols(
    "t",
    str(directory),
    len(found),
    lambda: [record.name for record in found],
    lambda: np.array([record.label for record in found]),
  )
  assert isinstance(one, SearchSet)
  return one


def test_tinyface_as_it_is_published(tinyface, tmp_path):
  found, rows, classes = convert(tinyface, tmp_path / "d")
  assert classes == ["7", "9", "distractors"]
  assert rows == [
    ("Probe/7_1.jpg", "7", "probe"),
    ("Probe/9_1.jpg", "9", "probe"),
    ("Probe/7_2.jpg", "7", "probe"),
    ("Gallery_Match/7_3.jpg", "7", "gallery"),
    ("Gallery_Match/9_2.jpg", "9", "gallery"),
    ("Gallery_Distractor/a.jpg", "", "distractor"),
    ("Gallery_Distractor/b.jpg", "", "distractor"),
  ]
  assert [record.name for record in found] == [image for image, *_ in rows]
  assert [classes[record.label] for record in found] == [
    subject or "distractors" for _, subject, _ in rows
  ]
  for record in found:
    assert record.image == (tinyface / record.name).read_bytes()
  assert len(open_search(tmp_path / "d", found).ids) == 7


def test_folders_of_ones_own(tmp_path):
  root = tmp_path / "mine"
  for name in ("probe/b/1.png", "probe/a/1.jpg", "probe/a/2.jpg"):
    draw(root / name)
  draw(root / "distractor" / "deep" / "x.jpg")
  (root / "probe" / "a" / "notes.txt").write_text("no image")
  found, rows, _ = convert(root, tmp_path / "d")
  assert rows == [
    ("probe/a/1.jpg", "a", "probe"),
    ("probe/a/2.jpg", "a", "probe"),
    ("probe/b/1.png", "b", "probe"),
    ("distractor/deep/x.jpg", "", "distractor"),
  ]
  assert len(open_search(tmp_path / "d", found).ids) == 4
  draw(root / "gallery" / "b" / "9.jpg")
  _, rows, _ = convert(root, tmp_path / "e")
  assert ("gallery/b/9.jpg", "b", "gallery") in rows


def test_broken_images_leave_the_search_too(tinyface, tmp_path):
  (tinyface / "Probe" / "7_2.jpg").write_bytes(b"broken")
  with pytest.raises(InputError, match="7_2.jpg.*--skip_bad"):
    convert(tinyface, tmp_path / "d")
  found, rows, _ = convert(tinyface, tmp_path / "e", skip_bad=True)
  assert len(found) == len(rows) == 6
  assert "Probe/7_2.jpg" not in {image for image, *_ in rows}
  assert len(open_search(tmp_path / "e", found).ids) == 6


def test_other_files_are_refused(tinyface, tmp_path):
  path = tinyface / "probe_img_ID_pairs.mat"
  good = path.read_bytes()
  scipy.io.savemat(path, {"other": [1]})
  with pytest.raises(InputError, match="probe_img_ID_pairs.mat.*probe_set"):
    convert(tinyface, tmp_path / "d")
  for bad in (b"hello", good[:200]):
    path.write_bytes(bad)
    with pytest.raises(InputError, match="probe_img_ID_pairs.mat"):
      convert(tinyface, tmp_path / "d")
  path.write_bytes(good)
  (tinyface / "gallery_match_img_ID_pairs.mat").unlink()
  with pytest.raises(InputError, match="gallery_match.*cannot be read"):
    convert(tinyface, tmp_path / "d")
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="probe/PERSON"):
    convert(tmp_path / "empty", tmp_path / "d")
  with pytest.raises(InputError, match="not a folder"):
    convert(tmp_path / "nothing", tmp_path / "d")
  assert not (tmp_path / "d").exists()


@pytest.mark.slow
def test_the_command_and_then_evaluate(tinyface, tmp_path, run):
  directory = tmp_path / "tiny"
  flags = (f"--input={tinyface}", f"--output={directory}")
  done = run("data_prep.from_search", *flags)
  assert done.returncode == 0, done.stderr
  assert "jamsface_jax.evaluate" in done.stdout
  assert_one_sentence(run("data_prep.from_search", *flags), "already")
  rng = np.random.default_rng(0)
  np.save(tmp_path / "e.npy", rng.normal(size=(7, 4)))
  done = run(
    "jamsface_jax.evaluate",
    f"--embeddings={tmp_path / 'e.npy'}",
    f"--protocol={directory}",
  )
  assert done.returncode == 0, done.stderr
  results = json.loads((tmp_path / "evaluation" / "results.json").read_text())
  (one,) = results["sets"]
  assert one["facts"]["gallery"] == 4 and one["facts"]["mated_probes"] == 3
