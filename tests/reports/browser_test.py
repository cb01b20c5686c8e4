"""The report in a browser: nothing fails, nothing is fetched, all is drawn."""

import shutil

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from report_test import TITLES, make_run, written

_CHROMIUM = next(
  filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None
)
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]

# Of each figure: its caption, and whether each mark of its drawing has a place
# on the page.
_DRAWN = """
[...document.querySelectorAll("figure:has(svg)")].map(figure => ({
  title: figure.querySelector("figcaption").textContent,
  marks: [...figure.querySelectorAll("svg path, svg rect, svg circle")].filter(
    mark => mark.getBoundingClientRect().width > 0
  ).length,
  left: figure.getBoundingClientRect().left,
  right: figure.getBoundingClientRect().right,
}))
"""


@pytest.fixture(scope="module")
def browser():
  if _CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium")
  with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=_CHROMIUM, args=_FLAGS)
    yield browser
    browser.close()


@pytest.fixture
def address(tmp_path, monkeypatch):
  workdir = make_run(tmp_path / "w", monkeypatch=monkeypatch)
  written(workdir)
  return (workdir / "out.html").as_uri()


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_all_is_drawn_and_nothing_fetched(browser, address, width, scheme):
  context = browser.new_context(
    viewport={"width": width, "height": 900}, color_scheme=scheme
  )
  page = context.new_page()
  said, asked = [], []
  page.on("console", lambda message: said.append(message.text))
  page.on("pageerror", lambda error: said.append(str(error)))
  page.on("request", lambda request: asked.append(request.url))
  page.goto(address, wait_until="load")
  figures = page.evaluate(_DRAWN)
  titles = [figure["title"] for figure in figures]
  for title in TITLES:
    assert any(one.startswith(title) for one in titles), (title, titles)
  for figure in figures:
    assert figure["marks"] > 0, figure
    assert 0 <= figure["left"] and figure["right"] <= width, figure
  # The page itself does not scroll sideways.
  assert page.evaluate("document.documentElement.scrollWidth") <= width
  # A chart answers the keyboard with its numbers.
  slider = page.locator("figure[data-chart] input[type=range]").first
  output = page.locator("figure[data-chart] output").first
  slider.focus()
  page.keyboard.press("End")
  assert output.inner_text() == "0.1"  # The loss of the last step, 10 / 100.
  page.keyboard.press("ArrowLeft")
  assert output.inner_text() == "0.10101"
  checked = Axe().run(page).response
  assert len(checked["passes"]) > 20  # It has looked.
  grave = [
    (one["id"], [node["html"] for node in one["nodes"]])
    for one in checked["violations"]
    if one["impact"] in ("serious", "critical")
  ]
  assert not grave
  assert not said
  assert [one for one in asked if not one.startswith("data:")] == [address]
  context.close()
