"""Compares losses over seeds: runs what is missing, makes a table and a plot.

  python -m jamsface_jax.ablate --config=configs/ablation.py --output=A --jobs=2

Every row of the configuration is run on every recipe with every seed, each as
`python -m jamsface_jax.main` in a work directory of its own below --output, and
their last evaluations come into one table, with intervals over seeds and paired
differences from a reference. What is finished is not run again, what was
interrupted goes on: give the same command.
"""

import os
import sys

from absl import flags

from jamsface_jax import comparison, recipe_flags
from jamsface_jax.errors import InputError, RunError, run_command

recipe_flags.define_config()
_OUTPUT = flags.DEFINE_string(
  "output", None, "Where work directories, table and plot go."
)
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time; each gets its share of the cores.", lower_bound=1
)


def main() -> int:
  """Reads the flags, runs what is missing, writes the table."""
  config = recipe_flags.parse(sys.argv, "jamsface_jax.ablate")
  output = _OUTPUT.value
  if not output:
    raise InputError(
      "--output is needed: give a directory for runs, table and plot."
    )
  runs = comparison.plan(config, output)
  missing = [run for run in runs if not run.finished()]
  failed = comparison.run_all(missing, _JOBS.value, total=len(runs))
  done = [run for run in runs if run.finished()]
  results = {run: run.read(config.metrics) for run in done}
  if results:
    text = comparison.write(output, config, results)
    print(text)
  if failed:
    run, why = next(iter(failed.items()))
    raise RunError(
      f"{len(failed)} of {len(runs)} runs failed, the first of them"
      f" {run.workdir!r} ({why}): mend it and give the same command again."
    )
  print(f"next: open {os.path.join(output, 'ablation.png')}")
  return 0


if __name__ == "__main__":
  run_command(main)
