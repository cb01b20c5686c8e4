"""The doctor finds what is wrong, and says what to do."""

import importlib.metadata
import os
import platform
import shutil

import jax
import numpy as np
import pytest

from jamsface_jax import doctor
from jamsface_jax.doctor import NOTE, OK, WRONG
from jamsface_jax.run.bucket_probe import BucketProbe
from jamsface_jax.storage import bucket
from jamsface_jax.storage.bucket import Bucket
from jamsface_jax.storage.lease import Lease


def states(check):
  return [(one.state, one.text) for one in check]


def test_a_sound_machine(run, dataset, tmp_path):
  done = run(
    "jamsface_jax.doctor",
    f"--workdir={tmp_path / 'w' / 'deep'}",
    f"--data={dataset}",
    devices=4,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  lines = done.stdout.splitlines()
  assert lines[-1] == "all is well"
  assert {line.split()[1] for line in lines[:-1]} == {
    "python",
    "packages",
    "devices",
    "processor",
    "collectives",
    "product",
    "disk",
    "tiny",
  }
  assert "sum, gather and scatter over 4 device(s)" in done.stdout
  assert "37 images of 12 classes" in done.stdout
  assert not (tmp_path / "w").exists()  # It looks and leaves nothing.


def test_what_is_wrong_ends_with_1(run, tmp_path):
  done = run("jamsface_jax.doctor", f"--data={tmp_path}")
  assert done.returncode == 1
  assert "is not a data set" in done.stdout and "1 of " in done.stdout


def test_packages_that_are_missing_or_old():
  versions = {"numpy": "2.4.1", "jax": "0.9"}

  def version_of(name):
    if name not in versions:
      raise importlib.metadata.PackageNotFoundError(name)
    return versions[name]

  required = [
    "numpy>=2.4",
    "jax>=0.10.2",
    "flax>=0.12.8",
    'ray>=2.60; extra == "ray"',
  ]
  assert states(doctor.check_packages(required, version_of)) == [
    (WRONG, "jax 0.9: type pip install 'jax>=0.10.2'."),
    (WRONG, "flax is missing: type pip install 'flax>=0.12.8'."),
    (OK, "numpy 2.4.1"),
  ]


def test_python_that_is_old(monkeypatch):
  monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 1))
  state, text = states(doctor.check_python())[0]
  assert state == WRONG and "install 3.11 or later" in text


@pytest.mark.parametrize(
  ("pattern", "says"), [("nvidia", "[cuda]"), ("accel", "[tpu]")]
)
def test_devices_that_jax_does_not_see(monkeypatch, pattern, says):
  monkeypatch.setattr(
    doctor.glob, "glob", lambda path: ["x"] if pattern in path else []
  )
  (wrong,) = [x for x in states(doctor.check_devices()) if x[0] == WRONG]
  assert says in wrong[1]


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="another C library"
)
def test_pages_that_could_be_larger(monkeypatch, tmp_path):
  """As Documentation/admin-guide/mm/transhuge.rst of Linux has the file."""
  setting = tmp_path / "enabled"
  monkeypatch.setattr(doctor, "_HUGE_PAGES", str(setting))
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)

  def advised():
    (text,) = [x.text for x in doctor.check_devices() if x.about == "processor"]
    return "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in text

  assert not advised()  # There is no such file.
  for content, wanted in (
    ("[always] madvise never\n", False),
    ("always [madvise] never\n", True),
    ("always madvise [never]\n", False),
  ):
    setting.write_text(content)
    assert advised() == wanted
  setting.write_text("always [madvise] never\n")
  monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
  assert advised()
  monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  assert not advised()


def test_devices_that_add_up_wrongly(monkeypatch):
  ((state, _),) = states(doctor.check_collectives())
  assert state == OK
  psum = jax.lax.psum
  monkeypatch.setattr(jax.lax, "psum", lambda x, axis: psum(x, axis) + 1)
  ((state, text),) = states(doctor.check_collectives())
  assert state == WRONG and "the devices disagree" in text


def test_devices_that_scatter_wrongly(monkeypatch):
  scatter = jax.lax.psum_scatter
  monkeypatch.setattr(
    jax.lax, "psum_scatter", lambda x, *a, **k: scatter(x[::-1], *a, **k)
  )
  ((state, _),) = states(doctor.check_collectives())
  assert state == WRONG


def test_a_product_that_is_wrong(monkeypatch):
  monkeypatch.setattr(doctor.jnp, "ones", lambda shape: np.full(shape, 1.01))
  ((state, _),) = states(doctor.check_product())
  assert state == WRONG


def test_a_disk_that_is_nearly_full(monkeypatch, tmp_path):
  usage = shutil.disk_usage(tmp_path)
  monkeypatch.setattr(
    doctor.shutil, "disk_usage", lambda _: usage._replace(free=2**20)
  )
  ((state, text),) = states(doctor.check_workdir(str(tmp_path)))
  assert state == NOTE and "make room" in text
  assert not os.listdir(tmp_path)


def test_a_place_that_cannot_be_written():
  ((state, text),) = states(doctor.check_workdir("/proc/here/there"))
  assert state == WRONG and "'/proc'" in text and "choose another" in text


def test_a_damaged_data_set(dataset, tmp_path):
  copy = tmp_path / "copy"
  shutil.copytree(dataset, copy)
  (shard,) = copy.glob("*.array_record")
  with open(shard, "r+b") as file:
    file.seek(200)
    file.write(b"\0" * 5000)
  (finding,) = states(doctor.check_data(str(copy)))
  assert finding[0] == WRONG and "copy" in finding[1]


def test_classes_of_one_image(dataset, monkeypatch):
  class One(doctor.RecordSource):
    def __init__(self, *arguments):
      super().__init__(*arguments)
      self.class_sizes = np.array([1, 1, 5])

  monkeypatch.setattr(doctor, "RecordSource", One)
  found = states(doctor.check_data(dataset))
  assert [state for state, _ in found] == [OK, NOTE]
  assert "2 of the classes have one image" in found[1][1]


def test_a_work_directory_in_a_bucket(gcs):
  place = Bucket("gs://doctor/run")
  place.write("config.json", b"{}")
  before = place.blobs()
  found = list(doctor.check_workdir(place.address))
  assert {one.state for one in found} == {OK}
  assert [one.about for one in found] == [
    "bucket",
    "objects",
    "locking",
    "checkpoint",
  ]
  assert "1 files are there" in found[0].text
  assert place.blobs() == before  # It looks and leaves nothing.


@pytest.mark.parametrize(
  ("address", "says"),
  [
    ("gs://missing/run", "there is no bucket 'missing'"),
    ("gs://forbidden/run", "the role Storage Object User"),
    ("gs://doctor", "of the form gs://BUCKET/NAME"),
    ("s3://doctor/run", "google/orbax#2739"),
  ],
)
def test_a_place_in_a_bucket_that_will_not_do(gcs, address, says):
  (finding,) = states(doctor.check_workdir(address))
  assert finding[0] == WRONG and says in finding[1]
  (finding,) = states(doctor.check_data(address))
  assert finding[0] == WRONG


def test_a_bucket_without_credentials(monkeypatch, tmp_path):
  """Of every method, for each may be the first that a command calls."""
  monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
  monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
  monkeypatch.setenv("NO_GCE_CHECK", "true")
  monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
  monkeypatch.setattr(bucket, "_client", bucket._client.__wrapped__)
  place = Bucket("gs://doctor/run")
  for ask in (
    place.blobs,
    place.list_files,
    lambda: place.read("x"),
    lambda: place.read_version("x"),
    lambda: place.write("x", b""),
    lambda: place.delete(["x"]),
    bucket.account,
  ):
    with pytest.raises(doctor.InputError, match="gcloud auth application-def"):
      ask()
  (finding,) = states(doctor.check_workdir(place.address))
  assert finding[0] == WRONG and "needs credentials" in finding[1]


def test_what_may_write_and_not_remove(gcs, monkeypatch):
  """As the role Storage Object Creator may: removing is refused."""

  def refuse(self, names):
    raise doctor.InputError("may not be used by this account")

  with monkeypatch.context() as patch:
    patch.setattr(Bucket, "delete", refuse)
    found = states(doctor.check_workdir("gs://doctor/creator"))
  assert [state for state, _ in found] == [OK, WRONG]


def test_a_bucket_without_preconditions(gcs, monkeypatch):
  write = Bucket.write
  monkeypatch.setattr(
    Bucket, "write", lambda self, name, data, **_: write(self, name, data)
  )
  found = states(doctor.check_workdir("gs://doctor/blind"))
  assert found[-1][0] == WRONG and "preconditions" in found[-1][1]
  assert not Bucket("gs://doctor/blind").blobs()


def test_a_run_in_a_bucket_that_is_locked(gcs):
  lease = Lease(Bucket("gs://doctor/held"))
  with BucketProbe("gs://doctor/held") as probe:
    assert f"process {os.getpid()} on" in probe.holder()
  lease.close()
  assert BucketProbe("gs://doctor/held").holder() is None


def test_a_data_set_in_a_bucket(gcs, dataset, monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  place = Bucket("gs://doctor/tiny")
  names = [name for name in os.listdir(dataset) if name != "lock"]
  shard = next(name for name in names if name.endswith(".array_record"))
  place.upload({n: os.path.join(dataset, n) for n in names})
  ((state, text),) = states(doctor.check_data(place.address))
  assert state == OK and "37 images of 12 classes" in text
  usage = shutil.disk_usage(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=9))
    ((state, text),) = states(doctor.check_data(place.address))
  assert state == WRONG and "--data_cache" in text
  place.write(shard, b"half")
  ((state, text),) = states(doctor.check_data(place.address))
  assert state == WRONG and "has 4 bytes instead of" in text
  place.delete(["dataset.json"])
  ((state, text),) = states(doctor.check_data(place.address))
  assert state == WRONG and "has no dataset.json" in text
