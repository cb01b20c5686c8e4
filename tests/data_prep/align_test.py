import os
import shutil
import struct
import time

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence

from data_prep import align
from data_prep.formats import landmarks
from data_prep.synthetic import photos as drawn_photos
from jamsface_jax.data import decoding
from jamsface_jax.detection import alignment
from jamsface_jax.detection import detector as detection
from jamsface_jax.detection.alignment import TEMPLATE, similarity_transform
from jamsface_jax.detection.opening import open_detector
from jamsface_jax.errors import InputError

# Opt-in: the path of a YuNet model.
YUNET = os.environ.get("JAMSFACE_YUNET_MODEL")


def matrix(degrees, scale, shift):
  angle = np.deg2rad(degrees)
  c, s = scale * np.cos(angle), scale * np.sin(angle)
  return np.array([[c, -s, shift[0]], [s, c, shift[1]]])


def apply(transform, points):
  return points @ transform[:, :2].T + transform[:, 2]


@pytest.mark.parametrize("degrees", [0, 30, -90, 180, 271])
@pytest.mark.parametrize("scale", [0.01, 1, 40])
def test_known_transform_is_recovered(degrees, scale):
  wanted = matrix(degrees, scale, (300, -17.5))
  source = np.random.default_rng(0).uniform(0, 100, (5, 2))
  found = similarity_transform(source, apply(wanted, source))
  np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9)


def least_squares(source, target):
  """The same problem as a plain linear one in (a, b, x, y)."""
  rows, right = [], []
  for (x, y), (u, v) in zip(source, target, strict=True):
    rows += [[x, -y, 1, 0], [y, x, 0, 1]]
    right += [u, v]
  a, b, x, y = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)[0]
  return np.array([[a, -b, x], [b, a, y]])


@pytest.mark.parametrize("seed", range(5))
def test_noisy_landmarks_equal_lstsq(seed):
  rng = np.random.default_rng(seed)
  source = apply(matrix(40 * seed, 3, (500, 200)), TEMPLATE)
  source += rng.normal(0, 9, source.shape)
  found = similarity_transform(source, TEMPLATE)
  np.testing.assert_allclose(found, least_squares(source, TEMPLATE), atol=1e-9)
  # No similarity nearby does better.
  cost = np.sum((apply(found, source) - TEMPLATE) ** 2)
  for _ in range(100):
    a, b, x, y = rng.normal(0, [1e-3, 1e-3, 0.1, 0.1])
    other = found + np.array([[a, -b, x], [b, a, y]])
    assert np.sum((apply(other, source) - TEMPLATE) ** 2) > cost


def test_mirrored_landmarks_do_not_flip():
  mirrored = TEMPLATE * [-1, 1] + [112, 0]
  found = similarity_transform(mirrored, TEMPLATE)
  assert np.linalg.det(found[:, :2]) > 0
  # A rotation and a scale, nothing else.
  np.testing.assert_allclose(
    found[:, :2] @ found[:, :2].T,
    np.eye(2) * np.linalg.det(found[:, :2]),
    atol=1e-12,
  )
  with pytest.raises(ValueError, match="coincide"):
    similarity_transform(np.ones((5, 2)), TEMPLATE)


def dots(height, width, points, radius):
  """A dark picture with a bright blob at each point, [H, W, 3]."""
  y, x = np.mgrid[:height, :width]
  image = np.zeros((height, width))
  for px, py in points:
    image += 240 * np.exp(-((x - px) ** 2 + (y - py) ** 2) / 2 / radius**2)
  return np.repeat(image.clip(0, 255).astype(np.uint8)[:, :, None], 3, 2)


def centroids(image, points, window=7):
  """Centres of brightness around these points."""
  found = []
  for px, py in points:
    x0, y0 = round(px) - window, round(py) - window
    part = image[y0 : y0 + 2 * window + 1, x0 : x0 + 2 * window + 1, 0]
    y, x = np.mgrid[: part.shape[0], : part.shape[1]]
    weight = part.astype(float)
    found.append(
      (
        x0 + (x * weight).sum() / weight.sum(),
        y0 + (y * weight).sum() / weight.sum(),
      )
    )
  return np.array(found)


@pytest.mark.parametrize("degrees", [0, 25, 180])
@pytest.mark.parametrize("scale", [0.7, 1.5, 4.3, 9])
@pytest.mark.parametrize("size", [112, 224])
def test_landmarks_come_to_lie_on_the_template(degrees, scale, size):
  points = apply(matrix(degrees, scale, (0, 0)), TEMPLATE - 56)
  points += 90 * scale
  side = int(180 * scale)
  image = dots(side, side + 5, points, 2.5 * scale)
  face = alignment.align_face(image, points, size)
  assert face.shape == (size, size, 3) and face.dtype == np.uint8
  target = (TEMPLATE + 0.5) * size / 112 - 0.5
  error = centroids(face, target, window=size // 16) - target
  assert np.abs(error).max() < 0.1 * size / 112


def test_large_faces_are_averaged_not_sampled():
  # Noise of standard deviation 60 in a face 8 times too large: the mean of
  # 8 x 8 pixels has an eighth of it, a sample nearly all.
  noise = np.random.default_rng(0).normal(128, 60, (1200, 1200, 1))
  image = np.repeat(noise.clip(0, 255).astype(np.uint8), 3, 2)
  face = alignment.align_face(image, TEMPLATE * 8 + 100, 112)
  assert face.astype(float).std() < 60 / 8 * 1.1


def exif_jpeg(pixels, orientation):
  """A JPEG that a viewer turns as this EXIF orientation says."""
  bgr = np.ascontiguousarray(pixels[:, :, ::-1])
  data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
  entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
  tiff = b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0" * 4
  body = b"Exif\0\0" + tiff
  return (
    data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]
  )


# What a camera stores so that the viewer sees the upright image.
STORED = {
  1: lambda p: p,
  2: lambda p: p[:, ::-1],
  3: lambda p: p[::-1, ::-1],
  4: lambda p: p[::-1],
  5: lambda p: p.transpose(1, 0, 2),
  6: lambda p: np.rot90(p, 1),
  7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
  8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation(orientation):
  upright = np.zeros((48, 80, 3), np.uint8)
  upright[:16, :40] = (200, 30, 60)
  upright[32:, 60:] = (10, 180, 90)
  data = exif_jpeg(STORED[orientation](upright), orientation)
  pixels = decoding.decode_image(data)
  assert pixels.shape == upright.shape
  assert np.abs(pixels.astype(int) - upright).mean() < 3
  with pytest.raises(decoding.DecodingError):
    decoding.decode_image(data[:-40])


POINTS = np.arange(20, 30).reshape(5, 2) ** 2 / 10
FLAT = " ".join(map(str, POINTS.ravel()))


@pytest.mark.parametrize(
  "text",
  [
    "a/b.jpg " + FLAT,
    "a/b.jpg\t" + FLAT.replace(" ", "\t") + "\n\n",
    "a/b.jpg," + FLAT.replace(" ", ", "),
    "\ufeffimage_id,lefteye_x,lefteye_y,righteye_x,righteye_y,nose_x,nose_y,"
    "leftmouth_x,leftmouth_y,rightmouth_x,rightmouth_y\r\na/b.jpg,"
    + FLAT.replace(" ", ","),
    "1\nlefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x"
    " leftmouth_y rightmouth_x rightmouth_y\na/b.jpg   " + FLAT,
    "NAME_ID,P1X,P1Y,P2X,P2Y,P3X,P3Y,P4X,P4Y,P5X,P5Y\n"
    '"a/b",' + FLAT.replace(" ", ","),
    "a/b.jpg " + FLAT + " 0.987",
    "file,x1,x2,x3,x4,x5,y1,y2,y3,y4,y5\na/b.jpg,"
    + ",".join(map(str, POINTS.T.ravel())),
  ],
  ids=[
    "blanks",
    "tabs",
    "commas",
    "csv",
    "celeba",
    "vggface2",
    "ijb",
    "x_then_y",
  ],
)
def test_landmark_files(tmp_path, text):
  path = tmp_path / "points.txt"
  path.write_text(text, encoding="utf-8")
  found = landmarks.read_landmarks(str(path))
  points = found.find("a/b.jpg")
  np.testing.assert_array_equal(points, POINTS)
  assert found.find("a/c.jpg") is None


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("", "has no landmarks"),
    (f"a {FLAT}\nb 1 2 3", ":2 is not a path and ten numbers"),
    (f"a {FLAT}\nb {FLAT} 7 8", ":2 is not a path and ten numbers"),
    (f"a {FLAT}\nb 1 2 3 4 5 6 7 8 9 nan", ":2 is not a path and ten"),
    (f"a {FLAT}\na {FLAT}", ":2 names 'a' a second time"),
    (f"a {FLAT}\nb " + "3 4 " * 5, ":2 has five times the same point"),
    ("a b c d e f g h i j k", ":1 is neither ten numbers nor a header"),
    ("file,x1,y1,x2,y2\na,1,2,3,4", ":1 is neither ten numbers nor a header"),
  ],
)
def test_bad_landmark_files(tmp_path, text, says):
  path = tmp_path / "points.txt"
  path.write_text(text)
  with pytest.raises(InputError, match=says):
    landmarks.read_landmarks(str(path))


@pytest.fixture
def photos(tmp_path):
  """Photographs of dots in two folders, and a file of their landmarks."""
  lines = [
    "path\t" + "\t".join(f"{axis}{k}" for k in range(5) for axis in "xy")
  ]
  for number, name in enumerate(["ann/1.jpg", "ann/2.PNG", "bob/x/3.jpg"]):
    points = apply(matrix(20 * number, 1.5, (140, 60)), TEMPLATE)
    path = tmp_path / "in" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), dots(300, 260, points, 3))
    lines.append("\t".join([name, *map(str, points.ravel())]))
  (tmp_path / "points.tsv").write_text("\n".join(lines))
  return tmp_path


def flags(photos, *more):
  return (
    "data_prep.align",
    f"--input={photos / 'in'}",
    f"--output={photos / 'out'}",
    f"--landmarks={photos / 'points.tsv'}",
    *more,
  )


def files(directory):
  return {
    str(path.relative_to(directory)): path.read_bytes()
    for path in directory.rglob("*")
    if path.is_file() and path.name not in ("plan.json", "aligned.tsv")
  }


def test_command_aligns_lists_and_goes_on(run, photos):
  (photos / "in" / "bob" / "nobody.jpg").write_bytes(
    (photos / "in" / "ann" / "1.jpg").read_bytes()
  )
  done = run(*flags(photos, "--format=png"))
  assert done.returncode == 0, done.stderr
  assert "3 faces in" in done.stdout and "1 in no_face.txt" in done.stdout
  out = files(photos / "out")
  assert sorted(out) == ["ann/1.png", "ann/2.png", "bob/x/3.png", "no_face.txt"]
  assert out["no_face.txt"] == b"bob/nobody.jpg\n"
  for name in ("ann/1.png", "ann/2.png", "bob/x/3.png"):
    face = cv2.imread(str(photos / "out" / name))
    assert np.abs(centroids(face, TEMPLATE) - TEMPLATE).max() < 0.2
  # What is there is kept; what is missing is made; the list stays whole.
  (photos / "out" / "ann" / "1.png").write_bytes(b"kept")
  (photos / "out" / "ann" / "2.png").unlink()
  again = run(*flags(photos, "--format=png", "--threads=1"))
  assert again.returncode == 0 and "(2 before)" in again.stdout
  assert files(photos / "out") == out | {"ann/1.png": b"kept"}


def test_unreadable_photograph(run, photos):
  bad = photos / "in" / "ann" / "bad.jpg"
  bad.write_bytes((photos / "in" / "ann" / "1.jpg").read_bytes()[:900])
  assert_one_sentence(run(*flags(photos)), str(bad), "--skip_bad")
  done = run(*flags(photos, "--skip_bad"))
  assert done.returncode == 0, done.stderr
  out = files(photos / "out")
  assert sorted(out) == ["ann/1.jpg", "ann/2.jpg", "bob/x/3.jpg", "skipped.txt"]
  assert out["skipped.txt"].startswith(b"ann/bad.jpg\tbroken JPEG")


def test_faces_that_were_there_are_counted(run, photos):
  """Two of three; the third is of a photograph that has changed."""
  assert "before" not in run(*flags(photos)).stdout
  first = photos / "in" / "ann" / "1.jpg"
  first.write_bytes(first.read_bytes())
  done = run(*flags(photos))
  assert "3 faces in" in done.stdout and "(2 before)" in done.stdout
  assert "(3 before)" in run(*flags(photos)).stdout


def test_lists_are_on_the_disk_before_the_end(photos, monkeypatch):
  """A line of each broken photograph would fill the memory."""
  count, out = 200, photos / "out"
  for k in range(count):
    name = f"{k:03d}" + 40 * "x" + ".jpg"
    (photos / "in" / "ann" / name).write_bytes(b"broken")
  sizes = []

  def locate(image, _):
    lists = list(out.glob("skipped.txt.*"))
    sizes.append(sum(path.stat().st_size for path in lists))
    return None if image == "ann/1.jpg" else TEMPLATE + 100

  def go():
    align.align(
      str(photos / "in"),
      str(out),
      locate,
      origin={},
      size=112,
      extension="png",
      skip_bad=True,
      threads=1,
    )

  monkeypatch.setattr(align, "_AT_ONCE", 8)
  go()
  # Of the last photograph, which comes after all broken ones.
  assert sizes[-1] > count * 50 / 2
  lines = (out / "skipped.txt").read_text().splitlines()
  assert len(lines) == count and lines == sorted(lines)
  assert (out / "no_face.txt").read_text() == "ann/1.jpg\n"
  # What a kill leaves is removed, and lists without a line are.
  (out / f"skipped.txt.{16 * 'a'}.partial").write_text("")
  for path in (photos / "in" / "ann").glob("*x.jpg"):
    path.unlink()
  go()
  assert sorted(p.name for p in out.glob("*.*")) == [
    "aligned.tsv",
    "no_face.txt",
    "plan.json",
  ]


@pytest.mark.parametrize(
  ("more", "parts"),
  [
    (["--detector=yunet"], ["give one of them"]),
    (["--detector=mtcnn"], ["give one of them"]),
    (["--output={}/in/out"], ["lies within --input"]),
    (["--input={}/none"], ["is not a folder"]),
    (["--input={}/empty"], ["has no image"]),
    (["--size=3"], ["--size=3 is out of range"]),
    (["--landmarks={}/other.txt"], ["no face was found", "--landmarks"]),
    (["--landmarks={}/none.txt"], ["none.txt", "cannot be read"]),
  ],
)
def test_bad_flags(run, photos, more, parts):
  (photos / "empty").mkdir()
  (photos / "other.txt").write_text(f"else.jpg {FLAT}\n")
  more = [flag.format(photos) for flag in more]
  assert_one_sentence(run(*flags(photos, *more)), *parts)


def test_two_photographs_of_one_name(photos):
  (photos / "in" / "ann" / "1.png").write_bytes(b"")
  with pytest.raises(InputError, match="would both become 'ann/1.jpg'"):
    align.align(
      str(photos / "in"),
      str(photos / "out"),
      align.from_file(str(photos / "points.tsv")),
      origin={},
      size=112,
      extension="jpg",
      skip_bad=True,
      threads=2,
    )


class BrightDots:
  """Takes each cluster of five bright dots in a row of 300 for a face."""

  def detect(self, pixels):
    count, _, _, centres = cv2.connectedComponentsWithStats(
      (pixels[:, :, 0] > 128).astype(np.uint8)
    )
    points = centres[1:count]  # The first is the background.
    found = []
    for left in range(0, pixels.shape[1], 300):
      mine = points[(points[:, 0] >= left) & (points[:, 0] < left + 300)]
      if len(mine) == 5:
        mine = mine[np.argsort(mine[:, 1])]
        eyes, nose, mouth = mine[:2], mine[2:3], mine[3:]
        rows = [
          eyes[np.argsort(eyes[:, 0])],
          nose,
          mouth[np.argsort(mouth[:, 0])],
        ]
        found.append(np.concatenate(rows))
    boxes = [[*p.min(axis=0), *np.ptp(p, axis=0)] for p in found]
    return np.array(boxes).reshape(-1, 4), np.array(found).reshape(-1, 5, 2)


def test_detected_faces_largest_one_wins(tmp_path):
  (tmp_path / "in" / "a").mkdir(parents=True)
  small = apply(matrix(5, 0.8, (60, 100)), TEMPLATE)
  large = apply(matrix(-10, 1.6, (350, 80)), TEMPLATE)
  image = dots(320, 600, [*small, *large], 4)
  cv2.imwrite(str(tmp_path / "in" / "a" / "1.png"), image)
  cv2.imwrite(str(tmp_path / "in" / "a" / "2.png"), np.zeros_like(image))
  align.align(
    str(tmp_path / "in"),
    str(tmp_path / "out"),
    align.from_detector(BrightDots()),
    origin={},
    size=112,
    extension="png",
    skip_bad=False,
    threads=2,
  )
  assert files(tmp_path / "out").keys() == {"a/1.png", "no_face.txt"}
  assert (tmp_path / "out" / "no_face.txt").read_text() == "a/2.png\n"
  face = cv2.imread(str(tmp_path / "out" / "a" / "1.png"))
  assert np.abs(centroids(face, TEMPLATE) - TEMPLATE).max() < 0.3


def test_choice_among_faces():
  boxes = np.array([[0, 0, 50, 50], [80, 80, 40, 40], [160, 0, 44, 44.0]])
  # The largest is in the corner: 2500 - 2 * (75^2 + 75^2) < 1600.
  assert detection.choose_face(boxes, 200, 200) == 1
  assert detection.choose_face(boxes[:1], 200, 200) == 0
  # In the middle, size decides.
  middle = np.array([[90, 90, 20, 20], [80, 80, 40, 40.0]])
  assert detection.choose_face(middle, 200, 200) == 1


def test_detects_by_itself(run, tmp_path):
  """Drawn faces, no flag but input and output: eyes where they belong."""
  (tmp_path / "in").mkdir()
  for identity in (0, 4):
    (data,) = drawn_photos.draw_identity(0, identity, range(1, 2), 224)
    (tmp_path / "in" / f"{identity}.jpg").write_bytes(data)
  common = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}"]
  done = run("data_prep.align", *common)
  assert done.returncode == 0, done.stderr
  assert "2 faces" in done.stdout
  locate = align.from_detector(
    open_detector("mtcnn", None, min_score=0.6, size=640)
  )
  for identity in (0, 4):
    face = cv2.imread(str(tmp_path / "out" / f"{identity}.jpg"))
    assert face.shape == (112, 112, 3)
    around = cv2.copyMakeBorder(face, *[60] * 4, cv2.BORDER_REPLICATE)
    found = locate("", np.ascontiguousarray(around[:, :, ::-1])) - 60
    # Seen again in what was cut out.
    assert np.abs(found - TEMPLATE).max() < 8
  done = run("data_prep.align", *common, "--detector_model=x.onnx")
  assert_one_sentence(done, "for --detector=yunet")


def test_detector_model_that_is_none(run, photos):
  (photos / "bad.onnx").write_bytes(b"not a model")
  common = [flag for flag in flags(photos) if "--landmarks" not in flag]
  assert_one_sentence(run(*common, "--detector=yunet"), "--detector_model")
  for name in ("bad.onnx", "none.onnx"):
    assert_one_sentence(
      run(*common, "--detector=yunet", f"--detector_model={photos / name}"),
      name,
      "is not a YuNet model",
    )


@pytest.mark.skipif(
  YUNET is None,
  reason="JAMSFACE_YUNET_MODEL does not name a YuNet model: detection untested",
)
@pytest.mark.parametrize("degrees", [0, 10])
@pytest.mark.parametrize("scale", [2, 6])
def test_yunet_finds_the_same_faces_turned_and_scaled(degrees, scale):
  locate = align.from_detector(detection.YuNet(YUNET, min_score=0.3, size=640))
  errors = []
  for identity in (0, 1, 2, 4, 5):
    (data,) = drawn_photos.draw_identity(0, identity, range(1, 2), 224)
    photo = decoding.decode_image(data)
    upright = cv2.copyMakeBorder(photo, *[112] * 4, cv2.BORDER_REPLICATE)
    move = matrix(degrees, scale / 2, (0, 0))
    move[:, 2] = 120 * scale - move[:, :2] @ (224, 224)
    # Up to 1,440 pixels wide, so that the detector has to shrink it.
    canvas = cv2.warpAffine(upright, move, (240 * scale, 240 * scale))
    expected = apply(move, locate("", upright))
    found = locate("", canvas)
    eyes = np.linalg.norm(expected[0] - expected[1])
    errors.append(np.linalg.norm(found - expected, axis=1) / eyes)
  assert np.median(errors) < 0.15  # Of the distance of the eyes.


def test_faces_that_were_made_otherwise_are_not_mixed(image_folder, tmp_path):
  source = shutil.copytree(image_folder / "images", tmp_path / "in")
  made = []

  def go(**changes):
    made.clear()
    settings = {"origin": {"landmarks": "a"}, "size": 32, "extension": "png"}
    align.align(
      str(source),
      str(tmp_path / "out"),
      lambda image, _: made.append(image) or TEMPLATE / 3,
      **settings | changes,
      skip_bad=False,
      threads=1,
    )

  go()
  assert len(made) == 37
  for changes in (
    {"origin": {"landmarks": "b"}},
    {"size": 48},
    {"extension": "jpg"},
  ):
    with pytest.raises(InputError, match="made otherwise"):
      go(**changes)
  image = min(source.glob("*/*.jpg"))
  date = image.stat()
  time.sleep(0.02)  # Clocks of file systems tick every 4 ms.
  image.write_bytes(image.read_bytes())
  os.utime(image, ns=(date.st_atime_ns, date.st_mtime_ns))
  go()
  assert made == [str(image.relative_to(source))]
