r"""Tells whether a run fits a pod, and how fast it may be, without the pod.

  python -m jamsface_jax.compile_check --config=configs/ms1m_r100.py \
      --topology=v5e:4x4 --classes=93431 --images=5179510

Compiles the training step for that topology. Ends with 0 if it fits every
topology given, 1 if not, with the ways out and what each would save.
"""

import dataclasses
import json
import sys
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from jamsface_jax import chips, recipe_flags, step_cost
from jamsface_jax import config as config_lib
from jamsface_jax.chips import Topology
from jamsface_jax.data.whole_file import written_whole
from jamsface_jax.errors import EXIT_FAILURE, InputError, run_command
from jamsface_jax.step_cost import StepCost
from jamsface_jax.train import open_source

recipe_flags.define_config()
_TOPOLOGY = flags.DEFINE_multi_string(
  "topology",
  None,
  "KIND:SHAPE, such as v5e:16x16, 2*v5e:16x16 (two slices), h100:8, cpu:8; may"
  f" be repeated. Kinds: {', '.join(chips.CHIPS)}, cpu.",
)
_MESH = flags.DEFINE_string(
  "mesh",
  "",
  "Sizes of the model axis to compare, comma between, or 'auto': all that fit;"
  " '': that of the settings.",
)
_CLASSES = flags.DEFINE_integer(
  "classes", None, "Number of identities; else that of the data set."
)
_IMAGES = flags.DEFINE_integer(
  "images", None, "Number of images; else that of the data set."
)
_BATCH = flags.DEFINE_integer(
  "batch_per_device",
  None,
  "Examples on each device, in the place of data.batch_size.",
)
_CACHE = flags.DEFINE_string(
  "cache", "", "Directory of earlier results, so that none is compiled twice."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for all of it.")


def main() -> int:
  """Reads the flags, compiles, prints the tables."""
  config = parse_flags(sys.argv)
  config_lib.validate(config)
  classes, images = _CLASSES.value, _IMAGES.value
  if classes is None or images is None:
    source = open_source(config)
    classes = source.num_classes if classes is None else classes
    images = len(source) if images is None else images
  topologies = chips.open_topologies(_TOPOLOGY.value)
  best, report = [], []
  for topology in topologies:
    costs = compare(
      config,
      topology,
      num_classes=classes,
      num_images=images,
      batch_per_device=_BATCH.value,
      models=_MESH.value,
      cache=_CACHE.value,
    )
    chosen = choose(costs)
    best.append(chosen)
    print(f"\n{title(config, topology, chosen, classes)}\n")
    if len(costs) > 1:
      print(f"{mesh_table(costs)}\n\n{why(chosen, costs)}\n")
    print(details(chosen, topology))
    saved = []
    if not chosen.fits:
      saved = save_memory(
        config,
        topology,
        chosen,
        num_classes=classes,
        num_images=images,
        cache=_CACHE.value,
      )
      print(f"\n{ways_table(chosen, saved)}")
    report.append(
      {
        "topology": topology.name,
        "chosen": as_json(chosen),
        "meshes": [as_json(cost) for cost in costs],
        "ways_out": [{"settings": w, **as_json(c)} for w, c in saved],
      }
    )
  if len(best) > 1:
    print(f"\n{topology_table(best)}")
  if _OUTPUT.value:
    with written_whole(_OUTPUT.value) as file:
      json.dump(report, file, indent=2)
      file.write("\n")
  return 0 if all(cost.fits for cost in best) else EXIT_FAILURE


def parse_flags(argv: list[str]) -> ConfigDict:
  """Reads the command line.

  Raises:
    InputError: an unknown flag, setting or recipe, or a missing flag.
  """
  config = recipe_flags.parse(argv, "jamsface_jax.compile_check")
  if not _TOPOLOGY.value:
    raise InputError(
      "--topology is needed: give one, for example --topology=v5e:4x4."
    )
  for flag in (_CLASSES, _IMAGES, _BATCH):
    # Classes and images are counted in int32.
    if flag.value is not None and not 1 <= flag.value < 2**31:
      raise InputError(
        f"--{flag.name}={flag.value} must be 1 or more and below 2^31."
      )
  return config


def compare(
  config: ConfigDict,
  topology: Topology,
  *,
  num_classes: int,
  num_images: int,
  batch_per_device: int | None,
  models: str,
  cache: str,
) -> list[StepCost]:
  """Compiles a step for each size of the model axis that is asked for."""
  each = len(topology.devices) // topology.slices
  if models == "auto":
    wanted = [n for n in range(1, each + 1) if each % n == 0]
    padded = -(-num_classes // config.head.class_multiple)
    padded *= config.head.class_multiple
    wanted = [n for n in wanted if padded % n == 0]
  elif models:
    if not all(word.isdigit() for word in models.split(",")):
      raise InputError(
        f"--mesh={models!r} is no list of sizes: use such as 4,16 or auto."
      )
    wanted = [int(word) for word in models.split(",")]
  else:
    wanted = [config.mesh.model]
  costs = []
  for model in wanted:
    changes: dict[str, Any] = {"mesh.model": model}
    if batch_per_device is not None:
      changes["data.batch_size"] = batch_per_device * len(topology.devices)
    costs.append(
      step_cost.measure(
        changed(config, changes),
        num_classes=num_classes,
        num_images=num_images,
        topology=topology,
        cache=cache,
      )
    )
  return costs


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
  """A copy of settings with some others, by their name."""
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  return config


def choose(costs: list[StepCost]) -> StepCost:
  """The best mesh: one that fits, and of those the fastest; else the least."""
  fitting = [cost for cost in costs if cost.fits]
  if not fitting:
    return min(costs, key=lambda cost: cost.total)
  # Where no time is known, what is sent and moved decides.
  return min(fitting, key=lambda c: (c.seconds, c.sent + c.moved))


def save_memory(
  config: ConfigDict,
  topology: Topology,
  cost: StepCost,
  *,
  num_classes: int,
  num_images: int,
  cache: str,
) -> list[tuple[str, StepCost]]:
  """Compiles each way out, and sorts them by what they save, most first."""
  base = changed(
    config,
    {"mesh.model": cost.mesh["model"], "data.batch_size": cost.batch},
  )
  each = len(topology.devices) // topology.slices
  found = [
    (
      words,
      step_cost.measure(
        changed(base, changes),
        num_classes=num_classes,
        num_images=num_images,
        topology=topology,
        cache=cache,
      ),
    )
    for words, changes in step_cost.ways_out(base, each)
  ]
  return sorted(found, key=lambda way: way[1].total)


def title(
  config: ConfigDict, topology: Topology, cost: StepCost, classes: int
) -> str:
  """One line: what runs where."""
  model = config.model
  return (
    f"{topology.name}: {model.name}, {model.dtype}, {classes:,} classes, batch"
    f" {cost.batch:,} ({cost.batch // cost.devices} on each of"
    f" {cost.devices:,} devices), mesh {_mesh(cost)}"
  )


def details(cost: StepCost, topology: Topology) -> str:
  """All of one cost, for a terminal."""
  lines = ["bytes on each device, as compiled"]
  rest = None
  if cost.temporaries is not None:
    rest = max(cost.temporaries - cost.head_temporaries, 0)
  rows = [
    ("backbone", cost.backbone, ""),
    ("its optimizer", cost.backbone_optimizer, ""),
    ("class weights, margins", cost.head, ""),
    ("their optimizer", cost.head_optimizer, ""),
    ("batch", cost.inputs, ""),
    ("head at work", cost.head_temporaries, "estimate"),
    ("activations, gradients", rest, "the rest of the temporaries"),
    ("program", cost.program, ""),
  ]
  for name, count, remark in rows:
    shown = "?" if count is None else gib(count)
    lines.append(f"  {name:24}{shown:>10}  {remark}".rstrip())
  verdict = "fits" if cost.fits else "DOES NOT FIT"
  lines.append(
    f"  {'total':24}{gib(cost.total):>10}  of {gib(cost.memory)}: {verdict}"
  )
  if topology.is_stand_in:
    lines.append(
      "  (compiled for CPUs in the place of GPUs: temporaries are what XLA:CPU"
      " makes of them)"
    )
  if cost.temporaries is None:
    return "\n".join(lines)
  lines.append(
    f"a step of one device: {cost.operations / 1e12:,.3g} TFLOP of products,"
    f" {cost.moved / 1e9:,.3g} GB from and to memory, compiled in"
    f" {cost.compile_seconds:.0f} s"
  )
  if cost.unknown_loops:
    lines.append(
      f"  ({cost.unknown_loops} loops end on data and count as one turn)"
    )
  lines += [f"  {line}" for line in collective_lines(cost)]
  if cost.seconds:
    lines += [
      "estimates, nothing was measured:",
      f"  arithmetic or memory at the chip's full rate"
      f" {cost.compute_seconds * 1e3:10.2f} ms",
    ]
    if cost.compiler_seconds:
      lines.append(
        f"  the compiler's own cycles for the same      "
        f"{cost.compiler_seconds * 1e3:10.2f} ms"
      )
    lines += [
      f"  collectives, none of them overlapped        "
      f"{cost.collective_seconds * 1e3:10.2f} ms",
      f"  the slower of the first two, and the last   "
      f"{cost.seconds * 1e3:10.2f} ms:"
      f" {cost.images_per_second:,.0f} images/s,"
      f" {cost.images_per_second / cost.devices:,.0f} a device",
    ]
  return "\n".join(lines)


def collective_lines(cost: StepCost) -> list[str]:
  """Collectives, those of a kind and origin together, the largest first."""
  kinds: dict[tuple, list[int]] = {}
  for c in cost.collectives:
    where = "in a loop" if c.looped else ""
    key = (c.kind, c.axis, c.group, c.dtype, where, _origin(c.origin))
    sums = kinds.setdefault(key, [0, 0, 0])
    sums[0] += c.runs
    sums[1] += c.arrays * c.runs
    sums[2] += c.bytes * c.runs
  if not kinds:
    return ["no collectives"]
  lines = [
    f"{'collective':20}{'axis':12}{'dtype':7}{'number':>7}{'arrays':>8}"
    f"{'MB':>10}  where"
  ]
  ordered = sorted(kinds.items(), key=lambda item: -item[1][2])
  for (kind, axis, _, dtype, loop, origin), (runs, count, size) in ordered:
    lines.append(
      f"{kind:20}{axis:12}{dtype:7}{runs:7}{count:8}{size / 1e6:10.3f}"
      f"  {origin}{', ' if origin and loop else ''}{loop}"
    )
  return lines


def _origin(name: str) -> str:
  """The part of JAX's name of an operation that says where it stands."""
  parts = [p for p in name.split("/") if not p.startswith("jit(")]
  return "/".join(parts[:3])


def mesh_table(costs: list[StepCost]) -> str:
  """One line a mesh."""
  lines = [
    f"{'data x model':>14}{'GiB':>9}{'fits':>6}{'sent MB':>10}{'ms':>9}"
    f"{'images/s':>11}  (ms and images/s: estimates)"
  ]
  lines += [_row(_mesh(cost), cost) for cost in costs]
  return "\n".join(lines)


def topology_table(costs: list[StepCost]) -> str:
  """One line a topology, with the efficiency against the first of its kind."""
  lines = [
    f"{'topology':>14}{'GiB':>9}{'fits':>6}{'sent MB':>10}{'ms':>9}"
    f"{'images/s':>11}{'efficiency':>12}  (the last three: estimates)"
  ]
  first: dict[tuple[str, int], float] = {}
  for cost in costs:
    kind = cost.topology.rpartition("*")[2].partition(":")[0]
    rate = cost.images_per_second / cost.devices
    start = first.setdefault((kind, cost.batch // cost.devices), rate)
    efficiency = f"{rate / start:.1%}" if start else "?"
    lines.append(f"{_row(cost.topology, cost)}{efficiency:>12}")
  return "\n".join(lines)


def _row(name: str, cost: StepCost) -> str:
  fits = "yes" if cost.fits else "NO"
  rate = cost.images_per_second
  return (
    f"{name:>14}{cost.total / 2**30:9.2f}{fits:>6}{cost.sent / 1e6:10.2f}"
    f"{cost.seconds * 1e3:9.2f}{f'{rate:,.0f}' if rate else '?':>11}"
  )


def why(chosen: StepCost, costs: list[StepCost]) -> str:
  """One sentence: the best mesh and what speaks for it."""
  model = chosen.mesh["model"]
  if not chosen.fits:
    return (
      f"none fits; mesh.model={model} comes closest, {gib(chosen.total)} of"
      f" {gib(chosen.memory)}"
    )
  others = [c for c in costs if c.fits and c is not chosen]
  refused = sum(not c.fits for c in costs)
  text = f"best: mesh.model={model}"
  if refused:
    text += f"; {refused} of {len(costs)} do not fit"
  if not others:
    return f"{text}; the only one that fits"
  second = min(others, key=lambda c: (c.seconds, c.sent + c.moved))
  compared = f"against mesh.model={second.mesh['model']}, the next best,"
  if not chosen.seconds:
    return (
      f"{text}; {compared} it sends {_more(chosen.sent - second.sent)} and"
      f" moves {_more(chosen.moved - second.moved)}"
    )
  compute = max(chosen.compute_seconds, chosen.compiler_seconds) - max(
    second.compute_seconds, second.compiler_seconds
  )
  sending = chosen.collective_seconds - second.collective_seconds
  return (
    f"{text}; {compared} a step takes {compute * 1e3:+.2f} ms of arithmetic and"
    f" memory and {sending * 1e3:+.2f} ms of collectives (estimates), and holds"
    f" {(chosen.total - second.total) / 2**30:+.2f} GiB"
  )


def _more(count: int) -> str:
  return f"{abs(count) / 1e6:,.1f} MB {'more' if count > 0 else 'less'}"


def ways_table(cost: StepCost, ways: list[tuple[str, StepCost]]) -> str:
  """What does not fit, and what each way out saves."""
  lines = [
    f"ways out, each compiled: now {gib(cost.total)} of {gib(cost.memory)}",
    f"  {'saves':>10}{'total':>10}  fits  settings",
  ]
  for words, other in ways:
    lines.append(
      f"  {gib(cost.total - other.total):>10}{gib(other.total):>10}"
      f"  {'yes ' if other.fits else 'no  '}  {words}"
    )
  return "\n".join(lines)


def as_json(cost: StepCost) -> dict[str, Any]:
  """A cost with what is derived from it."""
  derived = ("fits", "devices", "seconds", "images_per_second", "sent")
  return dataclasses.asdict(cost) | {
    name: getattr(cost, name) for name in derived
  }


def _mesh(cost: StepCost) -> str:
  return f"{cost.mesh['data']} x {cost.mesh['model']}"


def gib(count: int) -> str:
  """Bytes in GiB, or in MiB below one hundredth of that."""
  if 0 < abs(count) < 2**30 / 100:
    return f"{count / 2**20:.2f} MiB"
  return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
  run_command(main)
