"""What a run leaves for people: plots, report, model card."""

from collections.abc import Mapping

import numpy as np
from jax.experimental import multihost_utils

from jamsface_jax.data.sources import Source
from jamsface_jax.errors import one_line
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.metrics.rank_correlation import rank_correlation
from jamsface_jax.protocols import results
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports import class_profile, model_card, page, plots
from jamsface_jax.run.components import Components
from jamsface_jax.run.metrics_file import read_metrics
from jamsface_jax.run.progress import Progress
from jamsface_jax.run.state import TrainState
from jamsface_jax.storage.run_directory import RunDirectory


def gather_margins(state: TrainState) -> dict[str, np.ndarray]:
  """Both margins of all classes, [C] each, on every process."""
  margins = {
    name: state.params["head"][name]
    for name in (head_lib.ANGULAR, head_lib.COSINE)
  }
  return multihost_utils.process_allgather(margins, tiled=True)


def rank_margins(
  margins: Mapping[str, np.ndarray], source: Source, components: Components
) -> dict[str, float]:
  """Rank correlation of learned margins with class size, named as metrics.

  Below 0 where poor classes have the larger margins, as JAMsFace wants.
  """
  return {
    metric: rank_correlation(
      source.class_sizes, margins[name][: source.num_classes]
    )
    for metric, name in _rank_names(components).items()
  }


def _rank_names(components: Components) -> dict[str, str]:
  """The margins that are learned, by the metric of their rank correlation."""
  names = {
    "train/margin_angular_rank": head_lib.ANGULAR,
    "train/margin_cosine_rank": head_lib.COSINE,
  }
  return {
    metric: name
    for metric, name in names.items()
    if components.head.margin(name).learned
  }


def plot(
  run: RunDirectory,
  source: Source,
  margins: Mapping[str, np.ndarray],
  evaluations: list[Evaluation],
) -> None:
  """Draws what the run came to, as PNG files.

  Args:
    run: directory of the run; has the metrics, gets the files.
    source: gives the class sizes.
    margins: of all classes, [C].
    evaluations: the last ones.
  """
  run.plots.create()
  plots.plot_training(run.plots.picture("training"), read_metrics(run.metrics))
  by_kind = {
    "angular": margins[head_lib.ANGULAR][: source.num_classes],
    "cosine": margins[head_lib.COSINE][: source.num_classes],
  }
  plots.plot_margins(run.plots.picture("margins"), source.class_sizes, by_kind)
  plots.plot_evaluations(run.plots, evaluations, others={})


def show(
  run: RunDirectory,
  step: int,
  source: Source,
  margins: Mapping[str, np.ndarray],
  components: Components,
  evaluations: list[Evaluation],
  progress: Progress,
) -> None:
  """Writes `page, the model card and what they are made of.

  Whatever goes wrong is said and ends nothing: the run matters more.

  Args:
    run: directory of the run.
    step: finished steps.
    source: gives the class sizes.
    margins: of all classes, [C].
    components: say which margins are learned.
    evaluations: the last ones.
    progress: where to say it.
  """
  learned = {
    kind: margins[name][: source.num_classes]
    for kind, name in (
      ("angular", head_lib.ANGULAR),
      ("cosine", head_lib.COSINE),
    )
    if components.head.margin(name).learned
  }
  try:
    profile = class_profile.describe(source.class_sizes, learned)
    class_profile.write(run.classes, profile)
    results.write_results(run.results, evaluations, {"step": step})
    page.write([run], run.report)
    if not model_card.is_edited(run.model_card):
      model_card.write(run, run.model_card)
  except Exception as error:
    progress.note(
      f"step {step}: report.html was not written"
      f" ({one_line(error, None)}); the run goes on."
    )
