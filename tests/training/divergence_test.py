"""Runs that cannot go on as they are: what is seen, said, and helps."""

import os
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import (
  assert_equal,
  read_lines,
  read_state,
  tiny_config,
  without_speed,
)

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError, NotFiniteError
from jamsface_jax.run import state
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.storage.checkpoint_folder import CheckpointFolder
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import divergence
from jamsface_jax.training.train import train


@pytest.fixture(scope="module")
def first():
  config = tiny_config("", **{"data.directory": ""})
  components = make_components(config, 12, 37)
  return state.create_state(0, components, 32, sharding.make_mesh(4))


@pytest.mark.parametrize("value", [2e8, -2e8, np.inf, np.nan])
@pytest.mark.parametrize("part", ["backbone", "head"])
def test_one_weight_beyond_the_bound_is_enough(first, part, value):
  divergence.check_bounded(first, 7)
  params = dict(first.params)
  name = sorted(params[part])[0]
  while not hasattr(params[part][name], "at"):  # Down to an array.
    params[part] = params[part][name]
    name = sorted(params[part])[0]
  array = params[part][name]
  worse = {"x": array.at[(0,) * array.ndim].set(jnp.asarray(value))}
  with pytest.raises(NotFiniteError, match="after step 7 the largest weight"):
    divergence.check_bounded(
      first.replace(params=first.params | {part: worse}), 7
    )


def test_steps_to_skip_are_steps():
  config = base_config()
  config.data.skip_steps = "3,6:7,12"
  got = make_settings(config).data.skipped_steps
  assert [step for one in got for step in one] == [3, 6, 7, 12]
  for text in ("3:", "7:6", "a", "0", "-1:3"):
    config.data.skip_steps = text
    with pytest.raises(InputError, match="data.skip_steps"):
      make_settings(config)


@pytest.mark.slow
def test_weights_without_bound_are_not_saved(dataset, tmp_path, monkeypatch):
  """Every number above a bound that is small stands for large weights."""
  run = RunDirectory(str(tmp_path / "w"))
  config = tiny_config(dataset)
  requested, bound = divergence.check_bounded, []

  hash_files = CheckpointFolder.hash_files

  def hash_files_late(*arguments):
    time.sleep(3)  # As on a slow disk: step 8 is there before the checkpoint.
    return hash_files(*arguments)

  def lower_from_step_8(current, step):
    if step == 8:
      monkeypatch.setattr(divergence, "LARGEST_WEIGHT", 1e-3)
    bound.append(step)
    requested(current, step)

  with monkeypatch.context() as patch:
    patch.setattr("jamsface_jax.training.loop.check_bounded", lower_from_step_8)
    patch.setattr(CheckpointFolder, "hash_files", hash_files_late)
    with pytest.raises(NotFiniteError, match="checkpoints/4'.*8:8") as raised:
      train(config, run)
  assert raised.value.exit_code == 3 and bound == [4, 8]
  assert os.listdir(tmp_path / "w" / "checkpoints") == ["4"]
  # What it says helps: the same command goes on, past those examples.
  monkeypatch.undo()
  assert train(tiny_config(dataset, **{"data.skip_steps": "8"}), run) == 0
  steps = [x["step"] for x in read_lines(tmp_path / "w") if "train/loss" in x]
  assert 12 in steps and 8 not in steps[:-1]


@pytest.mark.slow
def test_skipped_steps_change_nothing_and_move_nothing(dataset, tmp_path):
  """After them the run is where it would be, with the weights from before."""
  whole, some = tmp_path / "whole", tmp_path / "some"
  log = {"log_every": 1}
  assert train(tiny_config(dataset, **log), RunDirectory(str(whole))) == 0
  config = tiny_config(dataset, **log, **{"data.skip_steps": "5:8"})
  assert train(config, RunDirectory(str(some))) == 0
  before, after = (read_state(config, some, step) for step in (4, 8))
  assert after.step == 8
  assert_equal(after.params, before.params)
  assert_equal(after.opt_state, before.opt_state)
  assert_equal(before, read_state(config, whole, 4))
  lines = [
    {x["step"]: x for x in without_speed(read_lines(w)) if "train/loss" in x}
    for w in (whole, some)
  ]
  assert sorted(lines[1]) == [1, 2, 3, 4, 9, 10, 11, 12]
  assert [lines[1][k] for k in range(1, 5)] == [
    lines[0][k] for k in range(1, 5)
  ]
  # Step 9 takes the examples and the learning rate of step 9.
  assert (
    lines[1][9]["train/learning_rate"] == lines[0][9]["train/learning_rate"]
  )
