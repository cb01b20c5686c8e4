"""One run at a time in a work directory."""

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import assert_one_sentence

from jamsface_jax.errors import InputError
from jamsface_jax.storage import lock
from jamsface_jax.storage.run_directory import RunDirectory

HOLDER = """
import sys
from jamsface_jax.storage.run_directory import RunDirectory
with RunDirectory(sys.argv[1]).held():
  print("held", flush=True)
  sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
  """Another process that holds the directory."""
  process = subprocess.Popen(
    [sys.executable, "-c", HOLDER, str(tmp_path)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == "held\n"
  yield process
  process.kill()
  process.communicate()


def test_second_process_is_refused(holder, tmp_path):
  with pytest.raises(InputError) as error, RunDirectory(str(tmp_path)).held():
    pass
  assert f"process {holder.pid} on host {socket.gethostname()}" in str(
    error.value
  )


def test_second_run_is_refused(holder, tmp_path, run):
  done = run(
    "jamsface_jax.main",
    "--config=configs/demo.py:tiny",
    f"--workdir={tmp_path}",
  )
  assert_one_sentence(done, f"in use by process {holder.pid}")
  assert os.listdir(tmp_path) == ["lock"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_lock_of_a_dead_process_does_not_block(holder, tmp_path, how):
  holder.send_signal(how)
  holder.wait()
  text = (tmp_path / "lock").read_text()
  assert f"process {holder.pid} " in text  # It is stale.
  with RunDirectory(str(tmp_path)).held():
    text = (tmp_path / "lock").read_text()
    assert text.startswith(f"process {os.getpid()} ")


def test_lock_is_released(tmp_path):
  for _ in range(2):
    with RunDirectory(str(tmp_path / "new")).held():
      pass


def test_file_system_without_locks_is_said(tmp_path, monkeypatch, capsys):
  def no_locks(*_):
    raise OSError(95, "Operation not supported")

  monkeypatch.setattr(lock.fcntl, "flock", no_locks)
  with RunDirectory(str(tmp_path)).held():
    assert "has no locks" in capsys.readouterr().err


def test_directory_that_cannot_be_written_to(tmp_path):
  (tmp_path / "file").write_text("")
  with (
    pytest.raises(InputError, match="file/w' cannot be written to"),
    RunDirectory(str(tmp_path / "file" / "w")).held(),
  ):
    pass
