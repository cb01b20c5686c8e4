"""All settings, and who set them."""

from collections.abc import Sequence

from jamsface_jax.reports.facts import value_text
from jamsface_jax.reports.markup import Html, folded, joined, sentence, table
from jamsface_jax.reports.run_record import RunRecord
from jamsface_jax.settings.names import meanings, values
from jamsface_jax.settings.origin import source_of
from jamsface_jax.settings.sections import Settings


def settings_section(runs: Sequence[RunRecord]) -> Html:
  """Those in which runs differ, those that are not defaults, the others."""
  base = values(Settings())
  meaning_of = meanings()
  sources = {name: _source(name, runs) for name in meaning_of}

  def rows(names: Sequence[str]) -> list[list[str]]:
    return [
      [
        name,
        *(value_text(run.settings[name]) for run in runs),
        value_text(base[name]),
        sources[name],
        meaning_of[name],
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
      for name in meaning_of
      if len({value_text(run.settings[name]) for run in runs}) > 1
    ]
    parts.append(
      named("Settings in which the runs differ", apart)
      if apart
      else sentence("All settings of the runs are the same.")
    )
  changed = [name for name in meaning_of if sources[name] != "default"]
  others = [name for name in meaning_of if sources[name] == "default"]
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
  found = {source_of(name, run.settings[name], run.command) for run in runs}
  kinds = ("command line", "recipe", "default")
  return next(kind for kind in kinds if kind in found)
