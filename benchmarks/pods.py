"""Which numbers of identities fit which pods: the tables of docs/pods.md.

IResNet-100, bfloat16, batch 64 a chip, by `compile_check`'s own measure: the
training step is compiled for each topology; no TPU is needed, libtpu is (pip
install -e '.[compile]'). Every cell takes minutes; with --cache what was
compiled before is read back.

  python benchmarks/pods.py --cache=build/pods
"""

import argparse
import json

from configs import ms1m_r100
from jamsface_jax import chips, step_cost
from jamsface_jax.step_cost import StepCost

CLASSES = (93_431, 360_232, 2_059_906, 10_000_000, 29_000_000)
TOPOLOGIES = ("v5e:4x4", "v5e:16x16", "v4:4x4x4", "v5p:8x8x16", "v6e:8x8")
BATCH = 64  # Of a chip.
IMAGES = 5_179_510  # For the schedule alone.
GIB = 2**30

# What was changed, as settings before and after, at 93,431 classes.
CHANGES = {
  "batch normalisation of each chip's own examples": (
    {"model.batch_norm_group": 0},
    {"model.batch_norm_group": BATCH},
  ),
  "recomputed blocks": ({"model.remat": False}, {"model.remat": True}),
  "update fused into the gradient": (
    {"head.fused_update": False},
    {"head.fused_update": True},
  ),
}


def settings(chips_: int, **changes) -> step_cost.ConfigDict:
  """The recipe of the table, for so many chips."""
  config = ms1m_r100.get_config()
  config.data.batch_size = BATCH * chips_
  config.model.batch_norm_group = BATCH
  config.update_from_flattened_dict(changes)
  return config


def measure(name: str, classes: int, cache: str, **changes) -> StepCost:
  """One cell."""
  (topology,) = chips.open_topologies([name])
  return step_cost.measure(
    settings(len(topology.devices), **changes),
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
  parser.add_argument("--topologies", default=",".join(TOPOLOGIES))
  parser.add_argument("--classes", default=",".join(map(str, CLASSES)))
  parser.add_argument("--cache", default="")
  parser.add_argument("--changes", help="of this topology: before and after")
  parser.add_argument("--scaling", help="topologies, comma between")
  parser.add_argument("--set", default="{}", help="JSON: settings by name")
  args = parser.parse_args()
  changes = json.loads(args.set)
  if args.changes:
    print_changes(args.changes, args.cache)
  elif args.scaling:
    print_scaling(args.scaling.split(","), args.cache, changes)
  else:
    classes = [int(n) for n in args.classes.split(",")]
    print_table(args.topologies.split(","), classes, args.cache, changes)


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


def print_changes(name: str, cache: str) -> None:
  """What each change did to the step."""
  print(
    "| change | | collectives | sent MB | HBM GB | total GiB | program GiB"
    " | compiled in s | step ms |"
  )
  print("|---" * 9 + "|")
  for words, (before, after) in CHANGES.items():
    for when, change in (("before", before), ("after", after)):
      cost = measure(name, CLASSES[0], cache, **change)
      number = sum(c.runs for c in cost.collectives)
      print(
        f"| {words} | {when} | {number:,} | {cost.sent / 1e6:,.1f}"
        f" | {cost.moved / 1e9:.2f} | {_gib(cost.total)} | {_gib(cost.program)}"
        f" | {cost.compile_seconds:.0f} | {cost.seconds * 1e3:.1f} |",
        flush=True,
      )


def print_scaling(topologies, cache, changes) -> None:
  """Images a second a chip, against the first topology."""
  print("| topology | chips | classes | step ms | collectives ms | images/s")
  print("| efficiency |\n" + "|---" * 7 + "|")
  first = None
  for name in topologies:
    cost = measure(name, CLASSES[0], cache, **changes)
    rate = cost.images_per_second / cost.devices
    first = first or rate
    print(
      f"| {name} | {cost.devices:,} | {CLASSES[0]:,} | {cost.seconds * 1e3:.2f}"
      f" | {cost.collective_seconds * 1e3:.2f}"
      f" | {cost.images_per_second:,.0f} | {rate / first:.1%} |",
      flush=True,
    )


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
