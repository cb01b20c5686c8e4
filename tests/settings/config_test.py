import importlib
import json
import pathlib
import re

import pytest

from jamsface_jax import config as config_lib
from jamsface_jax.errors import InputError
from jamsface_jax.storage.run_directory import RunDirectory

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
  config_lib.validate(recipe(name, variant))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_what_they_were(name):
  """A changed recipe changes results: that must be seen in review."""
  lines = [
    f"{key} = {value!r}\n"
    for key, value in config_lib.flatten(recipe(name).to_dict()).items()
  ]
  path = GOLDEN / f"{name}.txt"
  assert path.read_text() == "".join(lines), (
    f"If the change is meant, write the new lines to {path}:\n{''.join(lines)}"
  )


def test_a_sample_needs_the_fused_update():
  config = config_lib.base_config()
  config.head.sample_rate, config.head.fused_update = 0.1, False
  with pytest.raises(InputError, match="needs head.fused_update=True"):
    config_lib.validate(config)


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant(name):
  with pytest.raises(InputError, match="use one of full, tiny"):
    recipe(name, "huge")


@pytest.mark.parametrize("word", config_lib.PUBLISHED)
def test_any_recipe_with_any_loss(word):
  config = recipe("ms1m_r100", f"tiny,{word}")
  config_lib.validate(config)
  assert config.data.image_size == 32
  before = recipe("ms1m_r100").head.to_dict()
  for name, value in config_lib.PUBLISHED[word].items():
    stored = config.head.to_dict()
    for part in name.split("."):
      stored = stored[part]
    assert stored == value
  # ms1m_r100 is JAMsFace as it stands.
  assert (recipe("ms1m_r100", word).head.to_dict() == before) == (
    word == "jamsface"
  )


def test_classes_of_a_batch_count_by_their_images_already():
  config = recipe("demo", "jamsface")
  config.head.rewarded, config.head.count_power = "batch", 0.5
  with pytest.raises(InputError, match="set head.count_power=0 or"):
    config_lib.validate(config)


def test_adjusted_logits_have_no_meaning_one_by_one():
  config = recipe("demo", "uniface")
  config.head.logit_adjustment = 1.0
  with pytest.raises(InputError, match="set head.logit_adjustment=0"):
    config_lib.validate(config)


def test_logits_are_not_adjusted_to_classes_seen_alike():
  config = recipe("demo", "cosface")
  config.head.logit_adjustment = 1.0
  config.data.sampling = "square_root"
  config_lib.validate(config)
  config.data.sampling = "class_balanced"
  with pytest.raises(InputError, match="set one of them back"):
    config_lib.validate(config)


def test_weighed_samples_have_no_meaning_one_by_one():
  config = recipe("demo", "uniface")
  config.head.weigh_sample = True
  with pytest.raises(InputError, match="set head.weigh_sample=False"):
    config_lib.validate(config)


@pytest.mark.parametrize(
  ("setting", "value", "says"),
  [
    ("data.batch_size", 0, "above 0"),
    ("optimizer.weight_decay", -1.0, "negative"),
    ("head.margin_rule", "median", "one of mean, lambda"),
    ("head.loss", "arcface", "one of joint, softmax"),
    ("head.elasticface.space", "both", "one of angular, cosine"),
    ("schedule.decay", "linear", "one of polynomial"),
    ("head.angular_margin", 0.9, "outside of head.angular_min"),
    ("head.cosine_max", 0.1, "outside of head.cosine_min"),
    ("schedule.warmup", 20.0, "leaves nothing"),
    ("optimizer.accumulation", 3, "does not divide"),
    ("optimizer.accumulation", 2, "set head.fused_update=False"),
    ("head.sample_rate", 1.5, "at most 1"),
    ("head.sample_rate", 0.0, "above 0"),
    ("head.sub_centers", 0, "above 0"),
    ("head.scale", float("nan"), "above 0"),
    ("profile_steps", "15:10", "first and the last"),
    ("profile_steps", "a:b", "first and the last"),
    ("augment.blur", 1.5, "between 0 and 1"),
    ("augment.strength", -0.1, "between 0 and 1"),
    ("augment.random_changes", 9, "at most 8"),
    ("data.sampling", "fair", "one of uniform, class_balanced"),
    ("optimizer.name", "adam", "one of sgd, adamw"),
    ("optimizer.betas", (0.9, 1.0), "below 1"),
    ("optimizer.betas", (0.9,), "two numbers"),
    ("optimizer.eps", 0.0, "above 0"),
  ],
)
def test_bad_settings_are_named(setting, value, says):
  config = config_lib.base_config()
  config.update_from_flattened_dict({setting: value})
  with pytest.raises(InputError, match=says) as error:
    config_lib.validate(config)
  assert setting in str(error.value)


def test_margin_in_degrees_is_refused():
  config = config_lib.base_config()
  config.head.angular_margin, config.head.learn_angular = 28.6, False
  with pytest.raises(InputError, match="radians"):
    config_lib.validate(config)


def test_stored_config_comes_back(tmp_path):
  config = recipe("casia_r50")
  config_lib.check_or_save(config, RunDirectory(str(tmp_path)))
  assert (
    config_lib.read_config(RunDirectory(str(tmp_path))).to_dict()
    == config.to_dict()
  )


def test_a_run_before_adamw_goes_on(tmp_path):
  """Settings that its file lacks are what they were before they had names."""
  config = recipe("casia_r50")
  config_lib.check_or_save(config, RunDirectory(str(tmp_path)))
  path = tmp_path / "config.json"
  stored = json.loads(path.read_text())
  for name in ("name", "betas", "eps"):
    del stored["optimizer"][name]
  path.write_text(json.dumps(stored))
  assert (
    config_lib.read_config(RunDirectory(str(tmp_path))).to_dict()
    == config.to_dict()
  )
  config_lib.check_or_save(config, RunDirectory(str(tmp_path)))
  config.optimizer.name = "adamw"
  with pytest.raises(InputError, match="name is 'sgd' there and 'adamw' here"):
    config_lib.check_or_save(config, RunDirectory(str(tmp_path)))


def test_other_settings_are_refused_by_name(tmp_path):
  config = recipe("demo")
  config_lib.check_or_save(config, RunDirectory(str(tmp_path)))
  config.mesh.model = 2  # May change.
  config.data.directory = "elsewhere"  # Compared by content.
  config_lib.check_or_save(config, RunDirectory(str(tmp_path)))
  config.head.scale, config.seed = 30.0, 5
  with pytest.raises(InputError, match="seed is 0 there and 5 here") as error:
    config_lib.check_or_save(config, RunDirectory(str(tmp_path)))
  assert "head.scale is 32.0 there and 30.0 here" in str(error.value)
  assert "mesh" not in str(error.value)


def test_not_a_work_directory(tmp_path):
  with pytest.raises(InputError, match="not a work directory"):
    config_lib.read_config(RunDirectory(str(tmp_path)))
  (tmp_path / "config.json").write_text("{")
  with pytest.raises(InputError, match="damaged"):
    config_lib.read_config(RunDirectory(str(tmp_path)))
  (tmp_path / "config.json").write_text('{"model": {"new": 1}}')
  with pytest.raises(InputError, match="'model.new'"):
    config_lib.read_config(RunDirectory(str(tmp_path)))


def test_no_hidden_defaults():
  for folder in ("jamsface_jax", "configs"):
    for path in (ROOT / folder).rglob("*.py"):
      assert not re.search(r"(config|settings)\.get\(", path.read_text()), path


def test_every_setting_says_what_it_is():
  text = (ROOT / "jamsface_jax" / "config.py").read_text()
  declared = text[text.index("def base_config") : text.index("def tiny")]
  for line in declared.splitlines():
    if re.match(r"  config\.[\w.]+ = (?!ConfigDict)", line):
      assert "  # " in line, line
