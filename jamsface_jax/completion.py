"""Completion in a shell: of the commands, their flags, and the settings.

The flags are read from the commands' files, which are not imported: the script
is there at once, and needs no JAX.
"""

import ast
import importlib.util
import pathlib
from collections.abc import Iterator

from jamsface_jax import config as config_lib
from jamsface_jax.errors import InputError

SHELLS = ("bash", "zsh")

# Of every command; see `errors.run_command` and `argparse`.
_OF_ALL = ("--help", "--debug", "--log_level=")

_BASH = """\
_jamsface_jax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} flags
  COMPREPLY=()
  [[ ${{COMP_WORDS[1]}} == -m ]] || return
  if ((COMP_CWORD == 2)); then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case ${{COMP_WORDS[2]}} in
{cases}
    *) return ;;
  esac
  [[ $word == -* ]] || return
  COMPREPLY=($(compgen -W "$flags" -- "$word"))
  [[ ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace
}}
complete -o default -F _jamsface_jax python python3
"""

# Values, and other programs that python runs, are completed as before.
_ZSH = """\
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit -i }}
_jamsface_jax() {{
  local -a flags
  if [[ $words[2] == -m ]] && (( CURRENT == 3 )); then
    compadd -- {commands}
    return
  fi
  [[ $words[2] == -m ]] && case $words[3] in
{cases}
  esac
  if (( ! $#flags )); then
    (( $+functions[_python] )) && _python || _default
  elif [[ $PREFIX == -*=* ]]; then
    compset -P '*=' && _files
  elif [[ $PREFIX == -* ]]; then
    compadd -S '' -- ${{(M)flags:#*=}}
    compadd -- ${{flags:#*=}}
  else
    _files
  fi
}}
compdef _jamsface_jax python python3
"""


def script(shell: str, commands: list[str]) -> str:
  """What the shell is to read, as with `source <(...)`.

  Args:
    shell: one of `SHELLS`.
    commands: modules that are commands.

  Raises:
    InputError: another shell.
  """
  if shell not in SHELLS:
    raise InputError(
      f"--completion={shell} is unknown: use one of {', '.join(SHELLS)}."
    )
  script, case = {
    "bash": (_BASH, '    {}) flags="{}" ;;'),
    "zsh": (_ZSH, "    {}) flags=({}) ;;"),
  }[shell]
  cases = [case.format(name, " ".join(flags_of(name))) for name in commands]
  return script.format(commands=" ".join(commands), cases="\n".join(cases))


def flags_of(command: str) -> list[str]:
  """The flags of a command, sorted; those that take a value end in "="."""
  tree = ast.parse(_path(command).read_text(encoding="utf-8"))
  return sorted({*_OF_ALL, *_flags_in(tree)})


def _path(module: str) -> pathlib.Path:
  return pathlib.Path(importlib.util.find_spec(module).origin)


def _flags_in(tree: ast.AST) -> Iterator[str]:
  """The flags that some code defines, or has defined by a helper."""
  for call in ast.walk(tree):
    if not isinstance(call, ast.Call):
      continue
    match call.func:
      case ast.Attribute(ast.Name("flags"), name) if name.startswith("DEFINE_"):
        yield f"--{call.args[0].value}" + "=" * (name != "DEFINE_bool")
      case ast.Attribute(_, "add_argument") | ast.Name("add"):
        yield from _argument(call)
      case ast.Attribute(ast.Name("recipe_flags"), "define_config"):
        yield "--config="
        yield from (f"--config.{name}=" for name in config_lib.meanings())
      case ast.Attribute(ast.Name("flags" | "distributed" as helper), name):
        package = "data_prep" if helper == "flags" else "jamsface_jax"
        text = _path(f"{package}.{helper}").read_text(encoding="utf-8")
        for one in ast.parse(text).body:
          if isinstance(one, ast.FunctionDef) and one.name == name:
            yield from _flags_in(one)


def _argument(call: ast.Call) -> Iterator[str]:
  """The flag that `parser.add_argument(...)` adds, if it is one."""
  first = call.args[0] if call.args else None
  if not isinstance(first, ast.Constant) or not first.value.startswith("--"):
    return
  action = {word.arg: ast.unparse(word.value) for word in call.keywords}.get(
    "action", ""
  )
  if "BooleanOptionalAction" in action:
    yield f"--no-{first.value[2:]}"
  yield first.value + "=" * (not action)
