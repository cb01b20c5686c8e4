"""Ctrl-C ends every command, at any time, without a word of Python's."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from jamsface_jax.commands import commands

ROOT = pathlib.Path(__file__).parent.parent
ALL = [*commands("jamsface_jax"), *commands("data_prep")]
# What has just been imported when it comes. After NumPy its C code is called
# back by others that are imported, so that they would have died of it.
MOMENTS = (r"jamsface_jax\.interruption", r"numpy\.exceptions", "numpy")


def start(*words, **options):
  return subprocess.Popen(
    [sys.executable, *words],
    stdout=subprocess.PIPE,
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
  log = tmp_path / "log"
  for moment in MOMENTS:
    with open(log, "w", encoding="utf-8") as errors:
      process = start("-X", "importtime", "-m", command, stderr=errors)
    while not re.search(rf"\| +{moment}$", log.read_text(), re.MULTILINE):
      if process.poll() is not None:
        process.communicate()
        assert process.returncode in (0, 2), log.read_text()
        return  # It asks for no more to tell what is missing.
      time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    said = [
      line
      for line in log.read_text().splitlines()
      if not line.startswith("import time:")
    ]
    assert (process.returncode, out, said) == (-signal.SIGINT, "", []), moment


_BEGIN = """
import gc, signal, sys, threading, time
from jamsface_jax import interruption
interruption.end_at_once()
from jamsface_jax.errors import run_command

def interrupt(*ignored):
  gc.callbacks.clear()
  signal.raise_signal(signal.SIGINT)
"""


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
  process = start(
    "-c",
    f"{_BEGIN}\ndef command():\n  {work}\nrun_command(command)",
    stderr=subprocess.PIPE,
  )
  out, said = process.communicate(timeout=60)
  assert (process.returncode, out, said) == (130, "", "")


def test_while_it_imports_more():
  """`export` has begun when it imports ONNX, whose C++ died of it."""
  process = start(
    "-c",
    f"{_BEGIN}\ndef command():\n"
    "  with interruption.postponed():\n"
    "    interrupt(); print('whole', flush=True)\n"
    "  time.sleep(60)\n"
    "run_command(command)",
    stderr=subprocess.PIPE,
  )
  out, said = process.communicate(timeout=60)
  assert (process.returncode, out, said) == (130, "whole\n", "")


def test_what_else_is_dropped_is_said():
  process = start(
    "-c",
    f"{_BEGIN}\ndef command():\n"
    "  x = type('X', (), {'__del__': lambda self: 1 / 0})(); del x\n"
    "run_command(command)",
    stderr=subprocess.PIPE,
  )
  _, said = process.communicate(timeout=60)
  assert process.returncode == 0
  assert "ZeroDivisionError" in said


def test_while_threads_end():
  process = start(
    "-c",
    f"{_BEGIN}\ndef command():\n"
    "  threading.Thread(target=time.sleep, args=(60,)).start()\n"
    "  print('done', flush=True)\n"
    "run_command(command)",
    stderr=subprocess.PIPE,
  )
  assert process.stdout.readline() == "done\n"
  time.sleep(1)
  os.killpg(process.pid, signal.SIGINT)
  out, said = process.communicate(timeout=30)
  assert (process.returncode, out, said) == (-signal.SIGINT, "", "")


def test_where_it_is_ignored():
  """As in the background of a shell."""
  code = (
    "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)"
    f"{_BEGIN}\nrun_command(lambda: signal.raise_signal(signal.SIGINT))"
  )
  process = start("-c", code, stderr=subprocess.PIPE)
  out, said = process.communicate(timeout=60)
  assert (process.returncode, out, said) == (0, "", "")
