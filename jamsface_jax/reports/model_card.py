"""The model card of a run."""

import hashlib
import importlib.resources
import json
import string
from collections.abc import Sequence

from jamsface_jax.data import records
from jamsface_jax.data.local_copy import is_here, local_copy
from jamsface_jax.errors import InputError
from jamsface_jax.reports.facts import (
  correlation_text,
  devices_text,
  group_columns,
  group_rows,
  interval_text,
  top_words,
  version_rows,
)
from jamsface_jax.reports.run_record import RunRecord, read_runs
from jamsface_jax.storage.run_directory import RunDirectory, RunFile

# The last line of a card that nobody has edited.
_SEAL = "<!-- as written by jamsface_jax: {} -->\n"
# Settings of the loss and the training that a reader asks for first.
_SETTINGS = (
  "head.loss",
  "head.scale",
  "head.angular_margin",
  "head.cosine_margin",
  "head.learn_angular",
  "head.learn_cosine",
  "head.margin_rule",
  "head.sample_rate",
  "head.sub_centers",
  "data.batch_size",
  "data.sampling",
  "optimizer.name",
  "optimizer.learning_rate",
  "optimizer.weight_decay",
  "schedule.length",
  "schedule.unit",
  "schedule.decay",
  "seed",
)


def write(run: RunDirectory, output: RunFile) -> None:
  """Writes the card of a run, whole or not at all.

  Args:
    run: where the run lies.
    output: the file to write.

  Raises:
    InputError: not a work directory, or the file there is not as this function
      left it.
  """
  (record,) = read_runs([run])
  content = card(record)
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
  except UnicodeDecodeError:
    return True  # By who writes otherwise.
  content, seal, rest = text.rpartition(_SEAL.split("{}")[0])
  return seal + rest != _SEAL.format(_digest(content))


def _digest(content: str) -> str:
  return hashlib.sha256(content.encode()).hexdigest()[:16]


def card(run: RunRecord) -> str:
  """The text of the card."""
  files = importlib.resources.files("jamsface_jax.reports")
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
    workdir=run.directory.path,
    data=_data(run),
    training=_training(run),
    command=run.last_launch["command"] if run.last_launch else "not known",
    settings=_table(
      ["setting", "value"],
      [[name, repr(run.settings[name])] for name in _SETTINGS],
    ),
    results=_results(run),
    groups=_groups(run),
    tail=_tail(run),
    versions=_versions(run),
  )


def _head(run: RunRecord) -> str:
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


def _state(run: RunRecord) -> str:
  if run.total_steps is None:
    return f"After {run.step:,} steps."
  if run.step < run.total_steps:
    return (
      f"The run is not finished: {run.step:,} of {run.total_steps:,} steps."
    )
  return f"Trained for {run.total_steps:,} steps."


def _model(run: RunRecord) -> str:
  rows = [
    ["backbone", run.settings["model.name"]],
    ["computed in", run.settings["model.dtype"]],
  ]
  if run.last_launch:
    rows.append(["parameters", f"{run.last_launch['parameters']:,}"])
  return _table(["what", "value"], rows)


def _data(run: RunRecord) -> str:
  directories = run.settings["data.directory"]
  rows = [["data sets", directories or "images of noise, made while it ran"]]
  if run.classes:
    rows.append(["identities", f"{run.classes['classes']:,}"])
    rows.append(["images", f"{run.classes['images']:,}"])
    for share, words in top_words("identities").items():
      of_all = f"{run.classes['top'][share]:.1%} of all"
      rows.append([f"images of {words}", of_all])
  if run.last_launch:
    rows.append(["fingerprint", run.last_launch["data_fingerprint"]])
  for directory in filter(None, directories.split(",")):
    rows.append([f"people of {directory}", _people(directory)])
  return _table(["what", "value"], rows)


def _people(directory: str) -> str:
  try:
    if not is_here(directory):
      return f"not looked at: the data set is in {directory}"
    synthetic = records.read_index(local_copy(directory)).synthetic
  except InputError:  # Moved, or on another machine.
    return "not known: the data set is not there any more"
  return "nobody: its images are drawn" if synthetic else "people"


def _training(run: RunRecord) -> str:
  margins = (run.classes or {}).get("margins", {})
  learned = "no margin is learned"
  if margins:
    learned = "margins are learned for each identity: " + ", ".join(
      f"{kind}, rank correlation with the number of images"
      f" {correlation_text(one['rank_correlation'])}"
      for kind, one in margins.items()
    )
  sentences = [f"Loss `{run.settings['head.loss']}`; {learned}."]
  if run.last_launch:
    sentences.append(f"On {devices_text(run.last_launch)}.")
  if run.wall_time:
    hours = run.wall_time / 3600
    sentences.append(f"Wall time of all starts: {hours:.2f} h.")
  return " ".join([*sentences, "The last start:"])


def _tail(run: RunRecord) -> str:
  if not run.classes:
    return ""
  sizes = run.classes["tail"]["size"]
  return f"; here they have {sizes[-1]:,} to {sizes[0]:,}"


def _results(run: RunRecord) -> str:
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
      rows.append(
        [metric, text, interval_text(one, metric, "{:.4f} to {:.4f}")]
      )
    parts.append(f"### {_cell(name)}\n\n{one['headline']}")
    parts.append(_table(["metric", "value", "95 % interval"], rows))
  if not any(one["intervals_95"] for one in run.sets.values()):
    parts.append(
      "There are no intervals: `python -m jamsface_jax.evaluate"
      " --bootstrap=1000` measures them, by resampling people."
    )
  return "\n\n".join(parts)


def _groups(run: RunRecord) -> str:
  parts = []
  for name, one in run.sets.items():
    if groups := one.get("groups"):
      parts.append(
        f"{_cell(name)}, at thresholds that the whole set has for each false"
        " accept rate; FMR is the share of pairs of two people that are"
        " accepted, FNMR that of pairs of one person that are not:"
      )
      parts.append(_table(group_columns(groups), group_rows(groups)))
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


def _versions(run: RunRecord) -> str:
  last = run.last_launch
  if not last:
    return "Not known: the run is of a version that noted no starts."
  rows = [*version_rows(last), ["started", last["time"]]]
  return _table(["what", "version"], rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [columns, ["---"] * len(columns), *rows]
  return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(text: str) -> str:
  """Text that Markdown shows as it is, on one line."""
  for mark in ("\\", "|", "`", "*", "_", "[", "]", "<", ">", "#"):
    text = text.replace(mark, f"\\{mark}")
  return " ".join(text.split())
