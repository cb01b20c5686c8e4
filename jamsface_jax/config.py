"""What recipes are made with; as a command, every setting of a recipe.

  python -m jamsface_jax.config configs/X.py[:VARIANT] [--config.NAME=VALUE]

prints all settings of a recipe: what each is, where it came from, what it
means. A recipe in configs/ changes what `base_config` returns and nothing else;
no setting has another default anywhere. They are declared in
jamsface_jax/settings/.
"""

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from jamsface_jax.errors import run_command
from jamsface_jax.settings import recipe_flags
from jamsface_jax.settings.defaults import base_config
from jamsface_jax.settings.names import flatten, meanings, values
from jamsface_jax.settings.origin import source_of
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.variants import choose_variant

__all__ = ["base_config", "choose_variant"]


def table(config: ConfigDict, command: Sequence[str]) -> str:
  """Every setting in a line: value, where it is from, what it means.

  Args:
    config: the settings of a recipe, which may be such as no run accepts.
    command: words of the command line that they are from.
  """
  named, defaults, rows = flatten(config.to_dict()), values(Settings()), []
  for name, meaning in meanings().items():
    source = source_of(name, named[name], command)
    if source != "default":
      source += f" (default {defaults[name]!r})"
    rows.append((name, repr(named[name]), source, meaning))
  widths = [max(len(row[k]) for row in rows) for k in range(3)]
  return "\n".join(
    "  ".join([*map(str.ljust, row, widths), row[3]]) for row in rows
  )


def main() -> int:
  """Prints the settings of a recipe.

  Raises:
    InputError: no recipe, or one that cannot be read.
  """
  argv = sys.argv
  flag_values = flags.FlagValues()
  recipe_flags.define_config(flag_values)
  if len(argv) > 1 and not argv[1].startswith("-"):
    argv = [argv[0], f"--config={argv[1]}", *argv[2:]]
  config = recipe_flags.parse(argv, "jamsface_jax.config", flag_values)
  print(table(config, argv))
  return 0


if __name__ == "__main__":
  run_command(main)
