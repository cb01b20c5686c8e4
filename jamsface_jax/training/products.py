"""What a run leaves for people: plots, report, model card."""

from collections.abc import Mapping, Sequence

import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Float32, Int

from jamsface_jax.data.sources import Source
from jamsface_jax.errors import one_line
from jamsface_jax.head.parameters import ANGULAR, COSINE, Head
from jamsface_jax.metrics.rank_correlation import rank_correlation
from jamsface_jax.metrics.share_explained import share_explained
from jamsface_jax.protocols import results
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports import class_profile, model_card, page, plots
from jamsface_jax.run.margin_curve import write_curve
from jamsface_jax.run.metrics_file import read_metrics
from jamsface_jax.run.progress import Progress
from jamsface_jax.run.state import TrainState
from jamsface_jax.storage.run_directory import RunDirectory

# Both margins of all classes, padded ones too, by their names in the head.
Margins = Mapping[str, Float32[np.ndarray, " c"]]

_KINDS = {"angular": ANGULAR, "cosine": COSINE}


def gather_margins(state: TrainState) -> Margins:
  """Both margins of all classes, float32 [C] each, on every process."""
  margins = {name: state.params["head"][name] for name in _KINDS.values()}
  return multihost_utils.process_allgather(margins, tiled=True)


def measure_margins(
  margins: Margins, class_sizes: Int[np.ndarray, " n"], head: Head
) -> dict[str, float]:
  """What margins have to do with class size, named as metrics.

  Of both kinds the mean over images, which is what a batch sees; where poor
  classes have the larger margins it is below that over classes. Of those that
  are learned, or made anew each epoch, the rank correlation with class size,
  below 0 where poor classes have the larger ones, as JAMsFace wants; and the
  share of their variance that the exact size explains, 1 where they follow from
  it and from nothing else.

  Args:
    margins: see `gather_margins`.
    class_sizes: images of each class.
    head: says which margins change.
  """
  found = {}
  for kind, name in _KINDS.items():
    m_n = margins[name][: len(class_sizes)].astype(np.float64)
    mean = float(np.average(m_n, weights=class_sizes))
    found[f"train/margin_{kind}_image_mean"] = mean
    margin = head.margin(name)
    if margin.learned or margin.made_anew:
      rank = rank_correlation(class_sizes, m_n)
      found[f"train/margin_{kind}_rank"] = rank
      share = share_explained(class_sizes, m_n)
      found[f"train/margin_{kind}_by_size"] = share
  return found


class Products:
  """Writes the plots, the report and the card of a run, where it may write.

  Args:
    run: directory of the run.
    source: the training data.
    head: says which margins are learned.
    progress: told when something could not be written.
  """

  def __init__(
    self, run: RunDirectory, source: Source, head: Head, progress: Progress
  ):
    self._run = run
    self._class_sizes = source.class_sizes
    self._head = head
    self._progress = progress

  def _of_classes(
    self, margins: Margins, *, learned: bool
  ) -> dict[str, Float32[np.ndarray, " n"]]:
    """Margins of real classes by their kind: all, or those that are learned."""
    return {
      kind: margins[name][: len(self._class_sizes)]
      for kind, name in _KINDS.items()
      if self._head.margin(name).learned or not learned
    }

  def plot(self, margins: Margins, evaluations: Sequence[Evaluation]) -> None:
    """Draws what the run came to, as PNG files.

    Args:
      margins: see `gather_margins`.
      evaluations: the last ones.
    """
    if not self._run.writes:
      return
    folder = self._run.plots
    folder.create()
    metrics = read_metrics(self._run.metrics)
    plots.plot_training(folder.picture("training"), metrics)
    plots.plot_margins(
      folder.picture("margins"),
      self._class_sizes,
      self._of_classes(margins, learned=False),
    )
    plots.plot_evaluations(folder, evaluations, others={})

  def write_report(
    self, step: int, margins: Margins, evaluations: Sequence[Evaluation]
  ) -> None:
    """Writes the page, the model card and what they are made of.

    Whatever goes wrong is said and ends nothing: the run matters more.

    Args:
      step: finished steps.
      margins: see `gather_margins`.
      evaluations: the last ones.
    """
    run = self._run
    if not run.writes:
      return
    try:
      learned = self._of_classes(margins, learned=True)
      profile = class_profile.describe(self._class_sizes, learned)
      class_profile.write(run.classes, profile)
      every = self._of_classes(margins, learned=False)
      write_curve(run.margin_curve, self._class_sizes, every)
      results.write_results(run.results, evaluations, {"step": step})
      page.write([run], run.report)
      if not model_card.is_edited(run.model_card):
        model_card.write(run, run.model_card)
    except Exception as error:
      self._progress.note(
        f"step {step}: report.html was not written"
        f" ({one_line(error, None)}); the run goes on."
      )
