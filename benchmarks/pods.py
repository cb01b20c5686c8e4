"""Which numbers of identities fit which pods: the tables of docs/pods.md.

IResNet-100, bfloat16, batch 64 a device, by `compile_check`'s own measure: the
training step is compiled for each topology; no TPU is needed, libtpu is (pip
install -e '.[compile]'). Every cell takes minutes; with --cache what was
compiled before is read back.

  python benchmarks/pods.py --cache=build/pods
  python benchmarks/pods.py --cache=build/pods --changes=v5e:4x4
  python benchmarks/pods.py --cache=build/pods --scaling=v5e:4x4,v5e:16x16
  python benchmarks/pods.py --cache=build/pods --gpus
  python benchmarks/pods.py --measured

--gpus: three networks, batch 128 a card, on 8 and 64 H100; no card is needed,
the CUDA compiler is (pip install -e '.[compile-cuda]', in an environment of its
own). --measured: the compiler's bytes beside those that a run of some steps on
8 CPU devices really takes: what its process's resident memory grows by, from
when all is compiled and nothing allocated to the peak within a step.
"""

import argparse
import ctypes
import gc
import itertools
import json
import runpy
import subprocess
import sys
from typing import Any

import jax
import numpy as np

from jamsface_jax.devices import sharding
from jamsface_jax.pods import step_cost
from jamsface_jax.pods.accelerators import open_topologies
from jamsface_jax.pods.step_cost import StepCost
from jamsface_jax.run import state
from jamsface_jax.run.components import make_components
from jamsface_jax.settings import recipe_flags
from jamsface_jax.settings.defaults import make_settings
from jamsface_jax.settings.sections import Settings
from jamsface_jax.training.step import make_train_step, seed_key

RECIPE = runpy.run_path(str(recipe_flags.recipes_directory() / "ms1m_r100.py"))
CLASSES = (93_431, 360_232, 2_059_906, 10_000_000, 29_000_000)
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v4:4x4x4", "v5p:8x8x16", "v6e:8x8")
BATCH = 64  # Of a TPU.
NETWORKS = ("iresnet50", "iresnet100", "vit_b")
GPUS = ("h100:8", "h100:64")
GPU_CLASSES = (93_431, 29_000_000)
GPU_BATCH = 128  # Of a card.
IMAGES = 5_179_510  # For the schedule alone.
GIB = 2**30

# What was changed, as settings before and after, at 93,431 classes.
CHANGES = {
  "batch normalisation of each device's own examples": (
    {"model.batch_norm_group": 0},
    {"model.batch_norm_group": BATCH},
  ),
  "recomputed blocks": ({"model.remat": False}, {"model.remat": True}),
  "update fused into the gradient": (
    {"head.fused_update": False},
    {"head.fused_update": True},
  ),
  "gradients summed in float32": (
    {"optimizer.gradient_dtype": "bfloat16"},
    {"optimizer.gradient_dtype": "float32"},
  ),
}


def settings(devices: int, batch: int, **changes: Any) -> Settings:
  """The recipe of the table, for so many devices."""
  config = RECIPE["get_config"]()
  config.data.batch_size = batch * devices
  config.model.batch_norm_group = batch
  config.update_from_flattened_dict(changes)
  return make_settings(config)


def measure(name: str, classes: int, cache: str, **changes: Any) -> StepCost:
  """One cell."""
  (topology,) = open_topologies([name])
  batch = GPU_BATCH if topology.platform == "gpu" else BATCH
  return step_cost.measure(
    settings(len(topology.devices), batch, **changes),
    num_classes=classes,
    num_images=IMAGES,
    topology=topology,
    cache=cache,
  )


def main() -> None:
  """Reads the flags, compiles, prints the tables as Markdown."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--topologies", help="comma between")
  parser.add_argument("--classes", help="comma between")
  parser.add_argument("--cache", default="")
  parser.add_argument("--changes", help="of this topology: before and after")
  parser.add_argument("--scaling", help="topologies, comma between")
  parser.add_argument("--gpus", action="store_true")
  parser.add_argument("--networks", default=",".join(NETWORKS))
  parser.add_argument("--set", default="{}", help="JSON: settings by name")
  parser.add_argument("--measured", action="store_true")
  parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  changes = json.loads(args.set)
  classes = [int(n) for n in (args.classes or "").split(",") if n]
  topologies = args.topologies and args.topologies.split(",")
  if args.child is not None:
    print(json.dumps(run_steps(args.child, classes[0], changes)))
  elif args.measured:
    print_measured(classes, changes)
  elif args.changes:
    count = (classes or CLASSES)[0]
    print_changes(args.changes, count, args.cache, changes)
  elif args.scaling:
    classes = classes or CLASSES[:1]
    print_scaling(args.scaling.split(","), classes, args.cache, changes)
  elif args.gpus:
    cells = itertools.product(
      args.networks.split(","), topologies or GPUS, classes or GPU_CLASSES
    )
    print_gpus(cells, args.cache, changes)
  else:
    classes = classes or CLASSES
    print_table(topologies or TOPOLOGIES, classes, args.cache, changes)


def print_table(topologies, classes, cache, changes) -> None:
  """Bytes by part, collectives and estimates: a row a cell."""
  print(
    "| classes | topology | backbone, optimizer | head, optimizer | head at"
    " work | activations | program | total GiB | of | fits | sent MB | step ms"
    " | images/s |"
  )
  print("|---" * 13 + "|")
  for count in classes:
    for name in topologies:
      cost = measure(name, count, cache, **changes)
      rest = "?"
      if cost.temporaries is not None:
        rest = _gib(max(cost.temporaries - cost.head_temporaries, 0))
      cells = [
        f"{count:,}",
        name,
        _gib(cost.backbone + cost.backbone_optimizer),
        _gib(cost.head + cost.head_optimizer),
        _gib(cost.head_temporaries),
        rest,
        _gib(cost.program),
        _gib(cost.total),
        _gib(cost.memory),
        "yes" if cost.fits else "no",
        *_estimates(cost),
      ]
      print("| " + " | ".join(cells) + " |", flush=True)


def print_gpus(cells, cache, changes) -> None:
  """What is held, computed, moved, launched and sent: a row a cell."""
  print(
    "| network | cards | classes | mesh | state GiB | temporaries GiB"
    " | total GiB | of | TFLOP | GB moved | kernels | sent MB | of it bfloat16"
    " | beside work MB | step ms | images/s |"
  )
  print("|---" * 16 + "|")
  for network, name, classes in cells:
    cost = measure(name, classes, cache, **({"model.name": network} | changes))
    state = cost.backbone + cost.backbone_optimizer
    state += cost.head + cost.head_optimizer
    sent = sum(c.bytes * c.runs for c in cost.collectives if c.dtype == "bf16")
    row = [
      network,
      name,
      f"{classes:,}",
      f"{cost.mesh['data']} x {cost.mesh['model']}",
      _gib(state),
      _gib(cost.temporaries),
      _gib(cost.total),
      _gib(cost.memory),
      f"{cost.operations / 1e12:.2f}",
      f"{cost.moved / 1e9:.2f}",
      f"{cost.launches:,}",
      f"{cost.sent / 1e6:,.1f}",
      f"{sent / 1e6:,.1f}",
      f"{cost.overlapped / 1e6:,.1f}",
      f"{cost.seconds * 1e3:.1f}",
      f"{cost.images_per_second:,.0f}",
    ]
    print("| " + " | ".join(row) + " |", flush=True)


def print_changes(
  name: str, classes: int, cache: str, settings: dict[str, Any]
) -> None:
  """What each change did to the step."""
  print(
    "| change | | collectives | sent MB | HBM GB | total GiB | program GiB"
    " | compiled in s | step ms |"
  )
  print("|---" * 9 + "|")
  for words, (before, after) in CHANGES.items():
    for when, change in (("before", before), ("after", after)):
      cost = measure(name, classes, cache, **(settings | change))
      number = sum(c.runs for c in cost.collectives)
      print(
        f"| {words} | {when} | {number:,} | {cost.sent / 1e6:,.1f}"
        f" | {cost.moved / 1e9:.2f} | {_gib(cost.total)} | {_gib(cost.program)}"
        f" | {cost.compile_seconds:.0f} | {cost.seconds * 1e3:.1f} |",
        flush=True,
      )


def print_scaling(topologies, classes, cache, changes) -> None:
  """Images a second a device, against the first topology."""
  print(
    "| topology | devices | classes | step ms | collectives ms | images/s"
    " | efficiency |"
  )
  print("|---" * 7 + "|")
  for count in classes:
    first = None
    for name in topologies:
      cost = measure(name, count, cache, **changes)
      rate = cost.images_per_second / cost.devices
      first = first or rate
      efficiency = f"{rate / first:.1%}" if first else "not known"
      print(
        f"| {name} | {cost.devices:,} | {count:,} | {cost.seconds * 1e3:.2f}"
        f" | {cost.collective_seconds * 1e3:.2f}"
        f" | {cost.images_per_second:,.0f} | {efficiency} |",
        flush=True,
      )


# Small enough for 5 GB, large enough that the rest of the process is little:
# name of the network, width, identities, batch, devices on the model axis.
MEASURED = (
  ("iresnet18", 0.5, 200_000, 64, 8),
  ("iresnet18", 0.5, 50_000, 64, 2),
  ("iresnet50", 0.5, 20_000, 64, 8),
)


def measured_settings(number: int, changes: dict[str, Any]) -> Settings:
  """The settings of a row of `MEASURED`."""
  name, width, _, batch, model = MEASURED[number]
  config = RECIPE["get_config"]()
  config.data.directory = ""
  config.data.batch_size = batch
  config.mesh.model = model
  config.model.name, config.model.width = name, width
  config.model.dtype = config.head.product_dtype = "float32"
  config.update_from_flattened_dict(changes)
  return make_settings(config)


def run_steps(
  number: int, classes: int, changes: dict[str, Any]
) -> dict[str, int]:
  """Trains three steps of a row of `MEASURED` on 8 CPU devices.

  Returns:
    Bytes: predicted of all devices, and measured.
  """
  (topology,) = open_topologies(["cpu:8"])
  config = measured_settings(number, changes)
  cost = step_cost.measure(
    config, num_classes=classes, num_images=IMAGES, topology=topology
  )
  mesh = sharding.make_mesh(config.mesh.model)
  components = make_components(config, classes, IMAGES)
  size, batch = config.data.image_size, config.data.batch_size
  rng = np.random.default_rng(0)
  inputs = {
    "images": rng.integers(0, 256, (batch, size, size, 3), np.uint8),
    "labels": rng.integers(0, classes, batch, np.int32),
  }
  rows = sharding.local_rows(batch, mesh)

  def steps():
    now = state.create_state(0, components, size, mesh)
    _reset_peak()
    for _ in range(3):
      placed = sharding.put_batch(inputs, rows, batch, mesh)
      now, metrics = step_fn(now, placed, seed_key(0))
      jax.block_until_ready((now, metrics))
    return _resident("VmHWM")

  step_fn = make_train_step(config, components, mesh)
  # Once for what is allocated at the first time only: programs, threads.
  steps()
  gc.collect()
  ctypes.CDLL("libc.so.6").malloc_trim(0)
  before = _resident("VmRSS")
  return {
    "predicted": cost.total * len(topology.devices),
    "measured": steps() - before,
  }


def _resident(name: str) -> int:
  with open("/proc/self/status", encoding="utf-8") as file:
    line = next(line for line in file if line.startswith(name))
  return int(line.split()[1]) * 1024


def _reset_peak() -> None:
  with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
    file.write("5")


def print_measured(classes: list[int], changes: dict[str, Any]) -> None:
  """The compiler's bytes of 8 CPU devices beside those of a run.

  Args:
    classes: numbers of identities instead of the rows' own; the shorter of
      both lists counts.
    changes: settings that all rows have.
  """
  print(
    "| network | width | classes | batch | model axis | compiled GiB"
    " | measured GiB | ratio |"
  )
  print("|---" * 8 + "|")
  rows = [list(row) for row in MEASURED]
  if classes:
    rows = [
      [*row[:2], count, *row[3:]]
      for row, count in zip(rows, classes, strict=False)
    ]
  for number, row in enumerate(rows):
    command = [sys.executable, __file__]
    command += [f"--child={number}", f"--classes={row[2]}"]
    command += [f"--set={json.dumps(changes)}"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
      sys.exit(done.returncode)
    found = json.loads(done.stdout.splitlines()[-1])
    predicted, measured = found["predicted"], found["measured"]
    cells = [f"{n:,}" if isinstance(n, int) else str(n) for n in row]
    cells += [_gib(predicted), _gib(measured), f"{predicted / measured:.3f}"]
    print("| " + " | ".join(cells) + " |", flush=True)


def _estimates(cost):
  if cost.temporaries is None:
    return ["", "", ""]
  return [
    f"{cost.sent / 1e6:,.1f}",
    f"{cost.seconds * 1e3:.1f}",
    f"{cost.images_per_second:,.0f}",
  ]


def _gib(count):
  return f"{count / GIB:.2f}"


if __name__ == "__main__":
  main()
