"""Resident memory of this process, as Linux counts it."""

import pathlib
import re
from collections.abc import Callable

_STATUS = pathlib.Path("/proc/self/status")


def resident() -> int:
  """Bytes that are resident now."""
  return _read("VmRSS")


def peak_above(function: Callable[[], object]) -> int:
  """Bytes that were resident at most while a function ran, above before."""
  # Documented in proc_pid_clear_refs(5): 5 sets the peak to what is there.
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  before = resident()
  function()
  return max(0, _read("VmHWM") - before)


def _read(name: str) -> int:
  (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
  return int(kilobytes) * 1024
