"""What a training step takes on each device of a topology that is not here.

The step that trains is compiled for the topology, with the shardings that it
trains with, and nothing is allocated. Bytes are the compiler's; operations,
traffic and collectives are read off the compiled program; times are estimates.
"""

import dataclasses
import gzip
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jamsface_jax.devices import sharding
from jamsface_jax.head import memory as memory_lib
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.pods import collectives as collectives_lib
from jamsface_jax.pods import program as program_lib
from jamsface_jax.pods import work as work_lib
from jamsface_jax.pods.chips import Topology
from jamsface_jax.run.components import make_components
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.training.step import make_train_step

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What a step takes on each device; bytes unless a name says otherwise.

  Attributes:
    topology: its name.
    mesh: sizes of the `data` and the `model` axis.
    batch: global.
    backbone: its parameters.
    backbone_optimizer: momentum and the like of it.
    head: class weights, margins and scale.
    head_optimizer: momentum and the like of them.
    inputs: images and labels of a batch.
    temporaries: activations, gradients, the chunk of the head at hand; None if
      the compiler refused the program before it knew.
    head_temporaries: the head's share of them, an estimate.
    program: its instructions, which lie in the same memory.
    total: all that the step holds at once.
    memory: what a program may use.
    operations: floating-point, of products and convolutions.
    moved: from and to the device's memory.
    collectives: what is sent.
    unknown_loops: loops whose turns depend on data, counted as one turn.
    compute_seconds: estimate: the slower of arithmetic at the chip's peak and
      memory at its bandwidth, instruction by instruction.
    compiler_seconds: estimate of the compiler itself; 0 if it makes none.
    collective_seconds: estimate, none of it behind arithmetic.
    compile_seconds: what compiling took.
  """

  topology: str
  mesh: dict[str, int]
  batch: int
  backbone: int
  backbone_optimizer: int
  head: int
  head_optimizer: int
  inputs: int
  temporaries: int | None
  head_temporaries: int
  program: int
  total: int
  memory: int
  operations: int
  moved: int
  collectives: list[collectives_lib.Collective]
  unknown_loops: int
  compute_seconds: float
  compiler_seconds: float
  collective_seconds: float
  compile_seconds: float

  @property
  def fits(self) -> bool:
    """Whether a device can hold it."""
    return self.total <= self.memory

  @property
  def devices(self) -> int:
    """How many there are."""
    return math.prod(self.mesh.values())

  @property
  def seconds(self) -> float:
    """Estimated time of a step; 0 where nothing is known of the chip."""
    compute = max(self.compute_seconds, self.compiler_seconds)
    return compute + self.collective_seconds

  @property
  def images_per_second(self) -> float:
    """Estimated rate of all devices; 0 if it is not known."""
    return self.batch / self.seconds if self.seconds else 0.0

  @property
  def sent(self) -> int:
    """Bytes of all collectives of a step."""
    return sum(c.bytes * c.runs for c in self.collectives)


def measure(
  config: Settings,
  *,
  num_classes: int,
  num_images: int,
  topology: Topology,
  cache: str = "",
) -> StepCost:
  """Compiles the step for a topology and takes its measure.

  Args:
    config: all settings; `mesh.model` is the split of classes.
    num_classes: N.
    num_images: of the training set: the schedule needs it.
    topology: of which devices.
    cache: directory of earlier results, by a hash of the program; "": none.

  Raises:
    InputError: the settings do not fit the topology.
  """
  mesh = sharding.make_mesh(config.mesh.model, topology.devices)
  batch = config.data.batch_size
  micro_batch = batch // config.optimizer.accumulation
  sharding.check_divides(
    "data.batch_size / optimizer.accumulation", micro_batch, mesh
  )
  if not config.head.chunk_classes:
    kind = "cpu" if topology.chip is None else "accelerator"
    config = replaced(config, {"head.chunk_classes": chunk_classes(kind)})
  components = make_components(config, num_classes, num_images)
  head_lib.check_mesh(components.head, mesh)
  size = config.data.image_size
  state = state_shapes(components, size, mesh)
  by_example = NamedSharding(mesh, sharding.BATCH)
  inputs = {
    "images": ((batch, size, size, 3), np.uint8),
    "labels": ((batch,), np.int32),
  }
  inputs = {
    name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_example)
    for name, (shape, dtype) in inputs.items()
  }
  lowered = make_train_step(config, components, mesh).lower(state, inputs)
  compiled = _compile(lowered, mesh, topology, cache)
  of_head = memory_lib.estimate(
    *(components.head, micro_batch, mesh),
    optimizer=components.optimizers.weights,
    fused_update=config.head.fused_update,
  )
  held = {
    "backbone": (state.params["backbone"], state.batch_stats),
    "backbone_optimizer": state.opt_state["backbone"],
    "head": state.params["head"],
    "head_optimizer": state.opt_state["head"],
    "inputs": inputs,
  }
  return StepCost(
    topology=topology.name,
    mesh=dict(mesh.shape),
    batch=batch,
    **{name: _device_bytes(tree) for name, tree in held.items()},
    head_temporaries=of_head.total - of_head.weights - of_head.optimizer,
    memory=topology.memory,
    **compiled,
  )


def _device_bytes(tree: Any) -> int:
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


def _compile(
  lowered: jax.stages.Lowered, mesh: Mesh, topology: Topology, cache: str
) -> dict[str, Any]:
  """What the compiled program says, or what an earlier one said."""
  path = ""
  if cache:
    key = hashlib.sha256(lowered.as_text().encode())
    compiler = mesh.devices.flat[0].client.platform_version
    where = topology.name, mesh.device_ids.tolist()
    key.update(repr((where, jaxlib.__version__, compiler)).encode())
    path = os.path.join(cache, f"{key.hexdigest()[:32]}.json.gz")
  if path and os.path.exists(path):
    with gzip.open(path, "rt", encoding="utf-8") as file:
      found = json.load(file)
  else:
    found = _read_off(lowered)
    if path:
      os.makedirs(cache, exist_ok=True)
      with written_whole(path, "wb") as file:
        file.write(gzip.compress(json.dumps(found).encode()))
  program = program_lib.parse(found.pop("text"))
  work = list(work_lib.work(program))
  collectives = collectives_lib.collectives(program, mesh.shape)
  return found | {
    "operations": sum(w.operations * w.runs for w in work),
    "moved": sum(w.bytes * w.runs for w in work),
    "collectives": collectives,
    "unknown_loops": work_lib.unknown_loops(program),
    **estimate(work, collectives, topology),
  }


def _read_off(lowered: jax.stages.Lowered) -> dict[str, Any]:
  """Compiles a program: its bytes by part, its text, and the time it took."""
  begin = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    found = {"temporaries": None, "program": 0, "total": refused(error)}
    text = ""
  else:
    memory = compiled.memory_analysis()
    text = compiled.as_text()
    found = {
      "temporaries": memory.temp_size_in_bytes,
      "program": memory.generated_code_size_in_bytes,
      "total": memory.argument_size_in_bytes
      + memory.output_size_in_bytes
      - memory.alias_size_in_bytes
      + memory.temp_size_in_bytes
      + memory.generated_code_size_in_bytes,
    }
  elapsed = time.perf_counter() - begin
  return found | {"text": text, "compile_seconds": elapsed}


def refused(error: jax.errors.JaxRuntimeError) -> int:
  """Bytes that a program would need, as the refusal of the compiler says.

  Raises:
    JaxRuntimeError: this one, if it is no such refusal.
  """
  text = str(error)
  found = re.search(r"Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm", text)
  found = found or re.search(r"temporaries \(([\d.]+)([KMG])\)", text)
  if "RESOURCE_EXHAUSTED" not in text or not found:
    raise error
  unit = {"K": 2**10, "M": 2**20, "G": 2**30}[found[2]]
  return int(float(found[1]) * unit)


def estimate(
  work: list[work_lib.Work],
  collectives: list[collectives_lib.Collective],
  topology: Topology,
) -> dict[str, float]:
  """Seconds of a step, by their names in `StepCost`; 0 where none are known."""
  chip = topology.chip
  if chip is None:
    names = ("compute_seconds", "compiler_seconds", "collective_seconds")
    return dict.fromkeys(names, 0.0)
  compute = sum(
    w.runs * max(w.operations * w.passes / chip.peak, w.bytes / chip.bandwidth)
    for w in work
  )
  cycles = sum(w.runs * w.cycles for w in work)
  return {
    "compute_seconds": compute,
    "compiler_seconds": cycles / chip.cycles if chip.cycles else 0.0,
    "collective_seconds": sum(
      c.runs * topology.seconds(c.kind, c.bytes, c.group) for c in collectives
    ),
  }


# What may be tried where a step does not fit, and the settings for it.
def ways_out(
  config: Settings, devices: int
) -> list[tuple[str, Mapping[str, Any]]]:
  """Changes that may save memory: in words, and settings by name.

  Args:
    config: all settings.
    devices: of a slice.
  """
  model = devices if config.mesh.model == -1 else config.mesh.model
  changes: list[dict[str, Any]] = []
  if model < devices:
    changes.append({"mesh.model": devices})
    if 2 * model < devices and devices % (2 * model) == 0:
      changes.append({"mesh.model": 2 * model})
  if not config.head.fused_update:
    changes.append(
      {"head.fused_update": True, "optimizer.accumulation": 1}
      if config.optimizer.accumulation > 1
      else {"head.fused_update": True}
    )
  if config.model.dtype == "float32":
    changes.append({"model.dtype": "bfloat16"})
  if not config.model.remat:
    changes.append({"model.remat": True})
  if config.data.batch_size % (2 * devices) == 0:
    changes.append({"data.batch_size": config.data.batch_size // 2})
  if config.head.sample_rate == 1 and config.head.fused_update:
    changes.append({"head.sample_rate": 0.1})
  if config.head.keep_mib:
    changes.append({"head.keep_mib": 0})
  return [
    (" ".join(f"{name}={value}" for name, value in change.items()), change)
    for change in changes
  ]
