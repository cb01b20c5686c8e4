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
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jaxlib
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jamsface_jax.devices import sharding
from jamsface_jax.devices.compiling import compiler_options
from jamsface_jax.head import memory
from jamsface_jax.head.chunks import chunk_classes
from jamsface_jax.head.parameters import check_mesh
from jamsface_jax.models.folding import device_lanes
from jamsface_jax.pods.accelerators import Topology
from jamsface_jax.pods.collectives import Collective, find_collectives
from jamsface_jax.pods.program import parse
from jamsface_jax.pods.work import (
  Work,
  each_work,
  unknown_calls,
  unknown_loops,
)
from jamsface_jax.run.components import make_components
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.whole_file import written_whole
from jamsface_jax.training.step import make_train_step, seed_key

_GZIP = 16 + zlib.MAX_WBITS  # The format that zlib is to read.
# Programs are some 20 times what they are packed: no file says as much more.
_MOST_UNPACKED = 200


@dataclasses.dataclass(frozen=True)
class StepCost:
  """What a step takes on each device; bytes unless a name says otherwise.

  Attributes:
    topology: its name.
    mesh: sizes of the `data` and the `model` axis.
    batch: number of examples on all devices together.
    backbone: its parameters and batch statistics.
    backbone_optimizer: momentum and the like for the backbone.
    head: class weights, margins and scale, and what margins follow from.
    head_optimizer: momentum and the like for the head.
    inputs: images and labels of a batch.
    temporaries: activations, gradients, the chunk of the head at hand; None if
      the compiler refused the program before it knew.
    head_temporaries: the head's share of them, an estimate.
    program: its instructions, which lie in the same memory; 0 on GPUs, whose
      compiler does not say.
    total: all that the step holds at once; on GPUs without what cuDNN and
      cuBLAS work in, which they choose on the card.
    memory: what a program may use.
    operations: number of floating-point operations of products and
      convolutions.
    moved: what goes from and to the device's memory.
    launches: number of instructions that a step runs: kernels, on GPUs.
    collectives: what is sent.
    unknown_loops: loops whose turns depend on data, counted as one turn.
    unknown_calls: functions of libraries whose operations are not counted.
    compute_seconds: estimate: the slower of arithmetic at the device's peak and
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
  launches: int
  collectives: list[Collective]
  unknown_loops: int
  unknown_calls: list[str]
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
    """Estimated time of a step; 0 where nothing is known of the devices."""
    compute = max(self.compute_seconds, self.compiler_seconds)
    return compute + self.collective_seconds

  @property
  def images_per_second(self) -> float:
    """Estimated rate of all devices; 0 if it is not known."""
    return self.batch / self.seconds if self.seconds else 0.0

  @property
  def overlapped(self) -> int:
    """Bytes of the collectives that other work runs beside."""
    return sum(c.bytes * c.runs for c in self.collectives if c.meanwhile)

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
    num_classes: number of identities.
    num_images: number of images of the training set, for the schedule.
    topology: the devices to compile for, of `open_topologies`.
    cache: directory of earlier results, by a hash of the program; "": none.

  Raises:
    InputError: the settings do not fit the topology.
  """
  mesh = sharding.make_mesh(
    config.mesh.model, topology.devices, topology.slices
  )
  batch = config.data.batch_size
  micro_batch = batch // config.optimizer.accumulation
  sharding.check_divides(
    "data.batch_size / optimizer.accumulation", micro_batch, mesh
  )
  if not config.head.chunk_classes:
    chunk = chunk_classes(topology.platform)
    config = replaced(config, {"head.chunk_classes": chunk})
  if not config.model.lanes:
    lanes = device_lanes(topology.platform)
    config = replaced(config, {"model.lanes": lanes})
  components = make_components(config, num_classes, num_images)
  check_mesh(components.head, mesh)
  state = state_shapes(components, config.data.image_size, mesh)
  inputs = _input_shapes(batch, config.data.image_size, mesh)
  step = make_train_step(config, components, mesh)
  # What jax.jit returns is more than callable.
  lowered = step.lower(state, inputs, seed_key(0))  # ty: ignore[missing-attribute]
  compiled = _compile_once(lowered, mesh, topology, cache)
  program = parse(compiled.text)
  passes = topology.accelerator.float32_passes if topology.accelerator else 1
  work = list(each_work(program, float32_passes=passes))
  sent = find_collectives(program, mesh.shape)
  times = estimate(work, sent, topology, mesh.shape)
  of_head = memory.estimate(
    components.head,
    batch,
    mesh,
    optimizer=components.optimizers.weights,
    fused_update=config.head.fused_update,
  )
  return StepCost(
    topology=topology.name,
    mesh=dict(mesh.shape),
    batch=batch,
    backbone=_device_bytes((state.params["backbone"], state.batch_stats)),
    backbone_optimizer=_device_bytes(state.opt_state["backbone"]),
    head=_device_bytes((state.params["head"], state.seen)),
    head_optimizer=_device_bytes(state.opt_state["head"]),
    inputs=_device_bytes(inputs),
    temporaries=compiled.temporaries,
    head_temporaries=of_head.total - of_head.weights - of_head.optimizer,
    program=compiled.program,
    total=compiled.total,
    memory=topology.memory,
    operations=sum(w.operations * w.runs for w in work),
    moved=sum(w.bytes * w.runs for w in work),
    launches=sum(w.runs for w in work) + sum(c.runs for c in sent),
    collectives=sent,
    unknown_loops=unknown_loops(program),
    unknown_calls=unknown_calls(program),
    compute_seconds=times.compute,
    compiler_seconds=times.compiler,
    collective_seconds=times.collectives,
    compile_seconds=compiled.compile_seconds,
  )


def _input_shapes(
  batch: int, image_size: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
  """Images, labels and class sizes of a batch, with where they lie."""
  by_example = NamedSharding(mesh, sharding.BATCH)
  shape = (batch, image_size, image_size, 3)
  return {
    "images": jax.ShapeDtypeStruct(shape, np.uint8, sharding=by_example),
    "labels": jax.ShapeDtypeStruct((batch,), np.int32, sharding=by_example),
    "sizes": jax.ShapeDtypeStruct((batch,), np.int32, sharding=by_example),
  }


def _device_bytes(tree: Any) -> int:
  """Bytes of a tree of sharded shapes on one device."""
  return sum(
    math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
  )


@dataclasses.dataclass(frozen=True)
class _Compiled:
  """What a compiler says of a program; bytes are of one device.

  Attributes:
    temporaries: see `StepCost`; None if it refused the program.
    program: bytes of the instructions.
    total: bytes of all that the program holds at once.
    text: the compiled program; "" if it was refused.
    compile_seconds: what compiling took.
  """

  temporaries: int | None
  program: int
  total: int
  text: str
  compile_seconds: float


def _compile_once(
  lowered: jax.stages.Lowered, mesh: Mesh, topology: Topology, cache: str
) -> _Compiled:
  """Compiles a program, or reads what an earlier time said of the same one."""
  if not cache:
    return _compile(lowered)
  key = hashlib.sha256(lowered.as_text().encode())
  compiler = mesh.devices.flat[0].client.platform_version
  where = topology.name, topology.target, mesh.device_ids.tolist()
  if topology.platform == "gpu":
    key.update(repr(compiler_options("gpu")).encode())
  key.update(repr((where, jaxlib.__version__, compiler)).encode())
  path = os.path.join(cache, f"{key.hexdigest()[:32]}.json.gz")
  if kept := _read_compiled(path):
    return kept
  compiled = _compile(lowered)
  os.makedirs(cache, exist_ok=True)
  with written_whole(path, "wb") as file:
    text = json.dumps(dataclasses.asdict(compiled))
    file.write(gzip.compress(text.encode()))
  return compiled


def _read_compiled(path: str) -> _Compiled | None:
  """What was kept of a program; None if nothing was, or nothing sound."""
  try:
    with open(path, "rb", opener=plain) as file:
      data = file.read()
    unpacked = zlib.decompressobj(_GZIP)
    text = unpacked.decompress(data, _MOST_UNPACKED * len(data) + 1)
    if not unpacked.eof:
      return None
    return plain_json.typed(plain_json.parse(text), _Compiled)
  except (OSError, ValueError, zlib.error):
    return None


def _compile(lowered: jax.stages.Lowered) -> _Compiled:
  """Compiles a program: its bytes by part, its text, and the time it took."""
  begin = time.perf_counter()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return _Compiled(
      temporaries=None,
      program=0,
      total=refused(error),
      text="",
      compile_seconds=time.perf_counter() - begin,
    )
  # JAX: None where a backend does not say. Those of topologies do.
  found: Any = compiled.memory_analysis()
  return _Compiled(
    temporaries=found.temp_size_in_bytes,
    program=found.generated_code_size_in_bytes,
    total=found.argument_size_in_bytes
    + found.output_size_in_bytes
    - found.alias_size_in_bytes
    + found.temp_size_in_bytes
    + found.generated_code_size_in_bytes,
    text=compiled.as_text() or "",
    compile_seconds=time.perf_counter() - begin,
  )


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


@dataclasses.dataclass(frozen=True)
class Seconds:
  """Estimated seconds of a step; 0 where nothing is known.

  Attributes:
    compute: arithmetic and memory, instruction by instruction the slower one.
    compiler: the compiler's own cycles for the same.
    collectives: all that is sent, none of it behind arithmetic.
  """

  compute: float
  compiler: float
  collectives: float


def estimate(
  work: list[Work],
  sent: list[Collective],
  topology: Topology,
  mesh_shape: Mapping[str, int],
) -> Seconds:
  """Estimates the time of a step from what its instructions do.

  Args:
    work: what each instruction does.
    sent: what each collective sends.
    topology: the devices that do it.
    mesh_shape: sizes of the mesh's axes by name.
  """
  one = topology.accelerator
  if one is None:
    return Seconds(0.0, 0.0, 0.0)
  cycles = sum(w.runs * w.cycles for w in work)
  return Seconds(
    compute=sum(
      w.runs * max(w.operations * w.passes / one.peak, w.bytes / one.bandwidth)
      for w in work
    ),
    compiler=cycles / one.cycles if one.cycles else 0.0,
    collectives=sum(
      c.runs
      * topology.seconds(
        c.kind, c.bytes, c.group, _slices(c, topology, mesh_shape)
      )
      for c in sent
    ),
  )


def _slices(
  collective: Collective, topology: Topology, mesh_shape: Mapping[str, int]
) -> int:
  """How many slices the devices of one collective are of."""
  each = math.prod(topology.shape)
  of_model = max(mesh_shape["model"] // each, 1)
  if collective.axis == "model":
    return of_model
  if collective.axis == "data":
    return topology.slices // of_model
  return math.gcd(topology.slices, collective.group)
