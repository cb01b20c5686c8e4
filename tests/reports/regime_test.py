"""What is said of where a run ended."""

import math

import pytest

from jamsface_jax.reports.regime import describe_regime

MARGINS = {
  "train/margin_angular_mean": 0.15,
  "train/margin_angular_image_mean": 0.098,
  "train/margin_angular_by_size": 0.984,
}


@pytest.mark.parametrize(
  "p, words",
  [
    (0.95, "Trained to the end"),
    (0.6, "Nearly trained"),
    (0.2, "Not trained to the end"),
  ],
)
def test_how_sure_the_network_is(p, words):
  text = describe_regime({"train/cross_entropy": -math.log(p)})
  assert text.startswith(words)
  assert f"a p of {p:.2g} of the own class" in text


def test_margins_that_follow_from_size():
  text = describe_regime({"train/cross_entropy": 0.01, **MARGINS})
  assert text.endswith(
    " Learned margins: angular 0.15 rad over classes and 0.098 over images,"
    " 98.4% of their variance by the number of images."
  )
  assert "cosine" not in text


def test_nothing_is_said_of_what_was_not_measured():
  assert describe_regime({}) == ""
  unknown = {**MARGINS, "train/margin_angular_by_size": math.nan}
  assert describe_regime(unknown) == ""
