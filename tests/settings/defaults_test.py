"""From the defaults over recipes to settings."""

import importlib
import pathlib
import re

import pytest
from conftest import check_builds

from jamsface_jax.errors import InputError
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.names import flatten, values
from jamsface_jax.settings.sections import Settings

ROOT = pathlib.Path(__file__).parents[2]
RECIPES = sorted(
  path.stem
  for path in (ROOT / "configs").glob("[a-z]*.py")
  if not path.stem.startswith("ablation")  # Says which recipes to compare.
)
GOLDEN = ROOT / "tests" / "golden"


def recipe(name, *variant):
  return importlib.import_module(f"configs.{name}").get_config(*variant)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("variant", ["full", "tiny"])
def test_recipes_are_valid(name, variant):
  """And nothing of them is lost or changed where they become settings."""
  config = recipe(name, variant)
  settings = check_builds(config)
  assert values(settings) == flatten(config.to_dict())


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_what_they_were(name):
  """A changed recipe changes results: that must be seen in review."""
  lines = [
    f"{key} = {value!r}\n"
    for key, value in flatten(recipe(name).to_dict()).items()
  ]
  path = GOLDEN / f"{name}.txt"
  assert path.read_text() == "".join(lines), (
    f"If the change is meant, write the new lines to {path}:\n{''.join(lines)}"
  )


def test_the_defaults_are_those_of_the_sections():
  assert make_settings(base_config()) == Settings()
  # Recipes and flags may give a whole number for a fraction.
  config = base_config()
  config.head.scale = 30
  assert repr(make_settings(config).head.scale) == "30.0"


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant(name):
  with pytest.raises(InputError, match="use one of full, tiny"):
    recipe(name, "huge")


def test_no_hidden_defaults():
  for folder in ("jamsface_jax", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      assert not re.search(r"(config|settings)\.get\(", path.read_text()), path
