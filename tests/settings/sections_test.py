"""Every section refuses what cannot be meant, however it is made."""

import dataclasses

import pytest

from jamsface_jax.errors import InputError
from jamsface_jax.settings import sections
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.sections import Head, Settings


@pytest.mark.parametrize(
  ("setting", "value", "says"),
  [
    ("data.batch_size", 0, "above 0"),
    ("optimizer.weight_decay", -1.0, "negative"),
    ("head.margin_rule", "median", "one of mean, lambda, concentration"),
    ("head.margin_rule", "concentration", "set head.learn_angular=False"),
    ("head.concentration_share", 1.5, "between 0 and 1"),
    ("head.concentration_temperature", -1.0, "negative"),
    ("head.held", "none", "set head.held=classes"),
    ("head.elasticface.space", "both", "one of angular, cosine"),
    ("schedule.decay", "linear", "one of polynomial"),
    ("head.angular_margin", 0.9, "outside of head.angular_min"),
    ("head.cosine_max", 0.1, "outside of head.cosine_min"),
    ("schedule.warmup", 20.0, "leaves nothing"),
    ("optimizer.accumulation", 3, "does not divide"),
    ("model.batch_norm_group", 3, "examples of a micro-batch"),
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
    ("optimizer.name", "adam", "one of sgd, adamw, lars"),
    ("optimizer.gradient_dtype", "float16", "one of float32, bfloat16"),
    ("optimizer.gradient_dtype", "bfloat16", "needs model.dtype='bfloat16'"),
    ("optimizer.name", "lars", "set head.fused_update=False"),
    ("optimizer.trust_coefficient", 0.0, "above 0"),
    ("optimizer.last_scale", "auto", "one of by_loss, learned, fixed"),
    ("head.margin_momentum", -0.1, "negative"),
    ("optimizer.betas", (0.9, 1.0), "below 1"),
    ("optimizer.betas", (0.9,), "two numbers"),
    ("optimizer.eps", 0.0, "above 0"),
  ],
)
def test_bad_settings_are_named(setting, value, says):
  halves = replaced(Settings(), {"optimizer.accumulation": 2})
  with pytest.raises(InputError, match=says) as error:
    replaced(halves, {setting: value})
  assert setting in str(error.value)


@pytest.mark.parametrize(
  ("make", "name"),
  [
    (lambda: sections.Data(batch_size=0), "data.batch_size"),
    (lambda: sections.Augment(random_changes=9), "augment.random_changes"),
    (lambda: Head(scale=-1.0), "head.scale"),
    (lambda: Head(sample_rate=2.0), "head.sample_rate"),
    (lambda: sections.Optimizer(betas=(0.9,)), "optimizer.betas"),
    (lambda: sections.Schedule(warmup=30.0), "schedule.warmup"),
    (lambda: sections.Checkpoint(every=0), "checkpoint.every"),
    (lambda: sections.Evaluation(every=-1), "evaluation.every"),
    (lambda: Settings(seed=-1), "seed"),
    (lambda: Settings(profile_steps="1"), "profile_steps"),
    (
      lambda: dataclasses.replace(Head().elasticface, space="both"),
      "head.elasticface.space",
    ),
    (
      lambda: Settings(optimizer=sections.Optimizer(accumulation=3)),
      "optimizer.accumulation",
    ),
  ],
)
def test_sections_refuse_when_they_are_made(make, name):
  with pytest.raises(InputError, match=f"^{name}="):
    make()


def test_settings_do_not_change_and_are_keys():
  settings = Settings()
  with pytest.raises(dataclasses.FrozenInstanceError):
    settings.seed = 1  # ty: ignore[invalid-assignment]  # Refused: the test.
  assert {settings: 1}[Settings()] == 1
  assert hash(Settings(seed=1)) != hash(settings)


def test_a_sample_needs_the_fused_update():
  with pytest.raises(InputError, match="needs head.fused_update=True"):
    Head(sample_rate=0.1, fused_update=False)


def test_classes_of_a_batch_count_by_their_images_already():
  with pytest.raises(InputError, match="set head.count_power=0 or"):
    Head(rewarded="batch", count_power=0.5)


ANEW = {
  "margin_rule": "concentration",
  "learn_angular": False,
  "learn_cosine": False,
}


@pytest.mark.parametrize(
  ("settings", "says"),
  [
    (
      {"margin_power": 0.25, "margin_slope": 0.1},
      "both say what first margins",
    ),
    ({"margin_slope": 0.1, "margin_curve": "M.csv"}, "set one"),
    ({"margin_slope": 0.1, "held": "sizes"}, "set head.held to classes or"),
    (
      {"margin_slope": 0.1, "learn_angular": False, "angular_margin": 0.9},
      "outside of head.angular_min=0.0 to head.angular_max=0.8: margins that",
    ),
    ({"held": "people"}, "one of classes, images, sizes, none"),
    ({**ANEW, "learn_cosine": True}, "set head.learn_cosine=False"),
    ({**ANEW, "margin_power": 0.25}, "both say what margins are: set one"),
    (
      {**ANEW, "cosine_margin": 0.7},
      "outside of head.cosine_min=0.0 to head.cosine_max=0.6: margins that",
    ),
    ({"gradient_power": -1.0}, "negative"),
  ],
)
def test_first_margins_have_one_form_and_a_mean_that_it_can_have(
  settings, says
):
  with pytest.raises(InputError, match=says):
    Head(**settings)


def test_bounds_are_of_margins_whose_mean_is_held():
  Head(**ANEW, angular_margin=0.9, held="none")


def test_adjusted_logits_have_no_meaning_one_by_one():
  with pytest.raises(InputError, match="set head.logit_adjustment=0"):
    Head(loss="uniface", logit_adjustment=1.0)


def test_weighed_samples_have_no_meaning_one_by_one():
  with pytest.raises(InputError, match="set head.weigh_sample=False"):
    Head(loss="uniface", weigh_sample=True)


def test_logits_are_not_adjusted_to_classes_seen_alike():
  head = Head(logit_adjustment=1.0)
  Settings(head=head, data=sections.Data(sampling="square_root"))
  with pytest.raises(InputError, match="set one of them back"):
    Settings(head=head, data=sections.Data(sampling="class_balanced"))


def test_margin_in_degrees_is_refused():
  with pytest.raises(InputError, match="radians"):
    Head(angular_margin=28.6, learn_angular=False)


def test_steps_to_trace_are_both_included():
  assert Settings(profile_steps="3:5").profiled_steps == range(3, 6)
  assert not Settings().profiled_steps
