r"""Cuts faces out of photographs, upright and at ArcFace's 112 x 112 template.

  python -m data_prep.align --input=DIR --output=DIR
  python -m data_prep.align --input=DIR --output=DIR --landmarks=FILE
  python -m data_prep.align --input=DIR --output=DIR \
    --detector=yunet --detector_model=face_detection_yunet_2023mar.onnx

The folders stay as they are. Landmarks are five points an image: from a file
(a path and x1 y1 ... x5 y5 a line, or with a header), or from a detector: mtcnn
(pip install 'jamsface-jax[detect]' brings its networks), or YuNet in a file, of
https://github.com/opencv/opencv_zoo/tree/main/models/face_detection_yunet. Of
several faces the largest and most central is taken. EXIF orientation is
honoured: landmarks are those of the upright image. Images without a face are
listed in OUTPUT/no_face.txt. Interrupted, the same command goes on; faces of
photographs that have changed since are made again.
"""

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import (
  Callable,
  Generator,
  Iterable,
  Mapping,
  Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import IO, Any

import cv2
import numpy as np
from tqdm import tqdm

from data_prep.formats.landmarks import count_outside, read_landmarks
from data_prep.writing.conversion import leave_aside
from data_prep.writing.exclusions import NO_FACE_FILE, SKIPPED_FILE
from jamsface_jax import shell
from jamsface_jax.data import records
from jamsface_jax.data.decoding import DecodingError, decode_image
from jamsface_jax.data.folders import Walk, read_file, walk
from jamsface_jax.detection import detector as detection
from jamsface_jax.detection.alignment import TEMPLATE_SIZE, align_face
from jamsface_jax.detection.opening import DETECTORS, open_detector
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage import lock
from jamsface_jax.storage.durable import sync_directory, sync_file
from jamsface_jax.storage.file_state import file_state
from jamsface_jax.storage.paths import lies_within
from jamsface_jax.storage.photo_folder import EXTENSIONS
from jamsface_jax.storage.plain_file import make_folder, plain
from jamsface_jax.storage.plan import PLAN_FILE, keep_plan
from jamsface_jax.storage.text_lists import NotTextError, read_lines
from jamsface_jax.storage.whole_file import remove_left, written_whole
from jamsface_jax.storage.write_error import write_error

JPEG_QUALITY = 95
_AT_ONCE = 1024  # Images queued for the threads.

JOURNAL_FILE = "aligned.tsv"
OUTSIDE_FILE = "landmarks_outside.txt"

# Landmarks [5, 2] of an image by its path and pixels; None: no face.
Locate = Callable[[str, np.ndarray], np.ndarray | None]


def main() -> int:
  """Reads the flags and aligns."""
  parser = argparse.ArgumentParser(
    prog=shell.name("data_prep.align"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--input", required=True, help="folder of photographs, any depth")
  add("--output", required=True, help="folder of the aligned faces")
  add("--landmarks", metavar="FILE", help="five points of each image")
  add(
    "--detector",
    choices=DETECTORS,
    help="finds the points where there is no file; default: mtcnn",
  )
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
  if arguments.landmarks is not None and arguments.detector is not None:
    raise InputError(
      "either --landmarks or --detector says where the faces are: give one of"
      " them."
    )
  locate, origin = _locate(arguments)
  align(
    arguments.input,
    arguments.output,
    locate,
    origin=origin,
    size=arguments.size,
    extension=arguments.format,
    skip_bad=arguments.skip_bad,
    threads=arguments.threads,
  )
  return 0


def _locate(arguments: argparse.Namespace) -> tuple[Locate, dict[str, Any]]:
  """Where the landmarks come from, as a function and for the plan."""
  if arguments.landmarks is not None:
    locate = from_file(arguments.landmarks)
    return locate, {"landmarks": records.file_digest(arguments.landmarks)[0]}
  name = arguments.detector or DETECTORS[0]
  detector = open_detector(
    name,
    arguments.detector_model,
    min_score=arguments.min_score,
    size=arguments.detection_size,
  )
  origin = {
    "detector": name,
    "min_score": arguments.min_score,
    "detection_size": arguments.detection_size,
  }
  if arguments.detector_model is not None:
    digest, _ = records.file_digest(arguments.detector_model)
    origin["detector_model"] = digest
  return from_detector(detector), origin


def from_file(path: str) -> Locate:
  """Takes the landmarks from a file, see `read_landmarks`."""
  landmarks = read_landmarks(path)
  return lambda image, _: landmarks.find(image)


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
  origin: Mapping[str, Any],
  size: int,
  extension: str,
  skip_bad: bool,
  threads: int,
) -> None:
  """Writes the aligned faces; see the flags of this command.

  Args:
    source: folder of photographs.
    directory: the output.
    locate: finds the landmarks.
    origin: JSON values that decide what `locate` finds.
    size: pixels of a side.
    extension: "jpg" or "png".
    skip_bad: leave out unreadable images.
    threads: for all the work.

  Raises:
    InputError: nothing to align, an unreadable image, or faces in the output
      that were made otherwise.
  """
  walked = _find_images(source, directory)
  images = walked.images
  unnamed = leave_aside(source, walked, skip_bad=skip_bad)
  targets = _targets(source, images, extension)
  plan = {"input": os.path.abspath(source), "size": size, "format": extension}
  outside: list[str] = []
  with lock.hold(directory, "--output"):
    if not keep_plan(directory, {**plan, **origin}, what="faces"):
      _refuse_faces(directory, targets)
    remove_left(directory, seconds=0)  # Lists that a kill has left half done.
    try:
      # Images without a result are tried again by every run: lists are whole.
      with (
        _listing(os.path.join(directory, NO_FACE_FILE)) as no_face,
        _listing(os.path.join(directory, SKIPPED_FILE)) as broken,
      ):
        for line in unnamed:
          broken.add(line)
        before = _align_missing(
          source,
          directory,
          targets,
          functools.partial(
            _align_one, locate=locate, size=size, partly_outside=outside
          ),
          no_face,
          broken,
          skip_bad=skip_bad,
          threads=threads,
        )
        faces = len(images) + len(unnamed) - no_face.lines - broken.lines
        if not faces:
          raise InputError(
            f"no face was found in the {len(images)} images of {source!r}:"
            " check --landmarks (its paths are relative to --input) or"
            " --detector_model."
          )
    except InputError:
      _forget_nothing(directory)
      raise
    finally:
      # Of faces that an earlier run made, it alone has seen this.
      outside = sorted({*outside, *_read_list(directory, OUTSIDE_FILE)})
      with _listing(os.path.join(directory, OUTSIDE_FILE)) as file:
        for line in outside:
          file.add(line)
  print(
    f"{faces:,} faces in {directory}"
    + (f" ({before:,} before)" if before else "")
    + (f"; {no_face.lines} in {NO_FACE_FILE}" if no_face.lines else "")
    + (f"; {broken.lines} in {SKIPPED_FILE}" if broken.lines else "")
  )
  if outside:
    print(
      f"warning: {len(outside):,} faces have a landmark outside their image,"
      f" see {OUTSIDE_FILE}: are the landmarks those of these images?",
      file=sys.stderr,
    )
  words = (f"--input={directory}", "--output=D")
  print(f"next: {shell.command('data_prep.from_folder', *words)}")


def _align_missing(
  source: str,
  directory: str,
  targets: Mapping[str, str],
  make: Callable[[str, str], np.ndarray | str | None],
  no_face: "_Listing",
  broken: "_Listing",
  *,
  skip_bad: bool,
  threads: int,
) -> int:
  """Aligns what is not there yet, or of a photograph that has changed.

  Args:
    source: folder of photographs.
    directory: the output.
    targets: the files to write, and the images that they are of.
    make: makes a face of an image, see `_align_one`.
    no_face: takes the images without a face.
    broken: takes a line for each that cannot be read.
    skip_bad: leave those out.
    threads: for all the work.

  Returns:
    How many faces were there.
  """

  def look(image: str) -> str:
    return str(file_state(os.path.join(source, image)))

  def work(item: tuple[str, str]) -> str | None:
    target, image = item
    pixels = make(source, image)
    if pixels is None or isinstance(pixels, str):
      return pixels
    _write(directory, target, pixels)
    return ""

  for folder in {os.path.join(directory, os.path.dirname(t)) for t in targets}:
    if os.path.isdir(folder):
      remove_left(folder)
  before = 0
  with (
    ThreadPoolExecutor(threads) as pool,
    _Journal(os.path.join(directory, JOURNAL_FILE)) as journal,
    tqdm(total=len(targets), unit="image", disable=None) as bar,
  ):
    items = iter(targets.items())
    while block := list(islice(items, _AT_ONCE)):
      photographs = [image for _, image in block]
      states = dict(zip(block, pool.map(look, photographs), strict=True))
      rest = [
        (target, image)
        for target, image in block
        if journal.states.get(target) != states[target, image]
        or not os.path.exists(os.path.join(directory, target))
      ]
      before += len(block) - len(rest)
      outcomes = dict(zip(rest, pool.map(work, rest), strict=True))
      made = [item for item in rest if outcomes[item] == ""]
      _sync([os.path.join(directory, target) for target, _ in made], pool)
      journal.add({item[0]: states[item] for item in made})
      for (target, image), outcome in outcomes.items():
        if outcome == "":
          continue
        if outcome is None:
          no_face.add(image)
        elif skip_bad:
          broken.add(f"{image}\t{outcome}")
        else:
          raise InputError(
            f"image {os.path.join(source, image)!r} cannot be read ({outcome}):"
            " mend or delete it, or leave such images out with --skip_bad."
          )
        _remove(os.path.join(directory, target))  # Of another photograph.
      bar.update(len(block))
  return before


class _Journal:
  """Which faces are on the disk, and of which state of their photographs.

  Attributes:
    states: that of the photograph by the path of the face.
  """

  def __init__(self, path: str):
    self.states: dict[str, str] = {}
    try:
      if os.path.lexists(path):
        with open(
          path, encoding="utf-8", errors="surrogateescape", opener=plain
        ) as file:
          for line in file:
            target, _, state = line.rstrip("\n").partition("\t")
            if line.endswith("\n"):
              self.states[target] = state
      self._file = open(
        path, "a", encoding="utf-8", errors="surrogateescape", opener=plain
      )
      if os.path.getsize(path):
        self._file.write("\n")  # Ends a line that a kill has torn.
    except OSError as error:
      raise write_error("--output", path, error) from None

  def __enter__(self) -> "_Journal":
    return self

  def __exit__(self, *_: object) -> None:
    self._file.close()

  def add(self, states: Mapping[str, str]) -> None:
    """Notes faces that are on the disk."""
    self._file.writelines(
      f"{name}\t{state}\n" for name, state in states.items()
    )
    self._file.flush()
    os.fsync(self._file.fileno())


def _forget_nothing(directory: str) -> None:
  """Removes the plan of an output that came to nothing: any may follow."""
  journal = os.path.join(directory, JOURNAL_FILE)
  with contextlib.suppress(OSError):
    if os.path.getsize(journal) <= 1:
      os.remove(journal)
  if not os.path.lexists(journal):
    _remove(os.path.join(directory, PLAN_FILE))


def _refuse_faces(directory: str, targets: Iterable[str]) -> None:
  """Refuses an output without a plan that has files of these names.

  Raises:
    InputError: it has.
  """
  for target in targets:
    if os.path.lexists(os.path.join(directory, target)):
      raise InputError(
        f"--output {directory!r} has a file {target!r} that this command did"
        " not make, or an earlier version of it: choose another directory."
      )


def _sync(paths: Sequence[str], pool: ThreadPoolExecutor) -> None:
  """Makes files survive a loss of power; together, which is cheaper."""
  list(pool.map(sync_file, paths))
  list(pool.map(sync_directory, {os.path.dirname(path) for path in paths}))


def _remove(path: str) -> None:
  with contextlib.suppress(FileNotFoundError):
    os.remove(path)


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
  source: str,
  image: str,
  locate: Locate,
  size: int,
  partly_outside: list[str],
) -> np.ndarray | str | None:
  """Aligns the face of an image file.

  Args:
    source: the folder of the photographs.
    image: the path in it.
    locate: finds the landmarks.
    size: pixels of a side.
    partly_outside: takes its name if a landmark or two lie outside of it.

  Returns:
    Its pixels, None without a face, or why it cannot be read.
  """
  try:
    pixels = decode_image(read_file(source, image))
  except DecodingError as error:
    return str(error)
  except (OSError, MemoryError) as error:
    return str(getattr(error, "strerror", "no memory for it"))
  landmarks = locate(image, pixels)
  if landmarks is None:
    return None
  height, width, _ = pixels.shape
  outside = count_outside(landmarks, height, width)
  if 2 * outside > len(landmarks):
    return (
      f"{outside} of its landmarks lie outside its {width} x {height} pixels:"
      " they are of another image or size"
    )
  if outside:
    partly_outside.append(image)
  return align_face(pixels, landmarks, size)


def _find_images(source: str, directory: str) -> Walk:
  """Finds all images, at least one."""
  if not os.path.isdir(source):
    raise InputError(
      f"--input {source!r} is not a folder: give the folder of the photographs."
    )
  if lies_within(directory, source):
    raise InputError(
      f"--output {directory!r} lies within --input, where its faces would count"
      " as photographs: choose another directory."
    )
  found = walk(source)
  if not found.images:
    aside = found.aside()
    raise InputError(
      f"--input {source!r} has no image ({', '.join(EXTENSIONS)})"
      + (f" but {aside}" if aside else "")
      + ": give another folder."
    )
  return found


def _write(directory: str, target: str, pixels: np.ndarray) -> None:
  """Encodes a face; under its name only when whole."""
  path = os.path.join(directory, target)
  extension = os.path.splitext(path)[1]
  bgr = np.ascontiguousarray(pixels[:, :, ::-1])
  quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
  _, data = cv2.imencode(extension, bgr, quality if extension == ".jpg" else [])
  try:
    make_folder(os.path.dirname(path), within=directory)
    with written_whole(path, "wb", synced=False) as file:  # See `_sync`.
      file.write(data)
  except OSError as error:
    raise write_error("--output", path, error) from None


def _read_list(directory: str, file: str) -> list[str]:
  """The lines of the list of an earlier run; none if there is none."""
  try:
    return [line.text for line in read_lines(os.path.join(directory, file))]
  except (OSError, NotTextError):
    return []


class _Listing:
  """A list on its way to the disk: of millions of images, none is kept.

  Attributes:
    lines: how many it has.
  """

  def __init__(self, file: IO[str]):
    self.lines = 0
    self._file = file

  def add(self, line: str) -> None:
    """Appends a line."""
    self._file.write(f"{line}\n")
    self.lines += 1


@contextlib.contextmanager
def _listing(path: str) -> Generator[_Listing]:
  """Replaces the list of an earlier run once the block has ended.

  Args:
    path: of the list; without a line there is none.
  """
  with written_whole(path) as file:
    listing = _Listing(file)
    yield listing
  if not listing.lines:
    os.remove(path)
    sync_directory(os.path.dirname(path))


if __name__ == "__main__":
  run_command(main)
