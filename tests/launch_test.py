"""The templates of launch/: rendered, and run by two processes here.

What a cluster brings (gcloud, srun, ssh, the metadata server) is in
tests/stand_ins/, each with who vouches for it.
"""

import json
import os
import pathlib
import re
import signal
import socket
import string
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api.models.jobset_v1alpha2_job_set import (
  JobsetV1alpha2JobSet,
)
from stand_ins.metadata_server import nodes_of_gke, slice_of
from tiny_runs import read_lines, without_speed

from jamsface_jax.errors import EXIT_BAD_INPUT, EXIT_NOT_FINITE

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
STAND_INS = pathlib.Path(__file__).parent / "stand_ins"
RECIPE = "configs/demo.py:tiny"
# A run that is long enough to be stopped in the middle.
LENGTH = 120  # Steps: one of two processes on a machine takes 0.1 s.
LONG = (f"--config.schedule.length={LENGTH}", "--config.checkpoint.every=20")
LONG += ("--config.log_every=1",)
TIMEOUT = 5  # Of --process_timeout.
BOUND = 2 * TIMEOUT + 15  # The last are for a busy machine.


class Cluster:
  """Runs scripts where the commands of a cluster are the stand-ins.

  Args:
    folder: an empty folder.

  Attributes:
    calls: file of the calls of stand-ins.
    environment: variables of all scripts.
    repository: where the code lies on all machines.
  """

  def __init__(self, folder):
    # The templates start the interpreter of a virtual environment.
    self.repository = folder / "repository"
    (self.repository / ".venv" / "bin").mkdir(parents=True)
    python = self.repository / ".venv" / "bin" / "python"
    python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for name in ("jamsface_jax", "configs"):
      (self.repository / name).symlink_to(ROOT / name)
    self.calls = folder / "calls"
    # Each test meets at an address of its own: JAX has one port for all.
    here = os.getpid()
    self.hosts = [f"127.{here >> 8 & 255}.{here & 255}.{k}" for k in (1, 2)]
    with socket.socket() as found:
      found.bind(("127.0.0.1", 0))
      port = found.getsockname()[1]
    self.environment = os.environ | {
      "PATH": f"{STAND_INS / 'bin'}:{os.environ['PATH']}",
      "PYTHONPATH": str(ROOT),
      "CALLS": str(self.calls),
      "REPOSITORY": str(self.repository),
      "PORT": str(port),
      "SLURM_JOB_ID": str(port),  # JAX makes a port of it.
      "JAX_PLATFORMS": "cpu",
      "JAX_NUM_CPU_DEVICES": "1",
      "TPU": "mypod",
      "ZONE": "us-central2-b",
      "HOSTS": "127.0.0.1 127.0.0.1",
    }

  def start(self, *command, **changes):
    """Starts a script as a terminal does: in a group of its own."""
    return subprocess.Popen(
      [str(part) for part in command],
      cwd=self.repository,
      env=self.environment | changes,
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      process_group=0,
    )

  def run(self, *command, **changes):
    """Runs a script to its end; returns its exit code and what it said."""
    return finish(self.start(*command, **changes), 300)


def finish(script, limit):
  """Exit code and output of a script that ends within so many seconds."""
  try:
    out, error = script.communicate(timeout=limit)
  except subprocess.TimeoutExpired:
    os.killpg(script.pid, signal.SIGKILL)
    raise
  return subprocess.CompletedProcess(
    script.args, script.returncode, out.replace("\r\n", "\n"), error
  )


@pytest.fixture
def cluster(tmp_path):
  return Cluster(tmp_path)


@pytest.fixture
def tpu_cluster(tmp_path):
  """Its machines have TPUs, as far as JAX can tell."""
  cluster = Cluster(tmp_path)
  cluster.environment["PYTHONPATH"] = f"{STAND_INS / 'tpu_hardware'}:{ROOT}"
  return cluster


def wait_for_lines(workdir, count, script):
  """Waits until a run has written so many lines of metrics."""
  path = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 300
  while not path.exists() or path.read_text().count("\n") < count:
    assert script.poll() is None, finish(script, 10)
    assert time.monotonic() < deadline
    time.sleep(0.05)


def processes_of(workdir):
  """Process numbers of the run in a work directory, by the flag they have."""
  found = []
  for folder in pathlib.Path("/proc").glob("[0-9]*"):
    try:
      words = (folder / "cmdline").read_bytes().split(b"\0")
    except OSError:
      continue
    if (
      b"jamsface_jax.main" in words and f"--workdir={workdir}".encode() in words
    ):
      found.append(int(folder.name))
  return found


def holder(workdir):
  """Process number of process 0, which has the lock."""
  return int(re.search(r"process (\d+)", (workdir / "lock").read_text())[1])


def newest_checkpoint(workdir):
  """Its step; 0 where none is finished, which is so while one is written."""
  names = os.listdir(workdir / "checkpoints")
  return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_checkpoint(workdir, script):
  """Waits until a run has one: it goes on while one is written."""
  while not newest_checkpoint(workdir):
    assert script.poll() is None, finish(script, 10)
    time.sleep(0.05)


def assert_one_run_of_two(done, workdir):
  """Both processes trained the same run, and process 0 wrote it."""
  assert done.returncode == 0, done
  assert done.stdout.count("finished 5 steps") == 1
  assert "2 cpu, mesh" in done.stdout and "2 process(es)" in done.stdout
  assert (workdir / "checkpoints" / "5").is_dir()


@pytest.mark.slow
def test_tpu_pod(tpu_cluster, tmp_path):
  """One process killed, then Ctrl-C, then to the end: by one command.

  Nothing but the address of a metadata server tells the processes of each
  other.
  """
  workdir = tmp_path / "w"
  command = [LAUNCH / "tpu_pod.sh", RECIPE, workdir, *LONG]
  command += ["--config.seed=7", f"--process_timeout={TIMEOUT}"]
  with slice_of(tpu_cluster.hosts) as servers:
    workers = " ".join(server.address for server in servers)
    script = tpu_cluster.start(*command, WORKERS=workers)
    wait_for_lines(workdir, 25, script)
    wait_for_checkpoint(workdir, script)
    first, second = processes_of(workdir)
    victim = second if holder(workdir) == first else first
    os.kill(victim, signal.SIGKILL)
    done = finish(script, BOUND)
    assert done.returncode == 1, done
    assert f"process 1 of 2 (pid {victim} on" in done.stdout
    assert "counts as dead: start all again" in done.stdout
    assert not processes_of(workdir)

    reached = newest_checkpoint(workdir)
    script = tpu_cluster.start(*command, WORKERS=workers)
    wait_for_lines(workdir, reached + 30, script)
    os.killpg(script.pid, signal.SIGINT)
    done = finish(script, 60)
    assert done.returncode == 130, done
    assert "run the same command again" in done.stdout
    assert not processes_of(workdir)
    stopped = newest_checkpoint(workdir)
    assert stopped == without_speed(read_lines(workdir))[-1]["step"]

    done = tpu_cluster.run(*command, WORKERS=workers)
  assert done.returncode == 0, done
  assert "2 cpu, mesh" in done.stdout and "2 process(es)" in done.stdout
  assert done.stdout.count(f"finished {LENGTH} steps") == 1
  assert f"{stopped} done of {LENGTH}" in done.stdout
  call = tpu_cluster.calls.read_text()
  start = "compute tpus tpu-vm ssh mypod --zone=us-central2-b --worker=all"
  assert call.startswith(start)
  assert '"seed": 7' in (workdir / "config.json").read_text()


@pytest.mark.slow
def test_ssh(cluster, tmp_path):
  """The connections are lost, then the same command goes on to the end."""
  workdir = tmp_path / "a run"  # A space that a second shell would split.
  command = [LAUNCH / "ssh.sh", RECIPE, workdir, *LONG]
  script = cluster.start(*command)
  wait_for_lines(workdir, 5, script)
  os.killpg(script.pid, signal.SIGKILL)
  for client in ssh_clients(workdir):
    os.kill(client, signal.SIGKILL)
  script.communicate()
  deadline = time.monotonic() + 60
  while processes_of(workdir):
    assert time.monotonic() < deadline
    time.sleep(0.1)
  stopped = newest_checkpoint(workdir)
  assert stopped == without_speed(read_lines(workdir))[-1]["step"]
  done = cluster.run(*command)
  assert done.returncode == 0, done
  assert f"{stopped} done of {LENGTH}" in done.stdout
  calls = cluster.calls.read_text()
  assert calls.count("-tt 127.0.0.1") == 4
  assert "--process_id=0" in calls and "--process_id=1" in calls


def ssh_clients(workdir):
  """Process numbers of the stand-ins for ssh that run this."""
  program = str(STAND_INS / "bin" / "ssh").encode()
  return [
    int(folder.name)
    for folder in pathlib.Path("/proc").glob("[0-9]*")
    if program in (words := (folder / "cmdline").read_bytes().split(b"\0"))
    and any(str(workdir).replace(" ", "\\ ").encode() in word for word in words)
  ]


def test_ssh_ends_with_the_code_of_the_process(cluster, tmp_path):
  recipe = f"{RECIPE[:-5]}:nonesuch"
  done = cluster.run(LAUNCH / "ssh.sh", recipe, tmp_path / "w")
  assert done.returncode == 2
  assert "nonesuch" in done.stdout


@pytest.mark.slow
def test_slurm(cluster, tmp_path):
  workdir = tmp_path / "w"
  done = cluster.run("bash", LAUNCH / "slurm.sbatch", RECIPE, workdir)
  assert_one_run_of_two(done, workdir)
  assert "scontrol" not in cluster.calls.read_text()


@pytest.mark.slow
def test_slurm_queues_a_preempted_job_again(cluster, tmp_path):
  workdir = tmp_path / "w"
  script = LAUNCH / "slurm.sbatch"
  long = "--config.schedule.length=100000"
  metrics = str(workdir / "metrics.jsonl")
  done = cluster.run(
    "bash", script, RECIPE, workdir, long, STOP_WITH_TERM=metrics
  )
  assert done.returncode == 75, done.stderr
  job = cluster.environment["SLURM_JOB_ID"]
  assert f"scontrol requeue {job}" in cluster.calls.read_text()
  assert any((workdir / "checkpoints").iterdir())


def test_slurm_asks_for_what_the_run_needs():
  text = (LAUNCH / "slurm.sbatch").read_text()
  asked = [line for line in text.splitlines() if line.startswith("#SBATCH")]
  options = dict(line.split("--")[1].partition("=")[::2] for line in asked)
  assert options["signal"].startswith("TERM@")
  assert "requeue" in options
  # JAX gives each task of a node one of the GPUs that it sees.
  assert options["ntasks-per-node"] == options["gpus-per-node"]


@pytest.mark.parametrize("script", ["tpu_pod.sh", "ssh.sh", "slurm.sbatch"])
def test_what_is_missing_is_named(cluster, script):
  done = cluster.run("bash", LAUNCH / script, RECIPE)
  assert done.returncode != 0
  assert "is the work directory" in done.stderr


JOBSET = {
  "NAME": "r100",
  "IMAGE": "example/jamsface:1",
  "CONFIG": RECIPE,
  "WORKDIR": "gs://bucket/r100",
  "DATA": "/runs/data/ms1m_v3",
  "ACCOUNT": "trainer",
  "ACCELERATOR": "tpu-v5-lite-podslice",
  "TOPOLOGY": "4x4",
  "SLICES": "1",
  "HOSTS": "4",
  "CHIPS": "4",
  "VOLUME": "persistentVolumeClaim: {claimName: runs}",
  "FLAGS": '--config.seed=7, "--config.augmentation.x=1,2"',
}


def render(**changes):
  text = string.Template((LAUNCH / "jobset.yaml").read_text())
  return yaml.safe_load(text.substitute(JOBSET | changes))


def container_of(jobset):
  (job,) = jobset["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  return container


def test_jobset_names_all_that_is_to_be_filled_in():
  """Its head has a value for each, as envsubst takes them."""
  text = (LAUNCH / "jobset.yaml").read_text()
  exported = re.findall(r"^# +export (.*)", text, re.MULTILINE)
  given = set(re.findall(r"(\w+)=", re.sub("'.*?'", "", " ".join(exported))))
  assert given == set(re.findall(r"\$\{(\w+)\}", text)) == set(JOBSET)


@pytest.mark.parametrize(
  "changes", [{}, {"FLAGS": "", "VOLUME": "emptyDir: {}"}]
)
def test_jobset_is_what_the_api_takes(changes):
  """By the models made of JobSet's API, and the schemas of Kubernetes."""
  jobset = render(**changes)
  # What the API does not know would be missing in what comes back.
  known = JobsetV1alpha2JobSet.from_json(json.dumps(jobset)).to_dict()
  assert known["spec"]["failurePolicy"] == jobset["spec"]["failurePolicy"]
  assert known.keys() == jobset.keys()
  (job,) = jobset["spec"]["replicatedJobs"]
  (known_job,) = known["spec"]["replicatedJobs"]
  assert {k: v for k, v in known_job.items() if k != "template"} == {
    k: v for k, v in job.items() if k != "template"
  }
  whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
  kubernetes_validate.validate(whole | job["template"], "1.32", strict=True)
  for rule in jobset["spec"]["failurePolicy"]["rules"]:
    # As the field is documented; another name is refused.
    assert re.fullmatch("[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


def test_schemas_notice_what_is_wrong():
  jobset = render()
  (job,) = jobset["spec"]["replicatedJobs"]
  whole = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
  job["template"]["spec"]["completionsMode"] = "Indexed"
  with pytest.raises(kubernetes_validate.ValidationError):
    kubernetes_validate.validate(whole | job["template"], "1.32", strict=True)
  jobset["spec"]["failurePolicy"]["maxRestarts"] = "many"
  with pytest.raises(ValueError, match="maxRestarts"):
    JobsetV1alpha2JobSet.from_json(json.dumps(jobset))


def test_jobset_says_what_restarts_and_what_does_not():
  jobset = render()
  spec = jobset["spec"]
  (job,) = spec["replicatedJobs"]
  work = job["template"]["spec"]
  assert work["parallelism"] == work["completions"] == 4
  assert work["completionMode"] == "Indexed" and work["backoffLimit"] == 0
  (rule,) = work["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"]["values"] == [EXIT_BAD_INPUT, EXIT_NOT_FINITE]
  (of_set,) = spec["failurePolicy"]["rules"]
  assert of_set["action"] == "FailJobSet"
  assert of_set["onJobFailureReasons"] == ["PodFailurePolicy"]
  pod = work["template"]["spec"]
  (container,) = pod["containers"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert pod["restartPolicy"] == "Never"  # What a podFailurePolicy needs.
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  (mount,) = container["volumeMounts"]
  assert mount["name"] == pod["volumes"][0]["name"]
  last = container["args"][-2:]
  assert last == ["--config.seed=7", "--config.augmentation.x=1,2"]


@pytest.mark.slow
def test_command_of_the_jobset(tpu_cluster, tmp_path):
  """With what GKE gives to the pods of a slice, and nothing else.

  https://cloud.google.com/kubernetes-engine/docs/how-to/tpus: TPU_WORKER_ID and
  TPU_WORKER_HOSTNAMES.
  """
  workdir = str(tmp_path / "w")
  container = container_of(render(WORKDIR=workdir, DATA="", FLAGS=""))
  program, *rest = container["command"] + container["args"]
  assert program == "python"

  def worker(rank, server):
    return tpu_cluster.run(
      sys.executable,
      *rest,
      TPU_WORKER_ID=str(rank),
      TPU_WORKER_HOSTNAMES=",".join(tpu_cluster.hosts),
      GCE_METADATA_IP=server.address,
      MEGASCALE_COORDINATOR_ADDRESS="",
      MEGASCALE_NUM_SLICES="1",
      MEGASCALE_SLICE_ID="0",
    )

  with nodes_of_gke(2) as servers, ThreadPoolExecutor(2) as pool:
    first, second = pool.map(worker, range(2), servers)
  assert second.returncode == 0, second.stderr
  assert_one_run_of_two(first, tmp_path / "w")


def test_scripts_are_sound():
  """To bash, which would say so only as it comes there."""
  for script in [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]:
    subprocess.run(["bash", "-n", script], check=True)
