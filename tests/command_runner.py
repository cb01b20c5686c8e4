"""Runs many commands, each in a fork of one process that imported it all.

python command_runner.py < JOBS > RESULTS

JOBS is a JSON list of [folder, words, parse_only]; words are what follows
`python` on a command line. RESULTS is a list of [exit code, output]. With
`parse_only` a command ends, with 0, when its flags are read.
"""

import argparse
import importlib
import json
import os
import pathlib
import runpy
import sys
import tempfile
import traceback

# What takes long to import, and starts neither JAX's devices nor threads.
SHARED = ("jamsface_jax.training.train", "matplotlib.pyplot", "onnx")


def main():
  for name in SHARED:
    importlib.import_module(name)
  results = [run(*job) for job in json.load(sys.stdin)]
  json.dump(results, sys.stdout)


def run(folder, words, parse_only):
  """Runs a command in a fork; returns its exit code and output."""
  with tempfile.TemporaryFile() as output:
    child = os.fork()
    if not child:
      os.dup2(output.fileno(), 1)
      os.dup2(output.fileno(), 2)
      os._exit(run_here(folder, words, parse_only))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output.seek(0)
    return code, output.read().decode()


def run_here(folder, words, parse_only):
  code = 1
  try:
    os.chdir(folder)
    if parse_only:
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
    code = 0
  except SystemExit as end:
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
  parser.parse_args = ending(parser.parse_args)
  recipe_flags.parse = ending(recipe_flags.parse)


if __name__ == "__main__":
  main()
