"""Curves over the steps, and where the wall time went."""

from collections.abc import Sequence

from jamsface_jax.reports import svg
from jamsface_jax.reports.figures import training_figures
from jamsface_jax.reports.markup import Html, grid, joined, sentence
from jamsface_jax.reports.run_record import RunRecord
from jamsface_jax.run.goodput import KINDS


def training_section(runs: Sequence[RunRecord]) -> Html:
  """Curves over the steps."""
  figures = training_figures({run.name: run.metrics for run in runs})
  return joined(
    [
      sentence(
        "Pale: each line of the log, its mean since the line before. Strong,"
        " where there are two: the mean over a fiftieth of the run."
      ),
      grid([svg.draw(figure) for figure in figures]),
    ]
  )


def time_section(runs: Sequence[RunRecord]) -> Html:
  """The wall time by kind of work."""
  figures = []
  for run in runs:
    title = "Wall time of all starts"
    if len(runs) > 1:
      title += f": {run.name}"
    if run.seconds and run.wall_time:
      seconds = {kind: run.seconds[kind] for kind in KINDS}
      figures.append(svg.draw_shares(title, seconds, "seconds"))
    else:
      figures.append(svg.nothing(title, "No data yet: no step was logged."))
  explained = sentence(
    "step is what is wanted; lost are steps, data and evaluations that a later"
    " start had to do again."
  )
  return joined([grid(figures), explained])
