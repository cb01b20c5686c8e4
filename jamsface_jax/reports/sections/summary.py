"""The numbers that matter."""

from collections.abc import Mapping, Sequence
from typing import Any

from jamsface_jax.reports.figure import Axis
from jamsface_jax.reports.markup import Html, element, table
from jamsface_jax.reports.run_record import RunRecord


def summary_section(runs: Sequence[RunRecord]) -> Html:
  """Cards of one run, a table of several."""
  columns = [_headlines(run) for run in runs]
  if len(runs) == 1:
    cards = [
      element("li", element("b", value), element("span", name))
      for name, value in columns[0].items()
    ]
    return element("ul", *cards, class_="cards")
  names = list(dict.fromkeys(name for one in columns for name in one))
  rows = [[name, *(one.get(name, "") for one in columns)] for name in names]
  return table("The runs", ["number", *(run.name for run in runs)], rows)


def _headlines(run: RunRecord) -> dict[str, str]:
  found = {"steps": _progress(run)}
  for name, one in run.sets.items():
    for metric, text in _main_metric(one).items():
      found[f"{name}: {metric}"] = text
  for title, metric, percent in (
    ("loss in training", "train/loss", False),
    ("accuracy in training", "train/accuracy", True),
    ("images a second", "train/images_per_second", False),
  ):
    value = run.last(metric)
    if value is not None:
      found[title] = Axis("", percent=percent).text(value)
  if run.seconds and run.wall_time:
    found["wall time"] = _duration(run.wall_time)
    found["of it in steps"] = f"{run.seconds['step'] / run.wall_time:.1%}"
  if run.last_launch:
    found["parameters of the backbone"] = f"{run.last_launch['parameters']:,}"
  if run.classes:
    found["identities"] = f"{run.classes['classes']:,}"
    found["images"] = f"{run.classes['images']:,}"
  return found


def _progress(run: RunRecord) -> str:
  if run.total_steps is None:
    return f"{run.step:,}"
  finished = ", finished" if run.step >= run.total_steps else ""
  return f"{run.step:,} of {run.total_steps:,}{finished}"


def _main_metric(one: Mapping[str, Any]) -> dict[str, str]:
  """What a test set is known by, as `results.json` has it."""
  prefix = f"{one['name']}/"
  values = {k.removeprefix(prefix): v for k, v in one["metrics"].items()}
  for metric in ("accuracy", "tar@1e-4", "rank1", "auc"):
    if values.get(metric) is not None:
      text = f"{values[metric]:.2%}"
      if f"{metric}_std" in values:
        text += f" ± {values[f'{metric}_std']:.2%}"
      return {metric: text}
  return {}


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f"{hours} h {minutes} min"
  return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
