import io
import os

import cv2
import numpy as np
import pytest
from PIL import Image

from jamsface_jax.data.decoding import decode_image
from jamsface_jax.data.folders import (
  EXTENSIONS,
  extension,
  find_file,
  find_folders,
  walk,
)


def find_images(directory, below="", *, deep=True):
  return walk(directory, below, deep=deep).images


FILES = (
  "b/2.JPG",
  "b/10.jpeg",
  "b/.3.jpg",
  "b/text.txt",
  "b/deep/1.webp",
  "a.png",
  ".hidden/1.bmp",
)


@pytest.fixture
def root(tmp_path):
  for file in FILES:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
  return tmp_path


def test_images_are_found_in_the_order_of_their_paths(root):
  assert find_images(str(root)) == [
    ".hidden/1.bmp",
    "a.png",
    "b/10.jpeg",
    "b/2.JPG",
    "b/deep/1.webp",
  ]


def test_images_below_a_folder_are_relative_to_the_whole(root):
  below = ["b/10.jpeg", "b/2.JPG", "b/deep/1.webp"]
  assert find_images(str(root), "b") == below
  assert find_images(str(root / "b")) == [
    os.path.relpath(name, "b") for name in below
  ]


def test_images_of_one_folder_alone(root):
  assert find_images(str(root / "b"), deep=False) == ["10.jpeg", "2.JPG"]
  assert find_images(str(root), deep=False) == ["a.png"]


def test_no_such_folder(root):
  assert find_images(str(root), "none") == []
  assert find_folders(str(root / "none")) == []


def test_folders(root):
  (root / "link").symlink_to(root / "b")
  assert find_folders(str(root)) == ["b", "link"]


@pytest.mark.parametrize(
  ("data", "end"),
  [
    (b"\x89PNG\r\n", ".png"),
    (b"RIFF1234WEBP", ".webp"),
    (b"BM12", ".bmp"),
    (b"\xff\xd8\xff", ".jpg"),
    (b"", ".jpg"),
  ],
)
def test_extension(data, end):
  assert extension(data) == end


def test_links_are_followed_but_not_in_a_circle(root):
  (root / "people").mkdir()
  (root / "people" / "ann").symlink_to(root / "b")
  (root / "people" / "one.jpg").symlink_to(root / "a.png")
  (root / "b" / "up").symlink_to(root)  # To a folder that it lies in.
  (root / "itself").symlink_to("itself")
  found = walk(str(root), "people")
  assert [name for name in found.images if "up/" not in name] == [
    "people/ann/10.jpeg",
    "people/ann/2.JPG",
    "people/ann/deep/1.webp",
    "people/one.jpg",
  ]
  whole = walk(str(root))
  assert "people/ann/2.JPG" in whole.images and whole.loops
  assert not [name for name in whole.images if "up/" in name]
  assert "in a circle" in whole.aside()


def test_what_is_left_aside_is_counted(root):
  for name in ("1.heic", "2.HEIC", "3.mp4", "4"):
    (root / "b" / name).touch()
  found = walk(str(root), "b", deep=False)
  assert found.others == {".heic": 2, ".txt": 1, ".mp4": 1, "without an end": 1}
  assert found.nested == 1 and found.images == ["b/10.jpeg", "b/2.JPG"]
  said = found.aside()
  assert "5 files that are no images (2 .heic" in said
  assert "1 images in folders within folders" in said
  assert walk(str(root / ".hidden")).aside() == ""


@pytest.mark.parametrize(
  "name", [b"caf\xe9.jpg", b"a\nb.jpg", b"a\tb.jpg", "a\x85b.jpg".encode()]
)
def test_names_that_no_list_can_hold(tmp_path, name):
  """Linux takes any byte in a name but for a slash and zero."""
  with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
    pass
  (tmp_path / "caf\u00e9 1.jpg").touch()  # Blanks and accents are fine.
  found = walk(str(tmp_path))
  assert found.images == ["caf\u00e9 1.jpg"]
  assert [os.fsencode(odd) for odd in found.odd] == [name]


def test_folder_without_permission(root, monkeypatch):
  """Root may read everything: the refusal is that of the system's call."""
  scandir = os.scandir

  def refuse(path):
    if str(path).endswith("deep"):
      raise PermissionError(13, "Permission denied")
    return scandir(path)

  monkeypatch.setattr(os, "scandir", refuse)
  found = walk(str(root))
  assert found.closed == ["b/deep"] and "cannot be read" in found.aside()


def test_a_file_is_found_under_another_end_of_its_name(root):
  assert find_file(str(root), "b/2.JPG") == "b/2.JPG"
  assert find_file(str(root), "a.jpg") == "a.png"
  assert find_file(str(root), "b/10.png") == "b/10.jpeg"
  assert find_file(str(root), "b/10.5.png") is None
  (root / "a.webp").touch()
  assert find_file(str(root), "a.jpg") is None  # Which of the two?


@pytest.mark.parametrize("end", EXTENSIONS)
def test_every_end_is_that_of_a_format_that_is_decoded(end):
  """OpenCV, which writes them, vouches for what is in such files."""
  kind = {".jpe": ".jpg", ".jfif": ".jpg", ".dib": ".bmp"}.get(end, end)
  pixels = np.full((8, 8) if end in (".pbm", ".pgm") else (8, 8, 3), 255)
  if end in (".jp2", ".j2k"):  # OpenCV writes none so small, Pillow does.
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "JPEG2000")
    assert decode_image(stream.getvalue()).shape == (8, 8, 3)
    return
  data = cv2.imencode(kind, pixels.astype(np.uint8))[1].tobytes()
  assert decode_image(data).shape == (8, 8, 3)
