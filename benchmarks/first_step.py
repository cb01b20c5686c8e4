"""Seconds from the command to the first step, and what they are spent on.

  python benchmarks/first_step.py

Each recipe trains on noise images, in a process of its own: cold, where no
program has been kept, and warm, where the start before has kept its own. What
JAX says of its time is in three columns, an interval that lies in another once:
`tracing` turns Python into a program and that into MLIR, `compiling` is XLA,
`kept` what is read of kept programs. `imports` is from the command to its first
line, `first step` the rest: other Python, devices, initial values, images, and
the step itself, of which `--batch` says the size. Medians of `--rounds`. Other
flags are those of a run.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

_ROOT = pathlib.Path(__file__).parent.parent
_COLUMNS = ("seconds", "imports", "tracing", "compiling", "kept", "first step")
# JAX's names of what it measures, by column; XLA's has what is read in it.
_EVENTS = {
  "/jax/core/compile/jaxpr_trace_duration": "tracing",
  "/jax/core/compile/jaxpr_to_mlir_module_duration": "tracing",
  "/jax/core/compile/backend_compile_duration": "compiling",
  "/jax/compilation_cache/cache_retrieval_time_sec": "kept",
}


def main() -> None:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/first_step.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--recipes", default="configs/demo.py:tiny,configs/lfw_cpu.py")
  add("--batch", type=int, default=32, help="images a step")
  add("--rounds", type=int, default=3, help="a cold and a warm start each")
  add("--child", default="", help=argparse.SUPPRESS)
  args, flags = parser.parse_known_args()
  if args.child:
    start(pathlib.Path(args.child), flags)
    return
  print(f"{'':24}{'':6}", *(f"{name:>10}" for name in _COLUMNS))
  for recipe in args.recipes.split(","):
    rows = {"cold": [], "warm": []}
    for _ in range(args.rounds):
      with tempfile.TemporaryDirectory() as kept:
        for row in rows.values():
          row.append(measure(recipe, args.batch, flags, kept))
    for name, row in rows.items():
      medians = [
        statistics.median(one[column] for one in row) for column in _COLUMNS
      ]
      print(
        f"{pathlib.Path(recipe).name:24}{name:6}",
        *(f"{one:10.1f}" for one in medians),
        flush=True,
      )


def measure(
  recipe: str, batch: int, flags: list[str], kept: str
) -> dict[str, float]:
  """Starts a recipe and waits for its first step.

  Args:
    recipe: as `--config` takes it.
    batch: images a step.
    flags: further ones of the run.
    kept: directory of kept programs.

  Returns:
    Seconds by column.
  """
  environment = os.environ | {"XDG_CACHE_HOME": kept}
  environment.pop("JAX_COMPILATION_CACHE_DIR", None)
  with tempfile.TemporaryDirectory() as folder:
    found = pathlib.Path(folder, "found.json")
    command = [sys.executable, __file__, f"--child={folder}"]
    command += [f"--config={recipe}", f"--workdir={folder}/run"]
    command += [f"--config.data.batch_size={batch}", "--config.log_every=1"]
    command += ["--config.data.directory=", "--config.evaluation.data="]
    command += ["--config.evaluation.beside=", *flags]
    begun = {"BEGUN": str(time.time())}
    done = subprocess.run(
      command,
      cwd=_ROOT,
      env=environment | begun,
      capture_output=True,
      text=True,
    )
    if done.returncode:
      sys.exit(f"{recipe} failed:\n{done.stderr[-2000:]}")
    return json.loads(found.read_text())


def start(folder: pathlib.Path, flags: list[str]) -> None:
  """Trains in this process, which ends when its first step is logged.

  Args:
    folder: has the work directory, `run`; `found.json` is written there, since
      what the run prints may come between on standard output.
    flags: of `jamsface_jax.main`.
  """
  begun = float(os.environ["BEGUN"])
  from jamsface_jax import main as command
  from jamsface_jax.errors import run_command

  imported = time.time()
  intervals = {column: [] for column in _EVENTS.values()}

  def listen(event: str, seconds: float, **_) -> None:
    if event in _EVENTS:
      now = time.time()
      intervals[_EVENTS[event]].append((now - seconds, now))

  import jax.monitoring

  jax.monitoring.register_event_duration_secs_listener(listen)

  def end_with_the_first_step() -> None:
    while not (folder / "run" / "metrics.jsonl").exists():
      time.sleep(0.01)
    found = {"seconds": time.time() - begun, "imports": imported - begun}
    found |= {name: covered(of_it) for name, of_it in intervals.items()}
    found["compiling"] -= found["kept"]
    found["first step"] = found["seconds"] - sum(
      found[name] for name in _COLUMNS[1:-1]
    )
    (folder / "found.json").write_text(json.dumps(found))
    os._exit(0)

  threading.Thread(target=end_with_the_first_step, daemon=True).start()
  sys.argv = ["jamsface_jax.main", *flags]
  run_command(command.main)


def covered(intervals: list[tuple[float, float]]) -> float:
  """The length of the union of (begin, end)s."""
  length, reached = 0.0, 0.0
  for begin, end in sorted(intervals):
    length += max(end - max(begin, reached), 0.0)
    reached = max(reached, end)
  return length


if __name__ == "__main__":
  main()
