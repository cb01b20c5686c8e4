"""Compiler options that the defaults of a backend leave to be wished for."""

import functools
import os

import jax

_YNNPACK = (
  "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
  "LIBRARY_FUSION_TYPE_REDUCE",
)


def make_deterministic() -> None:
  """Asks XLA for GPU programs whose every run gives the same bits.

  Reductions and scatters take an order that does not depend on timing; an
  operation that cannot is refused; and no kernel is chosen by how fast it was
  when the program was compiled, since the next start would choose another
  (https://openxla.org/xla/determinism; seen on an H100, where a resumed run
  left the first one's path at its second step). Slower; CPUs and TPUs do so
  anyway. Must be called before JAX looks for devices, since XLA reads the flags
  once.
  """
  flags = os.environ.get("XLA_FLAGS", "").split()
  wanted = (
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
    "--xla_gpu_autotune_level=0",
  )
  os.environ["XLA_FLAGS"] = " ".join([*flags, *wanted])


@functools.cache
def options_to_run_once(platform: str) -> dict[str, str | bool]:
  """Options for a program that runs once: compile fast, run slower.

  XLA:CPU took 6.3 s to compile the initial values of a small network, random
  numbers mostly, and 1.5 s at this level.

  Args:
    platform: such as "cpu".
  """
  if platform != "cpu":
    return {}
  return _known({"xla_backend_optimization_level": "1"})


@functools.cache
def compiler_options(platform: str) -> dict[str, str | bool]:
  """Options for `jax.jit` of a program for a platform, such as "cpu".

  XLA:CPU hands much to YNNPACK. Products and reductions gain by it: steps were
  1.2 times faster on two cores than without (IResNet-18, jaxlib 0.10.2).
  Convolutions do not, it ran each on one core: steps were 1.4 times slower; nor
  do chains of elementwise operations, 1.2 times.

  XLA sends gradients while other work runs on GPUs from Hopper on, and on an
  A100 if it is asked to: of the 179 MB of an IResNet-50 it was none, and is 177
  (compiled for 8 x A100 with jax 0.10.2, not run). TPUs, and versions without
  these switches, get no option.
  """
  if platform == "gpu":
    return _known({"xla_gpu_enable_latency_hiding_scheduler": True})
  if platform != "cpu":
    return {}
  return _known({"xla_cpu_experimental_ynn_fusion_type": ",".join(_YNNPACK)})


def _known(option: dict[str, str | bool]) -> dict[str, str | bool]:
  """The option, or none if this version of XLA does not have it."""
  try:
    jax.jit(lambda x: x + 1, compiler_options=option)(0)
  except jax.errors.JaxRuntimeError:
    return {}
  return option
