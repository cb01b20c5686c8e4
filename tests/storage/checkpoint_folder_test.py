"""What becomes of a checkpoint, told by the names in the folder."""

import os

import pytest

from jamsface_jax.storage.run_directory import RunDirectory


@pytest.fixture
def folder(tmp_path):
  folder = RunDirectory(str(tmp_path)).checkpoints
  assert not folder.exists()
  folder.create()
  return folder


def begin(folder, step):
  os.makedirs(os.path.join(folder.saving_place(step), "backbone"))
  os.makedirs(os.path.join(folder.saving_place(step), "head"))
  for name, content in (("backbone/x", "numbers"), ("head/y", "more")):
    with open(f"{folder.saving_place(step)}/{name}", "w") as file:
      file.write(content)


def save(folder, *steps):
  for step in steps:
    begin(folder, step)
    folder.complete(step)


def test_a_checkpoint_counts_when_it_is_complete(folder):
  begin(folder, 12)
  assert folder.steps() == []
  folder.complete(12)
  save(folder, 4)
  assert folder.steps() == [4, 12]
  names = sorted(os.listdir(folder.place(12)))
  assert names == ["backbone", "head", "manifest.json"]
  assert folder.find_damage(12, ()) is None
  with open(f"{folder.place(12)}/backbone/x", "w") as file:
    file.write("numberS")
  assert "other bytes" in folder.find_damage(12, ())
  assert folder.find_damage(12, ("head",)) is None
  # JSON, but not of this checkpoint.
  with open(f"{folder.place(12)}/manifest.json", "w") as file:
    file.write('{"files": {"x": {"sha256": "", "bytes": 1}}}')
  assert "no file of 'head'" in folder.find_damage(12, ("head",))


def test_removing_and_discarding_touch_one_step(folder):
  save(folder, 4, 40)
  begin(folder, 8)
  begin(folder, 80)
  folder.remove(4)
  folder.discard(8)
  assert sorted(os.listdir(folder.path)) == ["40", "80.saving"]


def test_sweeping_leaves_what_is_whole_or_of_others(folder):
  save(folder, 4, 8, 12)
  os.rename(folder.place(8), folder.place(8) + ".deleting")
  begin(folder, 16)
  os.rename(folder.saving_place(16), folder.saving_place(16) + ".orbax-tmp")
  os.mkdir(folder.place(2) + ".damaged")
  os.mkdir(os.path.join(folder.path, "notes"))
  assert folder.sweep() == [16]
  assert sorted(os.listdir(folder.path)) == ["12", "2.damaged", "4", "notes"]


def test_damaged_ones_are_kept_side_by_side(folder):
  for _ in range(3):
    save(folder, 4)
    aside = folder.set_aside(4)
    assert os.path.isdir(aside)
  assert sorted(os.listdir(folder.path)) == [
    "4.damaged",
    "4.damaged.2",
    "4.damaged.3",
  ]


def test_what_is_no_checkpoint_is_set_aside(tmp_path):
  folder = RunDirectory(str(tmp_path)).checkpoints
  folder.create()
  tmp_path = tmp_path / "checkpoints"
  for name in ("3", "4.saving.x", "2.damaged", "07", "notes"):
    (tmp_path / name).mkdir()
  (tmp_path / "5").write_text("a file")
  (tmp_path / "6.saving").write_text("a file")
  assert folder.steps() == [3]
  moved = folder.set_foreign_aside()
  assert sorted(os.path.basename(one) for one in moved) == [
    "07",
    "5",
    "6.saving",
    "notes",
  ]
  assert (tmp_path / "5.set_aside").read_text() == "a file"
  assert folder.set_foreign_aside() == {}
  assert folder.sweep() == [4] and folder.steps() == [3]
