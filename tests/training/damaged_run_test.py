"""A run whose files were deleted, cut, replaced: said in a sentence, no loss.

Of a finished and of a stopped run each file of the newest checkpoint, and each
that a command opens, is damaged in each way. A traceback is a fault, and so is
what a link points to that has changed, and a loss without a word.
"""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import shutil
import sys

import pytest
from tiny_runs import tiny_config

from jamsface_jax import evaluate, model_card, report
from jamsface_jax.embedding.writing import embed
from jamsface_jax.errors import EXIT_PREEMPTED, InputError, RunError
from jamsface_jax.reports.run_record import read_runs
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.settings.names import replaced
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.train import train
from jamsface_jax.weights.exporting import export

STEPS = 4


def configured(dataset):
  return replaced(
    tiny_config(dataset),
    {"schedule.length": float(STEPS), "checkpoint.every": 2},
  )


# Ways to damage a file; each takes its path and a file of the user's.


def deleted(path, _):
  path.unlink()


def emptied(path, _):
  path.write_bytes(b"")


def cut(path, _):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def a_folder(path, _):
  path.unlink()
  path.mkdir()
  (path / "inside").write_text("mine")


def a_link(path, victim):
  path.unlink()
  path.symlink_to(victim)


def a_dangling_link(path, _):
  path.unlink()
  path.symlink_to(path.parent / "nowhere")


def garbage(path, _):
  path.write_bytes(bytes(range(256)) * (1 + path.stat().st_size // 256))


def other_json(path, _):
  path.write_text('{"step": 1, "sets": [{}], "files": {"x": 1}}\n')


def a_number(path, _):
  path.write_text("5\n")


WAYS = [
  deleted,
  emptied,
  cut,
  a_folder,
  a_link,
  a_dangling_link,
  garbage,
  other_json,
  a_number,
]


@dataclasses.dataclass(frozen=True)
class Place:
  """Where a copy of a run is damaged."""

  workdir: pathlib.Path
  scratch: pathlib.Path

  @property
  def run(self):
    return RunDirectory(str(self.workdir))


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
  workdir = tmp_path_factory.mktemp("finished") / "w"
  assert train(configured(dataset), RunDirectory(str(workdir))) == 0
  (workdir / "evaluation").mkdir()  # As `evaluate` would leave it.
  shutil.copy(workdir / "results.json", workdir / "evaluation")
  return workdir


@pytest.fixture(scope="module")
def stopped(dataset, finished, tmp_path_factory):
  """As a SIGTERM after step 2 leaves it: no later checkpoint, no evaluation."""
  workdir = tmp_path_factory.mktemp("stopped") / "w"
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      "jamsface_jax.training.preemption.Preemption.requested",
      lambda self, step: step >= 2,
    )
    run = RunDirectory(str(workdir))
    assert train(configured(dataset), run) == EXIT_PREEMPTED
  return workdir


def names_of(workdir):
  return sorted(
    str(path.relative_to(workdir))
    for path in workdir.rglob("*")
    if path.is_file() and path.name != "lock"
  )


# What `report` and `model_card` read of a run.
READ = (
  "config.json",
  "metrics.jsonl",
  "starts.jsonl",
  "goodput.json",
  "results.json",
  "classes.json",
  "evaluation/results.json",
)


def copy(source, place):
  for folder in (place.workdir, place.scratch):
    shutil.rmtree(folder, ignore_errors=True)
  place.scratch.mkdir()
  shutil.copytree(source, place.workdir, symlinks=True)


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path / "w", tmp_path / "scratch")


@pytest.mark.parametrize("way", WAYS)
def test_what_pages_read_of_a_damaged_run(way, finished, place):
  """`report` and `model_card` begin so, and draw what has been read."""
  for name in READ:
    copy(finished, place)
    victim = place.scratch / "victim"
    victim.write_text("mine\n")
    way(place.workdir / name, victim)
    try:
      read_runs([place.run])
    except InputError as error:
      said = str(error)
      assert name in said or "not a work directory" in said, (name, said)
      assert "\n" not in said and said.endswith("."), said
    else:
      # What is missing, or a text that ends sooner.
      assert way in (deleted, a_dangling_link, emptied, cut), name


def of_newest(source):
  """The newest checkpoint of a run, and its files by their names in it."""
  newest = max(RunDirectory(str(source)).checkpoints.steps())
  folder = source / "checkpoints" / str(newest)
  names = [n for n in names_of(folder) if (folder / n).stat().st_size]
  assert len(names) > 10  # And marks of Orbax that are empty.
  return newest, names


@pytest.mark.parametrize("way", WAYS)
def test_damage_of_every_file_of_a_checkpoint_is_seen(way, finished, place):
  newest, names = of_newest(finished)
  copy(finished, place)
  victim = place.scratch / "victim"
  victim.write_text("mine\n")
  for name in names:
    path = place.workdir / "checkpoints" / str(newest) / name
    way(path, victim)
    found = place.run.checkpoints.find_damage(newest, ())
    assert found and name in found, (name, found)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    shutil.copy(finished / "checkpoints" / str(newest) / name, path)
  assert place.run.checkpoints.find_damage(newest, ()) is None
  assert victim.read_text() == "mine\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_a_damaged_checkpoint_is_passed_over(kind, way, request, place, capsys):
  """A resume goes on from the one before, and says what is lost."""
  source = request.getfixturevalue(kind)
  newest, names = of_newest(source)
  for name in ("manifest.json", next(n for n in names if "head/" in n)):
    copy(source, place)
    victim = place.scratch / "victim"
    victim.write_text("mine\n")
    way(place.workdir / "checkpoints" / str(newest) / name, victim)
    capsys.readouterr()
    with contextlib.closing(
      Checkpoints(place.run, keep_last=3, keep_best="")
    ) as checkpoints:
      if kind == "finished":
        assert checkpoints.newest_sound() == newest - 2, name
        assert "2 steps lost" in capsys.readouterr().err
      else:
        with pytest.raises(RunError, match=r"is sound \(of step 2, .*backup"):
          checkpoints.newest_sound()
    assert victim.read_text() == "mine\n"


# Commands, each called with the place of a run, a data set and images.


def run_main(place, dataset, images):
  assert train(configured(dataset), place.run) == 0


def run_evaluate(place, dataset, images):
  evaluate.evaluate(
    argparse.Namespace(
      against="",
      fars=None,
      pooling=[],
      bootstrap=0,
      embeddings=None,
      workdir=str(place.workdir),
      data=dataset,
      protocol=None,
      step=None,
      flip=None,
      output=None,
    )
  )


def run_embed(place, dataset, images):
  embed(
    place.run,
    images,
    str(place.scratch / "embedded"),
    **dict.fromkeys(("root", "color_order", "step", "batch_size")),
    **dict.fromkeys(("raw", "norms", "float16", "flip"), False),
    threads=1,
  )


def run_export(place, dataset, images):
  output = str(place.scratch / "w.npz")
  export(place.run, "numpy", output, step=None, input_dtype="uint8")


def call(module, place, dataset, images):
  before, sys.argv = sys.argv, ["command", str(place.workdir)]
  try:
    module.main()
  finally:
    sys.argv = before


COMMANDS = {
  "main": run_main,
  "report": functools.partial(call, report),
  "model_card": functools.partial(call, model_card),
  "evaluate": run_evaluate,
  "embed": run_embed,
  "export": run_export,
}
# What they open of a run, besides the newest checkpoint.
OPENS = {
  "main": ("config.json", "metrics.jsonl", "starts.jsonl", "results.json"),
  "report": (*READ, "report.html"),
  "model_card": (*READ, "model_card.md"),
  "evaluate": ("config.json", "evaluation/results.json"),
  "embed": ("config.json",),
  "export": ("config.json",),
}


def metrics_of(workdir):
  """Whole lines, with those that were set aside."""
  lines = set()
  for path in workdir.glob("metrics.jsonl*"):
    if path.is_file() and not path.is_symlink():
      lines.update(path.read_bytes().splitlines())
  return lines


@pytest.fixture
def look(place, dataset, image_folder, capsys):
  """Damages a file of a copy and calls a command; says how it ended."""
  images = str(image_folder / "images" / "Person_00")

  def damage(command, way, name, source):
    copy(source, place)
    victim = place.scratch / "victim"
    victim.write_text("mine\n")
    if (place.workdir / name).exists():
      way(place.workdir / name, victim)
    before = metrics_of(place.workdir)
    capsys.readouterr()
    try:
      COMMANDS[command](place, dataset, images)
      said, ended = capsys.readouterr().err, "done"
    except (InputError, RunError) as error:
      said, ended = str(error), "refused"
      assert "\n" not in said and said.endswith("."), said
      assert str(place.workdir) in said, said
    assert victim.read_text() == "mine\n", "written through a link"
    inside = [p for p in place.workdir.rglob("inside") if p.is_file()]
    assert way is not a_folder or inside or not (source / name).exists(), (
      "a folder of the user's is gone"
    )
    if command == "main" and ended == "done":
      lost = before - metrics_of(place.workdir)
      assert not lost or "warning" in said, f"lost without a word: {lost}"
      assert place.run.checkpoints.steps()[-1] == STEPS
    return ended, said

  return damage


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["report", "model_card"])
def test_pages_of_a_damaged_run(command, way, finished, look):
  for name in OPENS[command]:
    ended, said = look(command, way, name, finished)
    if ended == "refused":
      assert name in said or "not a work directory" in said, (name, said)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("command", ["evaluate", "embed", "export"])
def test_networks_of_a_damaged_run(command, way, finished, look):
  manifest = f"checkpoints/{STEPS}/manifest.json"
  for name in (*OPENS[command], manifest):
    ended, said = look(command, way, name, finished)
    if name == manifest:
      assert ended == "done" and f"checkpoint {STEPS} is damaged" in said, said


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_going_on_with_a_damaged_run(way, stopped, look):
  for name in OPENS["main"]:
    ended, said = look("main", way, name, stopped)
    if ended == "refused":  # Settings, and links are not written through.
      assert name == "config.json" or way in (a_link, a_dangling_link), said
      assert "make room" not in said
