"""Runs that begin with parts of another run."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from conftest import assert_one_sentence, convert
from tiny_runs import assert_equal, read_lines, read_state, tiny_config
from tiny_runs import without_speed as timeless

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.run import fine_tune, state
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.names import replaced
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.step_log import StepLog
from jamsface_jax.training.train import train


@pytest.fixture(scope="module")
def source(dataset, tmp_path_factory):
  """A finished run to take parts of."""
  workdir = tmp_path_factory.mktemp("run") / "source"
  assert train(tiny_config(dataset), RunDirectory(str(workdir))) == 0
  return workdir


@pytest.fixture(scope="module")
def few_classes(image_folder, tmp_path_factory):
  """The one identity with four images."""
  directory = tmp_path_factory.mktemp("data") / "few"
  convert(image_folder, directory, name="few", min_images=4, pairs=None)
  return str(directory)


def begun(config, source, keep, num_classes=12):
  """The first state of a run that begins with parts of `source`."""
  components = make_components(config, num_classes, 37)
  mesh = sharding.make_mesh(2)
  first = state.create_state(5, components, 32, mesh)
  chosen = fine_tune.FineTune(str(source), 12, keep)
  after = fine_tune.apply_fine_tune(chosen, first, config, components, mesh)
  return jax.device_get(first), jax.device_get(after)


@pytest.mark.parametrize(
  "keep", [("backbone",), ("weights",), ("margins",), ("backbone", "margins")]
)
def test_kept_parts_come_over_and_no_others(source, dataset, keep):
  config = tiny_config(dataset)
  first, after = begun(config, source, keep)
  theirs = read_state(config, source)
  from_them = {
    "backbone": (first.params["backbone"], first.batch_stats),
    "weights": first.params["head"]["weights"],
    "margins": [
      first.params["head"][name] for name in fine_tune.HEAD_PARTS["margins"]
    ],
  }

  def pick(whole):
    head = whole.params["head"]
    return {
      "backbone": (whole.params["backbone"], whole.batch_stats),
      "weights": head["weights"],
      "margins": [head[name] for name in fine_tune.HEAD_PARTS["margins"]],
    }

  for name in from_them:
    want = theirs if name in keep else first
    assert_equal(pick(after)[name], pick(want)[name])
  flat = [
    np.concatenate([x.ravel() for x in jax.tree.leaves(pick(w))])
    for w in (first, theirs)
  ]
  assert not np.array_equal(*flat)  # There was something to bring over.
  assert_equal(after.opt_state, first.opt_state)
  assert after.step == 0


def test_other_classes_take_the_backbone_only(source, few_classes):
  config = tiny_config(few_classes)
  begun(config, source, ("backbone",), num_classes=3)
  for part in ("weights", "margins"):
    with pytest.raises(InputError, match="num_classes 12 and this run 3"):
      begun(config, source, (part,), num_classes=3)


def test_another_model_is_refused(source, dataset):
  config = tiny_config(dataset, **{"model.width": 0.25})
  with pytest.raises(InputError, match="model.width 0.125 and this run 0.25"):
    begun(config, source, ("backbone",))


def test_all_that_differs_is_told_as_flags(source, dataset):
  config = tiny_config(
    dataset, **{"model.width": 0.25, "model.embedding_size": 48}
  )
  with pytest.raises(InputError) as raised:
    begun(config, source, ("backbone",))
  assert str(raised.value).endswith(
    ", as with --config.model.embedding_size=32 --config.model.width=0.125."
  )


def test_every_setting_of_the_model_is_compared_but_the_named(source, dataset):
  """New settings too: whoever adds one must think about it."""
  same = tiny_config(dataset)
  components = make_components(same, 12, 37)
  chosen = fine_tune.FineTune(str(source), 12, ("backbone",))
  stored = {"color_order": "RGB", "num_classes": 12}
  may_differ = set()
  for name, value in dataclasses.asdict(same.model).items():
    kind = type(value)
    other = {str: "other", tuple: (9,), bool: True}.get(kind) or kind(7)
    config = replaced(same, {f"model.{name}": other})
    try:
      fine_tune._check_fits(chosen, stored, config, components)
      may_differ.add(name)
    except InputError as error:
      assert f"model.{name} {value!r} and this run" in str(error)
  assert may_differ == {
    "dropout",
    "drop_path",
    "mask_ratio",
    "dtype",
    "remat",
    "batch_norm_group",
  }


@pytest.mark.slow
def test_fine_tuned_run_resumes_exactly_without_the_flag(
  source, dataset, tmp_path, monkeypatch
):
  class Killed(BaseException):
    pass

  add = StepLog.add
  config = tiny_config(dataset, seed=3)
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  assert (
    train(
      config, RunDirectory(str(whole)), fine_tune_from=RunDirectory(str(source))
    )
    == 0
  )
  # Killed before the first checkpoint and after one.
  for stop, flag in ((2, RunDirectory(str(source))), (6, None)):

    def kill(self, step, metrics, ids, stop=stop):
      if step == stop:
        raise Killed
      add(self, step, metrics, ids)

    with monkeypatch.context() as patch, pytest.raises(Killed):
      patch.setattr(StepLog, "add", kill)
      train(config, RunDirectory(str(killed)), fine_tune_from=flag)
  assert train(config, RunDirectory(str(killed))) == 0
  assert_equal(read_state(config, killed), read_state(config, whole))
  assert timeless(read_lines(killed)) == timeless(read_lines(whole))
  reader = CheckpointReader(RunDirectory(str(killed)))
  assert reader.metadata(12)["fine_tuned_from"] == {
    "workdir": str(source),
    "step": 12,
    "keep": ["backbone"],
  }
  # The flag may stay, but not say something else.
  assert (
    train(
      config,
      RunDirectory(str(killed)),
      fine_tune_from=RunDirectory(str(source)),
    )
    == 0
  )
  with pytest.raises(InputError, match="began with backbone of"):
    train(
      config, RunDirectory(str(killed)), fine_tune_from=RunDirectory(str(whole))
    )
  with pytest.raises(InputError, match="began with backbone of"):
    train(
      config,
      RunDirectory(str(killed)),
      fine_tune_from=RunDirectory(str(source)),
      fine_tune_keep="backbone,margins",
    )
  # The fine-tuned run is another one than that which begins afresh.
  afresh = tmp_path / "afresh"
  assert train(config, RunDirectory(str(afresh))) == 0
  assert timeless(read_lines(afresh))[0] != timeless(read_lines(whole))[0]
  with pytest.raises(InputError, match="began without --fine_tune_from"):
    train(
      config,
      RunDirectory(str(afresh)),
      fine_tune_from=RunDirectory(str(source)),
    )


def test_step_is_remembered(source, tmp_path):
  """The other run may go on in the meantime."""
  run = RunDirectory(str(tmp_path))
  values = {"workdir": str(source), "step": 8, "keep": ["backbone"]}
  (tmp_path / "fine_tune.json").write_text(json.dumps(values))
  chosen = fine_tune.plan_fine_tune(run, RunDirectory(str(source)), "backbone")
  assert chosen.step == 8
  assert fine_tune.plan_fine_tune(run, None, "backbone") == chosen


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--fine_tune_from=/nowhere"], ["/nowhere", "no checkpoint"]),
    (["--fine_tune_keep=legs"], ["--fine_tune_keep='legs'", "weights"]),
    (["--fine_tune_keep="], ["--fine_tune_keep=''", "backbone"]),
  ],
)
def test_mistakes_are_one_sentence(run, source, tmp_path, flags, parts):
  done = run(
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={tmp_path / 'w'}",
    f"--fine_tune_from={source}",
    *flags,
  )
  assert_one_sentence(done, *parts)
  assert not (tmp_path / "w").exists()
