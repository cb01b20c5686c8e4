"""What accelerators are made of, and the groups of them that programs run on.

Figures are the makers' public ones; a rate of links is one way, of one chip.

TPU v4, v5e, v5p, v6e: https://cloud.google.com/tpu/docs/v4 and so on (peak,
memory, bandwidth, 'inter-chip interconnect bandwidth' over the number of
ports). What a program may use of the memory is what libtpu 0.0.42's compiler
says when it refuses one. Between slices: the data center network's share of a
chip, https://jax-ml.github.io/scaling-book/tpus/, as are where links close to a
ring and a microsecond for each hop. H100 (SXM) and A100 (80 GB, SXM): NVIDIA's
data sheets and those of its DGX machines (one 400 or 200 Gbit/s adapter a GPU);
of their memory the three quarters that JAX takes for itself unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
"""

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from jamsface_jax.errors import InputError, one_line
from jamsface_jax.pods.gpu_targets import GPU_TARGETS

_GIB = 2**30
HOP_SECONDS = 1e-6


@dataclasses.dataclass(frozen=True)
class Accelerator:
  """One kind of accelerator.

  Attributes:
    memory: bytes that a program may use.
    peak: floating-point operations a second in bfloat16.
    bandwidth: bytes a second from and to its memory.
    link: bytes a second one way over one link to a neighbour.
    dimensions: number of axes of the torus of links; 0: each of a group reaches
      every other at `link`.
    ring: an axis of the torus closes to a ring if its length is a multiple of
      it.
    far: bytes a second one way beyond the slice or machine.
    group: how many fast links join, if there is no torus; else 0.
    cycles: the cycles a second that the compiler's estimates count; 0: it makes
      none.
    float32_passes: how much longer a product of float32 takes at JAX's default
      precision: on TPUs its operands are rounded to bfloat16, on GPUs to TF32.
  """

  memory: int
  peak: float
  bandwidth: float
  link: float
  dimensions: int
  ring: int
  far: float
  group: int
  cycles: float
  float32_passes: int


_JAX_SHARE = 0.75
_NVLINK_GROUP = 8  # GPUs of a machine.


def _tpu(
  *,
  gib: float,
  peak: float,
  bandwidth: float,
  link: float,
  dimensions: int,
  ring: int,
  far: float,
  units: int,
  side: int,
) -> Accelerator:
  """A TPU with so many matrix units of side x side in a chip."""
  return Accelerator(
    memory=int(gib * _GIB),
    peak=peak,
    bandwidth=bandwidth,
    link=link,
    dimensions=dimensions,
    ring=ring,
    far=far,
    group=0,
    # The clock is the peak over the operations of one cycle of these units.
    cycles=peak / (units * 2 * side**2),
    float32_passes=1,
  )


def _gpu(
  kind: str, *, peak: float, bandwidth: float, link: float, far: float
) -> Accelerator:
  """A GPU of NVIDIA's machines of eight."""
  return Accelerator(
    memory=int(_JAX_SHARE * GPU_TARGETS[kind].memory),
    peak=peak,
    bandwidth=bandwidth,
    link=link,
    dimensions=0,
    ring=1,
    far=far,
    group=_NVLINK_GROUP,
    cycles=0.0,
    float32_passes=2,
  )


ACCELERATORS = {
  "v4": _tpu(
    gib=30.75,
    peak=275e12,
    bandwidth=1228e9,
    link=50e9,
    dimensions=3,
    ring=4,
    far=3.125e9,
    units=8,
    side=128,
  ),
  "v5e": _tpu(
    gib=15.75,
    peak=197e12,
    bandwidth=819e9,
    link=50e9,
    dimensions=2,
    ring=16,
    far=3.125e9,
    units=4,
    side=128,
  ),
  "v5p": _tpu(
    gib=95.74,
    peak=459e12,
    bandwidth=2765e9,
    link=100e9,
    dimensions=3,
    ring=4,
    far=6.25e9,
    units=8,
    side=128,
  ),
  "v6e": _tpu(
    gib=31.25,
    peak=918e12,
    bandwidth=1638e9,
    link=100e9,
    dimensions=2,
    ring=16,
    far=12.5e9,
    units=4,
    side=256,
  ),
  "h100": _gpu("h100", peak=989e12, bandwidth=3350e9, link=450e9, far=50e9),
  "a100": _gpu("a100", peak=312e12, bandwidth=2039e9, link=300e9, far=25e9),
}
# Of a CPU only the memory is known: no estimate of time is made.
_CPU = "cpu"


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices that are not here, but that a program can be compiled for.

  Attributes:
    name: as given, such as "v5e:16x16", "2*v5e:16x16", "h100:8" or "cpu:8".
    accelerator: their kind; None for CPUs.
    shape: sizes of the torus of a slice, or the number of devices of one.
    slices: number of groups that only the data center network joins: slices
      of TPUs, machines with GPUs.
    devices: what a mesh is made of.
    memory: bytes of a device that a program may use.
    target: what the compiler was told of a device; "": it knows them.
  """

  name: str
  accelerator: Accelerator | None
  shape: tuple[int, ...]
  slices: int
  devices: Sequence[Any]
  memory: int
  target: str = ""

  @property
  def platform(self) -> str:
    """JAX's name of their kind: "cpu", "gpu" or "tpu"."""
    return self.devices[0].platform

  def seconds(self, kind: str, size: int, group: int, slices: int = 1) -> float:
    """Estimates the time of one collective, as rings over all links at hand.

    Beyond a slice or machine each of its devices sends its share over a link of
    its own, after the others of the slice gave it theirs.

    Args:
      kind: one of `collectives.COLLECTIVES`.
      size: bytes on one device, of the larger of input and result.
      group: devices that take part.
      slices: of so many slices, equally.

    Returns:
      Seconds; 0 for CPUs.
    """
    one = self.accelerator
    if one is None or group == 1:
      return 0.0
    passes = 2 if kind == "all-reduce" else 1
    near = group // slices
    if kind == "collective-permute":
      # One sends to one other.
      rate = one.far if slices > 1 else one.link
      return size / rate + HOP_SECONDS
    seconds = self._near_seconds(one, size, near)
    if slices > 1:
      share = (slices - 1) / slices
      seconds += size / near * share / one.far + 10 * HOP_SECONDS
    return passes * seconds

  def _near_seconds(self, one: Accelerator, size: int, group: int) -> float:
    """One pass among devices of a slice."""
    if group == 1:
      return 0.0
    devices, share = math.prod(self.shape), (group - 1) / group
    if not one.dimensions:
      return size * share / one.link + HOP_SECONDS
    # A group of fewer devices has fewer of the axes for itself.
    axes = sorted((n for n in self.shape if n > 1), reverse=True)
    used = round(len(axes) * math.log(group) / math.log(devices))
    axes = axes[: max(used, 1)]
    rate, hops = 0.0, 0
    for length in axes:
      closes = length % one.ring == 0
      rate += one.link * (2 if closes else 1)
      hops += length // 2 if closes else length - 1
    return size * share / rate + hops * HOP_SECONDS


def open_topologies(names: Sequence[str]) -> list[Topology]:
  """Makes the devices of several topologies; before JAX looks for its own.

  Args:
    names: KIND:SHAPE of each, as the flag --topology takes them.

  Raises:
    InputError: a name is not understood, or its compiler is not installed.
  """
  parsed = [_parse(name) for name in names]
  counts = [math.prod(shape) for _, kind, shape in parsed if kind == _CPU]
  jax.config.update("jax_platforms", "cpu")
  if counts:
    jax.config.update("jax_num_cpu_devices", max(counts))
  return [
    _open(name, slices, kind, shape)
    for name, (slices, kind, shape) in zip(names, parsed, strict=True)
  ]


def _parse(name: str) -> tuple[int, str, tuple[int, ...]]:
  """Number of slices, kind and shape of a topology's name."""
  found = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", name)
  kinds = (*ACCELERATORS, _CPU)
  if not found or found[2] not in kinds:
    raise InputError(
      f"--topology={name!r} is unknown: use a kind of {', '.join(kinds)} and a"
      " shape, such as v5e:4x4, 2*v5e:16x16 (two slices), h100:8 or cpu:8."
    )
  slices, kind = int(found[1] or 1), found[2]
  shape = tuple(int(n) for n in found[3].split("x"))
  dimensions = ACCELERATORS[kind].dimensions if kind in ACCELERATORS else 0
  if len(shape) != max(dimensions, 1) or min((*shape, slices)) < 1:
    raise InputError(
      f"--topology={name!r} has the wrong shape: {kind} needs"
      f" {max(dimensions, 1)} numbers of 1 or more, x between."
    )
  if slices > 1 and not dimensions:
    raise InputError(
      f"--topology={name!r}: slices are of TPUs; give {kind} its number of"
      " devices alone."
    )
  if kind in GPU_TARGETS and shape[0] > _NVLINK_GROUP:
    # Each machine is what JAX calls a slice: see XLA's BuildGlobalTopology.
    slices, rest = divmod(shape[0], _NVLINK_GROUP)
    if rest:
      raise InputError(
        f"--topology={name!r} leaves a machine half empty: use up to"
        f" {_NVLINK_GROUP} devices, or a multiple of {_NVLINK_GROUP}."
      )
    shape = (_NVLINK_GROUP,)
  return slices, kind, shape


def _open(
  name: str, slices: int, kind: str, shape: tuple[int, ...]
) -> Topology:
  """Makes the devices of a topology.

  Raises:
    InputError: its compiler is not installed, or knows no such shape.
  """
  accelerator = ACCELERATORS.get(kind)
  if accelerator is None:
    devices = jax.devices("cpu")[: math.prod(shape)]
    memory = _host_memory() // len(devices)
    return Topology(name, None, shape, slices, devices, memory)
  if kind in GPU_TARGETS:
    target = GPU_TARGETS[kind].text()
    devices = _gpus(name, target, slices, *shape)
    return Topology(
      name, accelerator, shape, slices, devices, accelerator.memory, target
    )
  # Where there is no TPU, libtpu would ask the network which one there is.
  # It takes no TPU: other programs may have libtpu open.
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", f"{kind}-{math.prod(shape)}")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if kind == "v4":
    # Both cores of a chip as one device, as machines with TPUs have it.
    options["chip_config_name"] = "megacore"
  if math.prod(shape) == 1:
    # A machine of one chip: other machines have 2x2.
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    description = topologies.get_topology_desc(
      name.rpartition("*")[2], "tpu", **options
    )
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise InputError(
      f"--topology={name!r} cannot be compiled for"
      f" ({one_line(error)}): install libtpu (pip install"
      " -e '.[compile]') and give a shape that exists."
    ) from None
  return Topology(
    name, accelerator, shape, slices, description.devices, accelerator.memory
  )


def _gpus(name: str, target: str, machines: int, each: int) -> Sequence[Any]:
  """Devices of machines with GPUs, as JAX would list them there.

  Raises:
    InputError: the CUDA compiler is not installed.
  """
  # It needs no card, and takes none that is there.
  os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
  try:
    description = topologies.get_topology_desc(
      platform="cuda",
      target_config=target,
      topology=f"{machines}x1x{each}",
    )
  except (RuntimeError, ValueError, NotImplementedError) as error:
    raise InputError(
      f"--topology={name!r} cannot be compiled for"
      f" ({one_line(error)}): install the CUDA compiler (pip install"
      " -e '.[compile-cuda]'); it needs no card."
    ) from None
  return description.devices


def _host_memory() -> int:
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
