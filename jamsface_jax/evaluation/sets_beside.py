"""Test sets that lie beside the training data, as its publishers' do."""

import os

from jamsface_jax.data import records
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Settings


def choose_beside(settings: Settings) -> tuple[Settings, list[str]]:
  """Evaluates on the sets of `evaluation.beside` where `data` names none.

  Args:
    settings: those of the run.

  Returns:
    The settings with the sets that are there as `evaluation.data`, and the
    directories of those that are not.
  """
  chosen = settings.evaluation
  if chosen.data or not settings.data.directory:
    return settings, []
  first = settings.data.directory.split(",")[0]
  folder = os.path.dirname(first.rstrip("/"))
  places = [
    os.path.join(folder, name) for name in chosen.beside.split(",") if name
  ]
  there = [place for place in places if _is_data_set(place)]
  missing = [place for place in places if place not in there]
  return replaced(settings, {"evaluation.data": ",".join(there)}), missing


def _is_data_set(place: str) -> bool:
  return os.path.exists(os.path.join(place, records.INDEX_FILE))
