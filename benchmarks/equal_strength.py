r"""Margins at equal strength: every run in one file, and the table of it.

  python benchmarks/equal_strength.py --collect=build/equal
  python benchmarks/equal_strength.py --collect=build/equal \
    --others=data/cfp_people
  python benchmarks/equal_strength.py --plot=docs/equal_strength.png

The first reads what `configs/ablation_equal.py` left, and writes one file of
all runs, benchmarks/equal_strength.json. The second also has every network
compare all pairs of other people, whom none was trained on, and writes
benchmarks/equal_strength_others.json; networks that are in it are not asked
again, so that more may follow, and nothing is written where the runs lie. All
print the tables; `--plot` draws their differences. The losses of
`configs/ablation.py`, which leaves its runs in the same directory, are a
comparison of their own: strength is another thing among them, and the
correction is for their number.

A row is compared with the row `fixed` on the same folds with the same seeds,
person by person: each of LFW's people with two images or more is tested once,
and counts as much as any other.

The interval is Student's over folds, each of which has people and trainings of
its own, so that both are in it; corrected for the number of rows (Bonferroni).
Beside it the standard error over people alone, as if training were exact, and
over seeds alone, as if these were all people there are.

Other people are the same for all folds. So a person's figure is the mean over
all networks of a row, less that over the networks of `fixed` with the same
folds and seeds, and the interval has both errors, over people and over
networks. Two folds share eight ninths of what they were trained on: over all
networks that could be, it is a little too narrow.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import scipy.stats

PRIMARY = "tar@1e-3"
OF_SET, KNOWN = "lfw_people", "lfw_known"
REFERENCE = "fixed"
LOSSES = (  # Rows of configs/ablation.py; the others are of ablation_equal.py.
  "adaface",
  "arcface",
  "cosface",
  "curricularface",
  "held_cosine",
  "softmax",
)
FILE = pathlib.Path(__file__).with_suffix(".json")
KEPT = (
  f"{OF_SET}/people_{PRIMARY}",
  f"{OF_SET}/{PRIMARY}",
  f"{OF_SET}/auc",
  f"{KNOWN}/accuracy",
  f"{KNOWN}/adjusted_accuracy",
  f"{KNOWN}/adjusted_accuracy_poor_half",
  f"{KNOWN}/adjusted_accuracy_rich_half",
  "train/cross_entropy",
  "train/accuracy",
  "train/margin_angular_mean",
  "train/margin_angular_image_mean",
  "train/margin_cosine_image_mean",
  "train/margin_angular_by_size",
)
LEVEL_ENOUGH = 0.5  # Points: an interval within it is called level.


@dataclasses.dataclass(frozen=True)
class Difference:
  """The primary figure of a row less that of the reference, in points of %.

  Attributes:
    estimate: the mean over people.
    over_people: its standard error, as if training were exact.
    over_training: its standard error over seeds or networks, as if there were
      no other people; nan: of one alone.
    reach: half of the corrected interval; nan if there is none.
    missing: what stands in the place of the verdict then.
  """

  estimate: float
  over_people: float
  over_training: float
  reach: float
  missing: str

  def cells(self, one: str) -> list[str]:
    """As a table has them; `one` stands for an error over one training."""
    found = [f"{self.estimate:+.2f}", f"{self.over_people:.2f}"]
    found.append(
      one if np.isnan(self.over_training) else f"{self.over_training:.2f}"
    )
    if np.isnan(self.reach):
      return [*found, "", self.missing]
    low, high = self.estimate - self.reach, self.estimate + self.reach
    return [*found, f"[{low:+.2f}, {high:+.2f}]", verdict(low, high)]


def main() -> None:
  """Reads the flags, collects if told to, prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--collect", default="", metavar="DIR")
  parser.add_argument("--others", default="", metavar="DATA")
  parser.add_argument("--runs", default=str(FILE), metavar="FILE")
  parser.add_argument("--plot", default="", metavar="FILE")
  args = parser.parse_args()
  path = pathlib.Path(args.runs)
  if args.collect:
    runs = collect(pathlib.Path(args.collect))
    if not runs:
      sys.exit(f"{args.collect} has no finished run: give what ablate wrote.")
    write(path, runs)
    print(f"{len(runs)} runs: {path}", file=sys.stderr)
  beside = path.with_name(f"{path.stem}_others.json")
  if args.others:
    if not args.collect:
      sys.exit("--others needs networks: give --collect=DIR.")
    embed_others(pathlib.Path(args.collect), args.others, beside)
  if not path.exists():
    sys.exit(f"{path} is not there: give --collect=DIR first.")
  panels = []
  for what, runs in comparisons(json.loads(path.read_text())):
    found = differences(runs, compare)
    print(table(runs, found, what) + "\n")
    panels.append((f"{what}, LFW's people", found))
  if beside.exists():
    for what, runs in comparisons(json.loads(beside.read_text())):
      found = differences(runs, compare_others)
      print(table_of_others(runs, found, what) + "\n")
      panels.append((f"{what}, other people", found))
  if args.plot:
    plot(panels, args.plot)


def write(path: pathlib.Path, runs: list[dict]) -> None:
  """Writes the file of all runs, a line a run."""
  runs = sorted(runs, key=lambda run: (run["row"], run["fold"], run["seed"]))
  lines = ",\n".join(json.dumps(run) for run in runs)
  path.write_text(f"[\n{lines}\n]\n")


def finished(output: pathlib.Path) -> Iterator[tuple[pathlib.Path, dict]]:
  """Each finished run's directory, and its row, fold and seed.

  Args:
    output: where `jamsface_jax.ablate` put its runs.
  """
  for summary in sorted(output.glob("*/*/*/summary.txt")):
    run = summary.parent
    fold = re.fullmatch(r"lfw_small-(?:r50,)?fold(\d+)", run.parents[1].name)
    seed = re.fullmatch(r"seed(\d+)", run.name)
    if fold and seed:
      place = {"fold": int(fold[1]), "seed": int(seed[1])}
      yield run, {"row": run.parent.name, **place}


def collect(output: pathlib.Path) -> list[dict]:
  """What each finished run measured, by row, fold and seed.

  Args:
    output: where `jamsface_jax.ablate` put its runs.
  """
  runs = []
  for run, place in finished(output):
    metrics = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
      metrics |= json.loads(line)
    sets = json.loads((run / "results.json").read_text())["sets"]
    people = next(one["people"] for one in sets if one["name"] == OF_SET)
    runs.append(
      {
        **place,
        "metrics": {
          name: round(metrics[name], 6)
          for name in KEPT
          if metrics.get(name) is not None
        },
        "people": {
          "label": people["label"],
          PRIMARY: [round(tar, 4) for tar in people[PRIMARY]],
        },
      }
    )
  return runs


def embed_others(output: pathlib.Path, data: str, path: pathlib.Path) -> None:
  """Compares all pairs of a data set by each finished run's network.

  Args:
    output: where `jamsface_jax.ablate` put its runs.
    data: the data set.
    path: the file of what came out; what it has is kept.
  """
  # Tables need no JAX, which takes seconds to load.
  from jamsface_jax.evaluation.judging import judge_network
  from jamsface_jax.protocols.test_set import JudgingSettings
  from jamsface_jax.storage.run_directory import RunDirectory

  runs = json.loads(path.read_text()) if path.exists() else []
  there = [
    {name: run[name] for name in ("row", "fold", "seed")} for run in runs
  ]
  wanted = JudgingSettings(
    fars=[1e-3], poolings=[], flip=None, plain=True, replicates=0
  )
  for directory, place in finished(output):
    if place in there:
      continue
    (found,), _ = judge_network(
      RunDirectory(str(directory)),
      f"{data}:all_pairs",
      protocol=None,
      step=None,
      flip=None,
      wanted=wanted,
    )
    metrics = {
      name.rpartition("/")[2]: round(value, 6)
      for name, value in found.metrics.items()
    }
    runs.append(
      {
        **place,
        "metrics": {name: metrics[name] for name in (PRIMARY, "auc")},
        # Of label 0, 1, ...
        PRIMARY: [round(float(tar), 3) for tar in found.people.tars[PRIMARY]],
      }
    )
    write(path, runs)


def comparisons(runs: list[dict]) -> list[tuple[str, list[dict]]]:
  """Runs that are compared with each other, and what differs among them."""
  losses = [run for run in runs if run["row"] in LOSSES]
  places = {(run["fold"], run["seed"]) for run in losses}
  beside = [
    run
    for run in runs
    if run["row"] == REFERENCE and (run["fold"], run["seed"]) in places
  ]
  margins = [run for run in runs if run["row"] not in LOSSES]
  return [
    (what, of_these)
    for what, of_these in (("margins", margins), ("losses", beside + losses))
    if of_these
  ]


def by_row(runs: list[dict]) -> tuple[dict[str, dict], list[str]]:
  """Runs by row, and by fold and seed; and the rows' names in order."""
  rows = defaultdict(dict)
  for run in runs:
    rows[run["row"]][run["fold"], run["seed"]] = run
  return rows, sorted(rows, key=lambda row: (row != REFERENCE, row))


def differences(
  runs: list[dict], compare: Callable[..., Difference]
) -> dict[str, Difference]:
  """By the names of all rows but the reference."""
  rows, names = by_row(runs)
  return {
    name: compare(rows[name], rows[REFERENCE], rows=len(names) - 1)
    for name in names
    if name != REFERENCE
  }


def plot(panels: list[tuple[str, dict[str, Difference]]], path: str) -> None:
  """Draws the differences of all comparisons with their intervals."""
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(
    -(-len(panels) // 2), 2, figsize=(9, 5.4), sharex=True, squeeze=False
  )
  for ax, (title, found) in zip(axes.flat, panels, strict=False):
    places = range(len(found))[::-1]
    estimates = [one.estimate for one in found.values()]
    reaches = [np.nan_to_num(one.reach) for one in found.values()]
    ax.axvspan(-LEVEL_ENOUGH, LEVEL_ENOUGH, color="0.92")
    ax.axvline(0, color="0.5", linewidth=1)
    ax.errorbar(estimates, places, xerr=reaches, fmt="o", capsize=3)
    ax.set_yticks(list(places), list(found))
    ax.set_ylim(-0.6, len(found) - 0.4)
    ax.set_title(title, fontsize=10)
  for ax in axes.flat[len(panels) :]:
    ax.set_visible(False)
  for ax in axes[-1]:
    ax.set_xlabel(f"points of mean TAR less those of '{REFERENCE}'")
  figure.tight_layout()
  figure.savefig(path, dpi=110)


def body(
  runs: list[dict],
  found: dict[str, Difference],
  one: str,
  figures: Callable[[dict], list[str]],
) -> list[str]:
  """The lines of a table, the reference's first.

  Args:
    runs: one of the `comparisons`.
    found: their `differences`.
    one: see `Difference.cells`.
    figures: of the runs of a row, what stands before the difference, and all
      that stands behind it.
  """
  rows, names = by_row(runs)
  lines = []
  for name in names:
    cells = found[name].cells(one) if name in found else [""] * 5
    before, *behind = figures(rows[name])
    lines.append(f"| {' | '.join([name, before, *cells, *behind])} |")
  return lines


def table(runs: list[dict], found: dict[str, Difference], what: str) -> str:
  """One of the `comparisons` with its `differences`, as Markdown."""

  def figures(of_row: dict) -> list[str]:
    return [
      f"{100 * mean(of_row, f'{OF_SET}/people_{PRIMARY}'):.1f}",
      f"{100 * mean(of_row, f'{OF_SET}/{PRIMARY}'):.1f}",
      f"{100 * mean(of_row, f'{KNOWN}/adjusted_accuracy'):.1f}",
      f"{mean(of_row, 'train/cross_entropy'):.2f}",
      f"{mean(of_row, 'train/margin_angular_image_mean'):.3f},"
      f" {mean(of_row, 'train/margin_cosine_image_mean'):.3f}",
    ]

  rows, _ = by_row(runs)
  lines = [
    f"| {what} | people | difference | over people | over seeds | interval"
    " | verdict | pairs | known people | cross-entropy | mean over images |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
    *body(runs, found, "one seed", figures),
  ]
  folds = {fold for fold, _ in rows[REFERENCE]}
  seeds = {seed for _, seed in rows[REFERENCE]}
  people = sum(
    len(run["people"]["label"])
    for (_, seed), run in rows[REFERENCE].items()
    if seed == min(seeds)
  )
  lines.append(
    f"\n{len(runs)} runs; {len(folds)} folds, {len(seeds)} seed(s),"
    f" {people:,} people; in points of % where not said otherwise."
  )
  return "\n".join(lines)


def table_of_others(
  runs: list[dict], found: dict[str, Difference], what: str
) -> str:
  """As `table`, on other people."""

  def figures(of_row: dict) -> list[str]:
    return [
      f"{100 * np.mean([run[PRIMARY] for run in of_row.values()]):.2f}",
      f"{100 * mean(of_row, PRIMARY):.2f}",
      f"{100 * mean(of_row, 'auc'):.2f}",
      f"{len(of_row)}",
    ]

  lines = [
    f"| {what} | other people | difference | over people | over networks"
    " | interval | verdict | pairs | AUC | networks |",
    "|---|---|---|---|---|---|---|---|---|---|",
    *body(runs, found, "", figures),
  ]
  lines.append(
    f"\n{len(runs)} networks; {len(runs[0][PRIMARY]):,} other people; in points"
    " of %."
  )
  return "\n".join(lines)


def compare_others(ours: dict, reference: dict, *, rows: int) -> Difference:
  """As `compare`, of people who are the same for all networks.

  Args:
    ours: its runs by fold and seed.
    reference: those of the reference.
    rows: how many rows are compared, for the correction.
  """
  points = np.array(  # [networks, people]
    [
      100 * np.subtract(ours[place][PRIMARY], reference[place][PRIMARY])
      for place in sorted(ours.keys() & reference.keys())
    ]
  )
  estimate = float(points.mean())
  networks, people = points.shape
  over_people = points.mean(axis=0).std(ddof=1) / np.sqrt(people)
  if networks < 2:
    return Difference(estimate, over_people, np.nan, np.nan, "one network")
  over_networks = points.mean(axis=1).std(ddof=1) / np.sqrt(networks)
  # People and networks are drawn apart from each other.
  spread = np.hypot(over_people, over_networks)
  degrees = min(networks, people) - 1
  reach = spread * scipy.stats.t.ppf(1 - 0.025 / rows, degrees)
  return Difference(estimate, over_people, over_networks, reach, "")


def mean(of_row: dict, metric: str) -> float:
  """The mean of a metric over the runs of a row."""
  return float(
    np.mean([run["metrics"].get(metric, np.nan) for run in of_row.values()])
  )


def compare(ours: dict, reference: dict, *, rows: int) -> Difference:
  """The primary figure of a row less that of the reference, fold by fold.

  Args:
    ours: its runs by fold and seed.
    reference: those of the reference.
    rows: how many rows are compared, for the correction.
  """
  by_fold = defaultdict(list)
  for place in sorted(ours.keys() & reference.keys()):
    difference = 100 * np.subtract(
      ours[place]["people"][PRIMARY], reference[place]["people"][PRIMARY]
    )
    by_fold[place[0]].append(difference)
  # [seeds, people] of each fold; a person weighs the same in all of them.
  stacks = [np.array(of_fold) for of_fold in by_fold.values()]
  weights = np.array([of_fold.shape[1] for of_fold in stacks], float)
  weights /= weights.sum()
  of_people = np.concatenate([of_fold.mean(axis=0) for of_fold in stacks])
  means = np.array([of_fold.mean() for of_fold in stacks])
  estimate = float(weights @ means)
  over_people = of_people.std(ddof=1) / np.sqrt(len(of_people))
  over_seeds = np.nan
  if all(len(of_fold) > 1 for of_fold in stacks):
    variances = [
      of_fold.mean(axis=1).var(ddof=1) / len(of_fold) for of_fold in stacks
    ]
    over_seeds = np.sqrt(weights**2 @ variances)
  if len(means) < 2:
    return Difference(estimate, over_people, over_seeds, np.nan, "one fold")
  # Folds weigh by their people, who are nearly as many in each.
  spread = np.sqrt(weights @ (means - estimate) ** 2 / (len(means) - 1))
  reach = spread * scipy.stats.t.ppf(1 - 0.025 / rows, len(means) - 1)
  return Difference(estimate, over_people, over_seeds, reach, "")


def verdict(low: float, high: float) -> str:
  """What an interval of the difference says."""
  if low > 0:
    return "better"
  if high < 0:
    return "worse"
  if -LEVEL_ENOUGH < low and high < LEVEL_ENOUGH:
    return "level"
  return "not settled"


if __name__ == "__main__":
  main()
