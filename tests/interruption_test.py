"""Ctrl-C ends every command, at any time, without a word of Python's."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from jamsface_jax.commands import commands

ROOT = pathlib.Path(__file__).parent.parent
ALL = [*commands("jamsface_jax"), *commands("data_prep")]
# What is about to be imported when it comes. The first is the first after
# Ctrl-C is seen to; before, Python alone starts. NumPy calls back what it
# imports from C, which would have died of it.
MOMENTS = ("jamsface_jax.shell", "numpy.exceptions", "numpy.linalg")
_INTERRUPTING = """
import os, signal, sys

class Interrupting:
  def find_spec(self, name, path=None, target=None):
    if name == os.environ["MOMENT"]:
      open(os.environ["REACHED"], "x").close()
      signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
"""


def start(*words, **options):
  return subprocess.Popen(
    [sys.executable, *words],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    start_new_session=True,
    **options,
  )


@pytest.mark.parametrize(
  "command",
  [
    pytest.param(
      name, marks=() if name.endswith(("embed", "align")) else pytest.mark.slow
    )
    for name in ALL
  ],
)
def test_while_it_is_imported(command, tmp_path):
  # Python imports a module of this name when it starts.
  (tmp_path / "sitecustomize.py").write_text(_INTERRUPTING)
  paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
  for moment in MOMENTS:
    reached = tmp_path / moment
    environment = {
      "PYTHONPATH": os.pathsep.join(filter(None, paths)),
      "MOMENT": moment,
      "REACHED": str(reached),
    }
    process = start("-m", command, env=os.environ | environment)
    out, said = process.communicate(timeout=60)
    if reached.exists():
      assert (process.returncode, out, said) == (-signal.SIGINT, "", ""), moment
    else:  # It asks for no more to tell what is missing.
      assert process.returncode in (0, 2), said
  assert (tmp_path / MOMENTS[0]).exists()


_BEGIN = """
import gc, signal, sys, threading, time
from jamsface_jax import interruption
interruption.end_at_once()
from jamsface_jax.errors import run_command

def interrupt(*ignored):
  gc.callbacks.clear()
  signal.raise_signal(signal.SIGINT)
"""


def run(command, before=""):
  """How Python ends, and what it says, that runs the lines of a command."""
  lines = "".join(f"  {line}\n" for line in command.splitlines())
  process = start(
    "-c", f"{before}{_BEGIN}\ndef command():\n{lines}run_command(command)"
  )
  out, said = process.communicate(timeout=60)
  return process.returncode, out, said


@pytest.mark.parametrize(
  "work",
  [
    "interrupt(); time.sleep(60)",
    # Python drops it there.
    "gc.callbacks.append(interrupt); gc.collect(); time.sleep(60)",
    "x = type('X', (), {'__del__': interrupt})(); del x; time.sleep(60)",
  ],
)
def test_while_it_works(work):
  assert run(work) == (130, "", "")


def test_while_it_imports_more():
  """`export` has begun when it imports ONNX, whose C++ died of it."""
  ended = run(
    "with interruption.postponed():\n"
    "  interrupt(); print('whole', flush=True)\n"
    "time.sleep(60)"
  )
  assert ended == (130, "whole\n", "")


def test_what_else_is_dropped_is_said():
  code, _, said = run(
    "x = type('X', (), {'__del__': lambda self: 1 / 0})(); del x"
  )
  assert code == 0
  assert "ZeroDivisionError" in said


def test_while_threads_end():
  process = start(
    "-c",
    f"{_BEGIN}\ndef work():\n"
    "  while threading.main_thread().is_alive(): time.sleep(0.01)\n"
    "  print('done', flush=True)\n"
    "  time.sleep(60)\n"
    "run_command(lambda: threading.Thread(target=work).start())",
  )
  assert process.stdout.readline() == "done\n"
  os.killpg(process.pid, signal.SIGINT)
  out, said = process.communicate(timeout=30)
  assert (process.returncode, out, said) == (-signal.SIGINT, "", "")


def test_where_it_is_ignored():
  """As in the background of a shell."""
  ignore = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
  assert run("signal.raise_signal(signal.SIGINT)", ignore) == (0, "", "")
