"""How much memory there is, in control groups as cgroups(7) lays them out."""

import os

import pytest

from jamsface_jax.devices import capacity

GIB = 2**30


def write(folder, **files):
  folder.mkdir(parents=True, exist_ok=True)
  for name, text in files.items():
    (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
  ("line", "files", "limits"),
  [
    ("0::/\n", {"": {"memory__max": f"{GIB}\n"}}, [GIB]),
    ("0::/\n", {"": {"memory__max": "max\n"}}, []),
    (
      "0::/slurm/job_1/step_0\n",
      {
        "slurm": {"memory__max": "max\n"},
        "slurm/job_1": {"memory__max": f"{4 * GIB}\n"},
        "slurm/job_1/step_0": {"memory__max": f"{2 * GIB}\n"},
      },
      [4 * GIB, 2 * GIB],
    ),
    # In a container of Docker with version 1 the path is that of the host.
    (
      "12:cpu,cpuacct:/docker/abc\n9:memory:/docker/abc\n",
      {"memory": {"memory__limit_in_bytes": f"{3 * GIB}\n"}},
      [3 * GIB],
    ),
  ],
  ids=["container", "no limit", "slurm", "version 1"],
)
def test_limits(line, files, limits, tmp_path):
  (tmp_path / "cgroup").write_text(line)
  for folder, named in files.items():
    write(tmp_path / "mounted" / folder, **named)
  found = capacity.cgroup_limits(tmp_path / "cgroup", tmp_path / "mounted")
  assert found == limits


def test_where_there_are_no_control_groups(tmp_path):
  assert capacity.cgroup_limits(tmp_path / "none", tmp_path) == []


def test_of_this_machine(monkeypatch):
  whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
  assert 2**20 < capacity.device_memory() <= whole
  monkeypatch.setattr(capacity, "cgroup_limits", lambda *_: [8 * GIB, 2**27])
  assert capacity.device_memory() <= 2**27
