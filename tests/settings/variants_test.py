"""Variants that every recipe has."""

import pytest
from conftest import check_builds
from defaults_test import recipe

from jamsface_jax import models
from jamsface_jax.settings.defaults import base_config
from jamsface_jax.settings.variants import PUBLISHED, tiny


@pytest.mark.parametrize("word", PUBLISHED)
def test_any_recipe_with_any_loss(word):
  config = recipe("ms1m_r100", f"tiny,{word}")
  check_builds(config)
  assert config.data.image_size == 32
  before = recipe("ms1m_r100").head.to_dict()
  for name, value in PUBLISHED[word].items():
    stored = config.head.to_dict()
    for part in name.split("."):
      stored = stored[part]
    assert stored == value
  # ms1m_r100 is JAMsFace as it stands.
  assert (recipe("ms1m_r100", word).head.to_dict() == before) == (
    word == "jamsface"
  )


@pytest.mark.parametrize("name", models.MODELS)
def test_tiny_keeps_the_family_of_the_network(name):
  config = base_config()
  config.model.name = name
  assert tiny(config).model.name == models.family(name)
