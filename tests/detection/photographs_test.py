"""Photographs from file to embedding: all faces, and none is lost."""

import json

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence

import jamsface_jax
from data_prep.synthetic import photos as drawn_photos
from jamsface_jax.data.decoding import decode_image


@pytest.fixture(scope="module")
def album(tmp_path_factory):
  """people/NAME/1.png of one drawn face, album/ of two faces, none, no file."""
  root = tmp_path_factory.mktemp("album")
  faces = {}
  for name, number in (("ann", 0), ("bob", 4)):
    (data,) = drawn_photos.draw_identity(0, number, range(1, 2), 224)
    face = cv2.copyMakeBorder(
      decode_image(data), *[60] * 4, cv2.BORDER_REPLICATE
    )
    faces[name] = face[:, :, ::-1]
    (root / "people" / name).mkdir(parents=True)
    cv2.imwrite(str(root / "people" / name / "1.png"), faces[name])
  (root / "album").mkdir()
  both = np.hstack([faces["ann"], faces["bob"]])
  cv2.imwrite(str(root / "album" / "both.png"), both)
  cv2.imwrite(str(root / "album" / "nobody.png"), np.zeros_like(both))
  (root / "album" / "torn.png").write_bytes(b"\x89PNG")
  return root


def test_embed_finds_all_faces(run, untrained, album, tmp_path):
  flags = [f"--workdir={untrained}", f"--output={tmp_path / 'e'}"]
  images = f"--images={album / 'album'}"
  done = run("jamsface_jax.embed", *flags, images, "--align")
  assert done.returncode == 0, done.stderr
  rows = np.load(tmp_path / "e" / "embeddings.npy")
  boxes = np.load(tmp_path / "e" / "boxes.npy")
  landmarks = np.load(tmp_path / "e" / "landmarks.npy")
  names = (tmp_path / "e" / "paths.txt").read_text().splitlines()
  assert names == ["both.png", "both.png", "nobody.png", "torn.png"]
  assert boxes.shape == (4, 4) and landmarks.shape == (4, 5, 2)
  assert boxes[0, 0] < 344 < boxes[1, 0] and np.isnan(boxes[2:]).all()
  broken = (tmp_path / "e" / "broken.txt").read_text()
  assert "no face was found" in broken and "torn.png" in broken
  network = jamsface_jax.load(untrained)
  faces = network.faces(str(album / "album" / "both.png"))
  for face in sorted(faces, key=lambda face: face.box[0]):
    row = int(np.argmin(np.abs(boxes[:2, 0] - face.box[0])))
    np.testing.assert_allclose(rows[row], face.embedding, atol=1e-4)
  # It goes on, and faces are another output than whole images.
  assert run("jamsface_jax.embed", *flags, images, "--align").returncode == 0
  done = run("jamsface_jax.embed", *flags, images, "--align=one")
  assert_one_sentence(done, "holds other embeddings")


def test_one_photograph(run, untrained, album, tmp_path):
  image = f"--images={album / 'people' / 'ann' / '1.png'}"
  flags = [f"--workdir={untrained}", image]
  done = run("jamsface_jax.embed", *flags, f"--output={tmp_path / 'e'}")
  assert done.returncode == 0, done.stderr
  (row,) = np.load(tmp_path / "e" / "embeddings.npy")
  want = jamsface_jax.load(untrained)(str(album / "people" / "ann" / "1.png"))
  np.testing.assert_allclose(row, want, atol=1e-5)
  assert (tmp_path / "e" / "paths.txt").read_text() == "1.png\n"


def test_search_names_all_faces(run, untrained, album, tmp_path):
  done = run(
    "jamsface_jax.search",
    f"--workdir={untrained}",
    f"--gallery={album / 'people'}",
    f"--images={album / 'album'}",
    f"--output={tmp_path / 'f'}",
    "--threshold=-1",
    "--align",
    "--faces",
  )
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "f" / "names.json").read_text())["images"]
  assert [one["image"] for one in found] == [
    "both.png#1",
    "both.png#2",
    "nobody.png",
    "torn.png",
  ]
  assert [one["name"] for one in found[:2]] == ["ann", "bob"]
  assert found[2]["problem"] == "no face was found"
  page = (tmp_path / "f" / "names.html").read_text()
  assert page.count("<img") == 4


@pytest.mark.parametrize(
  ("images", "parts"),
  [("DATASET", ["--align", "is a data set"]), ("NOBODY", ["shows no face"])],
)
def test_what_has_no_faces_is_refused(
  run, untrained, dataset, album, tmp_path, images, parts
):
  images = images.replace("DATASET", dataset).replace(
    "NOBODY", str(album / "album" / "nobody.png")
  )
  flags = [f"--workdir={untrained}", f"--images={images}", "--align"]
  done = run("jamsface_jax.embed", *flags, f"--output={tmp_path / 'e'}")
  assert_one_sentence(done, *parts)
  assert not (tmp_path / "e").exists()
