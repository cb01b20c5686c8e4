"""A search as a page to look at: a contact sheet, or a table without faces.

Faces are people: they are on it where the user asks for them.
"""

import base64
from collections.abc import Mapping, Sequence

import cv2

from jamsface_jax.data.images import Images
from jamsface_jax.reports.document import document
from jamsface_jax.reports.markup import (
  Html,
  element,
  joined,
  sentence,
  table,
)
from jamsface_jax.searching.finding import NOBODY, Finding

MOST = 1000  # Findings on a page that a browser opens at once.


def page(
  findings: Sequence[Finding],
  facts: Mapping[str, str],
  pictures: tuple[Images, Images] | None,
) -> str:
  """The whole page.

  Args:
    findings: those that are shown, by image.
    facts: what was searched how, in words, by heading.
    pictures: the images and those of the gallery, to be shown; None for a table
      without them.
  """
  rows = [[name, text] for name, text in facts.items()]
  parts = [
    element("h1", "Names"),
    table("What was searched", ["", ""], rows),
    element("h2", "Images"),
  ]
  if pictures is None:
    parts += [
      sentence("Without faces: they are people. --faces shows them."),
      _table(findings),
    ]
  else:
    parts.append(_sheet(findings, *pictures))
  body = element("body", element("main", joined(parts)))
  return document("Names", body)


def _table(findings: Sequence[Finding]) -> Html:
  """A line an image."""
  return table(
    "The nearest person of each image, and who else it may be",
    ["image", "name", "cosine", "others"],
    [
      [
        one.image,
        _name(one),
        f"{one.candidates[0].cosine:.3f}" if one.candidates else "",
        "; ".join(
          f"{other.person} {other.cosine:.3f}"
          for other in one.candidates[1 if one.name else 0 :]
        ),
      ]
      for one in findings
    ],
  )


def _sheet(
  findings: Sequence[Finding], images: Images, gallery: Images
) -> Html:
  """Each image beside the most alike of its nearest person."""
  figures = []
  for one in findings:
    shown = [_picture(images, one.number, one.image)]
    text = _name(one)
    if one.candidates:
      best = one.candidates[0]
      shown.append(_picture(gallery, best.row, best.image))
      text += f", cosine {best.cosine:.3f}"
      if one.name is None:
        text += f" to {best.person}"
    caption = element("figcaption", f"{text} ({one.image})")
    figures.append(element("figure", *shown, caption))
  return element("div", joined(figures), class_="faces")


def _name(one: Finding) -> str:
  return f"no answer: {one.broken}" if one.broken else one.name or NOBODY


def _picture(images: Images, number: int, name: str) -> Html:
  """An image as the network sees it."""
  block = images.read(number, number + 1)
  if block.broken:
    return Html()
  quality = [cv2.IMWRITE_JPEG_QUALITY, 85]
  _, jpeg = cv2.imencode(".jpg", block.pixels[0, :, :, ::-1], quality)
  data = base64.b64encode(jpeg.tobytes()).decode()
  return element("img", src=f"data:image/jpeg;base64,{data}", alt=name)
