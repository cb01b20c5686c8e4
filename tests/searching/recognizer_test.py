"""`load(W)` on paths, images of PIL and arrays; faces, verify, find."""

import pathlib

import cv2
import numpy as np
import PIL.Image
import pytest

import jamsface_jax
from data_prep.synthetic import photos as drawn_photos
from jamsface_jax.data.decoding import decode_image
from jamsface_jax.errors import InputError


@pytest.fixture(scope="module")
def network(untrained):
  return jamsface_jax.load(untrained)


@pytest.fixture(scope="module")
def person(image_folder):
  return str(image_folder / "images" / "Person_03" / "Person_03_0001.jpg")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
  """A photograph of two drawn people."""
  found = []
  for number in (0, 4):
    (data,) = drawn_photos.draw_identity(0, number, range(1, 2), 224)
    pixels = decode_image(data)
    found.append(cv2.copyMakeBorder(pixels, *[60] * 4, cv2.BORDER_REPLICATE))
  path = tmp_path_factory.mktemp("group") / "two.png"
  cv2.imwrite(str(path), np.hstack(found)[:, :, ::-1])
  return str(path)


def test_whatever_holds_an_image(network, person):
  pixels = decode_image(pathlib.Path(person).read_bytes())
  want = network(pixels)
  with PIL.Image.open(person) as image:
    # PIL's decoder may differ in the last bit of a pixel.
    np.testing.assert_allclose(network(image), want, atol=2e-2)
  np.testing.assert_array_equal(network(person), want)
  np.testing.assert_array_equal(
    network([person, person])[1], network([person])[0]
  )
  for wrong, part in (
    (None, "NoneType given: give paths"),
    ({"a": 1}, "dict given"),
    ([person, 3], "int given"),
    ("/nowhere.jpg", "'/nowhere.jpg' cannot be read"),
    (__file__, "cannot be read"),
  ):
    with pytest.raises(InputError, match=part):
      network(wrong)


def test_faces_of_a_photograph(network, group):
  faces = network.faces(group)
  assert len(faces) == 2
  assert faces[0].box[2:].prod() >= faces[1].box[2:].prod()
  for face in faces:
    assert face.landmarks.shape == (5, 2) and face.pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(network(face.pixels), face.embedding, atol=1e-5)
    left, top, width, height = face.box
    inside = (face.landmarks > [left, top]) & (
      face.landmarks < [left + width, top + height]
    )
    assert inside.all()
  assert network.faces(np.zeros((60, 60, 3), np.uint8)) == []
  with pytest.raises(InputError, match="shows no face"):
    network.verify(
      group, np.zeros((60, 60, 3), np.uint8), threshold=0, align=True
    )


def test_verify(network, person, group):
  found = network.verify(person, person, threshold=0.99)
  assert found.same and found.cosine == pytest.approx(1)
  cosine = float(network(person) @ network(np.zeros((40, 40, 3), np.uint8)))
  for threshold in (cosine - 1e-4, cosine + 1e-4):
    found = network.verify(
      person, np.zeros((40, 40, 3), np.uint8), threshold=threshold
    )
    assert found.same == (threshold < cosine)
  one, other = network.faces(group)
  with pytest.raises(InputError, match="has no evaluation"):
    network.verify(one.pixels, other.pixels)
  assert network.verify(group, group, threshold=0.9, align=True).same


def test_find(network, person, image_folder):
  people = network.gallery(str(image_folder / "images"))
  for gallery in (people, str(image_folder / "images")):
    (found,) = network.find(person, gallery, threshold=0.5, most=2)
    assert found.name == "Person_03" and len(found.candidates) == 2
    assert found.candidates[0].cosine == pytest.approx(1, abs=1e-4)
  both = network.find([person, person], people, threshold=0.5)
  assert [one.name for one in both] == ["Person_03"] * 2
  (nobody,) = network.find(
    np.zeros((32, 32, 3), np.uint8), people, threshold=1.0
  )
  assert nobody.name is None and nobody.candidates
  with pytest.raises(InputError, match="leave it out"):
    type(network).gallery(
      type("Flipless", (), {"_flip": False})(), str(image_folder)
    )


def test_help_says_what_there_is():
  for name in ("faces", "verify", "find", "align=True", "python -m"):
    assert name in jamsface_jax.__doc__
