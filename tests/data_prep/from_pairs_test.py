"""Each public protocol's layout, written here, gives its pairs and folds."""

import os

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import from_pairs
from data_prep.formats.pair_protocols import (
  PROTOCOLS,
  Images,
  Pair,
  equal_runs,
)
from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.pairs_file import read_pairs


def write_images(folder, names):
  rng = np.random.default_rng(0)
  for name in names:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), rng.integers(0, 256, (16, 16, 3), np.uint8))
  return folder


def convert(folder, pairs, output, protocol, **changes):
  from_pairs.convert(
    str(folder),
    str(output),
    protocol=protocol,
    pairs=str(pairs),
    **{"name": "tiny", "skip_bad": False, "threads": 2} | changes,
  )
  reader = records.RecordReader(str(output))
  found = list(reader.scan())
  names = [record.name for record in found]
  path = os.path.join(output, records.PAIRS_FILE)
  pairs = read_pairs(path, names)
  got = [
    Pair(names[first], names[second], bool(same), int(fold))
    for first, second, same, fold in zip(
      pairs.first, pairs.second, pairs.same, pairs.folds, strict=True
    )
  ]
  classes = records.read_classes(str(output))
  people = {record.name: classes[record.label] for record in found}
  for record in found:
    assert record.image == (folder / record.name).read_bytes()
  return got, people


PEOPLE = [f"Ann_{chr(97 + k)}" for k in range(20)]


def two_each(pattern):
  """Two images of each of 20 people, a positive and a negative pair each."""
  same = [(pattern(name, 1), pattern(name, 2)) for name in PEOPLE]
  other = [
    (pattern(name, 2), pattern(PEOPLE[(k + 7) % 20], 1))
    for k, name in enumerate(PEOPLE)
  ]
  return same, other


def test_lfw_writes_only_what_the_protocol_names(tmp_path):
  same, other = two_each(lambda name, k: f"{name}/{name}_{k:04d}.jpg")
  spare = ["Ann_a/Ann_a_0003.jpg", "Zoe/Zoe_0001.jpg"]
  folder = write_images(tmp_path / "lfw", [*sum(same, ()), *spare])
  lines = ["10\t2"]
  for fold in range(10):
    lines += [f"{PEOPLE[k]}\t1\t2" for k in (2 * fold, 2 * fold + 1)]
    lines += [
      f"{PEOPLE[k]}\t2\t{PEOPLE[(k + 7) % 20]}\t1"
      for k in (2 * fold, 2 * fold + 1)
    ]
  (tmp_path / "pairs.txt").write_text("\n".join(lines) + "\n")
  got, people = convert(folder, tmp_path / "pairs.txt", tmp_path / "d", "lfw")
  want = []
  for fold in range(10):
    for pairs, is_same in (same, True), (other, False):
      want += [Pair(*pairs[2 * fold + k], is_same, fold) for k in (0, 1)]
  assert got == want
  assert set(people) == set(sum(same, ()))
  assert people["Ann_c/Ann_c_0002.jpg"] == "Ann_c"
  assert len(set(people.values())) == 20


def write_cfp(root):
  """CFP's folder 'Protocol' over 10 people, a fold for each; with images."""
  frontal = [
    f"{p:03d}/frontal/{k:02d}.jpg" for p in range(1, 11) for k in (1, 2)
  ]
  profile = [f"{p:03d}/profile/01.jpg" for p in range(1, 11)]
  folder = write_images(root / "images", frontal + profile)
  protocol = root / "Protocol"
  for file, images in ("F", frontal), ("P", profile):
    lines = [f"{n} ../Data/Images/{x}" for n, x in enumerate(images, start=1)]
    path = protocol / f"Pair_list_{file}.txt"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
  for fold in range(10):
    first, other = 2 * fold + 1, (fold + 3) % 10
    for split, same, diff in [
      ("FP", (first, fold + 1), (first, other + 1)),
      ("FF", (first, first + 1), (first, 2 * other + 1)),
    ]:
      place = protocol / "Split" / split / f"{fold + 1:02d}"
      place.mkdir(parents=True)
      (place / "same.txt").write_text("{},{}\n".format(*same))
      (place / "diff.txt").write_text("{},{}\n".format(*diff))
  return folder, protocol


@pytest.mark.parametrize(
  "split, second", [("fp", "profile/01"), ("ff", "frontal/02")]
)
def test_cfp(tmp_path, split, second):
  folder, protocol = write_cfp(tmp_path)
  got, people = convert(folder, protocol, tmp_path / "d", f"cfp-{split}")
  other = "profile/01" if split == "fp" else "frontal/01"
  want = []
  for fold in range(10):
    first, far = f"{fold + 1:03d}", f"{(fold + 3) % 10 + 1:03d}"
    want += [
      Pair(f"{first}/frontal/01.jpg", f"{first}/{second}.jpg", True, fold),
      Pair(f"{first}/frontal/01.jpg", f"{far}/{other}.jpg", False, fold),
    ]
  assert got == want
  assert people["003/frontal/01.jpg"] == "003"
  assert len(people) == 20  # Frontal 02 or the profiles are not named.


def write_agedb30(root):
  """AgeDB-30's list over 20 people; returns its pairs in their order."""
  same, other = two_each(lambda name, k: f"{name}_{k}.jpg")
  folder = write_images(root / "images", sum(same, ()))
  pairs = [(*pair, 1) for pair in same] + [(*pair, -1) for pair in other]
  pairs = [pairs[k] for k in np.random.default_rng(1).permutation(40)]
  path = root / "pairs.txt"
  path.write_text("".join(f"{a} {b} {y}\n" for a, b, y in pairs))
  return folder, path, pairs


def test_agedb30_folds_are_runs_of_lines(tmp_path):
  folder, path, pairs = write_agedb30(tmp_path)
  got, people = convert(folder, path, tmp_path / "d", "agedb30")
  assert got == [
    Pair(a, b, y == 1, k // 4) for k, (a, b, y) in enumerate(pairs)
  ]
  assert len(set(people.values())) == len(people) == 40


def write_two_lines(root, protocol):
  """CALFW's or CPLFW's list over 20 people; returns its pairs."""
  same, other = two_each(lambda name, k: f"{name}_{k:04d}.jpg")
  folder = write_images(root / "images", sum(same, ()))
  # CALFW's token is the fold of a positive pair, CPLFW's is 1.
  tokens = [k // 2 + 1 if protocol == "calfw" else 1 for k in range(20)]
  lines = [
    f"{image} {token}"
    for pair, token in zip(same + other, tokens + [0] * 20, strict=True)
    for image in pair
  ]
  path = root / "pairs.txt"
  path.write_text("\r\n".join(lines))
  return folder, path, same, other


@pytest.mark.parametrize("protocol", ["calfw", "cplfw"])
def test_two_lines_a_pair(tmp_path, protocol):
  folder, path, same, other = write_two_lines(tmp_path / "a b", protocol)
  got, people = convert(folder, path, tmp_path / "d", protocol)
  assert got == [
    *(Pair(*pair, True, k // 2) for k, pair in enumerate(same)),
    *(Pair(*pair, False, k // 2) for k, pair in enumerate(other)),
  ]
  assert people["Ann_b_0002.jpg"] == "Ann_b"


def test_calfw_folds_come_from_the_file(tmp_path):
  same, other = two_each(lambda name, k: f"{name}_{k}.jpg")
  folder = write_images(tmp_path / "images", sum(same, ()))
  tokens = [10 - k // 2 for k in range(20)]
  lines = [
    f"{x} {t}\n" for pair, t in zip(same, tokens, strict=True) for x in pair
  ]
  lines += [f"{x} 0\n" for pair in other for x in pair]
  (tmp_path / "pairs.txt").write_text("".join(lines))
  got, _ = convert(folder, tmp_path / "pairs.txt", tmp_path / "d", "calfw")
  assert [pair.fold for pair in got[:20]] == [9 - k // 2 for k in range(20)]


def test_list_keeps_folds_and_takes_folders_for_classes(tmp_path):
  folder = write_images(tmp_path / "i", ["a/1.png", "a/2.png", "b/c/1.png"])
  path = tmp_path / "list.csv"
  path.write_text(
    "a/1.png,a/2.png,1,7\na/1.png,b/c/1.png,0,8\n"
    "a/2.png,a/1.png,1,8\nb/c/1.png,a/2.png,0,7\n"
  )
  got, people = convert(folder, path, tmp_path / "d", "list")
  assert got == [
    Pair("a/1.png", "a/2.png", True, 7),
    Pair("a/1.png", "b/c/1.png", False, 8),
    Pair("a/2.png", "a/1.png", True, 8),
    Pair("b/c/1.png", "a/2.png", False, 7),
  ]
  assert people == {"a/1.png": "a", "a/2.png": "a", "b/c/1.png": "b/c"}


def test_runs_are_those_of_kfold():
  for count in 10, 23, 600, 6000:
    # scikit-learn: the first n % k folds have one item more.
    sizes = [count // 10 + (k < count % 10) for k in range(10)]
    assert equal_runs(count).tolist() == [
      k for k, size in enumerate(sizes) for _ in range(size)
    ]
  assert equal_runs(3).tolist() == [0, 1, 2]


def small(tmp_path):
  folder = write_images(tmp_path / "i", ["a.jpg", "b.jpg", "c.jpg", "d.jpg"])
  (tmp_path / "pairs.txt").write_text("a.jpg b.jpg 1\nc.jpg d.jpg 0\n" * 2)
  return folder, tmp_path / "pairs.txt"


def test_bad_image_takes_pairs_and_class_along(tmp_path):
  folder, pairs = small(tmp_path)
  pairs.write_text(pairs.read_text() + "a.jpg c.jpg 0\nb.jpg d.jpg 0\n")
  (folder / "c.jpg").write_bytes((folder / "c.jpg").read_bytes()[:100])
  with pytest.raises(InputError, match=r"'c\.jpg' cannot be read.*--skip_bad"):
    convert(folder, pairs, tmp_path / "d", "agedb30")
  assert not (tmp_path / "d").exists()
  got, people = convert(folder, pairs, tmp_path / "d", "agedb30", skip_bad=True)
  assert got == [
    Pair("a.jpg", "b.jpg", True, 0),
    Pair("a.jpg", "b.jpg", True, 2),
    Pair("b.jpg", "d.jpg", False, 5),
  ]
  assert sorted(people.values()) == ["a.jpg", "b.jpg", "d.jpg"]
  assert (tmp_path / "d" / "skipped.txt").read_text().startswith("c.jpg\t")


@pytest.mark.parametrize(
  "protocol, text, parts",
  [
    ("agedb30", "a.jpg b.jpg\n", ["pairs.txt:1", "path1 path2 1"]),
    ("agedb30", "a.jpg b.jpg 2\n", ["pairs.txt:1"]),
    ("agedb30", "a.jpg b.jpg 1\na.jpg x.jpg 0\n", ["pairs.txt:2", "'x.jpg'"]),
    ("agedb30", "a.jpg ../i/b.jpg 1\n", ["pairs.txt:1", "outside"]),
    ("agedb30", "a.jpg /etc/passwd 1\n", ["pairs.txt:1", "outside"]),
    ("agedb30", "a.jpg,,1\n", ["pairs.txt:1", "names no file"]),
    ("agedb30", "a.jpg ./ 1\n", ["pairs.txt:1", "names no file"]),
    ("agedb30", "a.jpg b.jpg 1\n" * 3, ["3 pairs", "one kind"]),
    ("agedb30", "\n\n", ["pairs.txt", "empty"]),
    ("agedb30", b"\xff\xfe", ["pairs.txt", "UTF-8"]),
    ("calfw", "a.jpg 1\nb.jpg 1\nc.jpg 0\n", ["pairs.txt:3", "one line"]),
    ("calfw", "a.jpg 1\nb.jpg 2\n", ["pairs.txt:2", "has 1"]),
    ("cplfw", "a.jpg 1\nb.jpg\n", ["pairs.txt:2", "half a pair"]),
    ("cplfw", "a.jpg 1\nb.jpg x\n", ["pairs.txt:2", "half a pair"]),
    ("cplfw", "a.jpg 1\nb.jpg 1\nc.jpg 0\nz.jpg 0\n", ["pairs.txt:4", "z.jpg"]),
    ("lfw", "10 300\nAnn 1 2\n", ["pairs.txt:1", "promises"]),
    ("list", "a.jpg b.jpg 1 0\na.jpg z.jpg 0 1\n", ["pairs.txt:2", "z.jpg"]),
    ("cfp-fp", "x", ["Pair_list_F.txt", "cannot be read"]),
  ],
)
def test_a_protocol_that_does_not_fit_is_one_sentence(
  tmp_path, protocol, text, parts
):
  folder, pairs = small(tmp_path)
  pairs.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(InputError) as error:
    convert(folder, pairs, tmp_path / "d", protocol)
  for part in parts:
    assert part in str(error.value)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
  "file, text, parts",
  [
    ("Pair_list_F.txt", "1\n", ["Pair_list_F.txt:1", "numbered image"]),
    ("Pair_list_F.txt", "1 a/b/c.jpg\n1 a/b/d.jpg", ["F.txt:2", "twice"]),
    ("Pair_list_F.txt", "1 ../Data/Images/x/frontal/01.jpg\n", ["same.txt:1"]),
    ("Split/FP/04/diff.txt", "7,999\n", ["04/diff.txt:1", "'999'"]),
    ("Split/FP/04/diff.txt", "7\n", ["04/diff.txt:1", "not a pair"]),
    ("Split/FP/04/diff.txt", "", ["04/diff.txt", "empty"]),
  ],
)
def test_damaged_cfp_is_one_sentence(tmp_path, file, text, parts):
  folder, protocol = write_cfp(tmp_path)
  (protocol / file).write_text(text)
  with pytest.raises(InputError) as error:
    convert(folder, protocol, tmp_path / "d", "cfp-fp")
  for part in parts:
    assert part in str(error.value)


def test_command_line(tmp_path, run, capsys):
  folder, pairs = small(tmp_path)
  flags = [
    f"--input={folder}",
    f"--pairs={pairs}",
    f"--output={tmp_path / 'd'}",
  ]
  assert from_pairs.main(["--protocol=agedb30", *flags]) == 0
  printed = capsys.readouterr().out
  assert "4 pairs (2 of one person) of 4 images" in printed
  assert printed.endswith(f"--data={tmp_path / 'd'}\n")
  pairs.write_text("a.jpg b.jpg 1\nc.jpg e.jpg 0\n")
  flags[-1] = f"--output={tmp_path / 'e'}"
  process = run("data_prep.from_pairs", "--protocol=agedb30", *flags)
  assert_one_sentence(process, "pairs.txt:2", "'e.jpg'")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
  path = tmp_path_factory.mktemp("fuzz")
  return small(path)[0], path / "fuzzed.txt"


WORDS = st.sampled_from(
  ["a.jpg", "b.jpg", "c.jpg", "0", "1", "-1", "2", "10", "..", "/", "\ufeff"]
) | st.text(max_size=5)
LINES = st.lists(
  st.lists(WORDS, max_size=5).flatmap(
    lambda words: st.sampled_from(" \t,").map(lambda s: s.join(words))
  ),
  max_size=8,
).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))


@settings(
  max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(
  st.sampled_from(["agedb30", "calfw", "lfw", "list"]),
  LINES | st.binary(max_size=50),
)
def test_any_protocol_file_is_read_or_refused(fuzzed, protocol, data):
  folder, path = fuzzed
  path.write_bytes(data)
  read, person = PROTOCOLS[protocol]
  try:
    for pair in read(str(path), Images(str(folder), skip_missing=False)):
      assert (folder / pair.first).is_file() and (
        folder / pair.second
      ).is_file()
      assert person(pair.first)
  except InputError as error:
    assert "\n" not in str(error)


@settings(max_examples=60, deadline=None)
@given(LINES, LINES, LINES)
def test_any_cfp_files_are_read_or_refused(
  tmp_path_factory, first, second, same
):
  path = tmp_path_factory.mktemp("cfp")
  fold = path / "Split" / "FP" / "01"
  fold.mkdir(parents=True)
  (path / "Pair_list_F.txt").write_bytes(first)
  (path / "Pair_list_P.txt").write_bytes(second)
  (fold / "same.txt").write_bytes(same)
  (fold / "diff.txt").write_bytes(b"1,1")
  with pytest.raises(InputError):
    PROTOCOLS["cfp-fp"][0](str(path), Images(str(path), skip_missing=False))
