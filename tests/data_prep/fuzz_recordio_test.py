"""Any bytes are a RecordIO file or an error, and what is whole is read.

What is found in a damaged file is compared with what was written: a record that
the damage did not touch must be there, and be the same.
"""

import contextlib
import struct
import subprocess
import sys
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from recordio_test import IMAGES, MAGIC, convert, image_record, join, part

from data_prep.formats import recordio
from jamsface_jax.errors import InputError

# The same examples in every run; the slow tests look for new ones.
quick = settings(max_examples=200, deadline=None, derandomize=True)
long = settings(max_examples=800, deadline=None)

WORDS = [
  MAGIC,
  MAGIC[:3],
  struct.pack("<I", 24),
  struct.pack("<I", 1 << 29 | 4),
  struct.pack("<I", 2 << 29),
  struct.pack("<I", 3 << 29 | 2),
  struct.pack("<I", 2**29 - 1),
  struct.pack("<f", 1.0),
  bytes(4),
  b"x",
]
pieces = st.sampled_from(WORDS) | st.binary(max_size=9)
payloads = st.lists(pieces, min_size=1, max_size=6).map(b"".join).filter(len)
labels = st.integers(0, 2**24) | st.lists(
  st.integers(0, 2**24), min_size=1, max_size=3
)
# Nothing in it looks like the beginning of a record.
plain = st.binary(min_size=1, max_size=60).map(lambda b: b.replace(b"\n", b"."))


def read(path, index_path):
  """What a file holds: images by offset, and all items."""
  with recordio.RecordFile(str(path), index_path and str(index_path)) as file:
    items = list(file.records())
    images = {
      (r.offset, r.end): (r.label, file.read_image(r))
      for r in items
      if isinstance(r, recordio.Image)
    }
  for item in items:
    if isinstance(item, recordio.Damage):
      assert "\n" not in item.reason and ".rec" in item.reason
  return images, items


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
  folder = tmp_path_factory.mktemp("fuzz")
  return folder / "train.rec", folder / "train.idx"


def check_round_trip(paths, entries):
  parts = [image_record(x, y, k) for k, (x, y) in enumerate(entries)]
  rec, idx = join(range(len(parts)), parts)
  paths[0].write_bytes(rec)
  paths[1].write_text(idx)
  first = [x if isinstance(x, int) else x[0] for x, _ in entries]
  written = list(zip(first, [y for _, y in entries], strict=True))
  for index in (None, paths[1]):
    images, items = read(paths[0], index)
    assert list(images.values()) == written and len(items) == len(written)


def check_overwritten(paths, images, place, data):
  """Overwrites a part of a file with other bytes."""
  parts = [image_record(k, y, k) for k, y in enumerate(images)]
  rec, idx = join(range(len(parts)), parts)
  place %= len(rec)
  broken = (rec[:place] + data + rec[place + len(data) :])[: len(rec)]
  spans = {}
  begin = 0
  for k, p in enumerate(parts):
    spans[begin, begin + len(p)] = (k, images[k])
    begin += len(p)
  paths[0].write_bytes(broken)
  paths[1].write_text(idx)

  def untouched(found):
    end = place + len(data)
    return {
      span: image
      for span, image in found.items()
      if span[1] <= place or end <= span[0]
    }

  by_index, _ = read(paths[0], paths[1])
  assert untouched(by_index) == untouched(spans)
  by_scan, _ = read(paths[0], None)
  before = {s: image for s, image in spans.items() if s[1] <= place}
  assert before.items() <= by_scan.items()
  assert untouched(by_scan).items() <= spans.items()  # Nothing is invented.


def check_any_bytes(paths, rec, idx):
  paths[0].write_bytes(rec)
  paths[1].write_bytes(idx)
  for index in (None, paths[1]):
    try:
      images, items = read(paths[0], index)
    except InputError as error:
      assert "\n" not in str(error) and index
      continue
    if index is None and items:  # The whole file is accounted for.
      ends = [item.end for item in items]
      assert [item.offset for item in items] == [0, *ends[:-1]]
      assert ends[-1] == len(rec)
    assert sum(len(data) for _, data in images.values()) <= len(rec)


ENTRIES = st.lists(st.tuples(labels, payloads), min_size=1, max_size=6)
ANY = st.lists(pieces | plain, max_size=30).map(b"".join)
LINES = st.lists(
  st.sampled_from([b"0\t0\n", b"1\t4\n", b"2\t8\n", b"3\t-1\n", b"4\t999\n"])
  | st.binary(max_size=5),
  max_size=5,
).map(b"".join)


@quick
@given(entries=ENTRIES)
def test_round_trip(paths, entries):
  check_round_trip(paths, entries)


@quick
@given(
  images=st.lists(plain, min_size=1, max_size=6),
  place=st.integers(0, 2**20),
  data=st.lists(pieces, min_size=1, max_size=3).map(b"".join).filter(len),
)
# Lengths: too long by a record, by a part of one, too short.
@example([b"a" * 20] * 4, 52 + 4, struct.pack("<I", 44 + 52))
@example([b"a" * 20] * 4, 52 + 4, struct.pack("<I", 44 + 24))
@example([b"a" * 20] * 4, 52 + 4, struct.pack("<I", 24))
def test_what_an_overwriting_does_not_touch_is_read(paths, images, place, data):
  check_overwritten(paths, images, place, data)


@quick
@given(rec=ANY, idx=LINES)
@example(b"\0" * 7, b"0\t0\n")
@example(MAGIC + bytes(4), b"0\t0\n")
@example(part(1, b"") + part(2, b"") * 3, b"0\t0\n")
@example(part(1, b"") + part(3, b"")[:-1], b"0\t8")
@example(b"x" + image_record(0, b"abc") + image_record(1, b"abcd"), b"0\t1\n")
def test_any_bytes(paths, rec, idx):
  check_any_bytes(paths, rec, idx)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
  place=st.integers(0, 2**20),
  data=st.lists(pieces, min_size=1, max_size=3).map(b"".join),
  cut=st.none() | st.integers(0, 4000),
  skip_bad=st.booleans(),
)
def test_conversion_of_a_damaged_file(
  tmp_path_factory, place, data, cut, skip_bad
):
  """Images or one sentence, and every image that is written is one of ours."""
  folder = tmp_path_factory.mktemp("damaged")
  rec, _ = join(range(4), [image_record(0, y) for y in IMAGES[:4]])
  place %= len(rec)
  rec = (rec[:place] + data + rec[place + len(data) :])[:cut]
  (folder / "train.rec").write_bytes(rec)
  try:
    found = convert(
      folder, folder / "out", skip_bad=skip_bad, remap_labels=True
    )
  except InputError as error:
    assert "\n" not in str(error)
  else:
    assert found and sum(r.image not in IMAGES for r in found) <= 1


@pytest.mark.parametrize(
  "data",
  [
    MAGIC * 2**16,
    part(1, b"") * 2**15,
    part(1, b"") + part(2, b"") * 2**15,
    (part(1, b"") + part(2, b"") * 500) * 2**6,
    b"x" + (MAGIC + struct.pack("<I", 24)) * 2**15,
    (MAGIC + struct.pack("<I", 2**18 - 100)) * 2**15,
    b"x" + (MAGIC + struct.pack("<I", 2**17)) * 2**15,
    part(0, b"") * 2**15,
  ],
  ids=range(8),
)
def test_traps_cost_little(paths, data):
  """A quarter of a megabyte: no time that grows with the square of it.

  Nor memory that grows with the lengths that it states. What leads through the
  same bytes again and again is refused.
  """
  paths[0].write_bytes(data)
  # As users run it: annotations may be checked at every call here.
  code = (
    "import sys, time\n"
    "from data_prep.formats import recordio\n"
    "from jamsface_jax.errors import InputError\n"
    "begin, count = time.process_time(), 0\n"
    "with recordio.RecordFile(sys.argv[1], None) as file:\n"
    "  try:\n"
    "    count = sum(1 for _ in file.records())\n"
    "  except InputError as error:\n"
    "    count = 'again and again' in str(error)\n"
    "print(time.process_time() - begin, int(count))\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", code, str(paths[0])], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  seconds, count = map(float, done.stdout.split())
  assert seconds < 5 and count >= 1
  tracemalloc.start()
  with (
    recordio.RecordFile(str(paths[0]), None) as file,
    contextlib.suppress(InputError),
  ):
    for record, _ in zip(file.records(), range(100), strict=False):
      assert record.end <= len(data)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 6 * 2**20


@pytest.mark.slow
@long
@given(entries=ENTRIES)
def test_round_trip_long(paths, entries):
  check_round_trip(paths, entries)


@pytest.mark.slow
@long
@given(
  images=st.lists(plain, min_size=1, max_size=8),
  place=st.integers(0, 2**20),
  data=st.lists(pieces, min_size=1, max_size=5).map(b"".join).filter(len),
)
def test_overwriting_long(paths, images, place, data):
  check_overwritten(paths, images, place, data)


@pytest.mark.slow
@long
@given(rec=ANY, idx=LINES)
def test_any_bytes_long(paths, rec, idx):
  check_any_bytes(paths, rec, idx)
