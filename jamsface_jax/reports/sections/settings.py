"""All settings, and who set them."""

from collections.abc import Sequence

from jamsface_jax import config as config_lib
from jamsface_jax.reports.facts import value_text
from jamsface_jax.reports.markup import Html, folded, joined, sentence, table
from jamsface_jax.reports.run_record import RunRecord


def settings_section(runs: Sequence[RunRecord]) -> Html:
  """Those in which runs differ, those that are not defaults, the others."""
  base = config_lib.flatten(config_lib.base_config().to_dict())
  meanings = config_lib.meanings()
  sources = {name: _source(name, runs) for name in meanings}

  def rows(names: Sequence[str]) -> list[list[str]]:
    return [
      [
        name,
        *(value_text(run.settings[name]) for run in runs),
        value_text(base[name]),
        sources[name],
        meanings[name],
      ]
      for name in names
    ]

  def named(caption: str, names: Sequence[str]) -> Html:
    of_runs = [run.name for run in runs]
    columns = ["setting", *of_runs, "default", "set by", "meaning"]
    return table(caption, columns, rows(names))

  parts = []
  if len(runs) > 1:
    apart = [
      name
      for name in meanings
      if len({value_text(run.settings[name]) for run in runs}) > 1
    ]
    parts.append(
      named("Settings in which the runs differ", apart)
      if apart
      else sentence("All settings of the runs are the same.")
    )
  changed = [name for name in meanings if sources[name] != "default"]
  others = [name for name in meanings if sources[name] == "default"]
  title = "Settings that are the default"
  return joined(
    [
      *parts,
      named("Settings that are not the default", changed),
      folded(title, named(title, others)),
    ]
  )


def _source(name: str, runs: Sequence[RunRecord]) -> str:
  """Who set it, in any of the runs: the command line goes before the recipe."""
  found = {
    config_lib.source_of(name, run.settings[name], run.command) for run in runs
  }
  kinds = ("command line", "recipe", "default")
  return next(kind for kind in kinds if kind in found)
