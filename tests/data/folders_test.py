import os

import pytest

from jamsface_jax.data.folders import extension, find_folders, find_images

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
