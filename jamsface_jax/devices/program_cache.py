"""Compiled programs of the user, kept for the next start.

A program that is kept is machine code, and JAX runs what it finds in its cache
without a question. So the cache lies where the user alone can write, and never
in a directory that is passed on, such as that of a run.
"""

import hashlib
import os
import pathlib
import platform
import stat
import sys

import jax

_CACHED_SECONDS = 0.2  # What compiles faster is not worth a file.
_MOST_BYTES = 4 * 2**30  # Of a kind of processor; the least used go first.
_FEATURES = ("flags", "features")  # As x86 and ARM call them.
_GIVEN = "JAX_COMPILATION_CACHE_DIR"


class _OpenError(Exception):
  """Others than the user may have put something there; says why."""


def keep_programs() -> None:
  """Keeps compiled programs in the user's cache, for the next start.

  It is `jamsface_jax/compiled` below XDG_CACHE_HOME, or else below ~/.cache
  (https://specifications.freedesktop.org/basedir/latest/), made for the user
  alone. Where that cannot be, or others than the user could have written there,
  a warning says so and nothing is kept. A directory that the user gave JAX,
  JAX_COMPILATION_CACHE_DIR, stays the one. Programs of other processors than
  this one lie apart: those for CPUs use what this one has.

  Of several devices of a CPU nothing is kept. A program that comes out of a
  cache has them at different collectives, and XLA ends the process after 40 s
  (`Termination timeout`; jaxlib 0.10.2 and 0.12.0.1, a step of two
  micro-batches on 1x8, compiled without optimisation: at each of six second
  starts; with --xla_cpu_enable_concurrency_optimized_scheduler=false at none of
  seven).

  Must be called before JAX looks for devices.
  """
  # JAX gives its configuration these attributes when it runs.
  config = jax.config
  if config.jax_compilation_cache_dir is not None:  # ty: ignore[missing-attribute]
    return
  if _has_several_cpu_devices():
    return
  try:
    directory = _make_private(_home(), "jamsface_jax", "compiled", _processor())
  except (_OpenError, OSError) as error:
    why = getattr(error, "strerror", None) or error
    print(
      f"warning: compiled programs are not kept for the next start ({why}):"
      f" give {_GIVEN} a directory that you alone can write to.",
      file=sys.stderr,
    )
    return
  config.update("jax_compilation_cache_dir", directory)
  config.update("jax_persistent_cache_min_compile_time_secs", _CACHED_SECONDS)
  if config.jax_compilation_cache_max_size == -1:  # ty: ignore[missing-attribute]
    _remove_halves(directory)
    config.update("jax_compilation_cache_max_size", _MOST_BYTES)


def _has_several_cpu_devices() -> bool:
  """Whether JAX was asked to divide a CPU, either way that it knows."""
  asked = jax.config.jax_num_cpu_devices  # ty: ignore[missing-attribute]
  flags = os.environ.get("XLA_FLAGS", "")
  return asked > 1 or "--xla_force_host_platform_device_count" in flags


def _home() -> str:
  """Where the user's caches lie, absolute.

  Raises:
    _OpenError: the user has no home.
  """
  given = os.environ.get("XDG_CACHE_HOME", "")
  if os.path.isabs(given):  # Others are to be ignored.
    return given
  home = os.path.expanduser("~")
  if not os.path.isabs(home):
    raise _OpenError("this user has no home")
  return os.path.join(home, ".cache")


def _make_private(top: str, *names: str) -> str:
  """Makes folders in each other that nobody else can write to or look into.

  Args:
    top: the first, made if missing; it may be seen by others.
    names: of the folders below it.

  Returns:
    The path of the last one, without links.

  Raises:
    _OpenError: a folder is not the user's alone.
    OSError: the file system refuses.
  """
  os.makedirs(top, mode=0o700, exist_ok=True)
  path = os.path.realpath(top)
  for folder in (path, *map(str, pathlib.Path(path).parents)):
    _check_above(folder)
  for name in names:
    path = os.path.join(path, name)
    try:
      os.mkdir(path, 0o700)
    except FileExistsError:
      pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
      raise _OpenError(f"{path!r} is not a directory")
    if found.st_uid != os.geteuid():
      raise _OpenError(f"{path!r} is another user's")
    if found.st_mode & 0o022:
      raise _OpenError(f"others may write to {path!r}")
    if found.st_mode & 0o077:
      os.chmod(path, 0o700)
  return path


def _check_above(folder: str) -> None:
  """Refuses a folder in which others could put a folder in place of ours.

  Raises:
    _OpenError: so it is.
  """
  found = os.stat(folder)
  if found.st_uid not in (0, os.geteuid()):
    raise _OpenError(f"{folder!r} is another user's")
  if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
    raise _OpenError(f"all may write to {folder!r}")


def _remove_halves(directory: str) -> None:
  """Removes programs whose writing was interrupted.

  JAX notes in a second file when a program was used, and can throw none away
  any more if one lacks it (jax 0.10.2).
  """
  there = set(os.listdir(directory))
  for name in there:
    if name.endswith("-cache") and f"{name[:-6]}-atime" not in there:
      os.remove(os.path.join(directory, name))


def _processor() -> str:
  """A name that processors share if they run the same instructions."""
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8").splitlines()
  except OSError:
    lines = []
  features = {line for line in lines if line.lower().startswith(_FEATURES)}
  digest = hashlib.sha256("\n".join(sorted(features)).encode()).hexdigest()
  return f"{platform.machine()}-{digest[:8]}"
