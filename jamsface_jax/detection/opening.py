"""Detectors by name."""

from jamsface_jax.detection.detector import (
  DETECTION_SIZE,
  Detector,
  YuNet,
)
from jamsface_jax.detection.mtcnn import Mtcnn
from jamsface_jax.errors import InputError

DETECTORS = ("mtcnn", "yunet")
_MIN_SCORE = 0.8  # Of a face among several; noise has less.


def usual_detector() -> Detector:
  """The one that needs no flags.

  Raises:
    InputError: its networks are not there.
  """
  return open_detector(
    DETECTORS[0], None, min_score=_MIN_SCORE, size=DETECTION_SIZE
  )


def open_detector(
  name: str, model: str | None, *, min_score: float, size: int
) -> Detector:
  """Opens a detector.

  Args:
    name: one of `DETECTORS`.
    model: the file of YuNet; None for the other, which brings its own.
    min_score: faces with a lower score are left out, 0 to 1.
    size: larger images are searched at this length of the longer side.

  Raises:
    InputError: its networks are not there, or a file for the one that has some.
  """
  if name == "yunet":
    if model is None:
      raise InputError(
        "--detector=yunet needs --detector_model: give the path of"
        " face_detection_yunet_2023mar.onnx of OpenCV's model zoo."
      )
    return YuNet(model, min_score=min_score, size=size)
  if model is not None:
    raise InputError(
      f"--detector_model={model!r} is for --detector=yunet, but the detector is"
      f" {name}: give both, or leave it out."
    )
  return Mtcnn(min_score=min_score, size=size)
