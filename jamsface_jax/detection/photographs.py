"""The faces of photographs as images to embed."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Float32, Int

from jamsface_jax.data.decoding import DecodingError, decode_image
from jamsface_jax.data.images import Block, FileImages, Images
from jamsface_jax.detection.alignment import align_face
from jamsface_jax.detection.detector import Detector, choose_face
from jamsface_jax.errors import InputError, one_line

NO_FACE = "no face was found"
EVERY, ONE = "all", "one"
WHICH = (EVERY, ONE)

# Boxes [f, 4] and landmarks [f, 5, 2], or why there are none.
_Found = tuple[np.ndarray, np.ndarray] | str


class PhotographFaces:
  """Faces that a detector finds, photograph after photograph.

  All photographs are looked through at once; a face is cut out when it is read.
  One without a face, or that cannot be read, counts as a broken image, so that
  none is lost.

  Args:
    photographs: image files.
    detector: finds the faces.
    size: height and width of the faces.
    which: "all" for every face, from left to right; "one" for the large and
      central one.
    numbered: names of photographs with several faces end in #1, #2, ...
    threads: for the search.

  Attributes:
    boxes: left, top, width and height, float32 [N, 4]; NaN where there is none.
    landmarks: float32 [N, 5, 2], see `alignment`; likewise.
    fingerprint: see `Images`.
    listing: see `Images`.
    aside: see `Images`.
  """

  def __init__(
    self,
    photographs: FileImages,
    detector: Detector,
    *,
    size: int,
    which: str,
    numbered: bool,
    threads: int,
  ):
    self._photographs = photographs
    self._size = size
    self.fingerprint = f"{photographs.fingerprint} {which}"
    self.listing = f"{photographs.listing} {which}"
    self.aside = photographs.aside

    def look(number: int) -> _Found:
      return _find(photographs, number, detector, which)

    with ThreadPoolExecutor(threads) as pool:
      found = list(pool.map(look, range(len(photographs))))
    self._place, self._suffix, self._broken = [], [], {}
    boxes, landmarks = [], []
    for number, one in enumerate(found):
      if isinstance(one, str):
        self._broken[len(self._place)] = one
        one = np.full((1, 4), np.nan), np.full((1, 5, 2), np.nan)
      several = numbered and len(one[0]) > 1
      self._place += [number] * len(one[0])
      self._suffix += [
        f"#{k}" if several else "" for k in range(1, len(one[0]) + 1)
      ]
      boxes.append(one[0])
      landmarks.append(one[1])
    self.boxes: Float32[np.ndarray, "n 4"]
    self.boxes = np.concatenate(boxes).astype(np.float32)
    self.landmarks: Float32[np.ndarray, "n 5 2"]
    self.landmarks = np.concatenate(landmarks).astype(np.float32)

  def __len__(self) -> int:
    return len(self._place)

  def read(self, start: int, stop: int) -> Block:
    """See `Images.read`."""
    stop = min(stop, len(self))
    pixels = np.zeros((stop - start, self._size, self._size, 3), np.uint8)
    names, broken = [], {}
    last, photograph = -1, np.empty((0, 0, 3), np.uint8)
    for row, at in enumerate(range(start, stop)):
      number = self._place[at]
      names.append(self._photographs.name(number) + self._suffix[at])
      if at in self._broken:
        broken[row] = self._broken[at]
        continue
      try:
        if last != number:
          photograph = decode_image(_content(self._photographs, number))
          last = number
        pixels[row] = align_face(photograph, self.landmarks[at], self._size)
      except (DecodingError, ValueError) as error:
        broken[row] = one_line(error)
    labels = self._photographs.labels[self._place[start:stop]]
    return Block(pixels, names, labels.astype(np.int64), broken)


def open_faces(
  images: Images,
  detector: Detector,
  *,
  flag: str,
  size: int,
  which: str,
  numbered: bool,
  threads: int,
) -> PhotographFaces:
  """The faces of photographs that lie in files; see `PhotographFaces`.

  Raises:
    InputError: the images lie in no files of their own, or show no face.
  """
  if not isinstance(images, FileImages):
    raise InputError(
      f"--align looks for faces in photographs, but {flag} is a data set or an"
      " array: give a folder, a list or a photograph."
    )
  faces = PhotographFaces(
    images,
    detector,
    size=size,
    which=which,
    numbered=numbered,
    threads=threads,
  )
  if np.isnan(faces.boxes).all():
    raise InputError(
      f"{flag} shows no face in {len(images):,} photographs: give others, or"
      " leave --align out where they are aligned faces."
    )
  return faces


def _find(
  photographs: FileImages, number: int, detector: Detector, which: str
) -> _Found:
  """The faces of a photograph."""
  try:
    pixels = decode_image(_content(photographs, number))
  except DecodingError as error:
    return one_line(error)
  boxes, landmarks = detector.detect(pixels)
  if not len(boxes):
    return NO_FACE
  order: Sequence[int] | Int[np.ndarray, " f"] = np.argsort(boxes[:, 0])
  if which == ONE:
    order = [choose_face(boxes, *pixels.shape[:2])]
  return boxes[order], landmarks[order]


def _content(photographs: FileImages, number: int) -> bytes:
  """The bytes of a photograph.

  Raises:
    DecodingError: it cannot be read.
  """
  data = photographs.content(photographs.names[number])
  if isinstance(data, str):
    raise DecodingError(data)
  return data
