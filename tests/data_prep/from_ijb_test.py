"""A small IJB, written here in its layout, and everything that can be wrong."""

import csv
import os

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_prep import from_ijb
from data_prep.formats import ijb as ijb_files
from data_prep.writing.writer import DatasetAssembler
from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.template_files import read_templates

# image, template, medium: templates out of order, one medium of two images.
FACES = [
  ("1.jpg", 40, 7),
  ("2.jpg", 40, 7),
  ("3.jpg", 11, 8),
  ("4.jpg", 305, 9),
  ("5.jpg", 11, 7),
  ("6.jpg", 7, 1),
  ("7.jpg", 40, 3),
]
TEMPLATES = [7, 11, 40, 305]
PAIRS = [(40, 11, 1), (11, 305, 0), (7, 40, 0), (305, 7, 1), (40, 40, 1)]
GALLERY = [(11, 500), (11, 500), (7, 501)]
PROBES = [(305, 501), (40, 500)]


def write_ijb(root):
  rng = np.random.default_rng(0)
  (root / "crops").mkdir()
  (root / "meta").mkdir()
  for name, _, _ in FACES:
    pixels = rng.integers(0, 256, (20, 16, 3), np.uint8)
    cv2.imwrite(str(root / "crops" / name), pixels)
  texts = {
    "ijbx_face_tid_mid.txt": [f"{n} {t} {m}" for n, t, m in FACES],
    "ijbx_template_pair_label.txt": [f"{a} {b} {y}" for a, b, y in PAIRS],
    "ijbx_name_5pts_score.txt": [
      f"{n} {' '.join(['1.5'] * 10)} 0.{k}" for k, (n, *_) in enumerate(FACES)
    ],
    "ijbx_1N_gallery_G1.csv": [
      "TEMPLATE_ID,SUBJECT_ID,FILENAME",
      *(f'{t},{s},"img/{t},a.jpg"' for t, s in GALLERY),
    ],
    "ijbx_1N_probe_mixed.csv": [
      "TEMPLATE_ID,SUBJECT_ID,FILENAME",
      *(f"{t},{s},frames/{t}.png" for t, s in PROBES),
    ],
  }
  for file, lines in texts.items():
    (root / "meta" / file).write_text("\n".join(lines) + "\n")
  return root


@pytest.fixture
def ijb(tmp_path):
  return write_ijb(tmp_path)


def convert(root, output="d", **changes):
  directory = root / output
  from_ijb.convert(
    str(root / "crops"),
    str(directory),
    **{
      "meta": str(root / "meta"),
      "name": "ijbx",
      "skip_bad": False,
      "threads": 2,
    }
    | changes,
  )
  return directory, list(records.RecordReader(str(directory)).scan())


def rows(path):
  with open(path, newline="") as file:
    return list(csv.DictReader(file))


def test_labels_are_templates_and_the_files_say_the_rest(ijb):
  directory, found = convert(ijb)
  assert records.read_classes(str(directory)) == [str(t) for t in TEMPLATES]
  assert [(r.name, TEMPLATES[r.label]) for r in found] == [
    (name, template) for name, template, _ in FACES
  ]
  for record in found:
    assert record.image == (ijb / "crops" / record.name).read_bytes()
  faces = rows(directory / "faces.csv")
  assert [
    (f["image"], TEMPLATES[int(f["template"])], int(f["medium"]), f["score"])
    for f in faces
  ] == [(*face, f"0.{k}") for k, face in enumerate(FACES)]
  pairs = np.load(directory / "template_pairs.npy")
  assert pairs.dtype == np.int32
  assert [(TEMPLATES[a], TEMPLATES[b], y) for a, b, y in pairs] == PAIRS
  for file, want in ("gallery_G1", GALLERY), ("probe_mixed", PROBES):
    got = {
      (TEMPLATES[int(row["template"])], int(row["subject"]))
      for row in rows(directory / f"{file}.csv")
    }
    assert got == set(want)
  assert len(rows(directory / "gallery_G1.csv")) == 2  # Each template once.


def test_scores_and_lists_are_optional(ijb):
  for file in "name_5pts_score.txt", "1N_gallery_G1.csv", "1N_probe_mixed.csv":
    (ijb / "meta" / f"ijbx_{file}").unlink()
  directory, _ = convert(ijb)
  assert {face["score"] for face in rows(directory / "faces.csv")} == {""}
  assert not list(directory.glob("gallery*"))


def test_pairs_read_in_blocks(ijb, monkeypatch):
  whole = np.load(convert(ijb)[0] / "template_pairs.npy")
  monkeypatch.setattr(ijb_files, "_LINES_AT_ONCE", 2)
  blocks = np.load(convert(ijb, "e")[0] / "template_pairs.npy")
  np.testing.assert_array_equal(blocks, whole)
  path = ijb / "meta" / "ijbx_template_pair_label.txt"
  path.write_text(path.read_text().replace("305 7 1", "\n305 8 1"))
  with pytest.raises(InputError, match="label.txt:5: no image .* template 8;"):
    convert(ijb, "f")


def test_bad_image_is_named_or_left_out(ijb):
  (ijb / "crops" / "2.jpg").write_bytes(b"\xff\xd8 broken")
  (ijb / "crops" / "5.jpg").unlink()
  with pytest.raises(InputError, match=r"2\.jpg' cannot be read.*--skip_bad"):
    convert(ijb)
  assert not (ijb / "d" / records.INDEX_FILE).exists()
  directory, found = convert(ijb, "e", skip_bad=True)
  want = [name for name, *_ in FACES if name not in ("2.jpg", "5.jpg")]
  assert [record.name for record in found] == want
  assert len(rows(directory / "faces.csv")) == 7
  skipped = (directory / "skipped.txt").read_text().split("\n")
  assert skipped[0].startswith("2.jpg\tbroken JPEG")
  assert skipped[1] == "5.jpg\tNo such file or directory"


@pytest.mark.parametrize(("image", "template"), [("4", "305"), ("6", "7")])
def test_template_without_an_image_is_left_out(ijb, image, template):
  """The last of the templates, and the first: those after it move up."""
  (ijb / "crops" / f"{image}.jpg").unlink()
  with pytest.raises(InputError, match=rf"{image}\.jpg' cannot be read"):
    convert(ijb)
  directory, found = convert(ijb, "e", skip_bad=True)
  index = records.read_index(str(directory))
  counts = {"images": 1, "classes": 1, "template pairs": 2}
  assert index.left_out.items() >= counts.items()
  classes = records.read_classes(str(directory))
  official = {name: str(template) for name, template, *_ in FACES}
  assert template not in classes and index.classes == len(classes) == 3
  assert all(classes[one.label] == official[one.name] for one in found)
  assert len(rows(directory / "faces.csv")) == 6
  # What is left is a protocol that evaluations read.
  names = [one.name for one in found]
  read = read_templates(str(directory), len(found), lambda: names)
  assert len(read.first) == 3
  for name, label in zip(names, read.templates.tolist(), strict=True):
    assert classes[label] == official[name]
  compared = {
    (int(classes[a]), int(classes[b]), int(same))
    for a, b, same in zip(read.first, read.second, read.same, strict=True)
  }
  assert compared == {one for one in PAIRS if int(template) not in one[:2]}


def test_interrupted_conversion_goes_on(ijb, monkeypatch):
  changes = {"skip_bad": True, "shard_bytes": 1}
  (ijb / "crops" / "2.jpg").unlink()
  whole, _ = convert(ijb, "whole", **changes)
  accept = DatasetAssembler.accept

  def stop_at_5(self, finished):
    if finished.number == 5:
      raise KeyboardInterrupt
    accept(self, finished)

  with monkeypatch.context() as patch:
    patch.setattr(DatasetAssembler, "accept", stop_at_5)
    with pytest.raises(KeyboardInterrupt):
      convert(ijb, **changes)
  assert not (ijb / "d" / records.INDEX_FILE).exists()
  first = (ijb / "d" / "images-00000.array_record").stat().st_mtime_ns
  directory, _ = convert(ijb, **changes)
  assert (directory / "images-00000.array_record").stat().st_mtime_ns == first
  assert sorted(os.listdir(directory)) == sorted(os.listdir(whole))
  for file in os.listdir(whole):
    assert (directory / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(
  "file, old, new, parts",
  [
    ("face_tid_mid.txt", "3.jpg 11 8", "3.jpg 11", ["mid.txt:3", "medium'"]),
    ("face_tid_mid.txt", "3.jpg 11 8", "3.jpg x 8", ["mid.txt:3"]),
    ("face_tid_mid.txt", "3.jpg", "1.jpg", ["mid.txt:3", "mid.txt:1 already"]),
    ("face_tid_mid.txt", "3.jpg", "../3.jpg", ["mid.txt:3", "outside"]),
    ("face_tid_mid.txt", "3.jpg", "/3.jpg", ["mid.txt:3", "outside"]),
    ("face_tid_mid.txt", "3.jpg", ".", ["mid.txt:3", "names no file"]),
    ("template_pair_label.txt", "7 40 0", "7 40", ["label.txt:3", "a pair"]),
    ("template_pair_label.txt", "7 40 0", "7 40 0.5", ["label.txt:3", "pair"]),
    ("template_pair_label.txt", "7 40 0", "7 40 2", ["label.txt:3", "is 2"]),
    ("template_pair_label.txt", "7 40 0", "7 41 0", ["label.txt:3", "41"]),
    ("template_pair_label.txt", "7 40 0", "999 7 0", ["label.txt:3", "999"]),
    ("template_pair_label.txt", "7 40 0", f"{9**30} 7 0", ["label.txt:3"]),
    ("name_5pts_score.txt", "3.jpg", "9.jpg", ["score.txt:3", "mid.txt:3"]),
    ("name_5pts_score.txt", "3.jpg 1.5", "3.jpg", ["score.txt:3", "landmarks"]),
    ("name_5pts_score.txt", "3.jpg 1.5", "3.jpg nan", ["score.txt:3"]),
    ("1N_gallery_G1.csv", "7,501", "8,501", ["G1.csv:4", "template 8;"]),
    ("1N_gallery_G1.csv", "7,501", "11,501", ["G1.csv:4", "500 above"]),
    ("1N_probe_mixed.csv", "40,500", "40", ["mixed.csv:3"]),
    ("1N_probe_mixed.csv", "40,500", "40,x", ["mixed.csv:3"]),
  ],
)
def test_what_does_not_fit_is_one_sentence(ijb, file, old, new, parts):
  path = ijb / "meta" / f"ijbx_{file}"
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(InputError) as error:
    convert(ijb)
  for part in parts:
    assert part in str(error.value)
  assert "\n" not in str(error.value)
  assert not (ijb / "d").exists()


def test_files_missing_doubled_short_or_empty(ijb):
  meta = ijb / "meta"
  scores = meta / "ijbx_name_5pts_score.txt"
  lines = scores.read_text()
  for text in lines + "8.jpg\n", "\n".join(lines.split("\n")[:-2]):
    scores.write_text(text)
    with pytest.raises(InputError, match="one line for each of the 7 images"):
      convert(ijb)
  scores.write_text(lines)
  for name in "face_tid_mid.txt", "template_pair_label.txt":
    path = meta / f"ijbx_{name}"
    data = path.read_bytes()
    path.write_bytes(b"\n \n")
    with pytest.raises(InputError, match=f"{name}: is empty"):
      convert(ijb)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(InputError, match=f"{name}: is not UTF-8"):
      convert(ijb)
    path.unlink()
    with pytest.raises(InputError, match=f"no file \\*_{name}"):
      convert(ijb)
    path.write_bytes(data)
  (meta / "ijby_face_tid_mid.txt").write_text("")
  with pytest.raises(InputError, match="2 files .*'ijby_face_tid_mid.txt'"):
    convert(ijb)


def test_command_line(ijb, run, capsys):
  flags = [f"--input={ijb / 'crops'}", f"--meta={ijb / 'meta'}"]
  assert from_ijb.main([*flags, f"--output={ijb / 'd'}"]) == 0
  printed = capsys.readouterr().out
  assert "7 images of 4 templates, 5 pairs (3 of one person) and 2" in printed
  assert f"--images={ijb / 'd'} " in printed
  (ijb / "meta" / "ijbx_1N_probe_mixed.csv").write_text("a,b\n1,2\n")
  process = run("data_prep.from_ijb", *flags, f"--output={ijb / 'e'}")
  assert_one_sentence(process, "probe_mixed.csv:2", "template 1;")


FIELDS = st.sampled_from(
  ["7", "11", "40", "1", "0", "-1", "1.5", "1e3", "x", "1_0", "#", '"', "\x1c"]
) | st.text(max_size=4)
TEXT = st.lists(
  st.lists(FIELDS, max_size=4).flatmap(
    lambda fields: st.sampled_from(" ,\t").map(lambda s: s.join(fields))
  ),
  max_size=6,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
READERS = [
  lambda path: ijb_files.read_faces(path, None),
  lambda path: ijb_files.read_faces(path, path),
  lambda path: ijb_files.read_template_pairs(path, np.array(TEMPLATES)),
  lambda path: ijb_files.read_subjects(path, np.array(TEMPLATES)),
]


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.sampled_from(READERS), TEXT | st.binary(max_size=60))
@example(READERS[2], b"7 11 1\n7 11 +1")
@example(READERS[2], b"7 11 1\r\n\x0b\n7\x0c11\xc2\x851")
@example(READERS[2], "7 11 1\n\x1c\n7\x1c11 1\n７ 11 1".encode())
@example(READERS[3], b"a,b\n7,1\x00")
@example(READERS[3], b'a,b\n"7\n"\n')
def test_any_file_is_read_or_refused(tmp_path_factory, reader, data):
  path = tmp_path_factory.getbasetemp() / "fuzzed.txt"
  path.write_bytes(data)
  try:
    reader(str(path))
  except InputError as error:
    assert "\n" not in str(error)
