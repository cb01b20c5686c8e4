"""RecordIO against a second writer, made from the format's description."""

import os
import signal
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence

from data_prep import from_recordio
from data_prep.formats import recordio
from jamsface_jax.data import records
from jamsface_jax.errors import InputError

MAGIC = b"\x0a\x23\xd7\xce"


def part(flag, data):
  word = struct.pack("<I", flag << 29 | len(data))
  return MAGIC + word + data + bytes(-len(data) % 4)


def record(payload):
  """Cuts the payload at each magic number on a multiple of 4."""
  pieces = [b""]
  for k in range(0, len(payload), 4):
    word = payload[k : k + 4]
    if word == MAGIC:
      pieces.append(b"")
    else:
      pieces[-1] += word
  if len(pieces) == 1:
    return part(0, payload)
  flags = [1] + [2] * (len(pieces) - 2) + [3]
  return b"".join(map(part, flags, pieces))


def image_record(label, image, number=0):
  """A record with one label, or with an array of labels."""
  if isinstance(label, (int, float)):
    return record(struct.pack("<IfQQ", 0, label, number, 0) + image)
  head = struct.pack("<IfQQ", len(label), 0, number, 0)
  return record(head + np.array(label, "<f4").tobytes() + image)


def join(keys, parts):
  """The bytes of a .rec file and the text of its .idx."""
  offsets = np.cumsum([0] + [len(p) for p in parts[:-1]])
  lines = [f"{k}\t{o}\n" for k, o in zip(keys, offsets, strict=True)]
  return b"".join(parts), "".join(lines)


def im2rec(labels, images):
  parts = [image_record(label, images[k], k) for k, label in enumerate(labels)]
  return join(range(len(parts)), parts)


def insightface(labels, images, *, header_first=False, header=None):
  """Images 1 to N by class, then a record for each class, and the header."""
  first = [x if isinstance(x, (int, float)) else x[0] for x in labels]
  parts = [
    image_record(label, images[k], k + 1) for k, label in enumerate(labels)
  ]
  classes = sorted(set(first))
  end = len(parts) + 1
  for k, label in enumerate(classes):
    begin = 1 + first.index(label)
    span = [begin, begin + first.count(label)]
    parts.append(image_record(span, b"", end + k))
  keys = list(range(1, len(parts) + 1))
  head = image_record(header or [end, end + len(classes)], b"", 0)
  if header_first:
    return join([0, *keys], [head, *parts])
  return join([*keys, 0], [*parts, head])


def jpeg(seed, size=16, grey=False):
  pixels = np.random.default_rng(seed).integers(
    0, 255, (size, size, 3), np.uint8
  )
  pixels = pixels[:, :, 0] if grey else pixels
  return cv2.imencode(".jpg", pixels)[1].tobytes()


IMAGES = [jpeg(k, grey=k % 4 == 1) for k in range(12)]
LABELS = [0, 0, 0, 1, 1, [2, 0.5, -1.0], 2, [2], 3, 3, 3, 3]
CLASSES = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 3]


def save(directory, rec, idx=None, classes=None):
  directory.mkdir(exist_ok=True)
  (directory / "train.rec").write_bytes(rec)
  if idx is not None:
    (directory / "train.idx").write_text(idx)
  if classes is not None:
    (directory / "property").write_text(f"{classes},16,16\n")
  return directory


def convert(source, directory, **changes):
  from_recordio.convert(
    str(source),
    str(directory),
    **{
      "name": "tiny",
      "limit": None,
      "min_images_per_class": 1,
      "remap_labels": False,
      "skip_bad": False,
      "exclude": None,
      "check_images": True,
      "threads": 2,
    }
    | changes,
  )
  return list(records.RecordReader(str(directory)).scan())


def skipped(directory):
  lines = (directory / "skipped.txt").read_text().splitlines()
  return dict(line.split("\t", 1) for line in lines)


def read(path, index_path=None):
  """Images and damages as the reader finds them."""
  index_path = index_path and str(index_path)
  with recordio.RecordFile(str(path), index_path) as file:
    found = list(file.records())
    images = {
      r.key: (r.label, file.read_image(r))
      for r in found
      if isinstance(r, recordio.Image)
    }
  return images, [r for r in found if isinstance(r, recordio.Damage)]


# Magic numbers at the start, at the end, in a row, off the multiples of 4, in
# pieces, and in the header (as an id, as a label); lengths of all remainders.
PAYLOADS = [
  MAGIC,
  MAGIC * 3,
  b"x" + MAGIC,
  b"abcd" + MAGIC + b"efgh" + MAGIC + b"i",
  b"ab" + MAGIC + b"cd",
  MAGIC[:3],
  MAGIC + MAGIC[:3],
  b"abcd" + MAGIC + MAGIC + b"xyz",
  *[bytes(range(n)) for n in range(1, 9)],
]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("labels", ["number", "array"])
def test_bytes_survive_whatever_they_hold(tmp_path, indexed, labels):
  lucky = struct.unpack("<f", MAGIC)[0]
  parts = [
    image_record(
      float(k) if labels == "number" else [k, lucky, lucky],
      payload,
      number=int.from_bytes(MAGIC * 2, "little"),
    )
    for k, payload in enumerate(PAYLOADS)
  ]
  assert sum(p.count(MAGIC) > 1 for p in parts) == len(parts)
  rec, idx = join(range(len(parts)), parts)
  folder = save(tmp_path / "in", rec, idx)
  images, damages = read(
    folder / "train.rec", folder / "train.idx" if indexed else None
  )
  assert not damages
  assert images == dict(enumerate(enumerate(PAYLOADS)))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("dialect", ["im2rec", "header first", "header last"])
def test_both_dialects(tmp_path, dialect, indexed):
  if dialect == "im2rec":
    rec, idx = im2rec(LABELS, IMAGES)
  else:
    rec, idx = insightface(
      LABELS, IMAGES, header_first=dialect == "header first"
    )
  folder = save(tmp_path / "in", rec, idx if indexed else None, classes=4)
  found = convert(folder, tmp_path / "out")
  assert [r.image for r in found] == IMAGES
  assert [r.label for r in found] == CLASSES
  first = (
    0
    if dialect == "im2rec" or (dialect, indexed) == ("header last", False)
    else 1
  )
  assert [r.name for r in found] == [str(first + k) for k in range(12)]
  index = records.read_index(str(tmp_path / "out"))
  assert (index.images, index.classes) == (12, 4)
  assert index.class_sizes == (3, 2, 3, 4) and index.image_size == (16, 16)
  assert records.read_classes(str(tmp_path / "out"))[3] == "0000003"
  assert not (tmp_path / "out" / "skipped.txt").exists()


def test_index_in_any_order(tmp_path):
  rec, idx = im2rec(LABELS, IMAGES)
  lines = idx.splitlines(keepends=True)
  order = np.random.default_rng(0).permutation(12)
  folder = save(tmp_path / "in", rec, "".join(lines[k] for k in order))
  found = convert(folder, tmp_path / "out")
  assert [r.image for r in found] == [IMAGES[k] for k in order]
  assert [r.name for r in found] == [str(k) for k in order]


def test_missing_last_padding(tmp_path):
  rec, _ = im2rec([0], [b"12345"])
  assert rec[-3:] == bytes(3)
  save(tmp_path / "in", rec[:-3])
  images, damages = read(tmp_path / "in" / "train.rec")
  assert images == {0: (0, b"12345")} and not damages
  rec, idx = im2rec([0], [IMAGES[1]])  # 595 bytes and 1 of padding.
  save(tmp_path / "in", rec[:-1], idx)
  assert len(convert(tmp_path / "in", tmp_path / "out")) == 1


def test_header_of_more_images_than_float32_counts(tmp_path):
  """Glint360K's header is a multiple of 2, WebFace42M's of 4: rounded."""
  with recordio.RecordFile(
    str(save(tmp_path / "in", b"") / "train.rec"), None
  ) as file:

    def problem(images, identities, labels):
      head = struct.unpack("<ff", struct.pack("<ff", *labels))
      table = recordio.Table(0, 0, 40, head)
      return from_recordio._check_header(file, table, images, identities)

    assert not problem(17_091_657, 360_232, (17_091_658, 17_451_890))
    assert not problem(42_474_557, 2_059_906, (42_474_558, 44_534_464))
    assert "17091658" in problem(17_091_640, 360_232, (17_091_658, 17_451_890))


def test_flags(tmp_path):
  rec, idx = insightface(LABELS, IMAGES)
  folder = save(tmp_path / "in", rec, idx)
  found = convert(folder, tmp_path / "limit", limit=4)
  assert [r.name for r in found] == ["1", "2", "3", "4"]
  found = convert(folder, tmp_path / "rich", min_images_per_class=3)
  assert [r.label for r in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
  classes = records.read_classes(str(tmp_path / "rich"))
  assert classes == ["0000000", "0000002", "0000003"]
  names = tmp_path / "names.txt"
  names.write_text("2\tblurred\n9\n12\n")
  found = convert(
    folder, tmp_path / "both", exclude=str(names), min_images_per_class=3
  )
  assert [r.name for r in found] == ["6", "7", "8"]
  names.write_text("2\n9\n")
  found = convert(folder, tmp_path / "few", exclude=str(names))
  assert [r.name for r in found] == [
    str(k) for k in range(1, 13) if k not in (2, 9)
  ]
  names.write_text("2\n13x\n")
  with pytest.raises(InputError, match="'13x', which is no record"):
    convert(folder, tmp_path / "none", exclude=str(names))
  with pytest.raises(InputError, match="no class with at least 5"):
    convert(folder, tmp_path / "none", min_images_per_class=5)


def test_gaps_in_the_labels(tmp_path):
  rec, idx = insightface([0, 0, 5, 5, 7], IMAGES[:5])
  folder = save(tmp_path / "in", rec, idx)
  with pytest.raises(
    InputError, match="label 5 but no image of label 1: .*remap"
  ):
    convert(folder, tmp_path / "out")
  found = convert(folder, tmp_path / "out", remap_labels=True)
  assert [r.label for r in found] == [0, 0, 1, 1, 2]
  classes = records.read_classes(str(tmp_path / "out"))
  assert classes == ["0000000", "0000005", "0000007"]


# Damage. Each record has 8 + 24 + len(image) bytes, and padding.


def starts(idx):
  return [int(line.split()[1]) for line in idx.splitlines()]


@pytest.mark.parametrize("indexed", [True, False])
def test_truncated_file(tmp_path, indexed):
  rec, idx = im2rec(CLASSES, IMAGES)
  at = starts(idx)
  for cut, whole in [
    (at[11] + 4, 11),
    (at[11] + 30, 11),
    (len(rec) - 30, 11),
    (at[10] + 8, 10),
    (at[10], 10),
  ]:
    folder = save(tmp_path / "in", rec[:cut], idx if indexed else None)
    if indexed or cut != at[10]:
      with pytest.raises(InputError, match=rf"{at[whole]} of .*train.rec") as e:
        convert(folder, tmp_path / "out")
      assert "--skip_bad" in str(e.value) and str(e.value).count(". ") == 0
    found = convert(folder, tmp_path / f"{cut}", skip_bad=True)
    assert [r.image for r in found] == IMAGES[:whole]


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize(
  ("place", "data", "says"),
  [
    (0, b"\0", "no magic number"),
    (4, struct.pack("<I", 2 << 29 | 700), "wrong flag 2"),
    (4, struct.pack("<I", 1 << 29 | 24), "no magic number"),
    (4, struct.pack("<I", 2**29 - 1), "past the end"),
    (4, struct.pack("<I", 1500), "its length is wrong"),
    (4, struct.pack("<I", 8), "too few for an image record"),
    (8, struct.pack("<I", 4000), "too few for 4000 labels"),
    (12, struct.pack("<f", 0.5), "label 0.5"),
    (12, struct.pack("<f", -1), "label -1"),
    (12, struct.pack("<f", np.nan), "label nan"),
    (12, struct.pack("<f", np.inf), "label inf"),
    (32, b"GIF", "not a JPEG"),
    (40, bytes(300), "broken JPEG"),
  ],
)
def test_one_damaged_record(tmp_path, indexed, place, data, says):
  rec, idx = im2rec(CLASSES, IMAGES)
  at = starts(idx)[4]
  broken = rec[: at + place] + data + rec[at + place + len(data) :]
  folder = save(tmp_path / "in", broken, idx if indexed else None)
  with pytest.raises(InputError) as error:
    convert(folder, tmp_path / "out")
  text = str(error.value)
  assert f"byte {at} of {str(folder / 'train.rec')!r}" in text and says in text
  found = convert(folder, tmp_path / "out", skip_bad=True)
  assert [r.image for r in found] == IMAGES[:4] + IMAGES[5:]
  name, reason = next(iter(skipped(tmp_path / "out").items()))
  assert name == "4" and f"byte {at} of" in reason and says in reason
  # What a record that became too short leaves over is a damage of its own.
  is_short = says == "too few for an image record"
  count = 2 if is_short and not indexed else 1
  assert len(skipped(tmp_path / "out")) == count


def test_damaged_record_of_a_file_with_header(tmp_path, capsys):
  """It counts as one of the header's images."""
  rec, idx = insightface(CLASSES, IMAGES)
  at = starts(idx)[4]
  rec = rec[:at] + b"?" + rec[at + 1 :]
  folder = save(tmp_path / "in", rec, idx)
  assert len(convert(folder, tmp_path / "out", skip_bad=True)) == 11
  assert capsys.readouterr().err == ""


def test_excluded_record_may_be_damaged(tmp_path):
  rec, idx = im2rec(CLASSES, IMAGES)
  at = starts(idx)[4] + 12
  rec = rec[:at] + struct.pack("<f", 0.5) + rec[at + 4 :]
  folder = save(tmp_path / "in", rec, idx)
  names = tmp_path / "names.txt"
  names.write_text("4\n")
  found = convert(folder, tmp_path / "out", exclude=str(names))
  assert [r.image for r in found] == IMAGES[:4] + IMAGES[5:]


@pytest.mark.parametrize("block", [16, 61, 1000, 2**20])
def test_search_for_the_next_start(tmp_path, monkeypatch, block):
  """Starts on the edge of a block, and what looks like a start before one."""
  monkeypatch.setattr(recordio, "_BLOCK_BYTES", block)
  rec, _ = im2rec(CLASSES, IMAGES)
  false = b"??" + MAGIC + b"\xff" * 4 + b"?" + MAGIC + bytes(4)
  for pad in range(16):
    rubbish = b"?" * pad + false + b"?" * pad
    (tmp_path / "x.rec").write_bytes(rubbish + rec + rubbish)
    images, damages = read(tmp_path / "x.rec")
    assert [image for _, image in images.values()] == IMAGES
    assert damages[0].offset == 0 and damages[-1].end == len(rec + 2 * rubbish)


def test_record_without_image(tmp_path):
  rec, idx = im2rec([0, [0], 0], [IMAGES[0], b"", IMAGES[2]])
  folder = save(tmp_path / "in", rec, idx)
  with pytest.raises(InputError, match="the record has no image"):
    convert(folder, tmp_path / "out")
  assert len(convert(folder, tmp_path / "out", skip_bad=True)) == 2


@pytest.mark.parametrize("lost", [-1, -6, -700, -900, 3])
def test_bytes_lost_or_added_in_the_middle(tmp_path, lost):
  """The rest of the file is found again, though no longer at multiples of 4."""
  rec, idx = im2rec(CLASSES, IMAGES)
  at = starts(idx)[6] + 100
  rec = rec[:at] + bytes(max(lost, 0)) + rec[at + max(-lost, 0) :]
  found = convert(save(tmp_path / "in", rec), tmp_path / "out", skip_bad=True)
  next_whole = 8 if lost == -900 else 7
  assert [r.image for r in found] == IMAGES[:6] + IMAGES[next_whole:]


def test_index_past_the_end_and_other_bad_indexes(tmp_path):
  rec, idx = im2rec(CLASSES, IMAGES)
  lines = idx.splitlines(keepends=True)
  bad = "".join(lines[:3]) + f"3\t{len(rec)}\n" + "".join(lines[4:])
  folder = save(tmp_path / "in", rec, bad)
  with pytest.raises(InputError, match=rf"line 4 of .*idx.*byte {len(rec)} of"):
    convert(folder, tmp_path / "out")
  found = convert(folder, tmp_path / "out", skip_bad=True)
  assert [r.image for r in found] == IMAGES[:3] + IMAGES[4:]
  assert list(skipped(tmp_path / "out")) == ["3"]
  for text, says in [
    (bad.replace(f"{len(rec)}", "-4"), "points to byte -4"),
    ("".join(lines[:7]), "leaves out records"),
    ("".join(lines + lines[-1:]), "repeats records"),
    ("0\t0\nnonsense\n", "line 2 of .* is no key and offset"),
    ("0\t0\n1 2 3\n", "line 2 of"),
    ("\x00" * 10_000, "line 1 of"),
    ("", "leaves out records"),
    ("0\t4\n", "no magic number"),
  ]:
    save(tmp_path / "in", rec, text)
    with pytest.raises(InputError, match=says):
      convert(folder, tmp_path / "none")
  # Part of an index may be meant.
  save(tmp_path / "in", rec, "".join(lines[:7]))
  assert len(convert(folder, tmp_path / "part", skip_bad=True)) == 7


@pytest.mark.parametrize(
  "header", [[25, 29], [12, 17], [13, 16], [np.nan, 1e30]]
)
def test_header_that_lies(tmp_path, header, capsys):
  rec, idx = insightface(CLASSES, IMAGES, header=header)
  at = starts(idx)[-1]
  folder = save(tmp_path / "in", rec, idx)
  with pytest.raises(InputError, match="12 images and 4 identities") as error:
    convert(folder, tmp_path / "out")
  assert f"byte {at} of" in str(error.value)
  found = convert(folder, tmp_path / "out", skip_bad=True)
  assert [r.image for r in found] == IMAGES
  assert "warning: byte" in capsys.readouterr().err


def test_header_that_is_missing(tmp_path):
  rec, idx = insightface(CLASSES, IMAGES)
  cut = starts(idx)[-1]
  for index in (None, idx[: idx.rindex("0\t")]):
    folder = save(tmp_path / "in", rec[:cut], index)
    with pytest.raises(InputError, match="4 records without image but no head"):
      convert(folder, tmp_path / "out")


@pytest.mark.parametrize("text", ["5,16,16\n", "3,16,16\n", "?", ""])
def test_property_that_lies(tmp_path, text):
  rec, idx = insightface(CLASSES, IMAGES)
  folder = save(tmp_path / "in", rec, idx)
  (folder / "property").write_text(text)
  with pytest.raises(InputError, match="property"):
    convert(folder, tmp_path / "out")


def test_length_field_allocates_nothing(tmp_path):
  """A length of 2^29 in a kilobyte; 4 GB of labels in a record of 24 bytes."""
  import tracemalloc

  huge = MAGIC + struct.pack("<I", 2**29 - 1) + bytes(1000)
  labels = record(struct.pack("<IfQQ", 2**32 - 1, 0, 0, 0))
  save(tmp_path / "in", huge + labels)
  tracemalloc.start()
  images, damages = read(tmp_path / "in" / "train.rec")
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert not images and len(damages) == 2 and peak < 2**21


def test_memory_does_not_grow_with_the_file(tmp_path):
  import tracemalloc

  peaks = []
  for count in (1000, 10_000):
    parts = [image_record(0, bytes(200), k) for k in range(count)]
    save(tmp_path / "in", *join(range(count), parts))
    tracemalloc.start()
    with recordio.RecordFile(
      str(tmp_path / "in" / "train.rec"), str(tmp_path / "in" / "train.idx")
    ) as file:
      assert sum(len(file.read_image(r)) for r in file.records()) == 200 * count
    peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
  # 0.2 and 2.3 MB of data; blocks of 1 MiB are read, a new one beside the old.
  assert peaks[1] < 2.2 * 2**20


def test_file_that_becomes_shorter(tmp_path):
  path = save(tmp_path / "in", *im2rec(CLASSES, IMAGES)) / "train.rec"
  with recordio.RecordFile(str(path), None) as file:
    last = list(file.records())[-1]
    os.truncate(path, last.offset + 100)
    with pytest.raises(InputError, match="became shorter while"):
      file.read_image(last)


KILLED = """
import os, signal, sys
from data_prep import from_recordio
from data_prep.writing import shards
add = shards.ShardWriter.add
def add_or_die(self, *args):
  add_or_die.left -= 1
  if add_or_die.left < 0:
    os.kill(os.getpid(), signal.SIGKILL)
  add(self, *args)
add_or_die.left = int(sys.argv[3])
shards.ShardWriter.add = add_or_die
from_recordio.convert(sys.argv[1], sys.argv[2], name="tiny", limit=None,
  min_images_per_class=1, remap_labels=False, skip_bad=True, exclude=None,
  check_images=True, threads=2, shard_bytes=3000)
"""


def test_killed_conversion_goes_on(tmp_path):
  images = [*IMAGES[:5], b"broken", *IMAGES[6:]]
  rec, idx = insightface(LABELS, images)
  folder = save(tmp_path / "in", rec, idx)
  changes = {"skip_bad": True, "shard_bytes": 3000}
  convert(folder, tmp_path / "whole", **changes)
  for left in (6, 5):  # Killed twice, later and later.
    done = subprocess.run(
      [sys.executable, "-c", KILLED, folder, tmp_path / "cut", str(left)],
      capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "cut" / "dataset.json").exists()
  convert(folder, tmp_path / "cut", **changes)
  contents = [
    {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    for name in ("whole", "cut")
  ]
  assert contents[0] == contents[1]
  assert len(contents[0]) > 4 and list(skipped(tmp_path / "cut")) == ["6"]


def test_part_with_other_flags_is_refused(tmp_path, monkeypatch):
  rec, idx = insightface(LABELS, IMAGES)
  folder = save(tmp_path / "in", rec, idx)
  with monkeypatch.context() as patch:
    patch.setattr(from_recordio.DatasetAssembler, "finish", interrupt)
    with pytest.raises(KeyboardInterrupt):
      convert(folder, tmp_path / "out", shard_bytes=3000)
  with pytest.raises(InputError, match="part of another conversion"):
    convert(folder, tmp_path / "out", shard_bytes=3000, limit=11)
  assert len(convert(folder, tmp_path / "out", shard_bytes=3000)) == 12


def interrupt(assembler):
  raise KeyboardInterrupt


def test_broken_image_without_check(tmp_path):
  """Only the head is looked at: a truncated JPEG passes, nonsense does not."""
  images = [IMAGES[0], IMAGES[1][:-40], IMAGES[2]]
  rec, idx = im2rec([0, 0, 0], images)
  folder = save(tmp_path / "in", rec, idx)
  with pytest.raises(InputError, match="image '1' cannot be read"):
    convert(folder, tmp_path / "out")
  found = convert(folder, tmp_path / "out", check_images=False)
  assert [r.image for r in found] == images
  rec, idx = im2rec([0, 0, 0], [IMAGES[0], b"nonsense", IMAGES[2]])
  save(folder, rec, idx)
  with pytest.raises(InputError, match="image '1' cannot be read"):
    convert(folder, tmp_path / "none", check_images=False)


def test_command(run, tmp_path):
  rec, idx = insightface(LABELS, IMAGES)
  folder = save(tmp_path / "in", rec, idx, classes=4)
  out = tmp_path / "out"
  flags = [f"--input={folder / 'train.rec'}", f"--output={out}"]
  done = run("data_prep.from_recordio", *flags, "--no-check_images")
  assert done.returncode == 0, done.stderr
  assert "12 images of 4 identities (2 to 4 each)" in done.stdout
  assert f"--config.data.directory={out}" in done.stdout.splitlines()[-1]
  assert records.read_index(str(out)).name == "out"
  again = run("data_prep.from_recordio", *flags)
  assert_one_sentence(again, "holds a data set already")
  save(folder, rec[:-30], idx)
  broken = run("data_prep.from_recordio", flags[0], f"--output={out}2")
  assert_one_sentence(broken, "train.rec", "byte", "--skip_bad")
  assert not os.path.exists(f"{out}2")


@pytest.mark.parametrize("name", ["nowhere", "empty", "in/train.idx"])
def test_wrong_input(tmp_path, name):
  (tmp_path / "empty").mkdir()
  rec, idx = im2rec(LABELS, IMAGES)
  save(tmp_path / "in", rec, idx)
  with pytest.raises(InputError, match=f"--input '.*{name}'"):
    convert(tmp_path / name, tmp_path / "out")


@pytest.mark.parametrize("data", [b"", b"\0" * 7, bytes(5000), MAGIC * 500])
def test_what_is_no_recordio_file(tmp_path, data):
  folder = save(tmp_path / "in", data)
  for skip_bad in (False, True):
    with pytest.raises(InputError):
      convert(folder, tmp_path / "out", skip_bad=skip_bad)
  assert not (tmp_path / "out").exists()
