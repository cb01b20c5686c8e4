"""Compiler options that the defaults of a backend leave to be wished for."""

import functools
import hashlib
import os
import pathlib
import platform

import jax

_CACHED_SECONDS = 0.2  # What compiles faster is not worth a file.

_FEATURES = ("flags", "features")  # As x86 and ARM call them.
_YNNPACK = (
  "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT",
  "LIBRARY_FUSION_TYPE_REDUCE",
)


def make_deterministic() -> None:
  """Asks XLA for GPU programs whose every run gives the same bits.

  Reductions and scatters take an order that does not depend on timing; an
  operation that cannot is refused. Slower; CPUs and TPUs do so anyway. Must be
  called before JAX looks for devices, since XLA reads the flags once.
  """
  flags = os.environ.get("XLA_FLAGS", "").split()
  wanted = (
    "--xla_gpu_deterministic_ops=true",
    "--xla_gpu_exclude_nondeterministic_ops=true",
  )
  os.environ["XLA_FLAGS"] = " ".join([*flags, *wanted])


def cache_in(directory: str) -> None:
  """Keeps compiled programs in a directory, for the next start.

  A directory that the user gave JAX, JAX_COMPILATION_CACHE_DIR, stays the one.
  A run whose directory cannot be written to gets none. Programs of other
  processors than this one lie apart: those for CPUs use what this one has.

  Args:
    directory: in that of a run; made when the first program is kept.
  """
  # JAX gives its configuration this attribute when it runs.
  given = jax.config.jax_compilation_cache_dir  # ty: ignore[missing-attribute]
  run = os.path.dirname(os.path.abspath(directory))
  closed = os.path.isdir(run) and not os.access(run, os.W_OK)
  if given is not None or closed:
    return
  jax.config.update("jax_compilation_cache_dir", _cache_below(directory))
  jax.config.update(
    "jax_persistent_cache_min_compile_time_secs", _CACHED_SECONDS
  )


def cache_environment(directory: str) -> dict[str, str]:
  """Variables by which other processes keep compiled programs in a directory.

  Args:
    directory: directory that they share.

  Returns:
    Nothing if the user has given JAX a directory.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    return {}
  return {
    "JAX_COMPILATION_CACHE_DIR": _cache_below(directory),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": str(_CACHED_SECONDS),
  }


def _cache_below(directory: str) -> str:
  return os.path.join(os.path.abspath(directory), _processor())


def _processor() -> str:
  """A name that processors share if they run the same instructions."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
  except OSError:
    lines = []
  features = {line for line in lines if line.lower().startswith(_FEATURES)}
  digest = hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()
  return f"{platform.machine()}-{digest[:8]}"


def options_to_run_once() -> dict[str, int]:
  """Options for a program that runs once: compile fast, run slower.

  XLA:CPU took 6.3 s to compile the initial values of a small network, random
  numbers mostly, and 1.5 s at this level (jaxlib 0.10.2).
  """
  if jax.default_backend() != "cpu":
    return {}
  return {"xla_backend_optimization_level": 1}


@functools.cache
def compiler_options(platform: str) -> dict[str, str]:
  """Options for `jax.jit` of a program for a platform, such as "cpu".

  XLA:CPU hands much to YNNPACK. Products and reductions gain by it: steps were
  1.2 times faster on two cores than without (IResNet-18, jaxlib 0.10.2).
  Convolutions do not, it ran each on one core: steps were 1.4 times slower; nor
  do chains of elementwise operations, 1.2 times. Other backends, and versions
  without that switch, get no option.
  """
  if platform != "cpu":
    return {}
  options = {"xla_cpu_experimental_ynn_fusion_type": ",".join(_YNNPACK)}
  try:
    jax.jit(lambda x: x + 1, compiler_options=options)(0)
  except jax.errors.JaxRuntimeError:  # No such option.
    return {}
  return options
