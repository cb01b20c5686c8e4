"""What strangers may have put in the place of a file is left as it is."""

import ast
import os
import pathlib
import threading

import numpy as np
import pytest

from jamsface_jax.embedding.files import EmbeddingFiles
from jamsface_jax.errors import InputError
from jamsface_jax.storage import manifest
from jamsface_jax.storage.plain_file import NotPlainError, make_folder, plain
from jamsface_jax.storage.run_directory import (
  EvaluationDirectory,
  PictureFolder,
  RunDirectory,
  RunFile,
)
from jamsface_jax.storage.whole_file import written_whole

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def victim(tmp_path):
  """A file of the user's, and the folder that it is in."""
  folder = tmp_path / "mine"
  folder.mkdir()
  (folder / "file").write_text("mine")
  return folder / "file"


@pytest.fixture
def stranger(tmp_path):
  """A directory from a stranger."""
  (tmp_path / "theirs").mkdir()
  return tmp_path / "theirs"


def files(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_link_is_replaced_and_not_followed(victim, stranger):
  for name in ("roc.png", "roc.png.partial"):
    (stranger / name).symlink_to(victim)
  with PictureFolder(str(stranger)).picture("roc").written_whole("wb") as file:
    file.write(b"picture")
  assert victim.read_text() == "mine"
  assert not (stranger / "roc.png").is_symlink()
  assert (stranger / "roc.png").read_bytes() == b"picture"


def test_what_is_appended_goes_through_no_link(victim, stranger):
  (stranger / "metrics.jsonl").symlink_to(victim)
  metrics = RunDirectory(str(stranger)).metrics
  for write in (lambda: metrics.append_line("{}"), metrics.sync):
    with pytest.raises(InputError, match=r"metrics.jsonl' is a symbolic link"):
      write()
  assert victim.read_text() == "mine"


def test_a_lock_is_taken_through_no_link(victim, stranger):
  (stranger / "lock").symlink_to(victim)
  with (
    pytest.raises(InputError, match="is a symbolic link"),
    RunDirectory(str(stranger)).held(),
  ):
    pass
  assert victim.read_text() == "mine"


@pytest.mark.parametrize(
  "name", ["plots", "evaluation", "checkpoints", "tensorboard", "traces"]
)
def test_folders_of_a_run_are_no_links(victim, stranger, name):
  place = {"traces": "tensorboard/plugins"}.get(name, name)
  (stranger / place).parent.mkdir(exist_ok=True)
  (stranger / place).symlink_to(victim.parent)
  run = RunDirectory(str(stranger))
  create = {
    "plots": run.plots.create,
    "evaluation": run.evaluation.create,
    "checkpoints": run.checkpoints.create,
    "tensorboard": run.new_events_file,
    "traces": run.new_traces,
  }[name]
  with pytest.raises(InputError, match=f"{place}' is a symbolic link"):
    create()
  assert files(victim.parent) == ["file"]


def test_links_that_the_user_names_are_followed(tmp_path):
  (tmp_path / "disk").mkdir()
  (tmp_path / "w").symlink_to(tmp_path / "disk")
  run = RunDirectory(str(tmp_path / "w"))
  run.create()
  run.plots.create()
  EvaluationDirectory.at(str(tmp_path / "w"), "--output").create()
  assert files(tmp_path / "disk") == ["plots"]


def test_sweeping_checkpoints_removes_a_link_and_not_its_end(victim, stranger):
  folder = RunDirectory(str(stranger)).checkpoints
  folder.create()
  for name in ("3.saving", "4.deleting"):
    (stranger / "checkpoints" / name).symlink_to(victim.parent)
  assert folder.sweep() == [3]
  assert files(stranger / "checkpoints") == []
  assert victim.read_text() == "mine"


PLAN = {
  "images": 3,
  "embedding_size": 2,
  "dtype": "float32",
  "norms": False,
  "block": 2,
}


def test_embeddings_are_written_through_no_link(victim, stranger):
  names = ("embeddings.npy", "labels.npy", "plan.json")
  for name in names:
    (stranger / f"{name}.partial").symlink_to(victim)
  embedding = EmbeddingFiles(str(stranger), PLAN)
  embedding.begin()
  assert victim.read_text() == "mine"
  # Of an interrupted run, with a plan that fits.
  path = stranger / "embeddings.npy.partial"
  path.unlink()
  path.symlink_to(victim)
  victim.write_bytes((stranger / "labels.npy.partial").read_bytes())
  before = victim.read_bytes()
  assert not embedding.begin().any()
  with pytest.raises(InputError, match="a symbolic link"):
    embedding.open(0)
  assert victim.read_bytes() == before


@pytest.mark.parametrize(
  "line",
  ["{", "[1]", "5", '{"block": 9}', '{"block": -1}', '{"block": "0"}', "{}"],
)
def test_a_line_of_a_journal_that_notes_no_block_is_passed_over(stranger, line):
  embedding = EmbeddingFiles(str(stranger), PLAN)
  embedding.begin()
  (stranger / "journal-0.jsonl").write_text(line + "\n")
  assert not embedding.begin().any()


def test_a_kill_leaves_a_name_that_nobody_foresees(stranger):
  path = str(stranger / "report.html")
  names = set()
  for _ in range(2):
    with written_whole(path) as file:
      (name,) = set(files(stranger)) - {"report.html"}
      names.add(name)
      assert os.fstat(file.fileno()).st_mode & 0o777 == 0o666 & ~umask()
  assert len(names) == 2
  with pytest.raises(KeyError), written_whole(path):
    raise KeyError
  assert files(stranger) == ["report.html"]
  for name in names:
    (stranger / name).write_text("half")
  (stranger / "mine.partial").write_text("")
  old = names.pop()
  os.utime(stranger / old, (0, 0))
  with RunDirectory(str(stranger)).held():
    pass  # Somebody may still be writing the other one.
  left = ["mine.partial", "report.html", *names]
  assert files(stranger) == sorted(left)


def umask():
  value = os.umask(0)
  os.umask(value)
  return value


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_pipe_or_a_device_is_not_waited_for(stranger, mode):
  os.mkfifo(stranger / "pipe")
  for path in (stranger / "pipe", "/dev/zero"):
    with pytest.raises(NotPlainError, match="a pipe or a device"):
      open(path, mode, opener=plain)
  descriptors = len(os.listdir("/proc/self/fd"))
  for _ in range(9):
    with pytest.raises(NotPlainError):
      RunFile(str(stranger / "pipe")).read_text()
  assert len(os.listdir("/proc/self/fd")) == descriptors


def test_it_is_an_error_of_the_file_system_too(stranger):
  """Who knows what the file is for can say so."""
  os.mkfifo(stranger / "pipe")
  with pytest.raises(OSError) as caught:
    open(stranger / "pipe", "rb", opener=plain)
  assert caught.value.strerror == "it is a pipe or a device, and no file"
  with pytest.raises(IsADirectoryError):
    open(stranger, "rb", opener=plain)


def test_a_folder_is_made_through_no_link_on_the_way(victim, stranger):
  (stranger / "a").symlink_to(victim.parent)
  with pytest.raises(InputError, match="a' is a symbolic link"):
    make_folder(str(stranger / "a" / "b"), within=str(stranger))
  (stranger / "f").write_text("")
  with pytest.raises(InputError, match="f' is no folder"):
    make_folder(str(stranger / "f"))
  make_folder(str(stranger / "c" / "d"), within=str(stranger))
  make_folder(str(stranger / "c" / "d"), within=str(stranger))
  assert (stranger / "c" / "d").is_dir() and files(victim.parent) == ["file"]


@pytest.mark.parametrize(
  "path",
  [
    "../mine/file",
    "{}/file",
    "state/../../mine/file",
    "link",
    "to/file",
    "a\\u0000",
  ],
)
def test_a_manifest_says_nothing_of_what_lies_outside(victim, stranger, path):
  path = path.format(victim.parent)
  (stranger / "link").symlink_to(victim)
  (stranger / "to").symlink_to(victim.parent)
  (stranger / "state").mkdir()
  manifest.write_manifest(str(stranger))
  told = (stranger / "manifest.json").read_text()
  (stranger / "link").unlink()
  (stranger / "link").write_text("mine")
  assert manifest.find_damage(str(stranger), ()) is None
  (stranger / "link").unlink()
  (stranger / "link").symlink_to(victim)
  (stranger / "manifest.json").write_text(told.replace('"link"', f'"{path}"'))
  damage = manifest.find_damage(str(stranger), ())
  outside = damage.endswith("is a link, or outside of the directory")
  assert outside or "cannot be read" in damage and "embedded null" in damage


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.mkdir(path)])
def test_what_a_manifest_names_is_a_plain_file(stranger, make):
  (stranger / "state").write_text("")
  manifest.write_manifest(str(stranger))
  (stranger / "state").unlink()
  make(stranger / "state")
  found = []
  thread = threading.Thread(
    target=lambda: found.append(manifest.find_damage(str(stranger), ())),
    daemon=True,
  )
  thread.start()
  thread.join(5)
  assert found and "cannot be read" in found[0]


SOURCES = sorted(
  path
  for folder in ("jamsface_jax", "data_prep")
  for path in (ROOT / folder).rglob("*.py")
)
# Calls that write to a path, and so through a link.
WRITES = (
  "np.save",
  "np.savez",
  "cv2.imwrite",
  "shutil.copyfile",
  "shutil.copy",
  "shutil.copy2",
)


@pytest.mark.parametrize(
  "path", SOURCES, ids=lambda path: str(path.relative_to(ROOT))
)
def test_nothing_else_opens_files(path):
  """All that is opened is opened as a plain file, or is a stream."""
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.Call):
      continue
    name, where = ast.unparse(node.func), f"{path}:{node.lineno}"
    given = ast.unparse(node.args[0]) if node.args else ""
    if name == "open" and "devnull" not in given and "scratch" not in given:
      openers = [k.value for k in node.keywords if k.arg == "opener"]
      assert [ast.unparse(one) for one in openers] == ["plain"], where
    stream = given in ("file", "stream", "cast('BinaryIO', stream)")
    assert name not in WRITES or stream, where
    assert not name.endswith((".savefig", ".imsave")) or stream, where
    assert not name.endswith((".write_bytes",)), where


def test_numbers_are_written_to_streams(stranger, victim):
  (stranger / "labels.npy").symlink_to(victim)
  with written_whole(str(stranger / "labels.npy"), "wb") as file:
    np.save(file, np.arange(3))
  assert victim.read_text() == "mine"
