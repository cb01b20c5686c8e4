"""Eight fake CPU devices, strict broadcasting: set before JAX starts."""

import gc
import os
import signal
import sys
import tempfile

import cv2
import jax
import numpy as np
import pytest
from command_runner import CommandRunner
from gcs_server import GcsServer
from jaxtyping import install_import_hook

# What is annotated is checked as it is called, shapes and dtypes of arrays too.
# Code that is all Python takes twice as long then: CI asks for it once.
if os.environ.get("CHECK_ANNOTATIONS"):
  install_import_hook(("jamsface_jax", "data_prep"), "type_checker.check")

# A shell that starts tests in the background has them ignore Ctrl-C, nohup that
# the terminal is gone. What they start would ignore it too, unless they handle
# it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
  signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
  signal.signal(signal.SIGHUP, lambda number, frame: None)

# Some machines of CI forbid bytecode: hundreds of processes would each compile
# all that they import.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Programs that several tests, workers and commands compile are compiled once.
os.environ.setdefault(
  "JAX_COMPILATION_CACHE_DIR", tempfile.mkdtemp(prefix="jax-cache-")
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

# Tests compile more than they run, and the commands that they start too: this
# takes a sixth of the time, half of it where XLA has no second flag any more.
# The documentation's commands run without.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
# Programs of eight devices come out of the cache in order, see
# program_cache.py.
os.environ["XLA_FLAGS"] += (
  " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
# Workers take the cores: a program in parts for several threads is more work.
os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
  os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

jax.config.update(
  "jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"]
)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from data_prep import from_folder  # noqa: E402
from jamsface_jax.data.sources import NoiseSource  # noqa: E402
from jamsface_jax.devices import sharding  # noqa: E402
from jamsface_jax.errors import GARBAGE_THRESHOLDS  # noqa: E402
from jamsface_jax.head.losses import make_loss  # noqa: E402
from jamsface_jax.run import state  # noqa: E402
from jamsface_jax.run.checkpoint import Checkpoints  # noqa: E402
from jamsface_jax.run.components import make_components, make_model  # noqa: E402
from jamsface_jax.settings.defaults import (  # noqa: E402
  base_config,
  make_settings,
)
from jamsface_jax.settings.stored import check_or_save  # noqa: E402
from jamsface_jax.settings.variants import tiny  # noqa: E402
from jamsface_jax.storage.run_directory import RunDirectory  # noqa: E402

# A test of these takes minutes: they begin, so that no worker ends with one
# while the others have nothing left.
LONG = ("docs_test.py", "launch_test.py")


def pytest_collection_modifyitems(items):
  """The longest first, all else in its order."""
  items.sort(key=lambda item: item.path.name not in LONG)


def pytest_collection_finish():
  """What is imported stays: a twelfth of the time went by looking through it.

  Commands have the same thresholds.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(*GARBAGE_THRESHOLDS)


@pytest.fixture(
  params=[
    pytest.param(8, id="1x8", marks=pytest.mark.slow),
    pytest.param(4, id="2x4"),
    pytest.param(1, id="8x1", marks=pytest.mark.slow),
  ]
)
def mesh(request):
  """A (data, model) grid of the eight devices; 2x4 has both of the axes."""
  return sharding.make_mesh(request.param)


@pytest.fixture(scope="session")
def gcs():
  """The stand-in for Google Cloud Storage; clients and commands ask it."""
  with GcsServer().running() as server, pytest.MonkeyPatch.context() as patch:
    for name, value in server.environment.items():
      patch.setenv(name, value)
    yield server


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
  """Noise images in sub-folders of 4, 3, 3, ... files, and pairs of them."""
  root = tmp_path_factory.mktemp("images")
  source = NoiseSource(num_classes=12, num_images=37, image_size=40)
  images, labels = source.read(np.arange(37))
  counts = np.zeros(12, int)
  for image, label in zip(images, labels, strict=True):
    counts[label] += 1
    folder = root / "images" / f"Person_{label:02d}"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"Person_{label:02d}_{counts[label]:04d}.jpg"
    cv2.imwrite(str(path), image[:, :, ::-1])
  same = [f"Person_{k:02d} 1 2" for k in range(12)]
  other = [f"Person_{k:02d} 1 Person_{(k + 1) % 12:02d} 1" for k in range(12)]
  (root / "pairs.txt").write_text("\n".join(["12", *same, *other]) + "\n")
  return root


@pytest.fixture(scope="session")
def dataset(image_folder, tmp_path_factory):
  """The same images as a data set with pairs, called "tiny"."""
  directory = tmp_path_factory.mktemp("data") / "tiny"
  convert(image_folder, directory)
  return str(directory)


def convert(image_folder, directory, **changes):
  """Runs data_prep.from_folder on the image folder."""
  from_folder.convert(
    str(image_folder / "images"),
    str(directory),
    **{
      "name": "tiny",
      "identities": None,
      "min_images": 1,
      "pairs": str(image_folder / "pairs.txt"),
      "skip_bad": False,
      "exclude": None,
      "threads": 2,
    }
    | changes,
  )


@pytest.fixture(scope="session")
def untrained(tmp_path_factory):
  """A work directory whose network, for 32 x 32 pixels, has its first values.

  Its checkpoints are of steps 0 and 1, which differ.
  """
  workdir = str(tmp_path_factory.mktemp("untrained"))
  save_untrained(workdir, steps=(0, 1))
  return workdir


def save_untrained(workdir, *, steps, color_order="RGB"):
  """Writes checkpoints of networks with first values, a seed a step."""
  config = make_settings(tiny(base_config()))
  components = make_components(config, 12, 37)
  metadata = {
    "embedding_size": config.model.embedding_size,
    "image_size": config.data.image_size,
    "color_order": color_order,
    "data_fingerprint": "0123",
    "versions": {},
  }
  checkpoints = Checkpoints(RunDirectory(workdir), keep_last=2, keep_best="")
  for step in steps:
    first = state.create_state(
      step, components, config.data.image_size, sharding.make_mesh(-1)
    )
    checkpoints.save(step, first, metadata)
  checkpoints.close()
  check_or_save(config, RunDirectory(workdir))


@pytest.fixture(scope="session")
def command_runner():
  """What runs commands without importing everything for each of them."""
  runner = CommandRunner()
  yield runner
  runner.close()


@pytest.fixture(scope="session")
def run(command_runner):
  """Runs a command; returns the finished process."""

  def run_module(module, *flags, devices=1):
    environment = os.environ | {
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": str(devices),
    }
    return command_runner.run(
      ["-m", module, *flags], folder=os.getcwd(), environment=environment
    )

  return run_module


def check_builds(config):
  """The settings of a recipe that a run accepts."""
  settings = make_settings(config)
  make_model(settings)
  make_loss(settings.head)
  return settings


def assert_one_sentence(process, *parts):
  """Exit code 2 and one line on stderr that has all of these parts."""
  assert process.returncode == 2, process.stderr
  lines = process.stderr.strip().splitlines()
  assert len(lines) == 1, process.stderr
  assert lines[0].startswith("error: ")
  for part in parts:
    assert part in lines[0], lines[0]
