"""The self-contained page of one run or several."""

import base64
import functools
import hashlib
import importlib.resources
from collections.abc import Sequence

from jamsface_jax.reports.markup import Html, element, joined
from jamsface_jax.reports.run_record import RunRecord, read_runs
from jamsface_jax.reports.sections.classes import data_section, margins_section
from jamsface_jax.reports.sections.images import images_section
from jamsface_jax.reports.sections.origin import origin_section
from jamsface_jax.reports.sections.settings import settings_section
from jamsface_jax.reports.sections.summary import summary_section
from jamsface_jax.reports.sections.training import (
  time_section,
  training_section,
)
from jamsface_jax.reports.sections.verification import verification_section
from jamsface_jax.storage.run_directory import RunDirectory, RunFile
from jamsface_jax.version import __version__


def write(
  runs: Sequence[RunDirectory], output: RunFile, *, every_face: bool = False
) -> None:
  """Writes a page, whole or not at all.

  Args:
    runs: at least one; the first is what others are compared with.
    output: the HTML file.
    every_face: show images of data sets that are not synthetic too.

  Raises:
    InputError: see `read_runs`.
  """
  content = page(read_runs(runs), every_face=every_face)
  output.write_text(content)


def page(runs: Sequence[RunRecord], *, every_face: bool) -> str:
  """The whole page.

  Args:
    runs: at least one.
    every_face: see `write`.
  """
  sections = {
    "Summary": summary_section(runs),
    "Training": training_section(runs),
    "Verification": verification_section(runs),
    "Margins": margins_section(runs),
    "Data": data_section(runs),
    "Images": images_section(runs, every_face=every_face),
    "Time": time_section(runs),
    "Settings": settings_section(runs),
    "How it was run": origin_section(runs),
  }
  title = " and ".join(run.name for run in runs)
  parts = [_head(title), _body(title, sections)]
  return f"<!DOCTYPE html>\n{element('html', joined(parts), lang='en')}\n"


def _head(title: str) -> Html:
  style = _asset("report.css")
  # Whatever a name or a setting may hold: nothing but one style and one script
  # runs here, and nothing is fetched.
  policy = (
    f"default-src 'none'; img-src data:; style-src {_hash(style)};"
    f" script-src {_hash(_asset('report.js'))}"
  )
  viewport = "width=device-width, initial-scale=1"
  parts = [
    element("meta", charset="utf-8"),
    element("meta", http_equiv="Content-Security-Policy", content=policy),
    element("meta", name="viewport", content=viewport),
    element("meta", name="generator", content=f"jamsface_jax {__version__}"),
    element("title", f"{title}: jamsface_jax"),
    element("link", rel="icon", href="data:,"),
    element("style", style),
  ]
  return element("head", joined(parts))


def _body(title: str, sections: dict[str, Html]) -> Html:
  links = [
    element("li", element("a", name, href=f"#{_anchor(name)}"))
    for name in sections
  ]
  contents = element("nav", element("ul", *links), aria_label="Sections")
  shown = [
    element(
      "section",
      joined([element("h2", name, id=_anchor(name)), content]),
      aria_labelledby=_anchor(name),
    )
    for name, content in sections.items()
  ]
  parts = [
    element("header", joined([element("h1", title), contents])),
    element("main", joined(shown)),
    element("script", _asset("report.js")),
  ]
  return element("body", joined(parts))


@functools.cache
def _asset(name: str) -> Html:
  """A style or a script, in which HTML escapes nothing."""
  files = importlib.resources.files("jamsface_jax.reports")
  return Html(files.joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f"'sha256-{base64.b64encode(digest).decode()}'"


def _anchor(name: str) -> str:
  return name.lower().replace(" ", "-")
