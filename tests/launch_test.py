"""The templates of launch/: rendered, and run by two processes on this machine.

What a cluster brings (gcloud, srun, ssh, the kubelet) is a short script here
that does with two local processes what the real one does with two machines.
"""

import os
import pathlib
import re
import socket
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
RECIPE = "configs/ms1m_r100.py:tiny"
# What tells a process of a slice about the others, in the notation of MPI.
WORKERS = """
run_workers() {
  export OMPI_MCA_orte_hnp_uri="$PORT_SEED.0;tcp://127.0.0.1:1"
  export OMPI_COMM_WORLD_SIZE=2
  OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_RANK=0 "$@" & first=$!
  OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=0 "$@" & second=$!
  wait $first; code=$?; wait $second || code=$?; exit $code
}
"""
STUBS = {
  "gcloud": WORKERS
  + """
echo "$@" >>"$CALLS"
for argument; do
  case $argument in
    --command=*) run_workers bash -c "${argument#--command=}" ;;
  esac
done
""",
  "ssh": """
echo "$@" >>"$CALLS"
exec bash -c "${@: -1}"
""",
  "srun": """
echo "$@" >>"$CALLS"
export SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=0 SLURM_LOCALID=0 "$@" & first=$!
SLURM_PROCID=1 SLURM_LOCALID=0 "$@" & second=$!
if [[ ${STOP_WITH_TERM:-} ]]; then
  until grep -qs train/loss "$STOP_WITH_TERM"; do sleep 0.2; done
  kill -TERM $first $second
fi
wait $first; code=$?; wait $second || code=$?; exit $code
""",
  "scontrol": 'echo "scontrol $@" >>"$CALLS"\n',
}


@pytest.fixture
def cluster(tmp_path):
  """Runs a script where the commands of a cluster are the stubs."""
  programs = tmp_path / "bin"
  programs.mkdir()
  for name, text in STUBS.items():
    path = programs / name
    path.write_text(f"#!/usr/bin/env bash\nset -u\n{text}")
    path.chmod(0o755)
  # The templates start the interpreter of a virtual environment.
  repository = tmp_path / "repository"
  (repository / ".venv" / "bin").mkdir(parents=True)
  python = repository / ".venv" / "bin" / "python"
  python.write_text(f'#!/usr/bin/env bash\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  for name in ("jamsface_jax", "configs"):
    (repository / name).symlink_to(ROOT / name)
  with socket.socket() as found:
    found.bind(("127.0.0.1", 0))
    port = found.getsockname()[1]
  environment = os.environ | {
    "PATH": f"{programs}:{os.environ['PATH']}",
    "PYTHONPATH": str(ROOT),
    "CALLS": str(tmp_path / "calls"),
    "REPOSITORY": str(repository),
    "PORT": str(port),
    # JAX makes a port of the number of a job.
    "PORT_SEED": str(port),
    "SLURM_JOB_ID": str(port),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "XLA_FLAGS": "",
    "TPU": "mypod",
    "ZONE": "us-central2-b",
    "HOSTS": "127.0.0.1 127.0.0.1",
  }

  def run(*command, **changes):
    return subprocess.run(
      [str(part) for part in command],
      cwd=repository,
      env=environment | changes,
      capture_output=True,
      text=True,
      timeout=240,
    )

  run.calls = tmp_path / "calls"
  run.environment = environment
  run.repository = repository
  return run


def assert_one_run_of_two(done, workdir):
  """Both processes trained the same run, and process 0 wrote it."""
  assert done.returncode == 0, done.stderr
  assert done.stdout.count("finished 5 steps") == 1
  assert "2 cpu, mesh" in done.stdout and "2 process(es)" in done.stdout
  assert (workdir / "checkpoints" / "5").is_dir()


@pytest.mark.slow
def test_tpu_pod(cluster, tmp_path):
  workdir = tmp_path / "w"
  done = cluster(LAUNCH / "tpu_pod.sh", RECIPE, workdir, "--config.seed=7")
  assert_one_run_of_two(done, workdir)
  call = cluster.calls.read_text()
  start = "compute tpus tpu-vm ssh mypod --zone=us-central2-b --worker=all"
  assert call.startswith(start)
  assert '"seed": 7' in (workdir / "config.json").read_text()


@pytest.mark.slow
def test_ssh(cluster, tmp_path):
  # A space that a second shell would split.
  workdir = tmp_path / "a run"
  done = cluster(LAUNCH / "ssh.sh", RECIPE, workdir)
  assert_one_run_of_two(done, workdir)
  calls = cluster.calls.read_text()
  assert calls.count("-tt 127.0.0.1") == 2
  assert "--process_id=0" in calls and "--process_id=1" in calls


def test_ssh_ends_with_the_code_of_the_process(cluster, tmp_path):
  recipe = f"{RECIPE[:-5]}:nonesuch"
  done = cluster(LAUNCH / "ssh.sh", recipe, tmp_path / "w")
  assert done.returncode == 2
  assert "nonesuch" in done.stderr


@pytest.mark.slow
def test_slurm(cluster, tmp_path):
  workdir = tmp_path / "w"
  done = cluster("bash", LAUNCH / "slurm.sbatch", RECIPE, workdir)
  assert_one_run_of_two(done, workdir)
  assert "scontrol" not in cluster.calls.read_text()


@pytest.mark.slow
def test_slurm_queues_a_preempted_job_again(cluster, tmp_path):
  workdir = tmp_path / "w"
  script = LAUNCH / "slurm.sbatch"
  long = "--config.schedule.length=100000"
  metrics = str(workdir / "metrics.jsonl")
  done = cluster("bash", script, RECIPE, workdir, long, STOP_WITH_TERM=metrics)
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
  done = cluster("bash", LAUNCH / script, RECIPE)
  assert done.returncode != 0
  assert "is the work directory" in done.stderr


@pytest.fixture
def jobset(tmp_path):
  values = {
    "NAME": "r100",
    "IMAGE": "example/jamsface:1",
    "CONFIG": RECIPE,
    "WORKDIR": str(tmp_path / "w"),
    "ACCELERATOR": "tpu-v5-lite-podslice",
    "TOPOLOGY": "4x4",
    "SLICES": "1",
    "HOSTS": "4",
    "CHIPS": "4",
    "CLAIM": "runs",
    "DATA": "",  # Noise images.
  }
  text = string.Template((LAUNCH / "jobset.yaml").read_text())
  return yaml.safe_load(text.substitute(values))


def test_jobset_names_all_that_is_to_be_filled_in():
  """Its head has a value for each, as envsubst takes them."""
  text = (LAUNCH / "jobset.yaml").read_text()
  exported = re.findall(r"^# +export (.*)", text, re.MULTILINE)
  given = set(re.findall(r"(\w+)=", " ".join(exported)))
  assert given == set(re.findall(r"\$\{(\w+)\}", text))


def test_jobset_says_what_restarts_and_what_does_not(jobset):
  assert jobset["kind"] == "JobSet"
  spec = jobset["spec"]
  (job,) = spec["replicatedJobs"]
  work = job["template"]["spec"]
  assert work["parallelism"] == work["completions"] == 4
  assert work["completionMode"] == "Indexed" and work["backoffLimit"] == 0
  (rule,) = work["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["values"] == [2]
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


@pytest.mark.slow
def test_command_of_the_jobset(cluster, jobset, tmp_path):
  (job,) = jobset["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  program, *rest = container["command"] + container["args"]
  assert program == "python"

  def worker(rank):
    of_worker = {
      "OMPI_MCA_orte_hnp_uri": cluster.environment["PORT_SEED"]
      + ".0;tcp://127.0.0.1:1",
      "OMPI_COMM_WORLD_SIZE": "2",
      "OMPI_COMM_WORLD_RANK": str(rank),
      "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    }
    return cluster(sys.executable, *rest, **of_worker)

  with ThreadPoolExecutor(2) as pool:
    first, second = pool.map(worker, range(2))
  assert second.returncode == 0, second.stderr
  assert_one_run_of_two(first, tmp_path / "w")
