"""Runs commands, each in a fork of one process that imported what they import.

A command imports for seconds what it then needs for a fraction of one. Here a
process imports once and forks for every command, whose arguments, environment,
working directory, output and exit code are its own, as in a process that a
shell starts. JAX's devices are found in the fork, since they do not survive
one. That commands start by themselves is shown where processes are the point.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import pathlib
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings

# What takes long to import, and starts neither JAX's devices nor threads.
SHARED = (
  "jamsface_jax.training.train",
  "jamsface_jax.embedding.embedder",
  "jamsface_jax.evaluation.evaluator",
  "jamsface_jax.pods.step_cost",
  "jamsface_jax.weights.exporting",
  "data_prep.writing.conversion",
  "matplotlib.pyplot",
  "onnx",
)


class CommandRunner:
  """The process that imports and forks, started when it is first needed."""

  def __init__(self):
    self._process = None

  def run(self, words, *, folder, environment, timeout=600, parse_only=False):
    """Runs a command to its end.

    Args:
      words: what follows `python` on a command line.
      folder: where it runs.
      environment: all of its variables.
      timeout: seconds, after which it is ended and the test fails.
      parse_only: whether it ends, with 0, when its flags are read.

    Returns:
      A `subprocess.CompletedProcess` with text.
    """
    if self._process is None:
      self._process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
      )
    with tempfile.TemporaryDirectory() as outputs:
      job = {
        "words": [str(word) for word in words],
        "folder": str(folder),
        "environment": dict(environment),
        "outputs": outputs,
        "parse_only": parse_only,
      }
      self._process.stdin.write(json.dumps(job).encode() + b"\n")
      self._process.stdin.flush()
      ready, _, _ = select.select([self._process.stdout], [], [], timeout)
      if not ready:
        self.close()
        raise subprocess.TimeoutExpired(words, timeout)
      code = int(self._process.stdout.readline())
      out, err = (
        pathlib.Path(outputs, name).read_text(encoding="utf-8")
        for name in ("out", "err")
      )
    return subprocess.CompletedProcess(words, code, out, err)

  def close(self):
    """Ends the process and what it started."""
    if self._process is not None:
      with self._process, contextlib.suppress(ProcessLookupError):
        os.killpg(self._process.pid, signal.SIGKILL)
      self._process = None


def main():
  for name in SHARED:
    importlib.import_module(name)
  # No fork looks for garbage in what it shares, and copies none of it.
  gc.collect()
  gc.freeze()
  for line in sys.stdin.buffer:
    job = json.loads(line)
    # Python and JAX warn of threads: there are none yet.
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      child = os.fork()
    if not child:
      redirect(job["outputs"])
      os._exit(run_here(job))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(code, flush=True)


def redirect(outputs):
  """Gives this process the streams of a command."""
  for name, mode, descriptor in (
    (os.devnull, os.O_RDONLY, 0),
    (os.path.join(outputs, "out"), os.O_CREAT | os.O_WRONLY, 1),
    (os.path.join(outputs, "err"), os.O_CREAT | os.O_WRONLY, 2),
  ):
    file = os.open(name, mode)
    os.dup2(file, descriptor)
    os.close(file)


def set_environment(environment):
  """Also tells JAX, which read its variables when it was imported."""
  import jax

  os.environ.clear()
  os.environ.update(environment)
  if "JAX_PLATFORMS" in environment:
    jax.config.update("jax_platforms", environment["JAX_PLATFORMS"])
  if "JAX_NUM_CPU_DEVICES" in environment:
    count = int(environment["JAX_NUM_CPU_DEVICES"])
    jax.config.update("jax_num_cpu_devices", count)


def run_here(job):
  """Runs a command in this process; returns its exit code."""
  words, folder, code = job["words"], job["folder"], 1
  try:
    os.chdir(folder)
    set_environment(job["environment"])
    sys.orig_argv = [sys.executable, *words]
    if job["parse_only"]:
      end_after_parsing()
    if words[0] == "-c":
      namespace = {"__name__": "__main__"}
      exec(words[1], namespace)
    elif words[0] == "-m":
      sys.argv = words[1:]
      sys.path[0] = folder
      runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
      sys.argv = words
      sys.path[0] = str(pathlib.Path(words[0]).parent)
      runpy.run_path(words[0], run_name="__main__")
    code = int(job["parse_only"])  # It would have ended before.
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    traceback.print_exc()
  sys.stdout.flush()
  sys.stderr.flush()
  return code


def end_after_parsing():
  from jamsface_jax.settings import recipe_flags

  def ending(parse):
    def parse_and_end(*args, **kwargs):
      parse(*args, **kwargs)
      sys.exit(0)

    return parse_and_end

  parser = argparse.ArgumentParser
  parse_known_args = parser.parse_known_args

  def parse_args(self, *args, **kwargs):
    _, unknown = parse_known_args(self, *args, **kwargs)
    if unknown:
      self.error(f"unrecognized arguments: {' '.join(unknown)}")
    sys.exit(0)

  parser.parse_args = parse_args
  parser.parse_known_args = ending(parse_known_args)
  recipe_flags.parse = ending(recipe_flags.parse)


if __name__ == "__main__":
  main()
