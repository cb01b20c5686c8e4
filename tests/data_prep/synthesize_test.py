"""The synthetic data sets: reproducible, well formed, neither easy nor void."""

import collections
import hashlib
import itertools
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from data_prep import synthesize
from data_prep.synthetic import classes, photos
from jamsface_jax.data import records
from jamsface_jax.errors import InputError

SMALL = (
  "--identities=8",
  "--images=60",
  "--largest_class=20",
  "--test_identities=20",
  "--test_images=4",
  "--pairs=200",
)


def run(output, *flags):
  synthesize.main([f"--output={output}", "--workers=1", *SMALL, *flags])


def digest(directory):
  """Of every file below, by relative path."""
  return {
    str(path.relative_to(directory)): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in pathlib.Path(directory).rglob("*")
    if path.is_file()
  }


@pytest.fixture(scope="module")
def output(tmp_path_factory):
  directory = str(tmp_path_factory.mktemp("synthetic") / "set")
  run(directory)
  return directory


def read_all(directory):
  reader = records.RecordReader(directory)
  return reader.read(range(len(reader)))


def test_same_seed_same_bytes_whatever_the_workers(output, tmp_path):
  run(tmp_path / "two", "--workers=2")
  assert digest(tmp_path / "two") == digest(output)


def test_other_seed_other_images(output, tmp_path):
  run(tmp_path / "other", "--seed=1")
  one = {record.image for record in read_all(f"{output}/train")}
  other = {
    record.image for record in read_all(str(tmp_path / "other" / "train"))
  }
  assert len(one) == len(other) == 60
  assert not one & other


def test_an_image_does_not_depend_on_the_images_around_it():
  seven = photos.draw_identity(3, 5, range(1, 8), 112)
  assert photos.draw_identity(3, 5, [6], 112) == [seven[5]]
  assert len(set(seven)) == 7


def test_size_is_only_resolution():
  small, large = (
    decode(photos.draw_identity(3, 5, range(1, 5), size), 28)
    for size in (112, 224)
  )
  for one, other in zip(small, large, strict=True):
    assert np.corrcoef(one, other)[0, 1] > 0.98


@pytest.mark.parametrize("split", ["train", "test"])
def test_records(output, split):
  index = records.read_index(f"{output}/{split}")
  classes = records.read_classes(f"{output}/{split}")
  counts = collections.Counter()
  for record in read_all(f"{output}/{split}"):
    counts[record.label] += 1
    name = classes[record.label]
    assert record.name == f"{name}/{name}_{counts[record.label]:04d}.jpg"
    image = cv2.imdecode(np.frombuffer(record.image, np.uint8), -1)
    assert image.shape == (112, 112, 3) and image.dtype == np.uint8
    assert image.std() > 5
  assert index.name == f"synthetic_{split}"
  assert index.image_size == (112, 112)
  assert [counts[label] for label in range(index.classes)] == list(
    index.class_sizes
  )


def test_mislabelled_images_keep_their_names_and_classes_their_sizes(
  output, tmp_path
):
  run(tmp_path / "set", "--mislabelled=0.25")
  assert digest(tmp_path / "set" / "test") == digest(f"{output}/test")
  right, wrong = (
    read_all(f"{where}/train") for where in (output, tmp_path / "set")
  )
  assert [r.image for r in right] == [w.image for w in wrong]
  assert [r.name for r in right] == [w.name for w in wrong]
  true, given = (np.array([r.label for r in part]) for part in (right, wrong))
  assert np.sum(true != given) == 15
  np.testing.assert_array_equal(np.bincount(true), np.bincount(given))
  assert len({*zip(true[true != given], given[true != given], strict=True)}) > 5


def test_a_class_too_large_to_be_mislabelled_is_refused():
  rng = np.random.default_rng(0)
  with pytest.raises(InputError, match="--mislabelled=0.2 of 106 images"):
    classes.training_labels([100, 3, 3], 0.2, rng)


def test_no_identity_is_in_both_sets(output):
  train = records.read_classes(f"{output}/train")
  test = records.read_classes(f"{output}/test")
  assert len({*train, *test}) == len(train) + len(test) == 28


def test_jpeg_is_rgb():
  red = np.zeros((32, 32, 3), np.uint8)
  red[..., 0] = 255
  jpeg = np.frombuffer(photos.encode(red), np.uint8)
  decoded = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
  assert decoded[..., 0].min() > 240 and decoded[..., 1:].max() < 15


def test_pairs(output):
  lines = pathlib.Path(f"{output}/test/pairs.txt").read_text().splitlines()
  assert lines[0] == "10\t10"
  assert len(lines) == 201
  names = {record.name for record in read_all(f"{output}/test")}
  seen, members = set(), []
  for fold in range(10):
    block = [line.split("\t") for line in lines[1 + fold * 20 :][:20]]
    assert [len(fields) for fields in block] == [3] * 10 + [4] * 10
    members.append(
      {field for fields in block for field in fields if "_" in field}
    )
    for fields in block:
      if len(fields) == 3:
        fields = [fields[0], fields[1], fields[0], fields[2]]
      else:
        assert fields[0] != fields[2]
      one, other = (
        f"{name}/{name}_{int(number):04d}.jpg"
        for name, number in (fields[:2], fields[2:])
      )
      assert one in names and other in names and one != other
      assert frozenset([one, other]) not in seen
      seen.add(frozenset([one, other]))
  for one, other in itertools.combinations(members, 2):
    assert not one & other


def test_zipf_sizes_fall_with_the_rank():
  sizes = classes.class_sizes("zipf:1.0", 600, 9000, 2, 100)
  assert sizes.sum() == 9000 and len(sizes) == 600
  assert sizes.max() == 100 and 2 <= sizes.min() <= 4
  assert (np.diff(sizes) <= 0).all()
  # Where no bound binds, rank times size is a constant, up to rounding.
  rank = np.arange(1, 601)
  free = (sizes < 100) & (sizes > 2)
  constant = (rank * sizes)[free]
  assert free.sum() > 500
  assert (np.abs(constant - np.median(constant)) <= rank[free] * 1.01).all()


def test_steeper_zipf_has_a_richer_head():
  flat = classes.class_sizes("zipf:0", 100, 1000, 1, 500)
  steep = classes.class_sizes("zipf:2", 100, 1000, 1, 500)
  assert set(flat) == {10}
  assert steep[0] == 500 and steep[-1] == 1 and steep.sum() == 1000


def test_sizes_of_a_file_are_its_quantiles(tmp_path):
  path = tmp_path / "sizes.txt"
  path.write_text("\n".join(map(str, range(1, 101))) + "\n")
  as_is = classes.class_sizes(f"file:{path}", 4, None, 1, 1000)
  np.testing.assert_array_equal(as_is, [88, 63, 38, 13])
  scaled = classes.class_sizes(f"file:{path}", 4, 404, 1, 1000)
  np.testing.assert_array_equal(scaled, [176, 126, 76, 26])


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--tail=pareto:2"], "--tail"),
    (["--tail=zipf:steep"], "--tail"),
    (["--tail=zipf:-1"], "--tail"),
    (["--tail=zipf:nan"], "--tail"),
    (["--tail=file:/nowhere/sizes.txt"], "--tail"),
    (["--images=9"], "--images"),
    (["--images=161"], "--images"),
    (["--test_identities=19"], "--test_identities"),
    (["--pairs=210"], "--pairs"),
    (["--pairs=0"], "--pairs"),
    (["--pairs=260"], "--pairs"),
    (["--size=8"], "--size"),
    (["--workers=0"], "--workers"),
    (["--seed=-1"], "--seed"),
    (["--largest_class=1"], "--largest_class"),
  ],
)
def test_bad_flags_are_one_sentence_and_write_nothing(tmp_path, flags, message):
  with pytest.raises(InputError) as error:
    run(tmp_path / "set", *flags)
  assert str(error.value).startswith(message)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("text", ["", "3\nmany\n", "3\n0\n"])
def test_bad_size_files(tmp_path, text):
  path = tmp_path / "sizes.txt"
  path.write_text(text)
  with pytest.raises(InputError, match="--tail"):
    classes.class_sizes(f"file:{path}", 4, None, 1, 100)


def test_an_existing_data_set_is_kept(output):
  before = digest(output)
  command = [sys.executable, "-m", "data_prep.synthesize"]
  done = subprocess.run(
    [*command, f"--output={output}", *SMALL], capture_output=True, text=True
  )
  assert done.returncode == 2
  assert done.stderr.startswith("error: --output")
  assert done.stderr.count("\n") == 1
  assert digest(output) == before


def test_a_test_set_alone_is_kept_too(output, tmp_path):
  shutil.copytree(f"{output}/test", tmp_path / "test")
  with pytest.raises(InputError, match="holds a data set already"):
    run(tmp_path)
  assert not (tmp_path / "train").exists()
  assert digest(tmp_path / "test") == digest(f"{output}/test")


def test_the_command_says_what_to_do_next(tmp_path):
  command = [sys.executable, "-m", "data_prep.synthesize"]
  done = subprocess.run(
    [*command, f"--output={tmp_path}/set", "--workers=1", *SMALL],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0
  wrote, following = done.stdout.splitlines()
  assert "60 images of 8 identities (20 to 3 each)" in wrote
  assert f"--config.data.directory={tmp_path}/set/train" in following
  assert done.stderr.splitlines()[-1] == "140 of 140 images"


def decode(jpegs, size):
  """Grey thumbnails, float32 [N, size * size]."""
  images = [
    cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    for jpeg in jpegs
  ]
  small = [
    cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    for image in images
  ]
  return np.float32(small).reshape(len(images), -1)


def best_accuracy(scores, same):
  """Accuracy at the best threshold for these very pairs: an upper bound."""
  order = np.argsort(-scores)
  right = np.cumsum(same[order]) + (~same).sum() - np.cumsum(~same[order])
  return right.max() / len(scores)


def test_pixels_hardly_tell_who_it_is():
  jpegs = [
    jpeg
    for identity in range(60)
    for jpeg in photos.draw_identity(11, identity, range(1, 7), 112)
  ]
  who = np.repeat(np.arange(60), 6)
  pixels = decode(jpegs, 56)
  pixels -= pixels.mean(1, keepdims=True)
  pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
  one, other = np.triu_indices(len(who), 1)
  same = who[one] == who[other]
  different = np.random.default_rng(0).permutation(np.flatnonzero(~same))
  chosen = np.concatenate([np.flatnonzero(same), different[: same.sum()]])
  scores = (pixels[one[chosen]] * pixels[other[chosen]]).sum(1)
  accuracy = best_accuracy(scores, same[chosen])
  assert accuracy < 0.65


def test_identity_can_be_learned():
  """Fisher's discriminant on thumbnails, tested on other images."""
  identities, images = 12, 30
  jpegs = [
    jpeg
    for identity in range(identities)
    for jpeg in photos.draw_identity(12, identity, range(1, images + 1), 112)
  ]
  who = np.repeat(np.arange(identities), images)
  train = np.tile(np.arange(images) < 20, identities)
  pixels = decode(jpegs, 28)
  pixels -= pixels.mean(1, keepdims=True)
  pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
  means = np.stack(
    [pixels[train & (who == label)].mean(0) for label in range(identities)]
  )
  within = pixels[train] - means[who[train]]
  ridge = 0.02 * np.eye(pixels.shape[1])
  weights = np.linalg.solve(
    within.T @ within / len(within) * 100 + ridge, means.T
  )
  logits = pixels @ weights - 0.5 * (means.T * weights).sum(0)
  accuracy = (logits.argmax(1) == who)[~train].mean()
  assert accuracy > 3 / identities


def test_held_out_images_are_new_and_change_nothing_else(tmp_path):
  arguments = {"train_sizes": [3, 2], "test_identities": 20, "test_images": 2}
  arguments |= {"pairs": 20, "seed": 0, "size": 32, "workers": 1}
  arguments |= {"mislabelled": 0.0}
  plain, more = tmp_path / "plain", tmp_path / "more"
  synthesize.synthesize(str(plain), held_out=0, **arguments)
  synthesize.synthesize(str(more), held_out=2, **arguments)
  assert sorted(p.name for p in plain.iterdir()) == ["test", "train"]
  for name in ("train", "test"):
    shards = sorted((plain / name).glob("*.array_record"))
    assert shards
    for shard in shards:
      assert shard.read_bytes() == (more / name / shard.name).read_bytes()
  held_out = [*records.RecordReader(str(more / "held_out")).scan()]
  assert [(r.label, r.name) for r in held_out] == [
    (0, "id_00000/id_00000_0004.jpg"),
    (0, "id_00000/id_00000_0005.jpg"),
    (1, "id_00001/id_00001_0003.jpg"),
    (1, "id_00001/id_00001_0004.jpg"),
  ]
  trained = records.RecordReader(str(more / "train")).scan()
  assert not {r.image for r in held_out} & {r.image for r in trained}
  names = records.read_classes(str(more / "train"))
  assert records.read_classes(str(more / "held_out")) == names


@pytest.mark.slow
@pytest.mark.parametrize("drawing", [False, True])
def test_ctrl_c_is_quiet(drawing, tmp_path):
  """The terminal sends it to all: while this one imports, and its workers."""
  log = tmp_path / "stderr"
  with open(log, "w", encoding="utf-8") as errors:
    process = subprocess.Popen(
      [
        sys.executable,
        "-X",
        "importtime",
        "-m",
        "data_prep.synthesize",
        f"--output={tmp_path}/set",
        "--images=50000",
        "--workers=2",
      ],
      stderr=errors,
      stdout=subprocess.PIPE,
      start_new_session=True,
    )
  while process.poll() is None:
    if drawing and (tmp_path / "set" / "train").exists():
      break  # Its workers import.
    if not drawing and "jamsface_jax.commands" in log.read_text():
      break  # What is our own has begun, and numpy has not.
    time.sleep(0.02)
  os.killpg(process.pid, signal.SIGINT)
  out, _ = process.communicate(timeout=60)
  said = log.read_text()
  assert process.returncode in (130, -signal.SIGINT), said[-500:]
  assert "Traceback" not in said and "KeyboardInterrupt" not in said, said
  assert not out


def test_workers_never_hear_ctrl_c():
  """Not even while they import; in a Python that has started no process."""
  code = (
    "import signal\n"
    "from data_prep.synthesize import _start_workers\n"
    "with _start_workers(1) as pool:\n"
    "  blocked = pool.apply(signal.pthread_sigmask, (signal.SIG_BLOCK, ()))\n"
    "here = signal.pthread_sigmask(signal.SIG_BLOCK, ())\n"
    "print(signal.SIGINT in blocked, signal.SIGINT in here)"
  )
  ran = subprocess.run(
    [sys.executable, "-c", code], check=True, capture_output=True, text=True
  )
  assert ran.stdout == "True False\n", ran.stderr
