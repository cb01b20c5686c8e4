"""Where training ended, in a sentence: what its figures can be read for."""

import math
from collections.abc import Mapping

# Mean of p of the own class, which tell a trained network from a begun one.
_TRAINED, _BEGUN = 0.9, 0.5


def describe_regime(metrics: Mapping[str, float]) -> str:
  """Says how sure of its images the network has become, and of margins.

  Args:
    metrics: the last values of a run by name.

  Returns:
    One or two sentences; "" if nothing was logged.
  """
  return " ".join(filter(None, (_of_network(metrics), _of_margins(metrics))))


def _of_network(metrics: Mapping[str, float]) -> str:
  loss = metrics.get("train/cross_entropy", math.nan)
  if math.isnan(loss):
    return ""
  p = math.exp(-loss)
  figures = (
    f"the cross-entropy with margins is {loss:.3g} nats, a p of {p:.2g} of the"
    " own class"
  )
  if p >= _TRAINED:
    return f"Trained to the end: {figures}."
  if p >= _BEGUN:
    return f"Nearly trained to the end: {figures}."
  return (
    f"Not trained to the end: {figures}. What a loss does then depends on its"
    " strength and on the length of training; compare it with care."
  )


def _of_margins(metrics: Mapping[str, float]) -> str:
  texts = []
  for kind, unit in (("angular", " rad"), ("cosine", "")):
    share = metrics.get(f"train/margin_{kind}_by_size", math.nan)
    over_images = metrics.get(f"train/margin_{kind}_image_mean", math.nan)
    over_classes = metrics.get(f"train/margin_{kind}_mean", math.nan)
    # Only of margins that are learned, of classes that differ in size.
    if math.isnan(share + over_images + over_classes):
      continue
    texts.append(
      f"{kind} {over_classes:.3g}{unit} over classes and {over_images:.3g} over"
      f" images, {share:.1%} of their variance by the number of images"
    )
  return f"Learned margins: {'; '.join(texts)}." if texts else ""
