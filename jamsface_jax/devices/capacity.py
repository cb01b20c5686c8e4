"""How much memory a device of this process may hold."""

import itertools
import os
import pathlib

import jax

_CGROUPS = pathlib.Path("/sys/fs/cgroup")


def device_memory() -> int:
  """Bytes that one device of this process may hold.

  Of an accelerator what its runtime says; CPU devices share what the machine
  has, or what the container or batch system leaves this process of it.
  """
  statistics = jax.local_devices()[0].memory_stats()
  if statistics and "bytes_limit" in statistics:
    return statistics["bytes_limit"]
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  limits = cgroup_limits(pathlib.Path("/proc/self/cgroup"), _CGROUPS)
  return min([memory, *limits]) // jax.local_device_count()


def cgroup_limits(of_process: pathlib.Path, mounted: pathlib.Path) -> list[int]:
  """Limits in bytes of the control groups that a process is in.

  As cgroups(7) says: a line HIERARCHY:CONTROLLERS:PATH for each hierarchy, of
  which version 2 has no controllers named; those above limit it too. In a
  container the path may be that of the host, which is not there.

  Args:
    of_process: /proc/self/cgroup.
    mounted: where control groups are mounted, /sys/fs/cgroup.
  """
  try:
    lines = of_process.read_text().splitlines()
  except OSError:  # No Linux.
    return []
  files = []
  for line in lines:
    _, controllers, path = line.split(":", 2)
    if "memory" in controllers.split(","):
      root, name = mounted / "memory", "memory.limit_in_bytes"
    elif not controllers:
      root, name = mounted, "memory.max"
    else:
      continue
    below = itertools.accumulate(pathlib.PurePath(path).parts[1:], os.path.join)
    files += [root / name, *(root / one / name for one in below)]
  return [limit for limit in map(_read_limit, files) if limit is not None]


def _read_limit(file: pathlib.Path) -> int | None:
  """The number in a file; None if there is none."""
  try:
    text = file.read_text().strip()
  except OSError:
    return None
  return int(text) if text.isdigit() else None  # "max": no limit.
