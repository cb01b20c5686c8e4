"""What a run says of itself is so."""

import dataclasses
import os
import pty
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jamsface_jax.run import state
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training import summary
from jamsface_jax.training.setup import prepare


def prepared(**changes):
  config = tiny(base_config())
  config.data.noise_classes, config.data.noise_images = 12, 37
  config.update_from_flattened_dict(changes)
  return prepare(make_settings(config))


def by_hand(config, components):
  """Twice the products of each convolution and of the last layer."""
  size = config.data.image_size
  variables, kept = {}, {}
  image = jnp.zeros((1, size, size, 3))

  def forward(key):
    variables = components.model.init(key, image, train=False)
    _, seen = components.model.apply(
      variables, image, train=False, capture_intermediates=True
    )
    return variables["params"], seen["intermediates"]

  variables, kept = jax.eval_shape(forward, jax.random.key(0))
  outputs = traverse_util.flatten_dict(kept)
  total = 0
  for path, kernel in traverse_util.flatten_dict(variables).items():
    if path[-1] == "kernel":
      (output,) = outputs[(*path[:-1], "__call__")]
      places = np.prod(output.shape) // kernel.shape[-1]
      total += 2 * places * np.prod(kernel.shape)
  return total


@pytest.mark.parametrize("width", [0.5, 1.0])
def test_operations_of_the_backbone(width):
  setup = prepared(**{"model.width": width})
  counted = summary.count_operations(setup)
  wanted = by_hand(setup.settings, setup.components)
  assert counted == wanted


def test_opening_fits_a_screen_and_has_the_numbers():
  setup = prepared(
    **{"schedule.length": 40.0, "schedule.milestones": (10.0, 20.0)},
    **{"schedule.decay": "step"},
  )
  text = summary.opening(setup, 8, fine_tuned=False)
  lines = text.splitlines()
  assert len(lines) <= 24
  shapes = state.state_shapes(setup.components, 32, setup.mesh)
  parameters = sum(
    np.prod(x.shape) for x in jax.tree.leaves(shapes.params["backbone"])
  )
  assert f"{parameters:,} parameters" in text
  assert "37 images of 12 classes (3 to 4 each)" in text
  assert "8 done of 40, 16 images each: 17.3 epochs" in text
  rate = setup.settings.optimizer.learning_rate * 16 / 1024
  assert (
    f"learning rate {rate:g}, warm-up 1 steps, decay step by 0.1 at 10, 20"
    in text
  )
  assert "8 cpu, mesh data 1 x model 8, 1 process(es)" in text
  assert re.search(r"time +at least \d+:\d\d:\d\d", text)


def test_the_rate_told_is_the_first_after_the_warm_up():
  setup = prepared(**{"schedule.length": 40.0, "schedule.warmup": 4.0})
  told = float(summary._schedule_text(setup.settings).split()[2].rstrip(","))
  assert told == pytest.approx(float(setup.components.schedule(4)), rel=1e-5)


def test_closing_names_what_to_type(tmp_path):
  workdir = str(tmp_path / "a run")
  text = summary.closing(RunDirectory(workdir), 7, [])
  assert text.startswith("finished 7 steps\n")
  assert f"report: {workdir}/report.html" in text
  for command in ("embed", "evaluate", "export"):
    assert f"-m jamsface_jax.{command} '--workdir={workdir}'" in text


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_ends_it(tmp_path):
  """On a terminal 100 columns wide, whose bytes are looked at."""
  main, other = pty.openpty()
  subprocess.run(["stty", "cols", "100", "rows", "40"], stdin=other, check=True)
  environment = os.environ | {"JAX_PLATFORMS": "cpu"}
  process = subprocess.Popen(
    [
      sys.executable,
      "-m",
      "jamsface_jax.main",
      "--config=configs/demo.py:tiny",
      f"--workdir={tmp_path / 'w'}",
    ],
    stdin=other,
    stdout=other,
    stderr=other,
    env=environment | {"NO_COLOR": "1"},
  )
  os.close(other)
  seen = b""
  while True:
    try:
      part = os.read(main, 4096)
    except OSError:  # Linux: the other end is closed.
      break
    if not part:
      break
    seen += part
  assert process.wait() == 0
  text = seen.decode()
  assert re.search(r"100% \S* *5/5 steps \[[^\r]*loss \d", text), text
  assert "\x1b[3" not in text  # No colours.
  lines = [line.split("\r")[-1] for line in text.split("\r\n")]
  assert "finished 5 steps" in lines  # Alone on its line.
  assert lines.count("finished 5 steps") == 1
  last = lines.index("finished 5 steps")
  assert not any("%" in line for line in lines[last:])  # The bar has ended.


@pytest.mark.parametrize(("batch", "says"), [(32, False), (40, True)])
def test_a_batch_larger_than_the_data_is_said(batch, says):
  """There are 37 images."""
  text = summary.opening(
    prepared(**{"data.batch_size": batch}), 0, fine_tuned=True
  )
  assert ("a batch of 40 has every image 1.08 times" in text) == says


@pytest.mark.parametrize(
  ("fine_tuned", "images", "directory"),
  [(False, 37, "d"), (True, 37, "d"), (False, 37, ""), (False, 4000, "d")],
)
def test_few_images_that_begin_from_nothing_are_told_of(
  fine_tuned, images, directory
):
  """Noise, which has no directory, is there to try."""
  setup = prepared(**{"data.noise_images": images})
  data = dataclasses.replace(setup.settings.data, directory=directory)
  settings = dataclasses.replace(setup.settings, data=data)
  setup = dataclasses.replace(setup, settings=settings)
  text = summary.opening(setup, 0, fine_tuned=fine_tuned)
  said = "37 images teach a network that begins from nothing" in text
  assert said == (not fine_tuned and images == 37 and bool(directory))
