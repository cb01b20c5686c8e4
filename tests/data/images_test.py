"""Images in the order of their input, whatever it is, broken ones included."""

import os
import shutil
import time

import cv2
import numpy as np
import pytest

from jamsface_jax.data import decoding
from jamsface_jax.data.images import open_images
from jamsface_jax.errors import InputError

SIZE = 32


def opened(path, size=SIZE, root=None, color_order=None):
  return open_images(str(path), size, root=root, color_order=color_order)


def decoded(path, size=SIZE):
  """What evaluation sees of a file: its reader, not ours."""
  with open(path, "rb") as file:
    data = file.read()
  pixels = np.empty((size, size, 3), np.uint8)
  decoding.decode_into(data, pixels)
  return pixels


def test_folder(image_folder):
  root = image_folder / "images"
  images = opened(root)
  paths = sorted(p.relative_to(root) for p in root.rglob("*.jpg"))
  assert len(images) == 37
  block = images.read(3, 9)
  assert block.names == [str(path) for path in paths[3:9]]
  assert block.labels.tolist() == [int(n[7:9]) for n in block.names]
  assert block.labels.dtype == np.int64
  want = [decoded(root / name) for name in block.names]
  np.testing.assert_array_equal(block.pixels, want)
  assert block.broken == {}


def test_folder_without_images(tmp_path):
  (tmp_path / ".hidden.jpg").write_bytes(b"")
  (tmp_path / "notes.txt").write_text("")
  with pytest.raises(InputError, match="has no image"):
    opened(tmp_path)


def test_list_keeps_its_order_and_its_repeats(image_folder, tmp_path):
  names = [
    "Person_03/Person_03_0002.jpg",
    "Person_00/Person_00_0001.jpg",
    "Person_03/Person_03_0002.jpg",
  ]
  listed = tmp_path / "list.txt"
  listed.write_bytes("\r\n".join(names).encode())  # No break at the end.
  root = str(image_folder / "images")
  block = opened(listed, root=root).read(0, 3)
  assert block.names == names
  assert block.labels.tolist() == [1, 0, 1]
  want = [decoded(os.path.join(root, name)) for name in names]
  np.testing.assert_array_equal(block.pixels, want)
  beside = image_folder / "images" / "list.txt"
  beside.write_text("\n".join(names) + "\n")
  np.testing.assert_array_equal(opened(beside).read(0, 3).pixels, want)
  beside.unlink()


def test_broken_images_are_kept_in_their_rows(image_folder, tmp_path):
  good = image_folder / "images" / "Person_00" / "Person_00_0001.jpg"
  jpeg = good.read_bytes()
  contents = [jpeg, jpeg[: len(jpeg) // 2], b"", b"text", jpeg]
  for number, content in enumerate(contents):
    (tmp_path / f"{number}.jpg").write_bytes(content)
  (tmp_path / "5.jpg").mkdir()
  names = [f"{k}.jpg" for k in range(7)] + ["nu\0ll.jpg"]
  (tmp_path / "list").write_text("\n".join(names))
  block = opened(tmp_path / "list").read(0, 8)
  assert block.names == names
  assert sorted(block.broken) == [1, 2, 3, 5, 6, 7]
  assert "broken JPEG" in block.broken[1]
  assert "No such file" in block.broken[6]
  assert all("\n" not in reason for reason in block.broken.values())
  assert not block.pixels[[1, 2, 3, 5, 6, 7]].any()
  np.testing.assert_array_equal(block.pixels[0], decoded(good))
  np.testing.assert_array_equal(block.pixels[4], decoded(good))
  # Positions count within the block.
  assert sorted(opened(tmp_path / "list").read(2, 5).broken) == [0, 1]


def test_dataset(dataset, image_folder):
  images = opened(dataset)
  assert len(images) == 37
  block = images.read(5, 20)
  assert block.labels.tolist() == [int(n[7:9]) for n in block.names]
  want = [decoded(image_folder / "images" / name) for name in block.names]
  np.testing.assert_array_equal(block.pixels, want)


@pytest.mark.parametrize("shape", [(32, 32), (40, 40), (20, 30)])
def test_array(tmp_path, shape):
  rng = np.random.default_rng(0)
  array = rng.integers(0, 256, (9, *shape, 3), np.uint8)
  np.save(tmp_path / "a.npy", array)
  block = opened(tmp_path / "a.npy", color_order="RGB").read(2, 9)
  assert block.names == ["2", "3", "4", "5", "6", "7", "8"]
  assert block.labels.tolist() == [-1] * 7
  # As a file with the same pixels would be scaled.
  for image, pixels in zip(array[2:], block.pixels, strict=True):
    cv2.imwrite(str(tmp_path / "one.png"), image[:, :, ::-1])
    np.testing.assert_array_equal(pixels, decoded(tmp_path / "one.png"))


@pytest.mark.parametrize(
  ("array", "part"),
  [
    (np.zeros((3, 8, 8, 3), np.float32), "float32"),
    (np.zeros((3, 8, 8), np.uint8), r"\[3, 8, 8\]"),
    (np.zeros((3, 8, 8, 4), np.uint8), r"\[3, 8, 8, 4\]"),
    (np.zeros((0, 8, 8, 3), np.uint8), r"\[0, 8, 8, 3\]"),
    (np.zeros((3, 0, 8, 3), np.uint8), r"\[3, 0, 8, 3\]"),
  ],
)
def test_other_arrays_are_refused(tmp_path, array, part):
  np.save(tmp_path / "a.npy", array)
  with pytest.raises(InputError, match=part):
    opened(tmp_path / "a.npy", color_order="RGB")


def test_colors_of_an_array_must_be_said_and_fit(tmp_path, image_folder):
  np.save(tmp_path / "a.npy", np.zeros((3, 8, 8, 3), np.uint8))
  with pytest.raises(InputError, match="--color_order=RGB"):
    opened(tmp_path / "a.npy")
  with pytest.raises(InputError, match="is BGR, but the network was trained"):
    opened(tmp_path / "a.npy", color_order="BGR")
  with pytest.raises(InputError, match="belongs to an array"):
    opened(image_folder / "images", color_order="RGB")


def test_what_is_no_input_is_refused(tmp_path, image_folder):
  for name, content, part in (
    ("a.npy", b"\x93NUMPY\x01", "not a sound .npy"),
    ("b.npy", b"", "not a sound .npy"),
    ("photo", b"\xff\xd8\xff\xe0", "not a text file"),
    ("empty", b"", "is empty"),
    ("gap", b"a.jpg\n\nb.jpg\n", "line 2"),
    ("lost", b"a.jpg\nb.jpg\n", "as --root"),
  ):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=part):
      opened(tmp_path / name, color_order="RGB" if "npy" in name else None)
  with pytest.raises(InputError, match="does not exist"):
    opened(tmp_path / "nowhere")
  with pytest.raises(InputError, match="belongs to a list"):
    opened(image_folder / "images", root="x")


def test_fingerprints_tell_inputs_apart(tmp_path):
  rng = np.random.default_rng(0)
  array = rng.integers(0, 256, (5000, 4, 4, 3), np.uint8)
  (tmp_path / "in").mkdir()
  prints = set()

  def add(path, **flags):
    before = len(prints)
    one, again = (opened(path, **flags).fingerprint for _ in range(2))
    assert one == again
    prints.add(one)
    return len(prints) > before

  np.save(tmp_path / "a.npy", array)
  assert add(tmp_path / "a.npy", color_order="RGB")
  array[-1, 0, 0, 0] ^= 1
  np.save(tmp_path / "a.npy", array)
  assert add(tmp_path / "a.npy", color_order="RGB")
  np.save(tmp_path / "a.npy", array[:-1])
  assert add(tmp_path / "a.npy", color_order="RGB")
  (tmp_path / "in" / "a.jpg").write_bytes(b"123")
  assert add(tmp_path / "in")
  (tmp_path / "in" / "a.jpg").write_bytes(b"1234")
  assert add(tmp_path / "in")
  os.rename(tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.jpg")
  assert add(tmp_path / "in")
  # Of the same size, and set back to the same date.
  image = tmp_path / "in" / "b.jpg"
  listing, date = opened(tmp_path / "in").listing, image.stat()
  time.sleep(0.02)  # Clocks of file systems tick every 4 ms.
  image.write_bytes(b"4321")
  os.utime(image, ns=(date.st_atime_ns, date.st_mtime_ns))
  assert add(tmp_path / "in")
  # What processes compare, each with a copy of its own, is not of the file.
  shutil.copytree(tmp_path / "in", tmp_path / "copy")
  assert opened(tmp_path / "copy").listing == listing
