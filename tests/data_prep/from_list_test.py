import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import assert_one_sentence
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import from_list
from data_prep.formats.image_list import read_entries
from data_prep.writing import loading
from jamsface_jax.data import records
from jamsface_jax.errors import InputError


@pytest.fixture(scope="module")
def images(image_folder):
  """Paths of the images below `root`, by class."""
  root = image_folder / "images"
  return root, sorted(str(p.relative_to(root)) for p in root.glob("*/*.jpg"))


def convert(source, directory, root, **changes):
  from_list.convert(
    str(source),
    str(directory),
    **{
      "root": str(root),
      "name": "tiny",
      "min_images_per_class": 1,
      "skip_bad": False,
      "exclude": None,
      "check_images": True,
      "threads": 2,
    }
    | changes,
  )
  found = list(records.RecordReader(str(directory)).scan())
  for record in found:
    assert record.image == (root / record.name).read_bytes()
  return [(record.name, record.label) for record in found]


@pytest.fixture
def listed(tmp_path):
  """Writes a list and returns its path."""

  def write(lines, encoding="utf-8"):
    path = tmp_path / "list.txt"
    text = lines if isinstance(lines, str) else "\n".join(lines) + "\n"
    path.write_bytes(text.encode(encoding))
    return path

  return write


@pytest.mark.parametrize("separator", ["\t", ",", ";", " ", "  ", " , "])
@pytest.mark.parametrize("header", [None, "path,label", "id,Identity,x,IMAGE"])
def test_separators_and_headers(images, listed, tmp_path, separator, header):
  root, names = images
  names = names[:9]
  labels = [int(name[7:9]) for name in names]
  columns = (header or "path,label").lower().split(",")
  lines = []
  for name, label in zip(names, labels, strict=True):
    fields = {"path": name, "image": name, "label": label, "identity": label}
    lines.append(separator.join(str(fields.get(c, "7")) for c in columns))
  if header:
    lines.insert(0, header.replace(",", separator))
  found = convert(listed(lines), tmp_path / "out", root)
  assert found == list(zip(names, labels, strict=True))


def test_list_of_im2rec(images, tmp_path):
  root, names = images
  source = tmp_path / "train.lst"
  lines = [f"{k}\t{k % 11}.000000\t{name}\n" for k, name in enumerate(names)]
  source.write_text("".join(lines))
  found = convert(source, tmp_path / "out", root)
  assert found == [(name, k % 11) for k, name in enumerate(names)]
  source.write_text("1\t0\t0.5\ta.jpg\n")
  with pytest.raises(InputError, match="line 1 of .*4 field"):
    convert(source, tmp_path / "none", root)


def test_blanks_and_quotes_in_paths(images, listed, tmp_path):
  root = tmp_path / "faces"
  (root / "An Na").mkdir(parents=True)
  data = (images[0] / images[1][0]).read_bytes()
  for name in ("An Na/1 a.jpg", "An Na/2, b.jpg", "3.jpg"):
    (root / name).write_bytes(data)
  found = convert(
    listed(["An Na/1 a.jpg  x", "./3.jpg y"]), tmp_path / "1", root
  )
  assert found == [("An Na/1 a.jpg", 0), ("3.jpg", 1)]
  lines = ["label,path", "x,An Na/1 a.jpg", '"y","An Na/2, b.jpg"']
  found = convert(listed(lines), tmp_path / "2", root)
  assert found == [("An Na/1 a.jpg", 0), ("An Na/2, b.jpg", 1)]
  # As spreadsheets save it: a mark at the beginning, CR LF, blank lines.
  text = "\ufeffpath;label\r\n\r\nAn Na/1 a.jpg;x\r\n3.jpg;x\r\n\r\n"
  found = convert(listed(text), tmp_path / "3", root)
  assert found == [("An Na/1 a.jpg", 0), ("3.jpg", 0)]


@pytest.mark.parametrize(
  ("labels", "classes"),
  [
    (["10", "2", "0", "2"], ["0", "2", "10"]),
    (["10", "2", "b", "2"], ["10", "2", "b"]),
    (["Zoë", "Ann", "Bob", "Ann"], ["Ann", "Bob", "Zoë"]),
    (["007", "11", "1000", "11"], ["007", "11", "1000"]),
  ],
)
def test_classes_in_their_order(images, listed, tmp_path, labels, classes):
  root, names = images
  lines = [f"{n}\t{x}" for n, x in zip(names, labels, strict=False)]
  found = convert(listed(lines), tmp_path / "out", root)
  assert records.read_classes(str(tmp_path / "out")) == classes
  assert [classes[label] for _, label in found] == labels


def test_flags(images, listed, tmp_path):
  root, names = images
  lines = [f"{name},{name[:9]}" for name in names]
  source = listed(lines)
  found = convert(source, tmp_path / "rich", root, min_images_per_class=4)
  assert found == [(name, 0) for name in names[:4]]
  excluded = tmp_path / "excluded.txt"
  excluded.write_text(f"{names[0]}\tblurred\n{names[5]}\n")
  found = convert(
    source,
    tmp_path / "few",
    root,
    exclude=str(excluded),
    min_images_per_class=3,
  )
  assert [name for name, _ in found] == names[1:4] + names[7:]
  excluded.write_text("nobody.jpg\n")
  with pytest.raises(InputError, match="'nobody.jpg', which is not in"):
    convert(source, tmp_path / "none", root, exclude=str(excluded))
  with pytest.raises(InputError, match="no class with at least 5"):
    convert(source, tmp_path / "none", root, min_images_per_class=5)


def test_bad_images_are_named_or_skipped(images, listed, tmp_path):
  root = tmp_path / "faces"
  root.mkdir()
  good = (images[0] / images[1][0]).read_bytes()
  (root / "a.jpg").write_bytes(good)
  (root / "b.jpg").write_bytes(good[:300])
  (root / "d.jpg").mkdir()
  source = listed([f"{name}.jpg 0" for name in "abcd"])
  with pytest.raises(InputError, match="line 2 of .*b.jpg.*broken JPEG"):
    convert(source, tmp_path / "out", root)
  found = convert(source, tmp_path / "out", root, skip_bad=True)
  assert found == [("a.jpg", 0)]
  skipped = (tmp_path / "out" / "skipped.txt").read_text().splitlines()
  assert [line.split("\t")[0] for line in skipped] == [
    "b.jpg",
    "c.jpg",
    "d.jpg",
  ]
  assert "No such file" in skipped[1] and "directory" in skipped[2]


@pytest.mark.parametrize(
  ("text", "says"),
  [
    ("a 0\nb 1\n\na 1\n", "line 4 of .*repeats the path 'a' of line 1"),
    ("a 0\n./a 1\n", "line 2 of .*repeats the path 'a' of line 1"),
    ("a 0\nb\n", "line 2 of .*1 field"),
    ("a,0\nb 1\n", "line 2 of .*1 field"),
    ("1\ta\t0\n", "line 1 of .*3 field.*name the columns"),
    ("path,label\na,0\nb\n", "line 3 of .*1 field"),
    ("a,0\n,1\n", "line 2 of .*empty path or label"),
    ("a,0\nb,-1\n", "line 2 of .*negative label -1"),
    ("a,0\nb,-1.0\n", "line 2 of .*negative label -1"),
    ("a,0\nb\0,1\n", "line 2 of .*no line of UTF-8"),
    ("a,0\nb\x85,1\n", "line 2 of .*no line of UTF-8"),
    ("a,0\n" + "b" * 70_000 + ",1\n", "line 2 of .*no line of UTF-8"),
    ("path,label\n", "no class with at least 1"),
    ("", "no class with at least 1"),
  ],
)
def test_bad_lists(listed, tmp_path, text, says):
  with pytest.raises(InputError, match=says) as error:
    convert(listed(text), tmp_path / "out", tmp_path, skip_bad=True)
  assert "\n" not in str(error.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings(listed, tmp_path, encoding):
  source = listed(["Ann/1.jpg\t0", "Zoë/1.jpg\t1"], encoding)
  line = {"latin-1": 2, "utf-16": 1}[encoding]
  with pytest.raises(InputError, match=f"line {line} of .*UTF-8"):
    convert(source, tmp_path / "out", tmp_path)


def test_paths_of_equal_hash_are_not_taken_for_one(tmp_path, listed):
  """Duplicates are sought by hash; only equal paths are refused."""
  source = listed(["a 0", "b 1", "c 2"])
  from_list._check_duplicates(str(source), {hash("a"), hash("b")})
  source = listed(["a 0", "b 1", "b 2"])
  with pytest.raises(InputError, match="line 3 .* line 2"):
    from_list._check_duplicates(str(source), {hash("a"), hash("b")})


def test_loading_keeps_order_and_looks_little_ahead(images):
  """Two batches are in memory, and a large image is a batch."""
  root, names = images

  def items(size):
    for name in names:
      pulled.append(name)
      yield name, size

  for size, ahead in [(2**30, 2), (2**24, 4), (1, 37)]:
    pulled, found = [], []
    with ThreadPoolExecutor(2) as pool:
      for name, data, image_size in loading.load_images(
        items(size), lambda n: (root / n).read_bytes(), pool, check=True
      ):
        assert len(pulled) - len(found) <= ahead
        assert data == (root / name).read_bytes() and image_size == (40, 40)
        found.append(name)
    assert found == names


KILLED = """
import os, signal, sys
from data_prep import from_list
from data_prep.writing import shards
add = shards.ShardWriter.add
def add_or_die(self, *args):
  add_or_die.left -= 1
  if add_or_die.left < 0:
    os.kill(os.getpid(), signal.SIGKILL)
  add(self, *args)
add_or_die.left = 20
shards.ShardWriter.add = add_or_die
from_list.convert(sys.argv[1], sys.argv[2], root=sys.argv[3], name="tiny",
  min_images_per_class=1, skip_bad=False, exclude=None, check_images=True,
  threads=2, shard_bytes=8000)
"""


def test_killed_conversion_goes_on(images, listed, tmp_path):
  root, names = images
  source = listed([f"{name} {name[:9]}" for name in names])
  convert(source, tmp_path / "whole", root, shard_bytes=8000)
  done = subprocess.run(
    [sys.executable, "-c", KILLED, source, tmp_path / "cut", root],
    capture_output=True,
  )
  assert done.returncode == -signal.SIGKILL, done.stderr
  finished = set(os.listdir(tmp_path / "cut"))
  assert "journal.jsonl" in finished and "dataset.json" not in finished
  convert(source, tmp_path / "cut", root, shard_bytes=8000)
  contents = [
    {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    for name in ("whole", "cut")
  ]
  assert contents[0] == contents[1] and len(contents[0]) > 4


def test_command(run, images, listed, tmp_path):
  root, names = images
  source = listed([f"{name},{name[:9]}" for name in names])
  flags = [f"--root={root}", f"--output={tmp_path / 'out'}"]
  done = run("data_prep.from_list", f"--input={source}", *flags)
  assert done.returncode == 0, done.stderr
  assert "37 images of 12 identities (3 to 4 each)" in done.stdout
  last = done.stdout.splitlines()[-1]
  assert last.startswith("next: ") and " -m jamsface_jax.main " in last
  missing = run("data_prep.from_list", f"--input={root / 'no'}", *flags)
  assert_one_sentence(missing, "no", "No such file")
  flags[0] = "--root=nowhere"
  assert_one_sentence(
    run("data_prep.from_list", f"--input={source}", *flags), "--root 'nowhere'"
  )


PIECES = st.sampled_from(
  [
    b"path",
    b"label",
    b"a.jpg",
    b"b/c.jpg",
    b"0",
    b"17",
    b"-1",
    b"\t",
    b",",
    b";",
  ]
  + [b" ", b"\n", b"\r", b'"', b"\0", b"\xff", b"\xef\xbb\xbf", "ë".encode()]
  + ["\u2028".encode(), b"'", b"..", b"/", b"9" * 30]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(PIECES | st.binary(max_size=4), max_size=40).map(b"".join))
def test_any_bytes_are_a_list_or_an_error(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "any.txt"
  path.write_bytes(data)
  try:
    sizes = from_list._count(str(path), set())
    entries = list(read_entries(str(path)))
  except InputError as error:
    assert "\n" not in str(error)
    return
  assert sizes.total() == len(entries) == len({e.path for e in entries})
  for entry in entries:
    assert entry.path and entry.label.splitlines() == [entry.label]
  assert len(sorted(sizes, key=from_list._order(sizes))) == len(sizes)
