"""The doctor finds what is wrong, and says what to do."""

import importlib.metadata
import os
import shutil

import jax
import numpy as np
import pytest

from jamsface_jax import doctor
from jamsface_jax.doctor import NOTE, OK, WRONG


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
