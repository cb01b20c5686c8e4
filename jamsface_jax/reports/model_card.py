"""The model card of a run."""

import hashlib
import importlib.resources
import json
import string
from collections.abc import Sequence

from jamsface_jax.data import records
from jamsface_jax.errors import InputError
from jamsface_jax.protocols.results import group_label
from jamsface_jax.reports.runs import Run, read_run, run_names
from jamsface_jax.reports.sections import group_rows
from jamsface_jax.storage.run_directory import RunDirectory, RunFile

# The last line of a card that nobody has edited.
_SEAL = "<!-- as written by jamsface_jax: {} -->\n"
# Settings of the loss and the training that a reader asks for first.
_SETTINGS = (
  *("head.loss", "head.scale", "head.angular_margin", "head.cosine_margin"),
  *("head.learn_angular", "head.learn_cosine", "head.margin_rule"),
  *("head.sample_rate", "head.sub_centers"),
  *("data.batch_size", "data.sampling", "optimizer.name"),
  *("optimizer.learning_rate", "optimizer.weight_decay"),
  *("schedule.length", "schedule.unit", "schedule.decay", "seed"),
)


def write(run: RunDirectory, output: RunFile) -> None:
  """Writes the card of a run, whole or not at all.

  Args:
    run: directory of the run.
    output: the file to write.

  Raises:
    InputError: not a work directory, or the file there is not as this function
      left it.
  """
  (name,) = run_names([run])
  content = card(read_run(run, name))
  if is_edited(output):
    raise InputError(
      f"{output.path!r} was edited since it was written: give another"
      " --output, or delete it."
    )
  output.write_text(content + _SEAL.format(_digest(content)))


def is_edited(file: RunFile) -> bool:
  """Whether there is a file that is not as `write` leaves it."""
  try:
    text = file.read_text()
  except FileNotFoundError:
    return False
  content, seal, rest = text.rpartition(_SEAL.split("{}")[0])
  return seal + rest != _SEAL.format(_digest(content))


def _digest(content: str) -> str:
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def card(run: Run) -> str:
  """The text of the card."""
  files = importlib.resources.files(__package__)
  template = files.joinpath("model_card.md").read_text(encoding="utf-8")
  size = run.settings["data.image_size"]
  flip = run.settings["evaluation.flip"]
  return string.Template(template).substitute(
    head=_head(run),
    name=run.name,
    state=_state(run),
    model=_model(run),
    pixels=f"{size} x {size} pixels",
    embedding_size=run.settings["model.embedding_size"],
    flip="that of the image and of its mirror image, added"
    if flip
    else "that of the image alone",
    workdir=run.workdir,
    data=_data(run),
    training=_training(run),
    command=run.launches[-1]["command"] if run.launches else "not known",
    settings=_table(
      ["setting", "value"],
      [[name, repr(run.settings[name])] for name in _SETTINGS],
    ),
    results=_results(run),
    groups=_groups(run),
    tail=_tail(run),
    versions=_versions(run),
  )


def _head(run: Run) -> str:
  """The head in YAML, of which JSON is a part."""
  lines = [
    "# Of the weights; [author]: see the identifiers that the hub lists.",
    "license: unknown",
    "library_name: jax",
    "pipeline_tag: image-feature-extraction",
    "tags:",
    "- face-recognition",
    "- face-verification",
    "- jamsface_jax",
    f"- {json.dumps(run.settings['head.loss'])}",
  ]
  results = [
    {
      "task": {"type": "image-feature-extraction", "name": one["headline"]},
      "dataset": {"type": one["name"], "name": one["name"]},
      "metrics": [
        {"type": metric.removeprefix(f"{one['name']}/"), "value": value}
        for metric, value in one["metrics"].items()
        if value is not None
      ],
    }
    for one in run.sets.values()
  ]
  if results:
    index = [{"name": run.name, "results": results}]
    lines.append(f"model-index: {json.dumps(index)}")
  return "\n".join(lines)


def _state(run: Run) -> str:
  if run.total_steps is None:
    return f"After {run.step:,} steps."
  if run.step < run.total_steps:
    return (
      f"The run is not finished: {run.step:,} of {run.total_steps:,} steps."
    )
  return f"Trained for {run.total_steps:,} steps."


def _model(run: Run) -> str:
  rows = [
    ["backbone", run.settings["model.name"]],
    ["computed in", run.settings["model.dtype"]],
  ]
  if run.launches:
    rows.append(["parameters", f"{run.launches[-1]['parameters']:,}"])
  return _table(["what", "value"], rows)


def _data(run: Run) -> str:
  directories = run.settings["data.directory"]
  rows = [["data sets", directories or "images of noise, made while it ran"]]
  if run.classes:
    rows += [
      ["identities", f"{run.classes['classes']:,}"],
      ["images", f"{run.classes['images']:,}"],
    ] + [
      [f"images of {text}", f"{run.classes['top'][share]:.1%} of all"]
      for share, text in (
        ("0.01", "the largest hundredth of the identities"),
        ("0.1", "the largest tenth"),
        ("0.5", "the larger half"),
      )
    ]
  if run.launches:
    rows.append(["fingerprint", run.launches[-1]["data_fingerprint"]])
  for directory in filter(None, directories.split(",")):
    rows.append([f"people of {directory}", _people(directory)])
  return _table(["what", "value"], rows)


def _people(directory: str) -> str:
  try:
    synthetic = records.read_index(directory).synthetic
  except InputError:  # Moved, or on another machine.
    return "not known: the data set is not there any more"
  return "nobody: its images are drawn" if synthetic else "people"


def _training(run: Run) -> str:
  margins = (run.classes or {}).get("margins", {})
  lines = [
    f"Loss `{run.settings['head.loss']}`"
    + (
      "; margins are learned for each identity: "
      + ", ".join(
        f"{kind}, rank correlation with the number of images"
        f" {_correlation(one['rank_correlation'])}"
        for kind, one in margins.items()
      )
      if margins
      else "; no margin is learned"
    )
    + "."
  ]
  if run.launches:
    last = run.launches[-1]
    lines.append(
      f"On {last['devices']} {last['device_kind']} ({last['platform']}),"
      f" {last['processes']} process(es)."
    )
  if run.seconds and sum(run.seconds.values()):
    hours = sum(run.seconds.values()) / 3600
    lines.append(f"Wall time of all starts: {hours:.2f} h. The last start:")
  else:
    lines.append("The last start:")
  return " ".join(lines)


def _correlation(value: float | None) -> str:
  return "undefined" if value is None else f"{value:+.2f}"


def _tail(run: Run) -> str:
  if not run.classes:
    return ""
  sizes = run.classes["tail"]["size"]
  return f"; here they have {sizes[-1]:,} to {sizes[0]:,}"


def _results(run: Run) -> str:
  if not run.sets:
    return (
      "Not evaluated: name test sets in `evaluation.data`, or run `python -m"
      " jamsface_jax.evaluate` and `python -m jamsface_jax.model_card` after"
      " it."
    )
  parts = []
  for name, one in run.sets.items():
    rows = []
    for metric, value in one["metrics"].items():
      text = "not measured" if value is None else f"{value:.6f}"
      low, high = one["intervals_95"].get(metric) or (None, None)
      rows.append(
        [metric, text, "" if low is None else f"{low:.4f} to {high:.4f}"]
      )
    parts.append(f"### {_cell(name)}\n\n{one['headline']}")
    parts.append(_table(["metric", "value", "95 % interval"], rows))
  if not any(one["intervals_95"] for one in run.sets.values()):
    parts.append(
      "There are no intervals: `python -m jamsface_jax.evaluate"
      " --bootstrap=1000` measures them, by resampling people."
    )
  return "\n\n".join(parts)


def _groups(run: Run) -> str:
  parts = []
  for name, one in run.sets.items():
    if groups := one.get("groups"):
      parts.append(
        f"{_cell(name)}, at thresholds that the whole set has for each false"
        " accept rate; FMR is the share of pairs of two people that are"
        " accepted, FNMR that of pairs of one person that are not:"
      )
      columns = ["number", *(group_label(group["name"]) for group in groups)]
      parts.append(_table(columns, group_rows(groups)))
  if parts:
    parts.append(
      "**[author]** How groups were assigned, by whom, and whether people were"
      " asked; differences that matter for the intended use."
    )
    return "\n\n".join(parts)
  return (
    "Not measured: no test set has groups of people. A `groups.csv` (`--groups`"
    " of `data_prep.from_pairs` and `data_prep.from_folder`) gives error rates"
    " for each. Until then nothing is known of how they differ, and nobody"
    " should rely on them being alike."
  )


def _versions(run: Run) -> str:
  if not run.launches:
    return "Not known: the run is of a version that noted no starts."
  last = run.launches[-1]
  rows = [[name, version] for name, version in last["versions"].items()]
  rows.append(["commit", last.get("commit") or "not known"])
  rows.append(["system", last["system"]])
  rows.append(["started", last["time"]])
  return _table(["what", "version"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
  """Text that Markdown shows as it is, on one line."""
  for mark in ("\\", "|", "`", "*", "_", "[", "]", "<", ">", "#"):
    text = text.replace(mark, f"\\{mark}")
  return " ".join(text.split())
