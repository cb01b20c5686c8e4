"""The flags of commands that take a recipe: read, refused, explained."""

import ast
import contextlib
import inspect
import pathlib
import re
import sys
import textwrap

from absl import flags
from ml_collections import ConfigDict, config_flags

from jamsface_jax import shell
from jamsface_jax.errors import InputError, one_line

flags.disclaim_key_flags()  # They count as those of the module that asks.

_WIDTH, _INDENT = 79, 24


def define_config(
  flag_values: flags.FlagValues = flags.FLAGS,
) -> flags.FlagHolder:
  """Defines --config, and with it --config.NAME for every setting."""
  return config_flags.DEFINE_config_file(
    "config",
    None,
    "Recipe: configs/X.py or configs/X.py:VARIANT; :help lists the variants.",
    flag_values=flag_values,
  )


def parse(
  argv: list[str], module: str, flag_values: flags.FlagValues = flags.FLAGS
) -> ConfigDict:
  """Reads a command line; --help explains the command and exits.

  A recipe such as configs/X.py that does not lie where the user stands is that
  of the package, which a line on standard error says.

  Args:
    argv: the command line.
    module: name of the command's module, such as "jamsface_jax.main".
    flag_values: where `define_config` and others defined the flags.

  Returns:
    The settings: the recipe with what the command line overrides.

  Raises:
    InputError: an unknown flag, setting or recipe, or no --config.
  """
  if {"-h", "--help"} & set(argv):
    print(help_text(argv, module, flag_values))
    sys.exit(0)
  try:
    rest = flag_values(_with_shipped_recipe(argv))[1:]
    config = flag_values["config"].value
  except OSError:  # A setting of a recipe that did not load.
    rest, config = [], "unreadable"
  # What flags, ml_collections and a recipe's own code raise for a wrong value.
  except (
    flags.Error,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:
    raise InputError(f"command line: {_explain(error, argv)}") from None
  if config is None:
    raise InputError(
      "--config is needed: give a recipe, for example --config=configs/demo.py."
    )
  if not isinstance(config, ConfigDict):  # A stand-in: it did not load.
    found = re.search(r" --?config[= ](\S+)", " ".join(argv))
    name = found[1] if found else ""
    raise InputError(
      f"--config={name!r} cannot be read: use a file such as configs/demo.py."
    )
  if rest:
    raise InputError(
      f"command line: {rest[0]!r} is not a flag: settings are given as"
      " --config.name=value."
    )
  return config


def _explain(error: Exception, argv: list[str]) -> str:
  """What the libraries say of a wrong flag, as one would say it.

  A setting that does not exist is a KeyError or an AttributeError that quotes
  the name; the text of another error may be a tuple, or quoted once more.
  """
  text = str(error.args[0] if error.args else error)
  with contextlib.suppress(ValueError, SyntaxError):
    text = str(ast.literal_eval(text))
  if isinstance(error, (KeyError, AttributeError)):
    name = re.match(r"\W*(\w+)", text)
    word = name[1] if name else text
    whole = re.search(rf"--?(?:no)?config\.([\w.]*\b{word})\b", " ".join(argv))
    near = re.search(r'Did you mean "(\w+)"', text)
    advice = f"use {near[1]!r}, or another" if near else "use one"
    return (
      f"setting {whole[1] if whole else word!r} is unknown: {advice} of those"
      f" that '{shell.name('jamsface_jax.config')} RECIPE' prints."
    )
  begin, sign, end = text.partition(": (")
  with contextlib.suppress(ValueError, SyntaxError, TypeError):
    *parts, value = ast.literal_eval(f"({end}")
    text = f"{begin}: {' '.join(parts)}, not {value!r}"
  return one_line(text, None)


def recipes_directory() -> pathlib.Path:
  """Where the recipes lie that come with this package."""
  package = pathlib.Path(__file__).parents[1]
  installed = package / "configs"  # Of a wheel; see setup.cfg.
  return installed if installed.is_dir() else package.parent / "configs"


def find_recipe(path: str) -> str:
  """Where a recipe lies: where the user says, or in the package.

  Args:
    path: such as configs/X.py.
  """
  shipped = re.fullmatch(r"configs/([\w-]+\.py)", path)
  if not shipped or pathlib.Path(path).exists():
    return path
  place = recipes_directory() / shipped[1]
  return str(place) if place.exists() else path


def _with_shipped_recipe(argv: list[str]) -> list[str]:
  """The command line with a recipe of the package by its full path."""
  words = list(argv)
  for place, word in enumerate(words):
    match = re.fullmatch(r"((?:--?config=)?)(configs/[^:]+)(:.*)?", word)
    if not match:
      continue
    if not match[1] and words[place - 1] not in ("--config", "-config"):
      continue
    path = find_recipe(match[2])
    if path != match[2]:
      print(f"recipe: {path}", file=sys.stderr)
      words[place] = f"{match[1]}{path}{match[3] or ''}"
  return words


def help_text(
  argv: list[str], module: str, flag_values: flags.FlagValues
) -> str:
  """What --help says: the module's docstring, then a line or two a flag."""
  doc = inspect.getdoc(sys.modules["__main__"]) or ""
  known = {
    one.name: one for one in flag_values.get_key_flags_for_module(argv[0])
  }
  lines = [
    f"usage: {shell.name(module)} [flags]",
    "",
    doc.strip(),
    "",
    "flags:",
  ]
  for name, flag in sorted(known.items()):
    left = f"  --{name}"
    text = flag.help
    if flag.default not in (None, ""):
      text += f" Default: {flag.default}."
    wrapped = textwrap.wrap(text, _WIDTH - _INDENT)
    if len(left) > _INDENT - 2:
      lines.append(left)
      left = ""
    lines.append(left.ljust(_INDENT) + wrapped[0])
    lines += [" " * _INDENT + one for one in wrapped[1:]]
  lines += [
    "  --config.NAME=VALUE".ljust(_INDENT)
    + "Overrides a setting. All of them:",
    " " * _INDENT + f"{shell.name('jamsface_jax.config')} configs/X.py",
  ]
  return "\n".join(lines)
