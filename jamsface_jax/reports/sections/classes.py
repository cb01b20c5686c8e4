"""The classes: the margins they learned, and the long tail of their sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from jamsface_jax.reports import svg
from jamsface_jax.reports.facts import top_words
from jamsface_jax.reports.figures import (
  margin_figure,
  miss_figure,
  tail_figure,
)
from jamsface_jax.reports.markup import (
  Html,
  element,
  grid,
  joined,
  sentence,
  table,
)
from jamsface_jax.reports.regime import describe_regime
from jamsface_jax.reports.run_record import RunRecord


def margins_section(runs: Sequence[RunRecord]) -> Html:
  """Learned margins against class size."""
  parts = []
  for run in runs:
    if len(runs) > 1:
      parts.append(element("h3", run.name))
    parts.append(_margins(run))
  return joined(parts)


def _margins(run: RunRecord) -> Html:
  last = {name: float(v[-1]) for name, (_, v) in run.metrics.items() if len(v)}
  classes = run.classes or {}
  learned = classes.get("margins")
  figures = [
    margin_figure(kind, one, classes["classes"])
    for kind, one in (learned or {}).items()
  ]
  misses = miss_figure(run.metrics)
  if misses.lines:
    figures.append(misses)
  said = [describe_regime(last), "" if learned else _none(learned)]
  return joined(
    [
      *(sentence(text) for text in said if text),
      grid([svg.draw(figure) for figure in figures]) if figures else "",
    ]
  )


def _none(learned: Mapping[str, Any] | None) -> str:
  if learned is None:
    return "No data yet: they are noted at evaluations and at the end."
  return (
    "None is learned: head.learn_angular and head.learn_cosine are False, and"
    " margins stay at their first value."
  )


def data_section(runs: Sequence[RunRecord]) -> Html:
  """The long tail of the classes."""
  known = [(run, run.classes) for run in runs if run.classes]
  if not known:
    return sentence(
      "No data yet: class sizes are noted at evaluations and at the end."
    )
  tails = {run.name: (run.classes or {}).get("tail") for run in runs}
  rows = [
    ["identities", *(f"{classes['classes']:,}" for _, classes in known)],
    ["images", *(f"{classes['images']:,}" for _, classes in known)],
    *(
      [
        f"{words} hold of the images",
        *(f"{classes['top'][share]:.1%}" for _, classes in known),
      ]
      for share, words in top_words("classes").items()
    ),
    ["from", *(run.settings["data.directory"] or "noise" for run, _ in known)],
    ["fingerprint", *(_fingerprint(run) for run, _ in known)],
  ]
  columns = ["what", *(run.name for run, _ in known)]
  return grid(
    [svg.draw(tail_figure(tails)), table("Training data", columns, rows)]
  )


def _fingerprint(run: RunRecord) -> str:
  return run.last_launch["data_fingerprint"] if run.last_launch else ""
