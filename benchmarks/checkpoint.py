"""What asynchronous checkpoints cost: steps beside a save, and steps without.

  python benchmarks/checkpoint.py [--every=50] [--rounds=6]
  python benchmarks/checkpoint.py --workdir=gs://BUCKET/NAME

One process trains; blocks of `--every` steps alternate between one that starts
a save in its first step and one that starts none, so that what else the machine
does hits both. The clock of a block bears all that the save takes from its
steps: copying the state, writing, hashing. How long a save takes is printed; if
it is longer than a block, the rest of it is waited for between two blocks.

What a save takes from training is of two kinds: for so long the loop stands
still, and by so much steps are slower until it is complete. Their sum is given
as a share of 200 steps of half a second, at one save in them. Where steps are
computed by the processor that also saves, as here, the second is an upper
bound: an accelerator computes on.
"""

import argparse
import statistics
import tempfile
import time

import jax

from jamsface_jax.data.pipeline import batches
from jamsface_jax.data.sources import NoiseSource
from jamsface_jax.devices import sharding
from jamsface_jax.errors import run_command
from jamsface_jax.run import state
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_components
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.step import make_train_step, seed_key


def main() -> int:
  """Reads the flags, measures, prints."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/checkpoint.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--every", type=int, default=50, help="steps between two saves")
  add("--rounds", type=int, default=6, help="pairs of blocks")
  add("--batch_size", type=int, default=64, help="images a step")
  add("--classes", type=int, default=2000, help="of the head")
  add("--workdir", help="where checkpoints go; default: a temporary directory")
  arguments = parser.parse_args()

  config = settings(arguments)
  mesh = sharding.make_mesh(-1)
  source = NoiseSource(arguments.classes, 4 * arguments.classes, 56)
  components = make_components(config, source.num_classes, len(source))
  current = state.create_state(0, components, 56, mesh)
  size = sum(x.nbytes for x in jax.tree.leaves(current))
  step_fn = make_train_step(config, components, mesh)
  rows = sharding.local_rows(arguments.batch_size, mesh)
  blocks = 2 * arguments.rounds + 1
  stream = batches(
    source,
    seed=0,
    sampling="uniform",
    batch_size=arguments.batch_size,
    rows=rows,
    start=0,
    total_steps=blocks * arguments.every,
    threads=1,
  )
  seconds = {"with a save": [], "without": []}
  blocking, whole, during = [], [], []
  with tempfile.TemporaryDirectory() as temporary:
    run = RunDirectory(arguments.workdir or temporary)
    checkpoints = Checkpoints(run, keep_last=2, keep_best="")
    for block in range(blocks):
      saves = block % 2 == 0
      begin = time.monotonic()
      slow = []
      for k in range(arguments.every):
        step_begin = time.monotonic()
        batch = next(stream)
        batch.pop("ids")
        placed = sharding.put_batch(batch, rows, arguments.batch_size, mesh)
        current, metrics = step_fn(current, placed, seed_key(0))
        jax.block_until_ready(metrics)
        if saves and k and not checkpoints.is_complete():
          slow.append(time.monotonic() - step_begin)
        if saves and k == 0:
          asked = time.monotonic()
          checkpoints.save(block * arguments.every + 1, current, {})
          blocking.append(time.monotonic() - asked)
      elapsed = time.monotonic() - begin
      if saves:  # Only now: waiting is not a part of training.
        checkpoints.wait()
        whole.append(time.monotonic() - asked)
        during.append(slow)
      if block:  # The first one compiles.
        seconds["with a save" if saves else "without"].append(elapsed)
    checkpoints.close()
  stream.close()
  for name, values in seconds.items():
    steps = [1000 * value / arguments.every for value in values]
    print(
      f"{name:12} {statistics.median(steps):7.1f} ms a step (median of"
      f" {len(steps)} blocks of {arguments.every}; {min(steps):.1f} to"
      f" {max(steps):.1f})"
    )
  pairs = zip(seconds["with a save"], seconds["without"], strict=True)
  ratios = [a / b for a, b in pairs]
  print(
    f"ratio        {statistics.median(ratios):7.3f} (median of pairs;"
    f" {min(ratios):.3f} to {max(ratios):.3f})"
  )
  usual = statistics.median(seconds["without"]) / arguments.every
  report(size, usual, blocking[1:], during[1:], whole[1:])
  return 0


def report(
  size: int,
  usual: float,
  blocking: list[float],
  during: list[list[float]],
  whole: list[float],
) -> None:
  """Prints what a save takes from training.

  Args:
    size: bytes of the state.
    usual: seconds of a step without a save.
    blocking: seconds that the loop stood still, of each save.
    during: seconds of each step while it went on, of each save.
    whole: seconds until it was complete, of each save.
  """
  stood = statistics.median(blocking)
  slower = statistics.median(sum(s - usual for s in steps) for steps in during)
  slow = [one for steps in during for one in steps]
  print(f"state        {size / 1e6:7.0f} MB")
  print(
    f"complete     {statistics.median(whole):7.2f} s after it was asked for"
  )
  print(
    f"stands still {1000 * stood:7.0f} ms (up to {1000 * max(blocking):.0f})"
  )
  if slow:
    print(
      f"meanwhile    {1000 * statistics.median(slow):7.1f} ms a step instead of"
      f" {1000 * usual:.1f}: {slower:.2f} s more"
    )
  share = (stood + slower) / (200 * 0.5)
  print(f"share        {share:7.2%} of 200 steps of half a second")


def settings(arguments: argparse.Namespace) -> Settings:
  """A small network and a head that is most of the state."""
  config = tiny(base_config())
  config.data.image_size = 56
  config.data.batch_size = arguments.batch_size
  config.model.stages = (1, 1, 1)
  config.model.width = 0.5
  config.model.stem_stride = 2
  config.model.embedding_size = 256
  config.schedule.length = 1e6
  return make_settings(config)


if __name__ == "__main__":
  run_command(main)
