import collections
import hashlib
import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence

from data_prep import inspect
from data_prep.inspection import survey
from data_prep.inspection.survey import picture_hash
from data_prep.writing.exclusions import read_exclusions
from data_prep.writing.writer import DatasetWriter


def encode(pixels, extension=".jpg", quality=95):
  bgr = np.ascontiguousarray(pixels[:, :, ::-1])
  options = [cv2.IMWRITE_JPEG_QUALITY, quality] if extension == ".jpg" else []
  return cv2.imencode(extension, bgr, options)[1].tobytes()


def picture(seed, height=40, width=40, sharpness=5):
  """Smooth coloured noise, as photographs are."""
  rng = np.random.default_rng(seed)
  coarse = rng.uniform(0, 255, (sharpness, sharpness, 3)).astype(np.float32)
  shape = (width, height)
  smooth = cv2.resize(coarse, shape, interpolation=cv2.INTER_CUBIC)
  return smooth.clip(0, 255).astype(np.uint8)


def write(directory, images, classes=4):
  """A data set of (label, name, bytes, size)."""
  with DatasetWriter(
    str(directory),
    name="d",
    classes=[f"c{k}" for k in range(classes)],
    source="s",
    shard_bytes=20_000,
  ) as writer:
    for label, name, data, size in images:
      writer.add(label, name, data, size)
  return str(directory)


def items(count, classes=4):
  for k in range(count):
    size = (40, 40) if k % 5 else (30, 50)
    data = encode(picture(k, *size), ".png" if k % 3 == 0 else ".jpg")
    yield [k % classes, f"c{k % classes}/{k}", data, size]


def report(directory, **changes):
  settings = {"against": None, "output": None, "faces": False, "threads": 2}
  return inspect.inspect(str(directory), **settings | changes)


def edit(directory, **fields):
  path = directory / "dataset.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_sound_data_set(tmp_path):
  images = list(items(50))
  grey = np.repeat(picture(99)[:, :, :1], 3, 2)
  images[7][2] = encode(grey, ".png")
  images[13][2] = encode(grey[::-1])
  found = report(write(tmp_path / "d", images))
  assert found["wrong"] == 0 and found["errors"] == []
  assert (found["images"], found["classes"]) == (50, 4)
  assert found["image_sizes"] == [[40, 40, 40], [30, 50, 10]]
  assert found["grey_images"] == 2
  assert found["same_file"] == found["same_picture"] == 0
  sizes = [13, 13, 12, 12]
  assert found["class_sizes"]["mean"] == np.mean(sizes)
  assert found["class_sizes"]["50 %"] == np.median(sizes)
  assert found["class_sizes"]["single"] == 0


def test_duplicates_by_content(tmp_path):
  images = list(items(30))
  images[11][2] = images[17][2] = images[4][2]  # Twice the same file.
  images[22] = [2, "c2/22", encode(picture(1), quality=90), (40, 40)]
  images[23] = [3, "c3/23", encode(cv2.resize(picture(2), (80, 80))), (80, 80)]
  directory = write(tmp_path / "d", images)
  # The test set has images 6 and 8, the second recompressed, and one's own.
  write(
    tmp_path / "t",
    [
      [0, "t/0", images[6][2], (40, 40)],
      [1, "t/1", encode(picture(8), quality=90), (40, 40)],
      [2, "t/2", encode(picture(77)), (40, 40)],
      [3, "t/3", images[6][2], (40, 40)],
    ],
  )
  out = tmp_path / "out"
  found = report(directory, against=str(tmp_path / "t"), output=str(out))
  kinds = ["same_file", "same_picture"]
  kinds += [f"{kind}_in_other" for kind in kinds]
  assert [found[kind] for kind in kinds] == [2, 2, 1, 1]
  lines = (out / "duplicates.tsv").read_text().splitlines()
  assert lines == [
    "path\treason\trepeats",
    "c3/11\tsame_file\tc0/4",
    "c1/17\tsame_file\tc0/4",
    "c2/22\tsame_picture\tc1/1",
    "c3/23\tsame_picture\tc2/2",
    "c2/6\tsame_file_in_other\tt/0",
    "c0/8\tsame_picture_in_other\tt/1",
  ]
  assert read_exclusions(str(out / "duplicates.tsv")) == {
    line.split("\t")[0] for line in lines[1:]
  }


def test_picture_hash_tells_pictures_apart_but_not_their_quality():
  hashes = [picture_hash(picture(seed)) for seed in range(2000)]
  assert len(set(hashes)) == 2000
  same = collections.Counter()
  for seed in range(100):
    for quality in (95, 75):
      data = encode(picture(seed), quality=quality)
      pixels = cv2.imdecode(np.frombuffer(data, np.uint8), 1)[:, :, ::-1]
      same[quality] += picture_hash(pixels) == hashes[seed]
  assert same[95] >= 90 and same[75] >= 60, same


def test_picture_hash_sees_every_pair_of_neighbours():
  grid = np.random.default_rng(0).permutation(64).reshape(8, 8) * 4

  def hash_of(values):
    blocks = np.kron(values, np.ones((5, 5))).astype(np.uint8)
    return picture_hash(np.repeat(blocks[:, :, None], 3, 2))

  for y, x in np.ndindex(7, 7):
    for neighbour in ((y, x + 1), (y + 1, x)):
      swapped = grid.copy()
      swapped[y, x], swapped[neighbour] = grid[neighbour], grid[y, x]
      assert hash_of(swapped) != hash_of(grid)
  assert hash_of(grid // 2 + 60) == hash_of(grid)  # Of less contrast.


@pytest.fixture
def sound(tmp_path):
  directory = tmp_path / "d"
  write(directory, items(50))
  return directory


def test_flipped_byte_changes_the_checksum(sound):
  shard = sound / "images-00001.array_record"
  data = bytearray(shard.read_bytes())
  data[-3] ^= 1  # Not within a record: only the checksum tells.
  shard.write_bytes(data)
  found = report(sound)
  assert found["wrong"] >= 1
  assert "images-00001.array_record has another checksum" in found["errors"][0]


def test_labels_are_compared_with_the_records(sound):
  path = sound / "labels.npy"
  labels = np.load(path)
  labels[7] = 0  # It is 3.
  np.save(path, labels)
  [error] = report(sound)["errors"]
  assert "labels.npy' is damaged (another checksum" in error
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  edit(sound, labels_sha256=digest)
  [error] = report(sound)["errors"]
  assert error == "labels.npy gives record 7 label 0, not 3"
  edit(sound, labels_sha256=None)  # Made before there was such a file.
  assert not report(sound)["errors"]


def test_damaged_records_are_counted(sound):
  shard = sound / "images-00001.array_record"
  data = bytearray(shard.read_bytes())
  for place in range(5000, 9000, 40):
    data[place] ^= 0xFF
  shard.write_bytes(data)
  found = report(sound)
  assert "checksum" in found["errors"][0]
  damaged = [error for error in found["errors"] if "cannot be read" in error]
  assert 1 <= len(damaged) < 20
  assert found["wrong"] == 1 + len(damaged)
  # All others were looked at.
  looked = sum(count for *_, count in found["image_sizes"])
  assert looked == 50 - len(damaged)


def test_broken_image(tmp_path):
  images = list(items(10))
  images[4][2] = images[4][2][:-60]
  found = report(write(tmp_path / "d", images))
  assert found["wrong"] == 1
  assert found["errors"][0].startswith("image 'c0/4': broken JPEG")


def test_of_many_broken_images_the_first_are_kept(tmp_path, monkeypatch):
  images = [[*head, image[:-60], size] for *head, image, size in items(50)]
  surveys = []

  def take(*arguments):
    surveys.append(survey.take_survey(*arguments))
    return surveys[-1]

  monkeypatch.setattr(inspect, "take_survey", take)
  found = report(write(tmp_path / "d", images))
  assert found["wrong"] == 50
  kept = surveys[0].errors.first
  assert len(kept) == 20 and found["errors"] == kept


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"class_sizes": [14, 12, 12, 12]}, "class 0 has 13 images, not 14"),
    ({"class_sizes": [13, 37]}, "class_sizes has 2 entries for 4 classes"),
    ({"image_size": [40, 40]}, r"not every image has the image_size (40, 40)"),
    (
      {"classes": 3, "class_sizes": [13, 13, 12]},
      "12 labels lie outside [0, 3)",
    ),
    ({"classes": 5, "class_sizes": [13, 13, 12, 12, 0]}, "has 4 lines for 5"),
  ],
)
def test_index_that_lies(sound, fields, says):
  edit(sound, **fields)
  found = report(sound)
  assert found["wrong"] >= 1
  assert any(says in error for error in found["errors"]), found["errors"]


def test_command(run, sound, tmp_path):
  out = tmp_path / "out"
  done = run("data_prep.inspect", sound, f"--output={out}")
  assert done.returncode == 0, done.stderr
  table = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:3])
  assert table["images"].startswith("50 ")
  # People are shown only when asked for.
  assert sorted(path.name for path in out.iterdir()) == [
    "class_sizes.png",
    "duplicates.tsv",
    "inspect.json",
  ]
  assert json.loads((out / "inspect.json").read_text())["images"] == 50
  plot = cv2.imread(str(out / "class_sizes.png"))
  assert plot.std() > 5
  edit(sound, class_sizes=[14, 12, 12, 12])
  done = run("data_prep.inspect", sound)
  assert done.returncode == 1 and done.stderr == ""
  assert "class 0 has 13 images, not 14" in done.stdout


def test_contact_sheet_shows_the_images(sound, tmp_path):
  report(sound, output=str(tmp_path), faces=True)
  sheet = cv2.imread(str(tmp_path / "contact_sheet.png"))[:, :, ::-1]
  assert sheet.shape == (7 * 112, 8 * 112, 3)
  # Tile 9 is image 9, 40 x 40.
  tile = sheet[112:224, 112:224].astype(int)
  shown = cv2.resize(picture(9), (112, 112), interpolation=cv2.INTER_LINEAR)
  assert np.abs(tile - shown).mean() < 6
  assert (sheet[-112:, 3 * 112 :] == 255).all()  # 50 = 6 x 8 + 2; white.


def test_bad_input(run, sound, tmp_path):
  assert_one_sentence(run("data_prep.inspect", tmp_path), "is not a data set")
  assert_one_sentence(run("data_prep.inspect", sound, "--faces"), "--output")
  assert_one_sentence(
    run("data_prep.inspect", sound, f"--against={tmp_path / 'none'}"), "none"
  )
  shutil.copytree(sound, tmp_path / "cut")
  shard = tmp_path / "cut" / "images-00000.array_record"
  shard.write_bytes(shard.read_bytes()[:-9])
  assert_one_sentence(
    run("data_prep.inspect", tmp_path / "cut"), "images-00000", "bytes"
  )


def test_standard_library_module_of_the_same_name_stays():
  code = (
    "import sys, runpy; sys.argv = ['inspect', '--help']\n"
    "try: runpy.run_module('data_prep.inspect', run_name='__main__')\n"
    "except SystemExit: pass\n"
    "import inspect; print(inspect.signature(inspect.getsource))"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True
  )
  assert done.stdout.strip().endswith("(object)"), done.stderr
