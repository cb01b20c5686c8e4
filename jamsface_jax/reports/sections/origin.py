"""Commands, versions and devices of every start."""

from collections.abc import Sequence

from jamsface_jax.reports.facts import devices_text, version_rows
from jamsface_jax.reports.markup import (
  Html,
  element,
  folded,
  joined,
  sentence,
  table,
)
from jamsface_jax.reports.run_record import RunRecord


def origin_section(runs: Sequence[RunRecord]) -> Html:
  """How each run was started."""
  parts = []
  for run in runs:
    if len(runs) > 1:
      parts.append(element("h3", run.name))
    parts.append(_launches(run, f" of {run.name}" if len(runs) > 1 else ""))
  return joined(parts)


def _launches(run: RunRecord, of_run: str) -> Html:
  last = run.last_launch
  if not last:
    return sentence("Not known: the run is of a version that noted no starts.")
  launches = [
    [one["time"], f"{one['first']:,}", devices_text(one), one["command"]]
    for one in run.launches
  ]
  return joined(
    [
      element("p", "The exact command of the last start:"),
      element("pre", last["command"]),
      table(
        f"Versions and devices{of_run}",
        ["what", "last start"],
        [*version_rows(last), ["devices", devices_text(last)]],
      ),
      folded(
        "All starts",
        table(
          f"Starts{of_run}",
          ["time", "from step", "devices", "command"],
          launches,
        ),
      ),
    ]
  )
