"""Checks versions, devices, collectives, disk and data, and says what to mend.

  python -m jamsface_jax.doctor
  python -m jamsface_jax.doctor --workdir=runs/mine --data=data/mine,data/lfw
  python -m jamsface_jax.doctor --workdir=gs://BUCKET/RUN --data=gs://BUCKET/D

A line a check: ok; note, what will work but may not be meant; wrong, with the
fix. Ends with 1 if something is wrong, else with 0. In a bucket a work
directory is asked for, written, read, locked, and given a checkpoint; what that
takes is removed again.
"""

import argparse
import dataclasses
import glob
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from packaging.requirements import Requirement

from jamsface_jax import shell
from jamsface_jax.data import local_copy
from jamsface_jax.data.doubts import find_doubts
from jamsface_jax.data.records import INDEX_FILE, RecordReader, parse_index
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.devices import sharding
from jamsface_jax.devices.speed import measure_rate
from jamsface_jax.errors import EXIT_FAILURE, InputError, run_command
from jamsface_jax.run.bucket_probe import BucketProbe
from jamsface_jax.storage.bucket import SCHEME
from jamsface_jax.storage.mounts import refuse_mounted_bucket
from jamsface_jax.storage.paths import require_local
from jamsface_jax.storage.plain_file import plain
from jamsface_jax.storage.run_directory import RunDirectory

OK, NOTE, WRONG = "ok", "note", "wrong"

_PACKAGE = "jamsface-jax"
_PYTHON = (3, 11)
_DISK_FREE = 5 * 2**30  # Checkpoints of IResNet-100 and a million classes.
_PROBES = 64  # Images read of a data set.

# Where Linux says who gets large pages, all processes, those that ask ("always
# [madvise] never") or none; and how glibc is told to ask: docs/performance.md.
_HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
_TUNABLE = "glibc.malloc.hugetlb"


@dataclasses.dataclass(frozen=True)
class Finding:
  """What a check found.

  Attributes:
    about: what was checked, a word or two.
    state: OK, NOTE or WRONG.
    text: what was found and, if not OK, what to do.
  """

  about: str
  state: str
  text: str

  def __str__(self) -> str:
    return f"{self.state:6} {self.about:12} {self.text}"


def check_python() -> Iterator[Finding]:
  """The interpreter, and every package that setup.cfg asks for."""
  version = platform.python_version()
  if sys.version_info < _PYTHON:
    fix = f"install {'.'.join(map(str, _PYTHON))} or later"
    yield Finding("python", WRONG, f"{version} is too old: {fix}.")
  else:
    yield Finding("python", OK, version)
  try:
    required = importlib.metadata.requires(_PACKAGE) or []
  except importlib.metadata.PackageNotFoundError:
    yield Finding(
      "packages",
      NOTE,
      f"{_PACKAGE} is not installed, so nobody knows what it needs: type"
      " 'pip install -e .' in its directory.",
    )
    return
  yield from check_packages(required, importlib.metadata.version)


def check_packages(
  required: list[str], version_of: Callable[[str], str]
) -> Iterator[Finding]:
  """Compares what is installed with what is asked for.

  Args:
    required: requirements, such as "jax>=0.10.2"; those of extras are skipped.
    version_of: gives the version of a package that is installed.
  """
  sound = []
  for requirement in map(Requirement, required):
    marker = requirement.marker
    if marker is not None and not marker.evaluate({"extra": ""}):
      continue
    try:
      version = version_of(requirement.name)
    except importlib.metadata.PackageNotFoundError:
      version = None
    if version is None or not requirement.specifier.contains(version):
      yield Finding(
        "packages",
        WRONG,
        f"{requirement.name} {version or 'is missing'}:"
        f" type pip install '{requirement.name}{requirement.specifier}'.",
      )
    else:
      sound.append(f"{requirement.name} {version}")
  yield Finding("packages", OK, ", ".join(sound))


def check_devices() -> Iterator[Finding]:
  """What JAX computes on, and whether there is better that it does not see."""
  devices = jax.devices()
  statistics = devices[0].memory_stats() or {}
  memory = statistics.get("bytes_limit")
  text = f"{len(devices)} {devices[0].device_kind} ({devices[0].platform})"
  if memory:
    text += f", {memory / 2**30:.1f} GiB each"
  yield Finding("devices", OK, text)
  if devices[0].platform == "cpu":
    for kind, pattern, extra in (
      ("an NVIDIA GPU", "/dev/nvidia[0-9]*", "cuda"),
      ("a TPU", "/dev/accel[0-9]*", "tpu"),
    ):
      if glob.glob(pattern):
        yield Finding(
          "devices",
          WRONG,
          f"this machine has {kind} that JAX does not see: type pip install"
          f" '{_PACKAGE}[{extra}]', and look whether JAX_PLATFORMS hides it.",
        )
  count = os.cpu_count() or 1
  text = f"{count} cores for decoding and CPU devices"
  if devices[0].platform == "cpu" and _are_pages_small():
    text += (
      "; steps may take less time with large pages of memory: export"
      f" GLIBC_TUNABLES={_TUNABLE}=1"
    )
  yield Finding("processor", OK, text)


def _are_pages_small() -> bool:
  """Whether glibc takes small pages where it could have large ones."""
  if platform.libc_ver()[0] != "glibc":
    return False
  if _TUNABLE in os.environ.get("GLIBC_TUNABLES", ""):
    return False
  try:
    with open(_HUGE_PAGES, encoding="ascii", opener=plain) as file:
      return "[madvise]" in file.read()
  except OSError:
    return False


def check_collectives() -> Iterator[Finding]:
  """Whether devices add up, gather and scatter as they should, and how fast."""
  mesh = sharding.make_mesh(-1)
  count = mesh.size
  rows = np.arange(count * count * 1024, dtype=np.float32)
  rows = rows.reshape(count * count, 1024) % 251  # Sums of them are exact.

  def every(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    gathered = jax.lax.all_gather(x, "model", tiled=True)
    scattered = jax.lax.psum_scatter(x, "model", tiled=True)
    return gathered.sum(), jax.lax.psum(x.sum(), "model"), scattered

  program = jax.jit(
    jax.shard_map(
      every,
      mesh=mesh,
      in_specs=P("model"),
      out_specs=(P(), P(), P("model")),
      check_vma=False,  # That a gather has one value everywhere is the test.
    )
  )
  gathered, total, scattered = jax.block_until_ready(program(rows))
  begin = time.perf_counter()
  jax.block_until_ready(program(rows))
  elapsed = time.perf_counter() - begin
  right = float(total) == rows.sum() == float(gathered)
  wanted = rows.reshape(count, count, 1024).sum(axis=0)
  if not right or not np.array_equal(np.asarray(scattered), wanted):
    yield Finding(
      "collectives",
      WRONG,
      "the devices disagree on a sum: look at the driver and the links between"
      " them (nvidia-smi topo -m) before you trust any training.",
    )
  else:
    yield Finding(
      "collectives",
      OK,
      f"sum, gather and scatter over {count} device(s) in"
      f" {elapsed * 1e3:.1f} ms",
    )


def check_product() -> Iterator[Finding]:
  """Whether a large product is right, and how fast."""
  size = 1024
  ones = jnp.ones((size, size))
  product = jax.jit(lambda x: x @ x)
  if not bool((product(ones) == size).all()):
    yield Finding(
      "product",
      WRONG,
      "ones times ones is not what it should be: the device or its driver is"
      " at fault.",
    )
  else:
    dtypes = ["float32"]
    if jax.default_backend() != "cpu":  # CPUs make float32 of others.
      dtypes.append("bfloat16")
    rates = [f"{measure_rate(dtype) / 1e9:,.0f} in {dtype}" for dtype in dtypes]
    yield Finding("product", OK, f"Gflop/s: {', '.join(rates)}")


def check_workdir(workdir: str) -> Iterator[Finding]:
  """Whether a run could write here, and whether it would be alone."""
  if workdir.startswith(SCHEME):
    yield from check_bucket(workdir)
    return
  existing = os.path.abspath(workdir)
  while not os.path.isdir(existing):
    existing = os.path.dirname(existing)
  try:
    require_local(workdir, "--workdir")
    refuse_mounted_bucket(existing, "--workdir")
    with tempfile.TemporaryDirectory(dir=existing) as scratch:
      with RunDirectory(scratch).held():
        begin = time.perf_counter()
        with open(os.path.join(scratch, "probe"), "wb") as file:
          file.write(bytes(64 * 2**20))
          file.flush()
          os.fsync(file.fileno())
        rate = 64 / (time.perf_counter() - begin)
  except InputError as error:
    yield Finding("disk", WRONG, str(error))
    return
  except OSError as error:
    yield Finding(
      "disk",
      WRONG,
      f"{existing!r} cannot be written to ({error.strerror}): choose another"
      " --workdir, or make room.",
    )
    return
  free = shutil.disk_usage(existing).free
  text = f"{free / 2**30:.1f} GiB free in {existing!r}, written at"
  text += f" {rate:,.0f} MiB/s"
  if free < _DISK_FREE:
    text += ": little for checkpoints; make room or choose another --workdir."
  yield Finding("disk", NOTE if free < _DISK_FREE else OK, text)


def check_bucket(address: str) -> Iterator[Finding]:
  """Whether a run could live in a bucket, and whether it would be alone."""
  try:
    probe = BucketProbe(address)
    with probe:
      for about, look in probe.looks():
        yield Finding(about, OK, look())
    holder = probe.holder()
  except InputError as error:
    yield Finding("bucket", WRONG, str(error))
  except OSError as error:
    yield Finding(
      "bucket",
      WRONG,
      f"{address!r}: {error.strerror or error}: look at the network, and at"
      " https://status.cloud.google.com.",
    )
  else:
    if holder:
      yield Finding(
        "locking",
        NOTE,
        f"{address!r} is locked by {holder}: a run there now is refused, or"
        " waits a minute if that one is gone.",
      )


def check_data_in_bucket(address: str) -> Iterator[Finding]:
  """Whether a data set in a bucket is whole, and its copy fits on the disk."""
  about = os.path.basename(address.rstrip("/"))[:12]
  try:
    place, blobs = local_copy.list_files(address)
    if INDEX_FILE not in blobs:
      raise InputError(
        f"{address!r} is not a data set (it has no {INDEX_FILE}): send the rest"
        f" of it, with 'gcloud storage rsync -r DATASET {address}'."
      )
    index = parse_index(place.read(INDEX_FILE), f"{place.address}/{INDEX_FILE}")
    for shard in index.shards:
      there = blobs[shard.file].bytes if shard.file in blobs else 0
      if there != shard.bytes:
        raise InputError(
          f"shard '{place.address}/{shard.file}' has {there} bytes instead of"
          f" {shard.bytes}: send it again, with 'gcloud storage rsync -r"
          f" DATASET {place.address}'."
        )
    size = sum(blob.bytes for blob in blobs.values()) / 2**30
    cache = local_copy.copies_directory()
    free = shutil.disk_usage(cache).free / 2**30
  except (InputError, OSError) as error:
    yield Finding(about, WRONG, str(error))
    return
  text = f"{index.images:,} images of {index.classes:,} classes, {size:.1f} GiB"
  text += f" that each host copies to {cache!r}, where {free:.1f} GiB are free"
  if size > free:
    text += ": too little; give --data_cache a directory on a larger disk."
  yield Finding(about, WRONG if size > free else OK, text)


def check_data(directory: str) -> Iterator[Finding]:
  """Whether a data set can be read, at some of its images, and how fast."""
  if directory.startswith(SCHEME):
    yield from check_data_in_bucket(directory)
    return
  about = os.path.basename(os.path.normpath(directory))[:12]
  try:
    source = RecordSource(directory, 112)
    ids = np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(np.int64))
    begin = time.perf_counter()
    source.read(ids)
    rate = len(ids) / (time.perf_counter() - begin)
  except InputError as error:
    yield Finding(about, WRONG, str(error))
    return
  sizes = source.class_sizes
  yield Finding(
    about,
    OK,
    f"{len(source):,} images of {source.num_classes:,} classes, {len(ids)} read"
    f" at {rate:,.0f} images/s a thread",
  )
  for doubt in find_doubts(RecordReader(directory)):
    yield Finding(about, NOTE, f"{doubt}.")
  alone = int((sizes == 1).sum())
  if alone:
    yield Finding(
      about,
      NOTE,
      f"{alone:,} of the classes have one image: to train, leave them out with"
      " data_prep's --min_images=2.",
    )


def main() -> int:
  """Reads the flags and checks."""
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.doctor"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", default=".", help="where a run would write; default: here")
  add("--data", default="", help="data sets to look at, comma between")
  add("--data_cache", default="", help="for copies of data sets in buckets")
  arguments = parser.parse_args()
  local_copy.keep_copies_in(arguments.data_cache)
  checks = [
    check_python(),
    check_devices(),
    check_collectives(),
    check_product(),
    check_workdir(arguments.workdir),
    *map(check_data, filter(None, arguments.data.split(","))),
  ]
  found = []
  for check in checks:
    for finding in check:
      print(finding, flush=True)
      found.append(finding)
  wrong = sum(finding.state == WRONG for finding in found)
  notes = sum(finding.state == NOTE for finding in found)
  if wrong:
    print(f"{wrong} of {len(found)} checks are wrong")
  elif notes:
    print(f"nothing is wrong, {notes} of {len(found)} checks have a note")
  else:
    print("all is well")
  return EXIT_FAILURE if wrong else 0


if __name__ == "__main__":
  run_command(main)
