"""The sections of the page."""

import base64
import functools
import html
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jamsface_jax import config as config_lib
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.metrics.score_counts import EDGES
from jamsface_jax.protocols.results import group_label
from jamsface_jax.reports import faces
from jamsface_jax.reports.charts import (
  Axis,
  Cloud,
  Line,
  bar,
  chart,
  nothing,
  table,
)
from jamsface_jax.reports.runs import Run
from jamsface_jax.run.goodput import KINDS
from jamsface_jax.run.metrics_file import matching

_ALL_PAIRS = ":all_pairs"

_STEP = Axis("step")
_SHARE = Axis("", percent=True, most=1.0)

# Charts of training: title, metrics, axis, whether single steps are noisy.
_TRAINING = (
  ("Loss", ("train/loss", "train/cross_entropy"), Axis(""), True),
  ("Accuracy in training, without margin", ("train/accuracy",), _SHARE, True),
  ("Accuracy on test sets", ("/accuracy",), _SHARE, False),
  ("Learning rate", ("train/learning_rate",), Axis("", zero=True), False),
  (
    "Images a second",
    ("train/images_per_second",),
    Axis("", zero=True),
    True,
  ),
  (
    "Time spent waiting for data",
    ("train/data_wait_fraction",),
    Axis("", percent=True, zero=True, most=1.0),
    True,
  ),
  (
    "Mean margin (angular in radians, cosine)",
    ("train/margin_angular_mean", "train/margin_cosine_mean"),
    Axis("", zero=True),
    False,
  ),
  (
    "Classes with a margin at its bound",
    tuple(
      f"train/margin_{kind}_at_{bound}"
      for kind in ("angular", "cosine")
      for bound in ("lower", "upper")
    ),
    Axis("", percent=True, zero=True, most=1.0),
    False,
  ),
  (
    "Cosine to the true class and to the hardest other",
    ("train/true_cosine", "train/hardest_cosine"),
    Axis(""),
    True,
  ),
  (
    "Angle from a class centre to the nearest other (degrees)",
    ("train/centre_angle_mean", "train/centre_angle_min"),
    Axis(""),
    False,
  ),
)


def _grid(figures: Sequence[str]) -> str:
  return '<div class="grid">\n' + "\n".join(figures) + "\n</div>"


def _sentence(text: str) -> str:
  return f'<p class="soft">{html.escape(text)}</p>'


def headlines(runs: Sequence[Run]) -> str:
  """The numbers that matter: cards of one run, a table of several."""
  columns = [_headline(run) for run in runs]
  if len(runs) == 1:
    cards = "".join(
      f"<li><b>{html.escape(value)}</b><span>{html.escape(name)}</span></li>"
      for name, value in columns[0].items()
    )
    return f'<ul class="cards">{cards}</ul>'
  names = list(dict.fromkeys(name for one in columns for name in one))
  rows = [[name, *(one.get(name, "") for one in columns)] for name in names]
  return table("The runs", ["number", *(run.name for run in runs)], rows)


def _headline(run: Run) -> dict[str, str]:
  total = run.total_steps
  state = "" if total is None else f" of {total:,}"
  if total is not None:
    state += ", finished" if run.step >= total else ""
  found = {"steps": f"{run.step:,}{state}"}
  for name in run.sets:
    for metric, text in _first_metrics(run.sets[name]).items():
      found[f"{name}: {metric}"] = text
  for title, metric, percent in (
    ("loss in training", "train/loss", False),
    ("accuracy in training", "train/accuracy", True),
    ("images a second", "train/images_per_second", False),
  ):
    value = run.last(metric)
    if value is not None:
      found[title] = Axis("", percent=percent).text(value)
  if run.seconds and sum(run.seconds.values()):
    total_time = sum(run.seconds.values())
    found["wall time"] = _duration(total_time)
    found["of it in steps"] = f"{run.seconds['step'] / total_time:.1%}"
  if run.starts:
    found["parameters of the backbone"] = f"{run.starts[-1]['parameters']:,}"
  if run.classes:
    found["identities"] = f"{run.classes['classes']:,}"
    found["images"] = f"{run.classes['images']:,}"
  return found


def _first_metrics(one: Mapping[str, Any]) -> dict[str, str]:
  """Of a test set, what it is known by."""
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


def training(runs: Sequence[Run]) -> str:
  """Curves over the steps."""
  figures = []
  for title, patterns, axis, noisy in _TRAINING:
    lines = []
    for number, run in enumerate(runs):
      for place, name in enumerate(matching(run.metrics, patterns)):
        # One run: a colour a metric. Several: a colour a run.
        color, dash = (place, place) if len(runs) == 1 else (number, place)
        shown = name if len(runs) == 1 else f"{run.name}: {name}"
        lines.append(Line(shown, *run.metrics[name], color, dash, noisy))
    figures.append(
      chart(
        title,
        lines,
        _STEP,
        axis,
        note="" if lines else _why_no_curve(title),
      )
    )
  return _sentence(
    "Pale: each line of the log, its mean since the line before. Strong, where"
    " there are two: the mean over a fiftieth of the run."
  ) + _grid(figures)


def _why_no_curve(title: str) -> str:
  if "test sets" in title:
    return (
      "No data yet: no test set with pairs was evaluated. Name some in"
      " evaluation.data."
    )
  return "No data yet: no step was logged."


def verification(runs: Sequence[Run]) -> str:
  """ROC, scores and all numbers of each test set."""
  names = list(dict.fromkeys(name for run in runs for name in run.sets))
  if not names:
    return _sentence(
      "No data yet: no test set was evaluated. Name some in evaluation.data, or"
      " run 'python -m jamsface_jax.evaluate'."
    )
  parts = []
  for name in names:
    having = [run for run in runs if name in run.sets]
    figures = [_roc(name, having, runs)]
    figures += [_scores(name, run, len(runs) > 1) for run in having]
    figures.append(_cmc(name, having, runs))
    figures.append(_by_class_size(name, having, runs))
    parts.append(f"<h3>{html.escape(name)}</h3>")
    parts.append(_grid([one for one in figures if one]))
    parts += [_group_table(name, run, len(runs) > 1) for run in having]
    parts.append(_set_table(name, having))
  return "\n".join(filter(None, parts))


def _group_table(name: str, run: Run, several: bool) -> str:
  """Error rates of groups of people, where the set has groups."""
  groups = run.sets[name].get("groups")
  if not groups:
    return ""
  return table(
    f"Groups of people in {name}"
    + (f": {run.name}" if several else "")
    + ", at thresholds of the whole set; in brackets 95 % intervals",
    ["number", *(group_label(group["name"]) for group in groups)],
    group_rows(groups),
  )


def group_rows(groups: Sequence[Mapping[str, Any]]) -> list[list[str]]:
  """A row for each number of groups of people, its name first.

  Args:
    groups: as `results.json` has them.
  """
  rows = [
    [title, *(f"{group[key]:,}" for group in groups)]
    for title, key in (
      ("people", "identities"),
      ("pairs of one person", "positive_pairs"),
      ("pairs of two people", "negative_pairs"),
    )
  ]
  metrics = dict.fromkeys(m for group in groups for m in group["metrics"])
  for metric in metrics:
    row = [metric]
    for group in groups:
      value = group["metrics"].get(metric)
      text = "not measured" if value is None else f"{value:.4f}"
      low, high = group["intervals_95"].get(metric, (None, None))
      row.append(text if low is None else f"{text} [{low:.4f}, {high:.4f}]")
    rows.append(row)
  return rows


def _color(run: Run, runs: Sequence[Run]) -> int:
  return next(k for k, other in enumerate(runs) if other is run)


def _roc(name: str, having: Sequence[Run], runs: Sequence[Run]) -> str:
  lines = []
  for run in having:
    curve = run.sets[name].get("roc")
    if curve:
      text = f"AUC {curve['auc']:.4f}, TAR"
      if len(runs) > 1:
        text = f"{run.name}: {text}"
      color = _color(run, runs)
      lines.append(Line(text, curve["far"], curve["tar"], color, color))
  if not lines:
    return ""
  return chart(
    f"ROC of {name}",
    lines,
    Axis("false accept rate (FAR)", log=True),
    _SHARE,
    note="Begins at the smallest FAR that the pairs can measure.",
  )


def _scores(name: str, run: Run, several: bool) -> str:
  one = run.sets[name]
  if "positive_counts" not in one:
    if "roc" not in one:
      return ""  # Nothing was compared in pairs.
    return nothing(
      f"Scores of {name}",
      "No data: these results are of an earlier version. Evaluate again.",
    )
  counts = [
    np.array(one[f"{kind}_counts"], np.float64)
    for kind in ("negative", "positive")
  ]
  filled = np.flatnonzero(counts[0] + counts[1])
  span = slice(filled[0], filled[-1] + 1)
  edges = EDGES[span.start : span.stop + 1]
  lines = [
    Line(
      f"{kind} ({round(count.sum()):,} pairs)",
      np.repeat(edges, 2)[1:-1],
      np.repeat(count[span] / count.sum(), 2),
      color,
      filled=True,
    )
    for kind, count, color in (
      ("two people", counts[0], 1),
      ("one person", counts[1], 0),
    )
  ]
  threshold = one.get("threshold")
  return chart(
    f"Scores of {name}" + (f": {run.name}" if several else ""),
    lines,
    Axis("cosine"),
    Axis("share of the pairs of a kind", percent=True, zero=True),
    marks={} if threshold is None else {"threshold": threshold},
  )


def _cmc(name: str, having: Sequence[Run], runs: Sequence[Run]) -> str:
  lines = []
  for run in having:
    for place, (search, rates) in enumerate(run.sets[name]["cmc"].items()):
      shown = search if len(runs) == 1 else f"{run.name}: {search}"
      color = _color(run, runs) if len(runs) > 1 else place
      ranks = np.arange(1, len(rates) + 1)
      lines.append(Line(shown, ranks, rates, color, place))
  if not lines:
    return ""
  return chart(
    f"Identification in {name}",
    lines,
    Axis("rank", log=True),
    Axis("mated probes found", percent=True, most=1.0),
  )


def _by_class_size(
  name: str, having: Sequence[Run], runs: Sequence[Run]
) -> str:
  """Of new images of classes trained on, see `known_people`."""
  lines = []
  for run in having:
    table = run.sets[name]["facts"].get("by_class_size", [])
    kinds = {"accuracy": "accuracy"}
    if len(runs) == 1:  # Of several runs it would be too many lines.
      kinds["adjusted_accuracy"] = "with log(images) / scale taken off cosines"
    for number, (kind, words) in enumerate(kinds.items()):
      if table and kind in table[0]:
        lines.append(
          Line(
            words if len(runs) == 1 else f"{run.name}: {words}",
            np.arange(1, len(table) + 1),
            np.array([row[kind] for row in table], np.float64),
            *[_color(run, runs) + number] * 2,
          )
        )
  if not lines:
    return ""
  return chart(
    f"Nearest class right for new images of {name}",
    lines,
    Axis("tenth of the classes, the poorest first"),
    _SHARE,
    note=f"The poorest have {_images(table[0])}, the richest"
    f" {_images(table[-1])} to train on.",
  )


def _images(row: Mapping[str, Any]) -> str:
  if row["smallest"] == row["largest"]:
    return f"{row['largest']:,} images"
  return f"{row['smallest']:,} to {row['largest']:,} images"


def _set_table(name: str, having: Sequence[Run]) -> str:
  metrics = list(
    dict.fromkeys(m for run in having for m in run.sets[name]["metrics"])
  )
  rows = []
  for metric in metrics:
    row = [metric]
    for run in having:
      one = run.sets[name]
      value = one["metrics"].get(metric)
      text = "not measured" if value is None else f"{value:.6f}"
      if metric in one["intervals_95"]:
        low, high = one["intervals_95"][metric]
        if low is not None:
          text += f" [{low:.4f}, {high:.4f}]"
      row.append(text)
    rows.append(row)
  facts = list(
    dict.fromkeys(f for run in having for f in run.sets[name]["facts"])
  )
  for fact in facts:
    texts = [_value(run.sets[name]["facts"].get(fact, "")) for run in having]
    rows.append([fact, *texts])
  caption = f"All numbers of {name}; in brackets 95 % intervals"
  columns = ["metric", *(run.name for run in having)]
  return (
    f"<details><summary>All numbers of {html.escape(name)}</summary>"
    f"{table(caption, columns, rows)}</details>"
  )


def margins(runs: Sequence[Run]) -> str:
  """Learned margins against class size."""
  parts = []
  for run in runs:
    if len(runs) > 1:
      parts.append(f"<h3>{html.escape(run.name)}</h3>")
    learned = (run.classes or {}).get("margins")
    if learned is None:
      parts.append(
        _sentence("No data yet: they are noted at evaluations and at the end.")
      )
    elif not learned:
      parts.append(
        _sentence(
          "None is learned: head.learn_angular and head.learn_cosine are"
          " False, every class has the same margin."
        )
      )
    else:
      parts.append(
        _grid([_margin_chart(kind, one) for kind, one in learned.items()])
      )
  return "\n".join(parts)


def _margin_chart(kind: str, one: Mapping[str, Any]) -> str:
  bands = one["bands"]
  sizes = [band["size"] for band in bands]
  correlation = one["rank_correlation"]
  shown = "undefined" if correlation is None else f"{correlation:+.2f}"
  sample = one["sample"]
  units = {"angular": "radians", "cosine": "cosine"}
  return chart(
    f"{kind.capitalize()} margin: rank correlation with class size {shown}",
    [
      Line("median", sizes, [band["median"] for band in bands], 1),
      Line("a tenth is above", sizes, [band["high"] for band in bands], 1, 2),
      Line("a tenth is below", sizes, [band["low"] for band in bands], 1, 1),
    ],
    Axis("images of the class", log=True),
    Axis(units.get(kind, kind), zero=True),
    clouds=[
      Cloud(
        f"a class ({len(sample['size']):,} of them)",
        np.array(sample["size"], np.float64),
        np.array(sample["margin"], np.float64),
      )
    ],
    note="JAMsFace wants poor classes to have the larger margins: a correlation"
    " below 0.",
  )


def data(runs: Sequence[Run]) -> str:
  """The long tail of the classes."""
  known = [run for run in runs if run.classes]
  if not known:
    return _sentence(
      "No data yet: class sizes are noted at evaluations and at the end."
    )
  lines = [
    Line(
      "images" if len(runs) == 1 else f"{run.name}: images",
      run.classes["tail"]["rank"],
      run.classes["tail"]["size"],
      _color(run, runs),
      _color(run, runs),
    )
    for run in known
  ]
  figure = chart(
    "Long tail: images of each class",
    lines,
    Axis("rank of the class by size", log=True),
    Axis("images", log=True),
  )
  rows = [
    ["identities", *(f"{run.classes['classes']:,}" for run in known)],
    ["images", *(f"{run.classes['images']:,}" for run in known)],
    *(
      [
        f"{text} hold of the images",
        *(f"{run.classes['top'][share]:.1%}" for run in known),
      ]
      for share, text in (
        ("0.01", "the largest hundredth of the classes"),
        ("0.1", "the largest tenth"),
        ("0.5", "the larger half"),
      )
    ),
    ["from", *(r.settings["data.directory"] or "noise" for r in known)],
    ["fingerprint", *(_fingerprint(run) for run in known)],
  ]
  columns = ["what", *(run.name for run in known)]
  return _grid([figure, table("Training data", columns, rows)])


def _fingerprint(run: Run) -> str:
  return run.starts[-1]["data_fingerprint"] if run.starts else ""


def images(runs: Sequence[Run], *, every_face: bool) -> str:
  """Images of the data that may be shown."""
  parts, hidden = [], False
  for directory in dict.fromkeys(
    one
    for run in runs
    for one in run.settings["data.directory"].split(",")
    if one
  ):
    size = runs[0].settings["data.image_size"]
    shown = _strips(directory, size, every_face, faces.class_strips)
    hidden |= shown == ""
    parts.append(shown)
  for run in runs:
    for place in run.settings["evaluation.data"].split(","):
      directory = place.removesuffix(_ALL_PAIRS)
      if not directory:
        continue
      size = run.settings["data.image_size"]
      shown = _strips(
        directory, size, every_face, functools.partial(_hardest, run)
      )
      hidden |= shown == ""
      parts.append(shown)
  content = "\n".join(filter(None, parts))
  if hidden:
    workdirs = shlex.join(run.workdir for run in runs)
    content += _sentence(
      "Not shown: images of data sets that are not synthetic. Faces are people;"
      f" 'python -m jamsface_jax.report {workdirs} --faces' shows them."
    )
  return content or _sentence("There are none: the run learned from noise.")


def _strips(
  directory: str,
  size: int,
  every_face: bool,
  choose: Callable[[RecordSource], list[faces.Strip]],
) -> str:
  """Images of a data set with a heading; "" if they may not be shown."""
  try:
    source = RecordSource(directory, size)
    if not (source.synthetic or every_face):
      return ""
    strips = choose(source)
  except InputError as error:
    return _sentence(f"Not shown: {error}")
  shown = "\n".join(
    f"<figure>{''.join(_image(one, strip.caption) for one in strip.images)}"
    f"<figcaption>{html.escape(strip.caption)}</figcaption></figure>"
    for strip in strips
  )
  kind = "synthetic" if source.synthetic else "shown because --faces was given"
  return (
    f"<h3>{html.escape(source.name)} ({kind})</h3>"
    f'<div class="faces">{shown}</div>'
  )


def _image(jpeg: bytes, text: str) -> str:
  content = base64.b64encode(jpeg).decode()
  return (
    f'<img src="data:image/jpeg;base64,{content}" alt="{html.escape(text)}">'
  )


def _hardest(run: Run, source: RecordSource) -> list[faces.Strip]:
  """The pairs that came out worst, where pairs are of images."""
  one = run.sets.get(source.name, {})
  if "roc" not in one or "templates" in one["facts"]:
    return []
  return [
    *faces.pair_strips(
      source, one["hardest_positives"], "one person, least alike"
    ),
    *faces.pair_strips(
      source, one["hardest_negatives"], "two people, most alike"
    ),
  ]


def time(runs: Sequence[Run]) -> str:
  """Where the wall time went."""
  figures = []
  for run in runs:
    title = "Wall time of all starts"
    if len(runs) > 1:
      title += f": {run.name}"
    if run.seconds and sum(run.seconds.values()):
      seconds = {kind: run.seconds[kind] for kind in KINDS}
      figures.append(bar(title, seconds, "seconds"))
    else:
      figures.append(nothing(title, "No data yet: no step was logged."))
  return _grid(figures) + _sentence(
    "step is what is wanted; lost are steps, data and evaluations that a later"
    " start had to do again."
  )


def settings(runs: Sequence[Run]) -> str:
  """All settings: those that are not defaults, then the others."""
  base = config_lib.flatten(config_lib.base_config().to_dict())
  meanings = config_lib.meanings()

  def source(name: str) -> str:
    of_runs = {
      config_lib.source_of(name, run.settings[name], run.command)
      for run in runs
    }
    kinds = ("command line", "recipe", "default")
    return next(kind for kind in kinds if kind in of_runs)

  def row(name: str) -> list[str]:
    return [
      name,
      *(_value(run.settings[name]) for run in runs),
      _value(base[name]),
      source(name),
      meanings[name],
    ]

  columns = ["setting", *(run.name for run in runs)]
  columns += ["default", "set by", "meaning"]
  changed = [row(name) for name in meanings if source(name) != "default"]
  rest = [row(name) for name in meanings if source(name) == "default"]
  parts = []
  if len(runs) > 1:
    apart = [
      row(name)
      for name in meanings
      if len({_value(run.settings[name]) for run in runs}) > 1
    ]
    caption = "Settings in which the runs differ"
    parts.append(
      table(caption, columns, apart)
      if apart
      else _sentence("All settings of the runs are the same.")
    )
  parts.append(table("Settings that are not the default", columns, changed))
  parts.append(
    "<details><summary>Settings that are the default</summary>"
    f"{table('Settings that are the default', columns, rest)}</details>"
  )
  return "\n".join(parts)


def _value(value: Any) -> str:
  return value if isinstance(value, str) and value else repr(value)


def origin(runs: Sequence[Run]) -> str:
  """Commands, versions and devices of every start."""
  parts = []
  for run in runs:
    of_run = f" of {run.name}" if len(runs) > 1 else ""
    if len(runs) > 1:
      parts.append(f"<h3>{html.escape(run.name)}</h3>")
    if not run.starts:
      parts.append(
        _sentence("Not known: the run is of a version that noted no starts.")
      )
      continue
    last = run.starts[-1]
    parts.append("<p>The exact command of the last start:</p>")
    parts.append(f"<pre>{html.escape(last['command'])}</pre>")
    rows = [[name, version] for name, version in last["versions"].items()]
    rows.append(["commit", last.get("commit") or "not known"])
    rows.append(["system", last["system"]])
    rows.append(["devices", _devices(last)])
    parts.append(
      table(f"Versions and devices{of_run}", ["what", "last start"], rows)
    )
    rows = [
      [one["time"], f"{one['first']:,}", _devices(one), one["command"]]
      for one in run.starts
    ]
    parts.append(
      "<details><summary>All starts</summary>"
      + table(
        f"Starts{of_run}", ["time", "from step", "devices", "command"], rows
      )
      + "</details>"
    )
  return "\n".join(parts)


def _devices(start: Mapping[str, Any]) -> str:
  return (
    f"{start['devices']} {start['device_kind']} ({start['platform']}),"
    f" {start['processes']} process(es)"
  )
