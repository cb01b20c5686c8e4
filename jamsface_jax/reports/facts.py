"""Facts of a run in words, alike on the page and in the model card."""

from collections.abc import Mapping, Sequence
from typing import Any

from jamsface_jax.protocols.results import group_label


def top_words(classes: str) -> dict[str, str]:
  """Words for the keys of `top` in a class profile.

  Args:
    classes: what classes are called, in the plural.
  """
  return {
    "0.01": f"the largest hundredth of the {classes}",
    "0.1": "the largest tenth",
    "0.5": "the larger half",
  }


def value_text(value: Any) -> str:
  """A setting or a fact; quotes only where there would be nothing to see."""
  return value if isinstance(value, str) and value else repr(value)


def correlation_text(value: float | None) -> str:
  """A rank correlation; there is none among equal values."""
  return "undefined" if value is None else f"{value:+.2f}"


def devices_text(start: Mapping[str, Any]) -> str:
  """What a run was started on."""
  return (
    f"{start['devices']} {start['device_kind']} ({start['platform']}),"
    f" {start['processes']} process(es)"
  )


def version_rows(start: Mapping[str, Any]) -> list[list[str]]:
  """Names and versions of what a run was started with."""
  return [
    *([name, version] for name, version in start["versions"].items()),
    ["commit", start.get("commit") or "not known"],
    ["system", start["system"]],
  ]


def interval_text(one: Mapping[str, Any], metric: str, form: str) -> str:
  """The 95 % interval of a metric; "" if it was not measured.

  Args:
    one: a test set or a group, as `results.json` has them.
    metric: its name.
    form: how both ends are written, such as "{:.4f} to {:.4f}".
  """
  low, high = one["intervals_95"].get(metric) or (None, None)
  return "" if low is None else form.format(low, high)


def metric_text(one: Mapping[str, Any], metric: str, digits: int) -> str:
  """A metric with its 95 % interval in brackets, if there is one.

  Args:
    one: a test set or a group, as `results.json` has them.
    metric: its name; it may be missing there.
    digits: those after the point.
  """
  value = one["metrics"].get(metric)
  text = "not measured" if value is None else f"{value:.{digits}f}"
  return f"{text} {interval_text(one, metric, '[{:.4f}, {:.4f}]')}".rstrip()


def group_columns(groups: Sequence[Mapping[str, Any]]) -> list[str]:
  """The headings of a table of `group_rows`."""
  return ["number", *(group_label(group["name"]) for group in groups)]


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
    rows.append([metric, *(metric_text(one, metric, 4) for one in groups)])
  return rows
