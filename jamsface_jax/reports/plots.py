"""The PNG files of a run and of an evaluation: figures for papers."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jamsface_jax.errors import InputError
from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.protocols.results import cmc
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports import class_profile, figures
from jamsface_jax.reports.figure import Figure


def plot_training(
  path: str, metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
  """Draws how a run went, a small panel a quantity that was logged.

  Args:
    path: the PNG file to write.
    metrics: as `read_metrics` returns them.

  Raises:
    InputError: none of the metrics of a training run is there.
  """
  panels = [
    figure for figure in figures.training_figures({"": metrics}) if figure.lines
  ]
  if not panels:
    raise InputError(
      "metrics: none of the metrics of a training run is among them; give the"
      " metrics.jsonl of a run that has logged a step."
    )
  _draw(path, panels)


def plot_margins(
  path: str,
  class_sizes: Int[np.ndarray, " c"],
  margins: Mapping[str, Float[np.ndarray, " c"]],
) -> None:
  """Draws the margins of the classes against their sizes.

  Args:
    path: the PNG file to write.
    class_sizes: images of each class, at least 1.
    margins: the margins of each class by their kind, "angular" or "cosine".
  """
  profile = class_profile.describe(class_sizes, margins)["margins"]
  _draw(
    path, [figures.margin_figure(kind, one) for kind, one in profile.items()]
  )


def plot_evaluations(
  directory: str,
  evaluations: Sequence[Evaluation],
  others: Mapping[str, RocLine],
) -> None:
  """Draws the ROC of all sets together, and scores, hardest pairs and CMC.

  Args:
    directory: where the files go, made if missing.
    evaluations: what came out for all sets, perhaps none.
    others: further ROC curves, by the name to show.
  """
  if not evaluations:
    return
  os.makedirs(directory, exist_ok=True)

  def place(name: str) -> str:
    return os.path.join(directory, name.replace("/", "_") + ".png")

  ours = {
    one.name: RocLine.of(one.tally.curve) for one in evaluations if one.tally
  }
  curves = {**ours, **others}
  if curves:
    title = "ROC" if len(curves) > 1 else f"ROC of {next(iter(curves))}"
    _draw(place("roc"), [figures.roc_figure(title, curves)])
  for one in evaluations:
    if one.tally:
      _draw(
        place(f"scores_{one.name}"),
        [
          figures.scores_figure(
            f"Scores of {one.name}",
            one.tally.negative_counts,
            one.tally.positive_counts,
            one.threshold,
          )
        ],
      )
      _draw(
        place(f"hardest_{one.name}"),
        figures.hardest_figures(
          one.tally.hardest_positives, one.tally.hardest_negatives
        ),
      )
    if one.searches:
      rates = {name: cmc(found) for name, found in one.searches.items()}
      _draw(
        place(f"cmc_{one.name}"),
        [figures.cmc_figure(f"Identification in {one.name}", {"": rates})],
      )


def _draw(path: str, panels: Sequence[Figure]) -> None:
  # Here, since what draws takes long to import, and a run begins without it.
  from jamsface_jax.reports import png

  png.draw(path, panels)
