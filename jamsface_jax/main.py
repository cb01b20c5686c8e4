"""Trains: python -m jamsface_jax.main --config=configs/X.py --workdir=W.

The same command resumes. Settings are overridden as --config.a.b=value.
"""

import sys

from absl import flags
from ml_collections import ConfigDict, config_flags

from jamsface_jax import distributed, fine_tune
from jamsface_jax.compiling import make_deterministic
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.train import train

_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "Recipe: configs/X.py, or configs/X.py:VARIANT."
)
_WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where checkpoints, metrics and the report go."
)
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "auto",
  ("auto", "on", "off"),
  "Join several processes into one run; auto: if the environment says so.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, where nothing else says it."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is.")
_TIMEOUT = flags.DEFINE_float(
  "process_timeout",
  distributed.PROCESS_TIMEOUT,
  "Seconds of silence after which a process counts as dead and all end.",
  lower_bound=1.0,
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
  parse_flags(sys.argv)
  if _CONFIG.value.deterministic:
    make_deterministic()
  distributed.initialize(
    _DISTRIBUTED.value,
    coordinator=_COORDINATOR.value,
    num_processes=_NUM_PROCESSES.value,
    process_id=_PROCESS_ID.value,
    timeout=_TIMEOUT.value,
  )
  with distributed.ending_together(_TIMEOUT.value):
    return train(
      _CONFIG.value,
      _WORKDIR.value,
      fine_tune_from=_FINE_TUNE_FROM.value,
      fine_tune_keep=_FINE_TUNE_KEEP.value,
    )


def parse_flags(argv: list[str]) -> None:
  """Reads the command line.

  Raises:
    InputError: an unknown flag, setting or recipe, or a missing flag.
  """
  if {"-h", "--help"} & set(argv):
    print(f"{__doc__}\n{flags.FLAGS.main_module_help()}")
    sys.exit(0)
  try:
    rest = flags.FLAGS(argv)[1:]
  # What flags, ml_collections and a recipe's own code raise for a wrong value.
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    text = " ".join(str(error.args[0] if error.args else error).split())
    raise InputError(f"command line: {text}") from None
  if _CONFIG.value is None or not _WORKDIR.value:
    raise InputError(
      "--config and --workdir are needed: for example"
      " --config=configs/demo.py --workdir=build/run."
    )
  if not isinstance(_CONFIG.value, ConfigDict):  # A stand-in: it did not load.
    raise InputError(
      f"--config={config_flags.get_config_filename(flags.FLAGS['config'])!r}"
      " cannot be read: use a file such as configs/demo.py."
    )
  if rest:
    raise InputError(
      f"command line: {rest[0]!r} is not a flag: settings are given as"
      " --config.name=value."
    )


if __name__ == "__main__":
  run_command(main)
