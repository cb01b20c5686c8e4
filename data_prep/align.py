r"""Cuts faces out of photographs, upright and at ArcFace's 112 x 112 template.

  python -m data_prep.align --input=DIR --output=DIR --landmarks=FILE
  python -m data_prep.align --input=DIR --output=DIR \
    --detector=yunet --detector_model=face_detection_yunet_2023mar.onnx

The folders stay as they are. Landmarks are five points an image: from a file
(a path and x1 y1 ... x5 y5 a line, or with a header), or from a detector. Of
several faces the largest and most central is taken. EXIF orientation is
honoured: landmarks are those of the upright image. Images without a face are
listed in OUTPUT/no_face.txt. Interrupted, the same command goes on.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
from tqdm import tqdm

from data_prep.formats import detection
from data_prep.formats.landmarks import (
  TEMPLATE_SIZE,
  align_face,
  decode_upright,
  find_landmarks,
  read_landmarks,
)
from data_prep.writing.writer import SKIPPED_FILE
from jamsface_jax.data.decoding import DecodingError
from jamsface_jax.data.folders import EXTENSIONS, find_images
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.plain_file import make_folder, plain
from jamsface_jax.storage.whole_file import remove_left, written_whole

NO_FACE_FILE = "no_face.txt"
JPEG_QUALITY = 95
_AT_ONCE = 1024  # Images queued for the threads.

# Landmarks [5, 2] of an image by its path and pixels; None: no face.
Locate = Callable[[str, np.ndarray], np.ndarray | None]


def main() -> int:
  """Reads the flags and aligns."""
  parser = argparse.ArgumentParser(
    prog="python -m data_prep.align",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--input", required=True, help="folder of photographs, any depth")
  add("--output", required=True, help="folder of the aligned faces")
  add("--landmarks", metavar="FILE", help="five points of each image")
  add("--detector", choices=["yunet"], help="finds the points instead")
  add("--detector_model", metavar="FILE", help="ONNX file of the detector")
  add("--min_score", type=float, default=0.6, help="of a detected face, 0 to 1")
  add(
    "--detection_size",
    type=int,
    default=detection.DETECTION_SIZE,
    help="larger photographs are searched at this length of the longer side",
  )
  add("--size", type=int, default=TEMPLATE_SIZE, help="pixels of a side")
  add(
    "--format",
    choices=["jpg", "png"],
    default="jpg",
    help=f"of the faces; jpg has quality {JPEG_QUALITY}",
  )
  add(
    "--skip_bad",
    action="store_true",
    help=f"leave out unreadable images and list them in {SKIPPED_FILE}",
  )
  add("--threads", type=int, default=os.cpu_count(), help="for all the work")
  arguments = parser.parse_args()
  for name, least, most in (
    ("size", 16, 1024),
    ("detection_size", 64, 8192),
    ("threads", 1, 1024),
  ):
    value = getattr(arguments, name)
    if not least <= value <= most:
      raise InputError(
        f"--{name}={value} is out of range: choose {least} to {most}."
      )
  if (arguments.landmarks is None) == (arguments.detector is None):
    raise InputError(
      "either --landmarks or --detector says where the faces are: give one of"
      " them."
    )
  align(
    arguments.input,
    arguments.output,
    _locate(arguments),
    size=arguments.size,
    extension=arguments.format,
    skip_bad=arguments.skip_bad,
    threads=arguments.threads,
  )
  return 0


def _locate(arguments: argparse.Namespace) -> Locate:
  """Where the landmarks come from."""
  if arguments.landmarks is not None:
    return from_file(arguments.landmarks)
  if arguments.detector_model is None:
    raise InputError(
      "--detector needs --detector_model: give the path of"
      " face_detection_yunet_2023mar.onnx of OpenCV's model zoo."
    )
  return from_detector(
    detection.YuNet(
      arguments.detector_model,
      min_score=arguments.min_score,
      size=arguments.detection_size,
    )
  )


def from_file(path: str) -> Locate:
  """Takes the landmarks from a file, see `read_landmarks`."""
  landmarks = read_landmarks(path)
  return lambda image, _: find_landmarks(landmarks, image)


def from_detector(detector: detection.Detector) -> Locate:
  """Takes the landmarks of the largest and most central face."""

  def locate(_: str, pixels: np.ndarray) -> np.ndarray | None:
    boxes, landmarks = detector.detect(pixels)
    if not len(boxes):
      return None
    return landmarks[detection.choose_face(boxes, *pixels.shape[:2])]

  return locate


def align(
  source: str,
  directory: str,
  locate: Locate,
  *,
  size: int,
  extension: str,
  skip_bad: bool,
  threads: int,
) -> None:
  """Writes the aligned faces; see the flags of this command.

  Raises:
    InputError: nothing to align, or an unreadable image.
  """
  images = _find_images(source, directory)
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as error:
    raise InputError(
      f"--output {directory!r} cannot be made ({error.strerror}): choose"
      " another directory."
    ) from None
  targets = _targets(source, images, extension)
  rest = [
    (image, target)
    for target, image in targets.items()
    if not os.path.exists(os.path.join(directory, target))
  ]

  for folder in {os.path.join(directory, os.path.dirname(t)) for t in targets}:
    if os.path.isdir(folder):
      remove_left(folder)

  def work(item: tuple[str, str]) -> str | None:
    image, target = item
    pixels = _align_one(os.path.join(source, image), image, locate, size)
    if pixels is None or isinstance(pixels, str):
      return pixels
    _write(directory, target, pixels)
    return ""

  no_face, broken = [], []
  for (image, _), outcome in _run(work, rest, threads):
    if outcome is None:
      no_face.append(image)
    elif outcome and not skip_bad:
      raise InputError(
        f"image {os.path.join(source, image)!r} cannot be read ({outcome}):"
        " mend or delete it, or leave such images out with --skip_bad."
      )
    elif outcome:
      broken.append(f"{image}\t{outcome}")
  if len(no_face) + len(broken) == len(images):
    raise InputError(
      f"no face was found in the {len(images)} images of {source!r}: check"
      " --landmarks (its paths are relative to --input) or --detector_model."
    )
  # Images without a result are tried again by every run: the lists are whole.
  _write_list(os.path.join(directory, NO_FACE_FILE), no_face)
  _write_list(os.path.join(directory, SKIPPED_FILE), broken)
  before = len(images) - len(rest)
  print(
    f"{len(images) - len(no_face) - len(broken):,} faces in {directory}"
    + (f" ({before:,} before)" if before else "")
    + (f"; {len(no_face)} in {NO_FACE_FILE}" if no_face else "")
    + (f"; {len(broken)} in {SKIPPED_FILE}" if broken else "")
  )
  print(f"next: python -m data_prep.from_folder --input={directory} --output=D")


def _targets(
  source: str, images: Sequence[str], extension: str
) -> dict[str, str]:
  """Maps the files to write to the images that they are of."""
  targets = {}
  for image in images:
    target = f"{os.path.splitext(image)[0]}.{extension}"
    if target in targets:
      raise InputError(
        f"--input {source!r} has {targets[target]!r} and {image!r}, which would"
        f" both become {target!r}: rename one."
      )
    targets[target] = image
  return targets


def _align_one(
  path: str, image: str, locate: Locate, size: int
) -> np.ndarray | str | None:
  """Aligns the face of an image file.

  Returns:
    Its pixels, None without a face, or why it cannot be read.
  """
  try:
    with open(path, "rb", opener=plain) as file:
      pixels = decode_upright(file.read())
  except DecodingError as error:
    return str(error)
  except (OSError, MemoryError) as error:
    return str(getattr(error, "strerror", "no memory for it"))
  landmarks = locate(image, pixels)
  if landmarks is None:
    return None
  return align_face(pixels, landmarks, size)


def _find_images(source: str, directory: str) -> list[str]:
  """Relative paths of all images, sorted."""
  if not os.path.isdir(source):
    raise InputError(
      f"--input {source!r} is not a folder: give the folder of the photographs."
    )
  inside, outside = os.path.realpath(directory), os.path.realpath(source)
  if os.path.commonpath([inside, outside]) == outside:
    raise InputError(
      f"--output {directory!r} lies within --input, where its faces would count"
      " as photographs: choose another directory."
    )
  images = find_images(source)
  if not images:
    raise InputError(
      f"--input {source!r} has no image ({', '.join(EXTENSIONS)}): give another"
      " folder."
    )
  return images


def _run(
  work: Callable[[tuple[str, str]], str | None],
  items: list[tuple[str, str]],
  threads: int,
) -> Iterator[tuple[tuple[str, str], str | None]]:
  """Yields each item and what `work` made of it, in order, with a bar."""
  with (
    ThreadPoolExecutor(threads) as pool,
    tqdm(total=len(items), unit="image", disable=None) as bar,
  ):
    for start in range(0, len(items), _AT_ONCE):
      block = items[start : start + _AT_ONCE]
      for item, outcome in zip(block, pool.map(work, block), strict=True):
        yield item, outcome
        bar.update()


def _write(directory: str, target: str, pixels: np.ndarray) -> None:
  """Encodes a face; under its name only when whole."""
  path = os.path.join(directory, target)
  extension = os.path.splitext(path)[1]
  bgr = np.ascontiguousarray(pixels[:, :, ::-1])
  quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
  _, data = cv2.imencode(extension, bgr, quality if extension == ".jpg" else [])
  make_folder(os.path.dirname(path), within=directory)
  with written_whole(path, "wb") as file:
    file.write(data)


def _write_list(path: str, lines: list[str]) -> None:
  """Writes the lines, or deletes the list of an earlier run."""
  if lines:
    with written_whole(path) as file:
      file.writelines(f"{line}\n" for line in lines)
  elif os.path.exists(path):
    os.remove(path)


if __name__ == "__main__":
  run_command(main)
