"""Settings by their names."""

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.settings.names import (
  flatten,
  meanings,
  replaced,
  settings_from,
  values,
)
from jamsface_jax.settings.sections import Settings


def test_every_setting_has_a_meaning():
  found = meanings()
  assert list(found) == list(values(Settings()))
  for name, meaning in found.items():
    assert meaning[0].isupper() and meaning.endswith("."), name
    assert len(meaning) > 12, name
    assert not meaning.startswith(("Of ", "Or ", "Likewise")), name


def test_names_are_those_of_the_sections():
  found = values(Settings())
  assert found["head.elasticface.deviation"] == 0.05
  assert found["data.batch_size"] == 1024 and found["seed"] == 0
  assert flatten({"a": {"b": {"c": 1}}, "d": (2,)}) == {"a.b.c": 1, "d": (2,)}


def test_settings_come_back_from_their_values():
  changes = {"head.uniface.weight": 2.0, "optimizer.accumulation": 2}
  changes |= {"head.fused_update": False, "model.stages": (1, 2)}
  settings = replaced(Settings(), changes)
  assert settings_from(values(settings)) == settings
  differ = values(settings).items() - values(Settings()).items()
  assert dict(differ) == changes
  assert settings.head.uniface.weight == 2.0


def test_values_as_json_has_them():
  settings = settings_from({"model.stages": [1, 2], "head.scale": 30})
  assert settings.model.stages == (1, 2)
  assert repr(settings.head.scale) == "30.0"


def test_values_of_another_kind_and_unknown_names():
  with pytest.raises(TypeError, match="head.scale='a', which is of another"):
    settings_from({"head.scale": "a"})
  with pytest.raises(TypeError, match="data.threads=1.5"):
    settings_from({"data.threads": 1.5})
  with pytest.raises(TypeError, match="head.scale=True"):
    settings_from({"head.scale": True})
  with pytest.raises(TypeError, match="augment.flip=1"):
    settings_from({"augment.flip": 1})
  with pytest.raises(KeyError, match="head.scales"):
    replaced(Settings(), {"head.scales": 1.0})
  with pytest.raises(InputError, match="head.scale=-1.0 must be above 0"):
    replaced(Settings(), {"head.scale": -1})
