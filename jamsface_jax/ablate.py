"""Compares losses over seeds: runs what is missing, makes a table and a plot.

  python -m jamsface_jax.ablate --config=configs/ablation.py --output=A --jobs=2

Every row of the configuration is run on every recipe with every seed, each as
`python -m jamsface_jax.main` in a work directory of its own below --output, and
their last evaluations come into one table, with intervals over seeds and paired
differences from a reference. What is finished is not run again, what was
interrupted goes on: give the same command. Told to stop, it tells its runs,
waits for their checkpoints and ends with 75, or 130 after Ctrl-C.

With `tuning` in the configuration, each row is first run with each of its
choices on seeds and data of its own, all rows with as many; the best goes on.
With `tuning.recipe` the choice is made on that recipe and goes to all.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from jamsface_jax.ablation.children import Children
from jamsface_jax.ablation.comparison import Comparison, make_comparison
from jamsface_jax.ablation.data import check_data
from jamsface_jax.ablation.directory import ComparisonDirectory
from jamsface_jax.ablation.statistics import tune
from jamsface_jax.ablation.tables import write
from jamsface_jax.ablation.trials import (
  Trial,
  plan_trials,
  plan_tuning,
  run_missing,
)
from jamsface_jax.devices import notices, processes
from jamsface_jax.errors import (
  EXIT_PREEMPTED,
  InputError,
  RunError,
  run_command,
)
from jamsface_jax.settings import recipe_flags

recipe_flags.define_config()
_OUTPUT = flags.DEFINE_string(
  "output", None, "Where work directories, table and plot go."
)
_JOBS = flags.DEFINE_integer(
  "jobs", 1, "Runs at a time; each gets its share of the cores.", lower_bound=1
)


def main() -> int:
  """Reads the flags, runs what is missing, writes the table."""
  processes.refuse_several("ablate")
  children = Children()
  with notices.listening() as heard:
    heard.hold(pass_on=children.stop)
    try:
      return _run(children)
    except KeyboardInterrupt:
      if not heard.given:
        raise
      print("stopped: run the same command again.", file=sys.stderr)
      return EXIT_PREEMPTED


def _run(children: Children) -> int:
  """Reads the flags, and compares."""
  given = recipe_flags.parse(sys.argv, "jamsface_jax.ablate")
  if not _OUTPUT.value:
    raise InputError(
      "--output is needed: give a directory for runs, table and plot."
    )
  comparison = make_comparison(given.to_dict())
  output = ComparisonDirectory.at(_OUTPUT.value)
  with output.held():
    compare(comparison, output, children)
  print(f"next: open {shlex.quote(output.figure.path)}")
  return 0


def compare(
  comparison: Comparison, output: ComparisonDirectory, children: Children
) -> None:
  """Runs what is missing and writes the table.

  Raises:
    InputError: the data of a recipe are not there.
    RunError: a run failed.
  """
  check_data(comparison)
  chosen, curves = {}, []
  if comparison.tuning:
    trials = plan_tuning(comparison, output)
    metrics = [comparison.tuning.metric]
    results, failed = run_missing(trials, metrics, _JOBS.value, children)
    _refuse_failed(failed, trials)
    chosen, curves = tune(comparison, results)
  trials = plan_trials(comparison, output, chosen)
  results, failed = run_missing(
    trials, comparison.metrics, _JOBS.value, children
  )
  if results:
    print(write(output, comparison, results, curves))
  _refuse_failed(failed, trials)


def _refuse_failed(
  failed: Mapping[Trial, str], trials: Sequence[Trial]
) -> None:
  """Says which run failed first, and why.

  Raises:
    RunError: one did.
  """
  if failed:
    trial, why = next(iter(failed.items()))
    raise RunError(
      f"{len(failed)} of {len(trials)} runs failed, the first of them"
      f" {trial.directory.path!r} ({why}): mend it and give the same command"
      " again."
    )


if __name__ == "__main__":
  run_command(main)
