"""Reading verification protocols, over names that belong to nobody."""

import re

import numpy as np
import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.protocols import pairs_file

# Three images of each of four people, in an order of their own.
NAMES = [
  f"{person}/{person}_{number:04d}.jpg"
  for number in (3, 1, 2)
  for person in ("Ann", "Bob_B", "Cy", "Dee")
]


@pytest.fixture
def read(tmp_path):
  def read_text(text, names=NAMES):
    path = tmp_path / "pairs.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return pairs_file.read_pairs(path, names)

  return read_text


def named(found):
  return [
    (NAMES[i], NAMES[j]) for i, j in zip(found.first, found.second, strict=True)
  ]


def test_lfw_with_folds(read):
  found = read(
    "2\t2\n"
    "Ann\t1\t3\nBob_B\t2\t1\nAnn\t1\tCy\t2\nCy\t3\tBob_B\t1\n"
    "Cy\t1\t2\nDee\t1\t3\nDee\t1\tAnn\t2\nBob_B\t3\tDee\t3\n"
  )
  assert named(found) == [
    ("Ann/Ann_0001.jpg", "Ann/Ann_0003.jpg"),
    ("Bob_B/Bob_B_0002.jpg", "Bob_B/Bob_B_0001.jpg"),
    ("Ann/Ann_0001.jpg", "Cy/Cy_0002.jpg"),
    ("Cy/Cy_0003.jpg", "Bob_B/Bob_B_0001.jpg"),
    ("Cy/Cy_0001.jpg", "Cy/Cy_0002.jpg"),
    ("Dee/Dee_0001.jpg", "Dee/Dee_0003.jpg"),
    ("Dee/Dee_0001.jpg", "Ann/Ann_0002.jpg"),
    ("Bob_B/Bob_B_0003.jpg", "Dee/Dee_0003.jpg"),
  ]
  np.testing.assert_array_equal(found.same, [1, 1, 0, 0] * 2)
  np.testing.assert_array_equal(found.folds, [0] * 4 + [1] * 4)
  kinds = [a.dtype for a in (found.first, found.second, found.folds)]
  assert kinds == [np.int64] * 3
  assert found.same.dtype == bool


def test_lfw_without_folds_is_cut_into_ten_of_both_kinds(read):
  found = read("20\n" + "Ann 1 2\n" * 20 + "Ann 1 Cy 2\n" * 20)
  np.testing.assert_array_equal(found.same, [1] * 20 + [0] * 20)
  halves = [k for k in range(10) for _ in range(2)]
  np.testing.assert_array_equal(found.folds, halves + halves)


def test_folds_of_numbers_that_ten_does_not_divide(read):
  lines = ["a b 0"] * 13 + ["a b 1"] * 24 + ["a b 0"] * 12
  found = read("\n".join(lines), names=["a", "b"])
  for kind in (found.same, ~found.same):
    folds = found.folds[kind]
    assert (np.diff(folds) >= 0).all()
    sizes = np.bincount(folds, minlength=10)
    assert len(sizes) == 10
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize("separator", ["\t", ",", " ", "  ", " , ", " \t"])
def test_list_with_folds(read, separator):
  rows = [
    ("x/1.png", "x/2.png", "1", "7"),
    ("x/1.png", "y/1.png", "0", "7"),
    ("y/1.png", "x/2.png", "0", "3"),
    ("y/1.png", "y/1.png", "1", "3"),
  ]
  text = "\r\n".join(separator.join(row) for row in rows) + "\r\n\r\n"
  found = read("\ufeff" + text, names=["x/1.png", "x/2.png", "y/1.png"])
  np.testing.assert_array_equal(found.first, [0, 0, 2, 2])
  np.testing.assert_array_equal(found.second, [1, 2, 1, 2])
  np.testing.assert_array_equal(found.same, [1, 0, 0, 1])
  np.testing.assert_array_equal(found.folds, [7, 7, 3, 3])


def test_tabs_leave_blanks_and_commas_in_paths(read):
  found = read("a b,c\td e\t1\t0\nd e\ta b,c\t0\t1\n", ["a b,c", "d e"])
  np.testing.assert_array_equal(found.first, [0, 1])


def test_image_numbers_follow_printf(read):
  names = ["deep/Ann/z_0012.png", "deep/Ann/z_00013.png", "Ann/z_12345.jpg"]
  names += ["Ann/cover.jpg", "Bo/q_0001.webp"]
  found = read(
    "2 1\nAnn 12 12345\nAnn 0012 Bo 1\nAnn 12345 12\nBo 1 Ann 12\n", names
  )
  np.testing.assert_array_equal(found.first, [0, 0, 2, 4])
  np.testing.assert_array_equal(found.second, [2, 4, 0, 0])
  with pytest.raises(InputError, match=":2: .* no image 13 of Ann"):
    read("2 1\nAnn 12 13\nAnn 12 Bo 1\nAnn 12 12\nBo 1 Ann 12\n", names)


FOUR = "Ann 1 2\nAnn 1 Cy 2\nCy 1 2\nCy 1 Ann 2\n"  # After a header "2 1".
MALFORMED = {
  "empty": ("", "pairs.txt: is empty"),
  "blank": (" \n\n\t\n", "pairs.txt: is empty"),
  "not UTF-8": (b"2 1\nAnn 1 2\nJos\xe9 1 2\n", ":3: is not UTF-8"),
  "no such image": (
    "2 1\n" + FOUR.replace("Cy 1 2", "Cy 1 9"),
    ":4: .*no image 9 of Cy",
  ),
  "no such person": (
    "2 1\n" + FOUR.replace("Cy 1 A", "Eve 1 A"),
    ":5: .*no image 1 of Eve",
  ),
  "no number": (
    "2 1\n" + FOUR.replace("Ann 1 2", "Ann one 2"),
    ":2: 'one' is not",
  ),
  "fields": ("2 1\n" + FOUR.replace("Cy 1 2", "Cy 1 2 3 4"), ":4: 5 fields"),
  "kinds out of order": ("1 2\n" + FOUR, ":3: 4 fields .*'Name i j'"),
  "negative in place of positive": (
    "2 1\nAnn 1 2\nCy 1 2\nAnn 1 Cy 2\nCy 1 Ann 2\n",
    ":3: 3 fields .*'Name1 i Name2 j'",
  ),
  "one line short": ("\n2 1\n" + FOUR[:-11], ":2: .* 4 pairs but 3 follow"),
  "one line over": ("2 1\n" + FOUR + FOUR[:8], ":1: .* 4 pairs but 5 follow"),
  "header of nothing": ("10 0\n", ":1: .* promises no pairs"),
  "no folds": ("0 10\n", ":1: .* promises no pairs"),
  "one fold": ("1 1\nAnn 1 2\nAnn 1 Cy 2\n", "all pairs are in one fold"),
  "too few to cut": ("2\nAnn 1 2\nCy 1 2\n" + "Ann 1 Cy 2\n" * 2, "2 positive"),
  "negative of one person": (
    "2 1\n" + FOUR.replace("Ann 1 Cy 2", "Ann 1 Ann 2"),
    ":3: two images of Ann",
  ),
  "LFW without its header": (FOUR, ":1: the third field is '2'"),
  "list: fields": (f"{NAMES[0]} {NAMES[1]} 1\n{NAMES[0]} 1\n", ":2: 2 fields"),
  "list: image": (f"{NAMES[0]},no/such.jpg,1\n", ":1: .*'no/such.jpg'"),
  "list: label": (f"{NAMES[0]} {NAMES[1]} yes\n", ":1: .*'yes'"),
  "list: fold": (f"{NAMES[0]} {NAMES[1]} 1 -1\n", ":1: the fold is '-1'"),
  "list: folds in part": (
    f"{NAMES[0]} {NAMES[1]} 1 4\n{NAMES[0]} {NAMES[1]} 0\n",
    ":2: some lines",
  ),
  "list: folds begin late": (
    f"{NAMES[0]} {NAMES[1]} 1\n{NAMES[0]} {NAMES[1]} 0 4\n",
    ":2: some lines",
  ),
  "only positive": (f"{NAMES[0]} {NAMES[4]} 1\n" * 20, "20 pairs are positive"),
  "only negative": (f"{NAMES[0]} {NAMES[1]} 0\n" * 20, "20 pairs are negative"),
  "list: too few to cut": (
    f"{NAMES[0]} {NAMES[4]} 1\n" * 20 + f"{NAMES[0]} {NAMES[1]} 0\n" * 9,
    "9 negative pairs do not make 10 folds",
  ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_in_one_sentence(read, case):
  text, message = MALFORMED[case]
  with pytest.raises(InputError, match=message) as caught:
    read(text)
  sentence = str(caught.value)
  assert "\n" not in sentence
  assert "pairs.txt" in sentence
  assert re.fullmatch(r"[^;]+; [^;]+\.", sentence)  # What is wrong; the fix.


def test_two_images_of_one_number_are_refused(read):
  names = [*NAMES, "Ann/Ann_0002.png"]
  with pytest.raises(InputError, match=":2: more than one image .* 2 of Ann"):
    read("2 1\n" + FOUR, names)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match="No such file"):
    pairs_file.read_pairs(tmp_path / "none.txt", NAMES)
