"""Whether the data of a comparison are there, before dozens of runs begin."""

import runpy

from jamsface_jax.ablation.comparison import Comparison, Words
from jamsface_jax.data.records import RecordReader
from jamsface_jax.data.sources import open_source
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.tasks import open_tasks
from jamsface_jax.settings.defaults import make_settings
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.recipe_flags import find_recipe
from jamsface_jax.settings.sections import Settings

# Settings that name data.
_PLACES = ("data.directory", "evaluation.data", "evaluation.known")


def check_data(comparison: Comparison) -> None:
  """Opens the data of every recipe, as its runs will.

  Args:
    comparison: what is compared.

  Raises:
    InputError: data are missing or damaged; names the recipe.
  """
  tuning = comparison.tuning.settings if comparison.tuning else ()
  seen = set()
  for recipe in comparison.recipes:
    for variant, *words in comparison.rows.values():
      for further in ((), tuning):
        settings = _settings_of(recipe, variant, (*words, *further))
        chosen = settings.evaluation
        places = settings.data.directory, chosen.data, chosen.known
        if places not in seen:
          seen.add(places)
          _open(recipe, settings)


def _settings_of(recipe: str, variant: str, words: Words) -> Settings:
  """What a run is trained with, as far as its data go."""
  path, _, own = recipe.partition(":")
  get_config = runpy.run_path(find_recipe(path))["get_config"]
  config = get_config(",".join(filter(None, (own, variant))))
  named = dict(word.partition("=")[::2] for word in words)
  places = {name: named[name] for name in _PLACES if name in named}
  return replaced(make_settings(config), places)


def _open(recipe: str, settings: Settings) -> None:
  try:
    open_source(settings.data)
    open_tasks(settings.evaluation.data, settings.data.image_size)
    for known in filter(None, settings.evaluation.known.split(",")):
      RecordReader(known)
  except InputError as error:
    raise InputError(f"recipe {recipe!r}: {error}") from None
