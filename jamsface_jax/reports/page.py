"""The self-contained page of one run or several."""

from collections.abc import Sequence

from jamsface_jax.reports.document import asset, document
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
  return document(title, _body(title, sections), script=asset("report.js"))


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
    element("script", asset("report.js")),
  ]
  return element("body", joined(parts))


def _anchor(name: str) -> str:
  return name.lower().replace(" ", "-")
