r"""Tells whether a run fits a pod, and how fast it may be, without the pod.

  python -m jamsface_jax.compile_check --config=configs/ms1m_r100.py \
      --topology=v5e:4x4 --classes=93431 --images=5179510

Compiles the training step for that topology. Ends with 0 if it fits every
topology given, 1 if not, with the ways out and what each would save.
"""

import sys

from absl import flags

from jamsface_jax.data.sources import open_source
from jamsface_jax.errors import EXIT_FAILURE, InputError, run_command
from jamsface_jax.pods.accelerators import ACCELERATORS, open_topologies
from jamsface_jax.pods.check import check
from jamsface_jax.pods.tables import topology_table
from jamsface_jax.settings import recipe_flags
from jamsface_jax.settings.defaults import make_settings
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunFile
from jamsface_jax.storage.write_error import write_error

recipe_flags.define_config()
_TOPOLOGY = flags.DEFINE_multi_string(
  "topology",
  None,
  "KIND:SHAPE, such as v5e:16x16, 2*v5e:16x16 (two slices), h100:8, cpu:8; may"
  f" be repeated. Kinds: {', '.join(ACCELERATORS)}, cpu.",
)
_MESH = flags.DEFINE_string(
  "mesh",
  "",
  "Sizes of the model axis to compare, comma between, or 'auto': all that fit;"
  " '': that of the settings.",
)
_CLASSES = flags.DEFINE_integer(
  "classes", None, "Number of identities; else that of the data set."
)
_IMAGES = flags.DEFINE_integer(
  "images", None, "Number of images; else that of the data set."
)
_BATCH = flags.DEFINE_integer(
  "batch_per_device",
  None,
  "Examples on each device, in the place of data.batch_size.",
)
_SUGGEST = flags.DEFINE_bool(
  "suggest",
  False,
  "Where it fits, compile changes that may be faster, too: minutes each.",
)
_CACHE = flags.DEFINE_string(
  "cache", "", "Directory of earlier results, so that none is compiled twice."
)
_OUTPUT = flags.DEFINE_string("output", "", "JSON file for all of it.")


def main() -> int:
  """Reads the flags, compiles, prints the tables."""
  settings = parse_flags(sys.argv)
  # Before what takes minutes.
  output = RunFile.at(_OUTPUT.value, "--output") if _OUTPUT.value else None
  classes, images = _CLASSES.value, _IMAGES.value
  if classes is None or images is None:
    source = open_source(settings.data)
    classes = source.num_classes if classes is None else classes
    images = len(source) if images is None else images
  best, report = [], []
  for topology in open_topologies(_TOPOLOGY.value or ()):
    chosen, found = check(
      settings,
      topology,
      num_classes=classes,
      num_images=images,
      batch_per_device=_BATCH.value,
      models=_MESH.value,
      cache=_CACHE.value,
      suggest=_SUGGEST.value,
    )
    best.append(chosen)
    report.append(found)
  if len(best) > 1:
    print(f"\n{topology_table(best)}")
  if output:
    try:
      output.write_json(report, indent=2)
    except OSError as error:
      raise write_error("--output", output.path, error) from None
  return 0 if all(cost.fits for cost in best) else EXIT_FAILURE


def parse_flags(argv: list[str]) -> Settings:
  """Reads the command line.

  Raises:
    InputError: an unknown flag, setting or recipe, or a missing flag.
  """
  config = recipe_flags.parse(argv, "jamsface_jax.compile_check")
  if not _TOPOLOGY.value:
    raise InputError(
      "--topology is needed: give one, for example --topology=v5e:4x4."
    )
  for flag in (_CLASSES, _IMAGES, _BATCH):
    # Classes and images are counted in int32.
    if flag.value is not None and not 1 <= flag.value < 2**31:
      raise InputError(
        f"--{flag.name}={flag.value} must be 1 or more and below 2^31."
      )
  return make_settings(config)


if __name__ == "__main__":
  run_command(main)
