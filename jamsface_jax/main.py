r"""Trains a network, evaluates it, and goes on where it was stopped.

  python -m jamsface_jax.main --config=configs/demo.py:tiny --workdir=W
  python -m jamsface_jax.main --config=configs/ms1m_r50.py --workdir=W \
      --config.data.directory=DATASET --config.data.batch_size=512

The same command resumes. The first runs anywhere, in seconds, without data.

Exit codes, for what starts it: 0 done; 75 stopped by SIGTERM or SIGHUP, run it
again; 130 stopped by Ctrl-C; 2 bad input and 3 a loss that is not finite, which
another start would meet again; 1 anything else, which it may not.
"""

import sys

from absl import flags

from jamsface_jax.data.local_copy import keep_copies_in
from jamsface_jax.devices import notices, processes
from jamsface_jax.devices.allocator import bound_arenas
from jamsface_jax.devices.compiling import make_deterministic
from jamsface_jax.devices.ending import PROCESS_TIMEOUT, ending_together
from jamsface_jax.devices.program_cache import keep_programs
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.run import fine_tune
from jamsface_jax.settings import recipe_flags
from jamsface_jax.settings.defaults import make_settings
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.train import train

recipe_flags.define_config()
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, metrics and the report go."
)
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "auto",
  ("auto", "on", "off"),
  "Join several processes into one run; auto: if the cluster says that there"
  " are: a TPU slice or several, Slurm, Open MPI, Kubernetes.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where nothing else says it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.")
_TIMEOUT = flags.DEFINE_float(
  "process_timeout",
  PROCESS_TIMEOUT,
  "Seconds of silence after which a process counts as dead and all end.",
  lower_bound=1.0,
)
_DATA_CACHE = flags.DEFINE_string(
  "data_cache", "", "Local directory for copies of data sets in buckets."
)
_FINE_TUNE_FROM = flags.DEFINE_string(
  "fine_tune_from", None, "Work directory of a run to begin with parts of."
)
_FINE_TUNE_KEEP = flags.DEFINE_string(
  "fine_tune_keep",
  fine_tune.BACKBONE,
  "These parts of it, comma between: backbone, weights (of the classes),"
  " margins. The rest begins afresh.",
)


def main() -> int:
  """Reads the flags and trains."""
  bound_arenas()
  with notices.listening() as heard:
    settings, run, fine_tune_from = parse_flags(sys.argv)
    keep_copies_in(_DATA_CACHE.value)
    if settings.deterministic:
      make_deterministic()
    processes.initialize(
      _DISTRIBUTED.value,
      coordinator=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
      timeout=_TIMEOUT.value,
    )
    keep_programs()
    with ending_together(heard, _TIMEOUT.value):
      return train(
        settings,
        run,
        fine_tune_from=fine_tune_from,
        fine_tune_keep=_FINE_TUNE_KEEP.value,
        heard=heard,
      )


def parse_flags(
  argv: list[str],
) -> tuple[Settings, RunDirectory, RunDirectory | None]:
  """Reads the command line.

  Returns:
    The settings, the directory of the run, and that of the run to begin with
    parts of, if there is one.

  Raises:
    InputError: an unknown flag, setting or recipe, or a missing flag.
  """
  config = recipe_flags.parse(argv, "jamsface_jax.main")
  if not _WORKDIR.value:
    raise InputError(
      "--workdir is needed: give a directory for what the run writes, for"
      " example --workdir=build/run."
    )
  run, other = RunDirectory(_WORKDIR.value), None
  if _FINE_TUNE_FROM.value:
    other = RunDirectory(_FINE_TUNE_FROM.value, flag="--fine_tune_from")
  return make_settings(config), run, other


if __name__ == "__main__":
  run_command(main)
