"""Other people for margins at equal strength: CFP's who are not in LFW.

  python benchmarks/other_people.py --cfp=cfp-dataset --lfw=LFW --output=CFP

`configs/ablation_equal.py` has what follows: a data set of these faces, of a
picture that is there twice one, and what all networks make of it.

Celebrities in Frontal-Profile, http://www.cfpw.io: of each of 500 people ten
frontal photographs, whose faces are cut out as LFW's are, to OUTPUT/<number of
the person>/. --cfp is the folder that has its Data; a copy is in
https://github.com/zhangjunh/DR-GAN-by-pytorch (12de9e08), where Images has the
people in two parts. --lfw has the faces that the networks were trained on, a
folder a person.

*Place.* Where LFW's landmarks lie depends on who aligned it. So MTCNN looks at
LFW's faces, and CFP's are brought to the median of what it finds there, not to
ArcFace's template: `align_face` gets the points that the wanted transform takes
to that template. CFP's own fiducials are those of one half of a face; the left
eye, the tip of the nose and the left corner of the mouth are in both, and a
photograph where these are far apart is left out, as one without a face is.

*Border.* CFP's photographs end at the forehead, and a third of an aligned face
would be black, which no face of LFW is. The photograph's border is continued.

*People.* Those of LFW are left out: the same letters, or another spelling of
a name, found by hand and by CFP's number in OTHER_SPELLINGS.
"""

import argparse
import pathlib
import re
import unicodedata

import cv2
import numpy as np
from tqdm import tqdm

from jamsface_jax.data.decoding import decode_image
from jamsface_jax.detection.alignment import (
  TEMPLATE,
  TEMPLATE_SIZE,
  align_face,
  similarity_transform,
)
from jamsface_jax.detection.detector import choose_face
from jamsface_jax.detection.opening import usual_detector
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.storage.photo_folder import EXTENSIONS

# Numbers in CFP, from one, of people who are in LFW with another spelling, a
# middle name or without a family name.
OTHER_SPELLINGS = (
  *(13, 14, 57, 66, 91, 112, 120, 131, 135, 160, 168, 171, 213, 218, 219),
  *(229, 233, 301, 326, 356, 364, 403, 407, 408, 412, 418, 483, 493, 499),
)
EVERY = 10  # Of LFW's faces, to find the landmarks in.
# Landmarks that CFP's fiducials have too: left eye, nose, left of the mouth.
FIDUCIALS = {0: slice(12, 18), 2: slice(21, 22), 3: slice(25, 26)}
APART = 0.4  # Of the distance of the eyes: landmarks of something else.


def main() -> int:
  """Reads the flags and cuts the faces out."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/other_people.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--cfp", required=True, help="the folder of CFP")
  parser.add_argument("--lfw", required=True, help="a folder of LFW's faces")
  parser.add_argument("--output", required=True, help="a new folder")
  arguments = parser.parse_args()
  cfp, output = pathlib.Path(arguments.cfp), pathlib.Path(arguments.output)
  if output.exists():
    raise InputError(f"--output {arguments.output!r} is there: name a new one.")
  detector = usual_detector()
  lfw = pathlib.Path(arguments.lfw)
  people = others(cfp / "Data/list_name.txt", lfw)
  target = place(lfw, detector)
  print(f"landmarks of {arguments.lfw}: {np.round(target, 1).tolist()}")
  photographs = [
    path
    for path in sorted(cfp.glob("Data/Images/**/frontal/*.jpg"))
    if int(path.parents[1].name) in people
  ]
  left_out = []
  for path in tqdm(photographs, unit="image", disable=None):
    number = path.parents[1].name
    fiducials = np.loadtxt(
      cfp / f"Data/Fiducials/{number}/frontal/{path.stem}.txt", delimiter=","
    )
    face = cut_out(decode_image(path.read_bytes()), fiducials, target, detector)
    if face is None:
      left_out.append(f"{number}/{path.stem}")
      continue
    (output / number).mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output / number / f"{path.stem}.png"), face[..., ::-1])
  print(
    f"{len(photographs) - len(left_out):,} faces of {len(people)} people in"
    f" {arguments.output}; left out: {' '.join(left_out) or 'none'}"
  )
  return 0


def others(names: pathlib.Path, lfw: pathlib.Path) -> set[int]:
  """Numbers of the people who are not in LFW.

  Args:
    names: CFP's list, a name a line.
    lfw: the folder with a folder for each of LFW's people.
  """
  known = {letters(person.name) for person in lfw.iterdir()}
  listed = enumerate(names.read_text(encoding="utf-8").splitlines(), start=1)
  strangers = {number for number, name in listed if letters(name) not in known}
  return strangers - set(OTHER_SPELLINGS)


def letters(name: str) -> str:
  """A name's letters and digits, without accents and capitals."""
  plain = unicodedata.normalize("NFKD", name).lower()
  return re.sub("[^a-z0-9]", "", plain)


def place(lfw: pathlib.Path, detector) -> np.ndarray:
  """Where landmarks lie in LFW's faces, the median of some: float [5, 2]."""
  faces = sorted(
    path for path in lfw.glob("*/*") if path.suffix.lower() in EXTENSIONS
  )
  found = []
  for path in tqdm(faces[::EVERY], unit="image", disable=None):
    pixels = decode_image(path.read_bytes())
    landmarks = landmarks_of(pixels, detector)
    if landmarks is not None:
      # Of faces of any size, those of 112 pixels.
      ratio = TEMPLATE_SIZE / np.array(pixels.shape[1::-1])
      found.append((landmarks + 0.5) * ratio - 0.5)
  if not found:
    raise InputError(f"--lfw {str(lfw)!r} has no face: give LFW's, aligned.")
  return np.median(found, axis=0)


def landmarks_of(pixels: np.ndarray, detector) -> np.ndarray | None:
  """Five landmarks of the largest and most central face, or None."""
  boxes, landmarks = detector.detect(pixels)
  if not len(boxes):
    return None
  return landmarks[choose_face(boxes, *pixels.shape[:2])]


def cut_out(
  pixels: np.ndarray, fiducials: np.ndarray, target: np.ndarray, detector
) -> np.ndarray | None:
  """The face of a photograph, its landmarks at `target`.

  Args:
    pixels: uint8 [H, W, 3].
    fiducials: float [30, 2], CFP's points of this photograph.
    target: float [5, 2], for 112 x 112 pixels.
    detector: finds the landmarks.

  Returns:
    uint8 [112, 112, 3]; None if no face is found where the fiducials are.
  """
  landmarks = landmarks_of(pixels, detector)
  if landmarks is None:
    return None
  theirs = [fiducials[points].mean(axis=0) for points in FIDUCIALS.values()]
  apart = np.linalg.norm(landmarks[list(FIDUCIALS)] - theirs, axis=1).max()
  if apart > APART * np.linalg.norm(landmarks[1] - landmarks[0]):
    return None
  border = max(pixels.shape[:2]) // 2
  wide = cv2.copyMakeBorder(pixels, *[border] * 4, cv2.BORDER_REPLICATE)
  matrix = similarity_transform(landmarks + border, target)
  # What this transform takes to the template: `align_face` finds it again.
  points = (TEMPLATE - matrix[:, 2]) @ np.linalg.inv(matrix[:, :2]).T
  return align_face(wide, points, TEMPLATE_SIZE)


if __name__ == "__main__":
  run_command(main)
