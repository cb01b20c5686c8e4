"""What a compile check found, in words, tables and JSON."""

import dataclasses
from typing import Any

from jamsface_jax.pods.accelerators import Topology
from jamsface_jax.pods.step_cost import StepCost
from jamsface_jax.settings.sections import Settings


def title(
  config: Settings, topology: Topology, cost: StepCost, classes: int
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
  ]
  if topology.platform == "gpu":
    rows += [
      ("program", None, "the compiler does not say"),
      ("cuDNN, cuBLAS at work", None, "chosen on the card"),
    ]
  else:
    rows.append(("program", cost.program, ""))
  for name, count, remark in rows:
    shown = "?" if count is None else gib(count)
    lines.append(f"  {name:24}{shown:>10}  {remark}".rstrip())
  verdict = "fits" if cost.fits else "DOES NOT FIT"
  lines.append(
    f"  {'total':24}{gib(cost.total):>10}  of {gib(cost.memory)}: {verdict}"
  )
  if cost.temporaries is None:
    return "\n".join(lines)
  lines.append(
    f"a step of one device: {cost.operations / 1e12:,.3g} TFLOP of products,"
    f" {cost.moved / 1e9:,.3g} GB from and to memory, {cost.launches:,}"
    f" instructions, compiled in {cost.compile_seconds:.0f} s"
  )
  if cost.unknown_calls:
    lines.append(
      f"  (without the operations of {', '.join(cost.unknown_calls)})"
    )
  if cost.unknown_loops:
    lines.append(
      f"  ({cost.unknown_loops} loops end on data and count as one turn)"
    )
  lines += [f"  {line}" for line in collective_lines(cost)]
  if cost.sent:
    lines.append(
      f"  {cost.overlapped / 1e6:.3f} of {cost.sent / 1e6:.3f} MB travel while"
      " other work runs"
    )
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


def suggestions_table(cost: StepCost, ways: list[tuple[str, StepCost]]) -> str:
  """What fits, and what each change makes of it."""
  now = cost.images_per_second
  lines = [
    f"suggestions, each compiled: now {now:,.0f} images/s (estimates)",
    f"  {'images/s':>10}{'times':>7}{'total':>12}  fits  settings",
  ]
  for words, other in ways:
    rate = other.images_per_second
    times = f"{rate / now:.2f}" if now else "?"
    lines.append(
      f"  {rate:10,.0f}{times:>7}{gib(other.total):>12}"
      f"  {'yes ' if other.fits else 'no  '}  {words}"
    )
  return "\n".join(lines)


def as_json(cost: StepCost) -> dict[str, Any]:
  """A cost with what is derived from it."""
  derived = (
    "fits",
    "devices",
    "seconds",
    "images_per_second",
    "sent",
    "overlapped",
  )
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
