"""Faces in photographs: a detector and the choice among several faces."""

import threading
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from jamsface_jax.errors import InputError

# Boxes (left, top, width, height) and landmarks.
Faces = tuple[Float[np.ndarray, "f 4"], Float[np.ndarray, "f 5 2"]]
DETECTION_SIZE = 640  # Longer side in pixels on which faces are looked for.


@runtime_checkable
class Detector(Protocol):
  """Finds faces; safe to call from several threads."""

  def detect(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Faces:
    """Finds the faces of an image.

    Args:
      pixels: uint8 [H, W, 3], RGB, upright.

    Returns:
      Boxes, float [F, 4]: left, top, width, height; and landmarks, float
      [F, 5, 2], in the order of `alignment.py`; both in pixels.
    """


class YuNet:
  """YuNet in OpenCV (https://doi.org/10.1007/s11633-023-1423-y).

  Args:
    model: the ONNX file, face_detection_yunet_2023mar.onnx of OpenCV's model
      zoo (MIT) or yunet_n_*.onnx of libfacedetection.train (Apache 2.0).
    min_score: faces with a lower score are left out, 0 to 1.
    size: larger images are searched at this length of the longer side.

  Raises:
    InputError: the file is not such a model.
  """

  def __init__(self, model: str, *, min_score: float, size: int):
    self._model = model
    self._min_score = min_score
    self._size = size
    # OpenCV's object keeps the state of a call, so each thread has its own.
    self._local = threading.local()
    try:
      self.detect(np.zeros((64, 64, 3), np.uint8))
    except cv2.error as error:
      raise InputError(
        f"--detector_model {model!r} is not a YuNet model"
        f" ({' '.join(error.err.split())}): give"
        " face_detection_yunet_2023mar.onnx of OpenCV's model zoo."
      ) from None

  def detect(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Faces:
    """See `Detector.detect`."""
    if not hasattr(self._local, "detector"):
      self._local.detector = cv2.FaceDetectorYN.create(
        self._model, "", (self._size, self._size), self._min_score
      )
    height, width = pixels.shape[:2]
    scale = min(1.0, self._size / max(height, width))
    if scale < 1:
      shape = (max(1, round(width * scale)), max(1, round(height * scale)))
      pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)
    bgr = np.ascontiguousarray(pixels[:, :, ::-1])
    self._local.detector.setInputSize(bgr.shape[1::-1])
    _, faces = self._local.detector.detect(bgr)
    if faces is None:
      return np.zeros((0, 4)), np.zeros((0, 5, 2))
    # Left in the picture comes first, though OpenCV's names are the person's.
    landmarks = faces[:, 4:14].astype(np.float64).reshape(-1, 5, 2)
    ratio = np.array([width, height]) / bgr.shape[1::-1]
    return (
      faces[:, :4].astype(np.float64) * np.tile(ratio, 2),
      # Pixel centres are at whole numbers, pixel edges half a pixel before.
      (landmarks + 0.5) * ratio - 0.5,
    )


def choose_face(
  boxes: Float[np.ndarray, "f 4"], height: int, width: int
) -> int:
  """Picks the face that the photograph is of: large and central.

  The largest area less twice the squared distance of its centre to the middle
  of the image, as FaceNet's alignment has it
  (https://github.com/davidsandberg/facenet, align_dataset_mtcnn.py).

  Args:
    boxes: float [F, 4], F > 0: left, top, width, height.
    height: that of the image, in pixels.
    width: that of the image, in pixels.

  Returns:
    The number of the face.
  """
  offsets = boxes[:, :2] + boxes[:, 2:] / 2 - np.array([width, height]) / 2
  return int(
    np.argmax(boxes[:, 2] * boxes[:, 3] - 2 * (offsets**2).sum(axis=1))
  )
