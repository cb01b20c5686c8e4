"""What XLA's CUDA compiler must know of a GPU that is not there.

The numbers are those that cards report of themselves, as XLA's public
repository records them (github.com/openxla/xla, folder
xla/backends/gpu/target_config/specs, h100_sxm and a100_sxm_80); the text here
is our own, with what the compiler of jax 0.10.2 asks for. The version of cuDNN
is an assumption: some fusions depend on it.
"""

import dataclasses

_CUDNN = "major: 9 minor: 10 patch: 0"
# Alike for both: threads and registers that CUDA allows since Volta.
_COMMON = """\
threads_per_block_limit: 1024
threads_per_warp: 32
threads_per_core_limit: 2048
thread_dim_limit_x: 1024
thread_dim_limit_y: 1024
thread_dim_limit_z: 64
block_dim_limit_x: 2147483647
block_dim_limit_y: 65535
block_dim_limit_z: 65535
registers_per_core_limit: 65536
registers_per_block_limit: 65536
shared_memory_per_block: 49152"""


@dataclasses.dataclass(frozen=True)
class GpuTarget:
  """A card, as the compiler is told of it; bytes unless a name says otherwise.

  Attributes:
    name: what the card calls itself.
    capability: CUDA's compute capability, in the words of the text.
    cores: streaming multiprocessors.
    units: float32 units of each.
    gigahertz: its clock.
    shared: shared memory of a multiprocessor; a block may use 1 KiB less.
    cache: of the second level.
    memory: of the card.
    bandwidth: bytes a second from and to it.
    links: NVLinks.
  """

  name: str
  capability: str
  cores: int
  units: int
  gigahertz: float
  shared: int
  cache: int
  memory: int
  bandwidth: int
  links: int

  def text(self) -> str:
    """The card as a GpuTargetConfigProto in text form."""
    return f"""\
platform_name: "CUDA"
device_description_str: "{self.name}"
dnn_version_info {{ {_CUDNN} }}
gpu_device_info {{
{_COMMON}
cuda_compute_capability {{ {self.capability} }}
core_count: {self.cores}
fpus_per_core: {self.units}
clock_rate_ghz: {self.gigahertz}
shared_memory_per_core: {self.shared}
shared_memory_per_block_optin: {self.shared - 1024}
l2_cache_size: {self.cache}
device_memory_size: {self.memory}
memory_bandwidth: {self.bandwidth}
device_interconnect_info {{ active_links: {self.links} }}
}}
"""


GPU_TARGETS = {
  "h100": GpuTarget(
    name="NVIDIA H100 80GB HBM3",
    capability="major: 9 feature_extension: ACCELERATED_FEATURES",
    cores=132,
    units=128,
    gigahertz=1.98,
    shared=228 * 2**10,
    cache=50 * 2**20,
    memory=84_942_979_072,
    bandwidth=3_352_320_000_000,
    links=18,
  ),
  "a100": GpuTarget(
    name="NVIDIA A100-SXM4-80GB",
    capability="major: 8",
    cores=108,
    units=64,
    gigahertz=1.41,
    shared=164 * 2**10,
    cache=40 * 2**20,
    memory=85_100_068_864,
    bandwidth=2_039_040_000_000,
    links=12,
  ),
}
