"""What tells a process of the others: variables, a metadata server, nothing."""

import time

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster
from stand_ins.metadata_server import slice_of

from jamsface_jax.devices import clusters, ending, notices, processes
from jamsface_jax.errors import InputError, RunError

# As srun(1) says; JAX finds its tasks by these.
TASK = {
  "SLURM_JOB_ID": "7",
  "SLURM_STEP_NODELIST": "n[1-2]",
  "SLURM_NTASKS": "8",
  "SLURM_STEP_NUM_TASKS": "8",
  "SLURM_PROCID": "3",
  "SLURM_LOCALID": "1",
}
# Of mpirun of Open MPI 4; version 5 sets the last three alone.
RANK = {
  "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1:34911",
  "OMPI_COMM_WORLD_SIZE": "2",
  "OMPI_COMM_WORLD_RANK": "1",
  "OMPI_COMM_WORLD_LOCAL_RANK": "1",
}


@pytest.fixture
def no_cluster(monkeypatch):
  """Whatever the machine of the tests is in."""
  for name in (*TASK, *RANK, "JOB_COMPLETION_INDEX", "GCE_METADATA_IP"):
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tpu(no_cluster, monkeypatch):
  """The PCI bus of a TPU machine, see stand_ins/tpu_hardware."""
  monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
  monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)


def set_all(monkeypatch, environment):
  for name, value in environment.items():
    monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
  ("environment", "expected"),
  [
    ({}, ""),
    ({"SLURM_NTASKS": "1"}, ""),
    ({"SLURM_NTASKS": "8"}, ""),  # The script of a job, not a task.
    ({"SLURM_NTASKS": "8", "SLURM_STEP_NODELIST": "n[1-2]"}, "SLURM_NTASKS=8"),
    (TASK, "SLURM_STEP_NUM_TASKS=8"),
    (TASK | {"SLURM_STEP_NUM_TASKS": "1"}, ""),  # `salloc`'s own shell.
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
    ({"PMI_SIZE": "2"}, "PMI_SIZE=2"),
    ({"WORLD_SIZE": "8"}, "WORLD_SIZE=8"),
    ({"JOB_COMPLETION_INDEX": "0"}, ""),
    ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETION_INDEX=3"),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, ""),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES"),
    ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "TPU_PROCESS_ADDRESSES"),
    ({"MEGASCALE_NUM_SLICES": "2"}, "MEGASCALE_NUM_SLICES"),
    ({"MEGASCALE_NUM_SLICES": "1"}, ""),
  ],
)
def test_what_says_that_there_are_several(environment, expected):
  assert clusters.belongs_together(environment) == expected


@pytest.mark.parametrize("hosts", [1, 2, 16])
def test_workers_of_a_tpu_slice_are_in_the_metadata_server(
  tpu, monkeypatch, hosts
):
  names = [f"10.0.0.{k}" for k in range(1, hosts + 1)]
  with slice_of(names) as servers:
    monkeypatch.setenv("GCE_METADATA_IP", servers[-1].address)
    assert clusters.find() == clusters.Cluster("gcetpu", hosts)
    place = clusters.find_place(hosts)
  assert place == clusters.Place("10.0.0.1:8482", hosts - 1, None)


def test_what_is_no_tpu_asks_no_metadata_server(no_cluster, monkeypatch):
  with slice_of(["10.0.0.1", "10.0.0.2"]) as servers:
    monkeypatch.setenv("GCE_METADATA_IP", servers[0].address)
    begin = time.monotonic()
    assert clusters.find() is None
    assert time.monotonic() - begin < 0.1
    assert not servers[0].requests


def test_a_tpu_without_a_metadata_server_trains_alone(tpu, monkeypatch, capsys):
  monkeypatch.setenv("GCE_METADATA_IP", "127.0.0.1:1")  # Nobody listens.
  processes.initialize(
    "auto", coordinator=None, num_processes=None, process_id=None
  )
  assert not jax.distributed.is_initialized()
  assert "one process alone" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("environment", "name", "place"),
  [
    (TASK, "slurm", ("n1:61447", 3)),
    (RANK, "ompi", ("10.96.0.1:62624", 1)),
  ],
)
def test_tasks_of_launchers_that_jax_knows(
  no_cluster, monkeypatch, environment, name, place
):
  set_all(monkeypatch, environment)
  cluster = clusters.find()
  assert cluster is not None and cluster.name == name
  assert cluster.processes == (8 if name == "slurm" else 2)
  assert clusters.find_place(cluster.processes)[:2] == place


def test_the_shell_of_an_allocation_is_one_process(no_cluster, monkeypatch):
  set_all(monkeypatch, TASK | {"SLURM_STEP_NUM_TASKS": "1"})
  assert clusters.find() == clusters.Cluster("slurm", 1)


@pytest.mark.parametrize(
  ("environment", "part"),
  [
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "OMPI_COMM_WORLD_SIZE=2"),
    ({"PMI_SIZE": "4", "PMI_RANK": "0"}, "PMI_SIZE=4"),
    ({"WORLD_SIZE": "8", "RANK": "1"}, "WORLD_SIZE=8"),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, "TPU_WORKER_HOSTNAMES"),
    (
      {"JOB_COMPLETION_INDEX": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"},
      "jax[k8s]",
    ),
  ],
)
@pytest.mark.parametrize("mode", ["auto", "on"])
def test_several_that_jax_cannot_tell_apart_are_refused(
  no_cluster, monkeypatch, environment, part, mode
):
  set_all(monkeypatch, environment)
  with pytest.raises(InputError, match="several processes belong") as error:
    processes.initialize(
      mode, coordinator=None, num_processes=None, process_id=None
    )
  assert part in str(error.value)


def test_nothing_to_join_is_refused_if_it_must_be(no_cluster):
  with pytest.raises(InputError, match="nothing says which processes"):
    processes.initialize(
      "on", coordinator=None, num_processes=None, process_id=None
    )


def test_processes_that_have_not_joined_are_refused(monkeypatch):
  """libtpu tells JAX of the other hosts, joined or not."""
  monkeypatch.setattr(jax, "process_count", lambda: 2)
  with (
    notices.listening() as heard,
    pytest.raises(InputError, match="process 0 of 2, .*--distributed=on"),
    ending.ending_together(heard),
  ):
    pass


def test_who_does_not_come_in_time_is_no_bad_input():
  """A launcher may start it again."""
  late = RuntimeError("DEADLINE_EXCEEDED: Barrier timed out.")
  assert isinstance(processes._not_together(late), RunError)
  assert isinstance(processes._not_together(ValueError("port")), InputError)


@pytest.mark.parametrize(
  ("coordinator", "own"),
  [
    ("127.0.0.3:81", "127.0.0.3"),
    ("192.0.2.1:81", ""),  # Of documentation: nobody's.
    ("node1:81", ""),
    ("localhost:81", "localhost"),
  ],
)
def test_process_0_listens_at_its_own_address(coordinator, own):
  assert clusters.own_address(coordinator) == own
  bound = processes._bind_address(coordinator)
  assert bound == (coordinator if own else None)
