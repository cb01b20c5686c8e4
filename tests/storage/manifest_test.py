"""A manifest made and compared by several processes."""

import json
import os

import pytest

from jamsface_jax.storage import manifest
from jamsface_jax.storage.manifest import (
  Share,
  find_damage,
  hash_files,
  write_manifest,
)

SIZES = {0: 70_000, 1: 50_000, 2: 60_000, 3: 40_000}


@pytest.fixture
def directory(tmp_path):
  """Files as Orbax 0.12.8 names them when four processes have written."""
  names = {"_METADATA": 100, "head/manifest.ocdbt": 50, "head/d/a": 300}
  for process, size in SIZES.items():
    names[f"head/ocdbt.process_{process}/d/x"] = size
    names[f"head/array_metadatas/process_{process}"] = 10
  for name, size in names.items():
    path = tmp_path / "c" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(size))
  return str(tmp_path / "c")


@pytest.fixture
def hashed(monkeypatch):
  """Bytes that were hashed, a file a number."""
  sizes = []
  digest = manifest.hashlib.file_digest

  def count(file, kind):
    sizes.append(os.fstat(file.fileno()).st_size)
    return digest(file, kind)

  monkeypatch.setattr(manifest.hashlib, "file_digest", count)
  return sizes


def test_each_process_hashes_what_it_has_written(directory, hashed):
  parts = []
  for process, size in SIZES.items():
    hashed.clear()
    parts.append(hash_files(directory, Share(process, 4)))
    assert sum(hashed) == size + 10 + (450 if process == 0 else 0)
  merged = {path: entry for part in parts for path, entry in part.items()}
  assert sum(map(len, parts)) == len(merged)
  assert merged == hash_files(directory)
  hashed.clear()
  write_manifest(directory, merged)
  assert not hashed  # Process 0 trusts the others.
  assert find_damage(directory, ()) is None


@pytest.mark.parametrize("count", [1, 2, 3, 4, 16])
def test_each_process_compares_its_share(directory, hashed, count):
  write_manifest(directory)
  total = sum(os.path.getsize(path) for path in files(directory))
  total -= os.path.getsize(f"{directory}/manifest.json")
  loads = []
  for process in range(count):
    hashed.clear()
    assert find_damage(directory, (), Share(process, count)) is None
    loads.append(sum(hashed))
  assert sum(loads) == total  # All of it, and nothing twice.
  # Nobody has more than a fair share and a file.
  assert max(loads) <= total / count + max(SIZES.values())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_whatever_is_damaged_somebody_finds(directory, count):
  write_manifest(directory)
  with open(f"{directory}/manifest.json") as file:
    names = json.load(file)["files"]
  for name in names:
    path = f"{directory}/{name}"
    with open(path, "r+b") as file:
      first = file.read(1)
      file.seek(0)
      file.write(bytes([first[0] ^ 1]))
    found = [find_damage(directory, (), Share(p, count)) for p in range(count)]
    assert [bool(one) for one in found].count(True) == 1
    assert next(filter(None, found)) == (
      f"{path!r} has other bytes than were written"
    )
    with open(path, "r+b") as file:
      file.write(first)


def files(directory):
  for folder, _, names in os.walk(directory):
    yield from (os.path.join(folder, name) for name in names)
