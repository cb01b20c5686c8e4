"""ROC, scores and all numbers of each test set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.reports import figures, svg
from jamsface_jax.reports.facts import (
  group_columns,
  group_rows,
  metric_text,
  value_text,
)
from jamsface_jax.reports.figure import Figure
from jamsface_jax.reports.markup import (
  Html,
  element,
  folded,
  grid,
  joined,
  sentence,
  table,
)
from jamsface_jax.reports.run_record import RunRecord


def verification_section(runs: Sequence[RunRecord]) -> Html:
  """Figures and tables of each test set of any run."""
  names = list(dict.fromkeys(name for run in runs for name in run.sets))
  if not names:
    return sentence(
      "No data yet: no test set was evaluated. Name some in evaluation.data, or"
      " run 'python -m jamsface_jax.evaluate'."
    )
  return joined(part for name in names for part in _test_set(name, runs))


def _test_set(name: str, runs: Sequence[RunRecord]) -> list[Html]:
  having = [run for run in runs if name in run.sets]
  drawn = [
    *_drawn(_roc(name, runs)),
    *(one for run in having for one in _scores(name, run, len(runs) > 1)),
    *_drawn(_cmc(name, runs)),
    *_drawn(_by_class_size(name, runs)),
  ]
  groups = [one for run in having for one in _groups(name, run, len(runs) > 1)]
  return [
    element("h3", name),
    *_at_fars(name, having),
    grid(drawn),
    *groups,
    _all_numbers(name, having),
  ]


def _at_fars(name: str, having: Sequence[RunRecord]) -> list[Html]:
  """TAR at the rates that the pairs can measure, for readers in a hurry."""
  start = f"{name}/tar@"
  sets = [run.sets[name] for run in having]
  metrics = [
    metric
    for metric in dict.fromkeys(m for one in sets for m in one["metrics"])
    if metric.startswith(start)
    and any(one["metrics"].get(metric) is not None for one in sets)
  ]
  if not metrics:
    return []
  columns = [f"FAR {metric.removeprefix(start)}" for metric in metrics]
  rows = [
    [run.name, *(_percent(one["metrics"].get(metric)) for metric in metrics)]
    for run, one in zip(having, sets, strict=True)
  ]
  caption = "True accept rate (TAR) at a false accept rate (FAR)"
  return [table(caption, ["run", *columns], rows)]


def _percent(value: float | None) -> str:
  return "not measured" if value is None else f"{value:.2%}"


def _drawn(figure: Figure) -> list[Html]:
  """The figure; nothing if there is nothing of its kind in the test set."""
  return [] if figure.is_empty else [svg.draw(figure)]


def _roc(name: str, runs: Sequence[RunRecord]) -> Figure:
  lines: dict[str, RocLine | None] = dict.fromkeys(run.name for run in runs)
  for run in runs:
    curve = run.sets.get(name, {}).get("roc")
    if curve:
      fars, tars = (np.array(curve[k], np.float64) for k in ("far", "tar"))
      lines[run.name] = RocLine(fars, tars, curve["auc"])
  return figures.roc_figure(f"ROC of {name}", lines)


def _scores(name: str, run: RunRecord, several: bool) -> list[Html]:
  one = run.sets[name]
  if "positive_counts" not in one:
    if "roc" not in one:
      return []  # Nothing was compared in pairs.
    return [
      svg.nothing(
        f"Scores of {name}",
        "No data: these results are of an earlier version. Evaluate again.",
      )
    ]
  figure = figures.scores_figure(
    f"Scores of {name}" + (f": {run.name}" if several else ""),
    np.array(one["negative_counts"], np.float64),
    np.array(one["positive_counts"], np.float64),
    one.get("threshold"),
  )
  return [svg.draw(figure)]


def _cmc(name: str, runs: Sequence[RunRecord]) -> Figure:
  rates = {
    run.name: {
      search: np.array(found, np.float64)
      for search, found in run.sets.get(name, {}).get("cmc", {}).items()
    }
    for run in runs
  }
  return figures.cmc_figure(f"Identification in {name}", rates)


def _by_class_size(name: str, runs: Sequence[RunRecord]) -> Figure:
  """What became of new images of classes trained on, see `known_people`."""

  def rows(run: RunRecord) -> list[dict[str, Any]]:
    return run.sets.get(name, {}).get("facts", {}).get("by_class_size", [])

  return figures.class_size_figure(
    f"Nearest class right for new images of {name}",
    {run.name: rows(run) for run in runs},
  )


def _groups(name: str, run: RunRecord, several: bool) -> list[Html]:
  """Error rates of groups of people, where the set has groups."""
  groups = run.sets[name].get("groups")
  if not groups:
    return []
  caption = (
    f"Groups of people in {name}"
    + (f": {run.name}" if several else "")
    + ", at thresholds of the whole set; in brackets 95 % intervals"
  )
  return [table(caption, group_columns(groups), group_rows(groups))]


def _all_numbers(name: str, having: Sequence[RunRecord]) -> Html:
  sets = [run.sets[name] for run in having]
  metrics = dict.fromkeys(metric for one in sets for metric in one["metrics"])
  facts = dict.fromkeys(fact for one in sets for fact in one["facts"])
  rows = [
    *([m, *(metric_text(one, m, 6) for one in sets)] for m in metrics),
    *(
      [fact, *(value_text(one["facts"].get(fact, "")) for one in sets)]
      for fact in facts
    ),
  ]
  return folded(
    f"All numbers of {name}",
    table(
      f"All numbers of {name}; in brackets 95 % intervals",
      ["metric", *(run.name for run in having)],
      rows,
    ),
  )
