"""Counted by glibc itself (`malloc_info`), in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, sys, threading
from jamsface_jax.devices.allocator import bound_arenas
if sys.argv[1] == "bound":
  bound_arenas()
libc = ctypes.CDLL(None)
libc.fopen.restype = libc.malloc.restype = ctypes.c_void_p
threads = int(sys.argv[2])
all_there = threading.Barrier(threads)
def work():
  libc.malloc(ctypes.c_size_t(1000))
  all_there.wait()
running = [threading.Thread(target=work) for _ in range(threads)]
for thread in running: thread.start()
for thread in running: thread.join()
file = ctypes.c_void_p(libc.fopen(sys.argv[3].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
"""

# Blocks too small for pages of their own, of which the last is kept: nothing
# before it goes back by itself.
HOLES = """
import ctypes
from jamsface_jax.devices.allocator import give_back
def resident():
  return int(open("/proc/self/statm").read().split()[1]) * 4096
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
blocks = [libc.malloc(ctypes.c_size_t(10_000)) for _ in range(10_000)]
for block in blocks: ctypes.memset(block, 1, 10_000)
for block in blocks[:-1]: libc.free(ctypes.c_void_p(block))
kept = resident()
give_back()
print(kept - resident())
"""

GLIBC = pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="another C library"
)


def count_arenas(tmp_path, how, **environment):
  threads = 6 * (os.cpu_count() or 1)
  path = tmp_path / "malloc.xml"
  subprocess.run(
    [sys.executable, "-c", PROGRAM, how, str(threads), path],
    check=True,
    env={**os.environ, **environment},
  )
  return path.read_text().count("<heap nr=")


@GLIBC
def test_an_arena_for_each_core(tmp_path, monkeypatch):
  monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  cores = os.cpu_count() or 1
  assert count_arenas(tmp_path, "bound") <= cores
  assert count_arenas(tmp_path, "as it is") > cores
  # Who has chosen has chosen, but not by choosing something else.
  for name, value in (
    ("MALLOC_ARENA_MAX", f"{2 * cores}"),
    ("GLIBC_TUNABLES", f"glibc.malloc.arena_max={2 * cores}"),
  ):
    assert count_arenas(tmp_path, "bound", **{name: value}) > cores
  other = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
  assert count_arenas(tmp_path, "bound", **other) <= cores


@GLIBC
def test_pages_that_nothing_is_in_go_back():
  done = subprocess.run(
    [sys.executable, "-c", HOLES], check=True, capture_output=True, text=True
  )
  assert int(done.stdout) > 0.9 * 10_000 * 10_000
