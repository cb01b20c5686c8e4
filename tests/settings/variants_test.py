"""Variants that every recipe has."""

import pathlib
import re

import pytest
from conftest import check_builds
from defaults_test import recipe

from jamsface_jax import head, models
from jamsface_jax.head.losses import make_loss
from jamsface_jax.settings.defaults import base_config, make_settings
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


def test_margins_are_those_of_the_papers():
  """Angular and cosine, first values; what else a paper fixes, below."""
  found = {
    word: (values["angular_margin"], values["cosine_margin"])
    for word, values in PUBLISHED.items()
  }
  assert found == {
    "softmax": (0.0, 0.0),
    "normface": (0.0, 0.0),
    "sphereface": (0.0, 0.0),
    "sphereface_r": (0.0, 0.0),
    "cosface": (0.0, 0.35),
    "arcface": (0.5, 0.0),
    "fixed_joint": (0.3, 0.2),
    "combined": (0.3, 0.2),
    "adacos": (0.0, 0.0),
    "adaptiveface": (0.0, 0.35),
    "ldam": (0.0, 0.5),
    "kappaface": (0.8, 0.0),
    "mv_softmax": (0.5, 0.0),
    "curricularface": (0.5, 0.0),
    "magface": (0.0, 0.0),
    "adaface": (0.0, 0.4),
    "elasticface": (0.5, 0.0),
    "elasticface_cos": (0.0, 0.35),
    "uniface": (0.0, 0.4),
    "jamsface": (0.3, 0.2),
  }
  assert PUBLISHED["elasticface"]["elasticface.space"] == "angular"
  assert PUBLISHED["elasticface_cos"]["elasticface.space"] == "cosine"
  assert PUBLISHED["sphereface_r"]["combined.m"] == 1.7
  assert PUBLISHED["ldam"]["margin_power"] == 0.25
  assert PUBLISHED["mv_softmax"]["mv_softmax.t"] == 1.2


@pytest.mark.parametrize("name", models.MODELS)
def test_tiny_keeps_the_family_of_the_network(name):
  config = base_config()
  config.model.name = name
  assert tiny(config).model.name == models.family(name)


def test_heads_of_the_page_are_those_of_the_words():
  """docs/head.md says what `head.make` takes for a word of the recipes."""
  page = pathlib.Path(__file__).parents[2] / "docs" / "head.md"
  rows = re.findall(
    r"^\| `(\w+)` \| (?:`(.*)`)? ?\|$", page.read_text(encoding="utf-8"), re.M
  )
  assert len(rows) >= 5
  names = {"losses": head.losses, "fixed": head.fixed, "make": head.make}
  for word, arguments in rows:
    made = eval(f"make(1000, 64, {arguments})", names)
    settings = make_settings(recipe("ms1m_r100", word)).head
    assert made.loss == make_loss(settings), word
    for margin, kind in ((made.angular, "angular"), (made.cosine, "cosine")):
      first = getattr(settings, f"{kind}_margin")
      learned = getattr(settings, f"learn_{kind}")
      assert (margin.initial, margin.learned) == (first, learned), word
      if learned:
        bounds = [getattr(settings, f"{kind}_{end}") for end in ("min", "max")]
        assert [margin.lower, margin.upper] == bounds
        assert margin.rule == settings.margin_rule
