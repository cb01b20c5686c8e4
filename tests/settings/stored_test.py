"""`config.json`: written, read, compared."""

import json

import pytest
from defaults_test import recipe

from jamsface_jax.errors import InputError
from jamsface_jax.settings.defaults import make_settings
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.stored import check_or_save, read_settings
from jamsface_jax.storage.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path):
  return RunDirectory(str(tmp_path))


def test_stored_settings_come_back(run):
  settings = make_settings(recipe("casia_r50"))
  check_or_save(settings, run)
  assert read_settings(run) == settings


def test_the_file_is_that_of_the_recipe(run):
  """As runs before had it, so that their directories go on."""
  config = recipe("demo")
  check_or_save(make_settings(config), run)
  text = json.dumps(config.to_dict(), indent=2) + "\n"
  assert run.config.read_text() == text


def test_one_process_of_several_writes(run):
  reader = RunDirectory(run.path, writes=False)
  check_or_save(make_settings(recipe("demo")), reader)
  assert not run.config.exists()


def test_a_run_before_adamw_goes_on(run):
  """Settings that its file lacks are what they were before they had names."""
  settings = make_settings(recipe("casia_r50"))
  check_or_save(settings, run)
  stored = run.config.read_json()
  for name in ("name", "betas", "eps"):
    del stored["optimizer"][name]
  run.config.write_json(stored)
  assert read_settings(run) == settings
  check_or_save(settings, run)
  with pytest.raises(InputError, match="name is 'sgd' there and 'adamw' here"):
    changed = replaced(settings, {"optimizer.name": "adamw"})
    check_or_save(changed, run)


def test_other_settings_are_refused_by_name(run):
  settings = make_settings(recipe("demo"))
  check_or_save(settings, run)
  # These may change; data are compared by content.
  free = {"mesh.model": 2, "data.directory": "elsewhere", "data.threads": 9}
  settings = replaced(settings, free)
  check_or_save(settings, run)
  with pytest.raises(InputError, match="seed is 0 there and 5 here") as error:
    changed = replaced(settings, {"head.scale": 30.0, "seed": 5})
    check_or_save(changed, run)
  assert "head.scale is 32.0 there and 30.0 here" in str(error.value)
  assert "mesh" not in str(error.value) and "data" not in str(error.value)


def test_not_a_work_directory(run):
  with pytest.raises(InputError, match="not a work directory"):
    read_settings(run)
  run.config.write_text("{")
  with pytest.raises(InputError, match="damaged"):
    read_settings(run)
  run.config.write_text('{"model": {"new": 1}}')
  with pytest.raises(InputError, match="'model.new'"):
    read_settings(run)
  run.config.write_text('{"model": {"width": "wide"}}')
  with pytest.raises(InputError, match="model.width='wide', which is of anoth"):
    read_settings(run)
