"""The PNG files of a run and of an evaluation: figures for papers."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from jamsface_jax import interruption
from jamsface_jax.errors import InputError
from jamsface_jax.metrics.roc import RocLine
from jamsface_jax.protocols.results import cmc
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports import class_profile, figures
from jamsface_jax.reports.figure import Figure
from jamsface_jax.storage.run_directory import PictureFolder, RunFile


def plot_training(
  file: RunFile, metrics: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> None:
  """Draws how a run went, a small panel a quantity that was logged.

  Args:
    file: the PNG file to write.
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
  _draw(file, panels)


def plot_margins(
  file: RunFile,
  class_sizes: Int[np.ndarray, " c"],
  margins: Mapping[str, Float[np.ndarray, " c"]],
) -> None:
  """Draws the margins of the classes against their sizes.

  Args:
    file: the PNG file to write.
    class_sizes: images of each class, at least 1.
    margins: the margins of each class by their kind, "angular" or "cosine".
  """
  profile = class_profile.describe(class_sizes, margins)["margins"]
  classes = len(class_sizes)
  _draw(
    file,
    [
      figures.margin_figure(kind, one, classes) for kind, one in profile.items()
    ],
  )


def plot_evaluations(
  folder: PictureFolder,
  evaluations: Sequence[Evaluation],
  others: Mapping[str, RocLine],
) -> None:
  """Draws the ROC of all sets together, and scores, hardest pairs and CMC.

  Args:
    folder: where the files go, made if missing.
    evaluations: what came out for all sets, perhaps none.
    others: further ROC curves, by the name to show.
  """
  if not evaluations:
    return
  folder.create()
  ours = {
    one.name: RocLine.of(one.score_counts.curve)
    for one in evaluations
    if one.score_counts
  }
  curves = {**ours, **others}
  if curves:
    title = "ROC" if len(curves) > 1 else f"ROC of {next(iter(curves))}"
    _draw(folder.picture("roc"), [figures.roc_figure(title, curves)])
  for one in evaluations:
    if one.score_counts:
      _draw(
        folder.picture(f"scores_{one.name}"),
        [
          figures.scores_figure(
            f"Scores of {one.name}",
            one.score_counts.negative_counts,
            one.score_counts.positive_counts,
            one.threshold,
          )
        ],
      )
      _draw(
        folder.picture(f"hardest_{one.name}"),
        figures.hardest_figures(
          one.score_counts.hardest_positives, one.score_counts.hardest_negatives
        ),
      )
    if one.searches:
      rates = {name: cmc(found) for name, found in one.searches.items()}
      _draw(
        folder.picture(f"cmc_{one.name}"),
        [figures.cmc_figure(f"Identification in {one.name}", {"": rates})],
      )


def _draw(file: RunFile, panels: Sequence[Figure]) -> None:
  # Here, since what draws takes long to import, and a run begins without it.
  with interruption.postponed():
    from jamsface_jax.reports import png

  png.draw(file, panels)
