"""The page of a run: whole, self-contained, and no place to break into."""

import base64
import dataclasses
import hashlib
import html
import html.parser
import json
import pathlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence, convert

from data_prep.writing.writer import DatasetWriter
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError
from jamsface_jax.metrics.groups import GroupResult
from jamsface_jax.metrics.score_counts import count_scores
from jamsface_jax.protocols import results
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.reports import class_profile
from jamsface_jax.reports import page as page_lib
from jamsface_jax.run import goodput, launches
from jamsface_jax.settings.names import replaced, values
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage.run_directory import RunDirectory, RunFile

ROOT = pathlib.Path(__file__).parents[2]
TITLES = (
  "Loss",
  "Accuracy in training, without margin",
  "Accuracy on test sets",
  "Learning rate",
  "Images a second",
  "Time spent waiting for data",
  "Mean margin (angular in radians, cosine)",
  "ROC of lfw",
  "Scores of lfw",
  "Angular margin: rank correlation with class size",
  "Cosine margin: rank correlation with class size",
  "Long tail: images of each class",
  "Wall time of all starts",
)
FACTS = {
  "first": 0,
  "total_steps": 100,
  "data_fingerprint": "f00d",
  "parameters": 1234567,
  "devices": 8,
  "platform": "cpu",
  "device_kind": "cpu",
  "processes": 1,
}


def evaluation(name, seed=0):
  rng = np.random.default_rng(seed)
  same = np.arange(600) % 2 == 0
  scores = np.clip(rng.normal(same * 0.5, 0.2), -1, 1)
  score_counts = count_scores(scores, same, *rng.integers(0, 12, (2, 600)))
  return Evaluation(
    name=name,
    headline="accuracy 91.00% +- 1.00% on 600 pairs",
    metrics={f"{name}/accuracy": 0.91, f"{name}/accuracy_std": 0.01},
    intervals={f"{name}/accuracy": (0.9, 0.92)},
    facts={"positives": 300},
    score_counts=score_counts,
    threshold=0.25,
  )


def make_run(workdir, *, name="lfw", command=(), monkeypatch=None, **settings):
  """A work directory as a run leaves it."""
  changes = {"head.scale": 32.0} | settings  # As a recipe would.
  config = replaced(Settings(), changes)
  check_or_save(config, RunDirectory(str(workdir)))
  with monkeypatch.context() as patch:
    patch.setattr(sys, "orig_argv", ["python", "-m", "main", *command])
    launches.note_launch(RunDirectory(str(workdir)), FACTS)
  rng = np.random.default_rng(0)
  with open(workdir / "metrics.jsonl", "w", encoding="utf-8") as file:
    for step in range(1, 101):
      row = {
        "step": step,
        "train/loss": 10 / step,
        "train/cross_entropy": 10 / step,
        "train/accuracy": step / 100,
        "train/learning_rate": 0.1,
        "train/images_per_second": 100 + rng.random(),
        "train/data_wait_fraction": 0.01,
        "train/margin_angular_mean": 0.3,
        "train/margin_cosine_mean": 0.2,
      }
      if step % 50 == 0:
        row[f"{name}/accuracy"] = 0.9
      file.write(json.dumps(row) + "\n")
  seconds = dict.fromkeys(goodput.KINDS, 1.0) | {"step": 95.0}
  (workdir / "goodput.json").write_text(json.dumps(seconds))
  sizes = np.maximum(200 // np.arange(1, 101), 1)
  margins = 0.5 - 0.05 * np.log(sizes)
  profile = class_profile.describe(
    sizes, {"angular": margins, "cosine": margins / 2}
  )
  class_profile.write(RunDirectory(str(workdir)).classes, profile)
  results.write_results(
    RunDirectory(str(workdir)).results, [evaluation(name)], {"step": 100}
  )
  return workdir


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  command = ["--config=configs/x.py", "--config.data.threads=4"]
  settings = {"data.threads": 4}
  return make_run(
    tmp_path / "w", command=command, monkeypatch=monkeypatch, **settings
  )


def write_page(workdirs, output, **options):
  runs = [RunDirectory(str(one)) for one in workdirs]
  page_lib.write(runs, RunFile(str(output)), **options)


def written(*workdirs, **options):
  """The text of a report, and its tree."""
  output = workdirs[0] / "out.html"
  write_page(workdirs, output, **options)
  text = output.read_text(encoding="utf-8")
  check_page(text)
  return text, parse(text)


def parse(text):
  """The tree of the page, which XML parses without style, script, void tags."""
  text = re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.S)
  text = re.sub(r"<(meta|link|img)\b([^>]*)>", r"<\1\2/>", text)
  return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n"))


class Balance(html.parser.HTMLParser):
  """Finds whatever could load something, and tags that are left open."""

  VOID = {"meta", "link", "img", "input", "br"}

  def __init__(self):
    super().__init__()
    self.open, self.links, self.ids, self.styles = [], [], [], 0

  def handle_starttag(self, tag, attributes):
    named = dict(attributes)
    self.links += [
      value for k, value in attributes if k in ("src", "href", "srcset", "data")
    ]
    assert not any(name.startswith("on") for name in named), named
    assert "style" not in named  # The policy of the page refuses it.
    if "id" in named:
      self.ids.append(named["id"])
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attributes):
    self.handle_starttag(tag, attributes)
    self.handle_endtag(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, tag


def check_page(text):
  """What every page must keep to."""
  page = Balance()
  page.feed(text)
  page.close()
  assert not page.open
  assert len(set(page.ids)) == len(page.ids)
  for link in page.links:
    local = (
      link.startswith(("data:image/jpeg;base64,", "#")) or link == "data:,"
    )
    assert local, link
    if link.startswith("#"):
      assert link[1:] in page.ids
  assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(", text)
  # The one style and the one script are those that the policy allows.
  policy = html.unescape(
    re.search(r'Security-Policy" content="([^"]*)"', text)[1]
  )
  assert policy.startswith("default-src 'none'; img-src data:; style-src")
  for kind in ("style", "script"):
    (body,) = re.findall(rf"<{kind}>(.*?)</{kind}>", text, flags=re.S)
    digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}'" in policy


def captions(tree):
  return ["".join(one.itertext()) for one in tree.iter("figcaption")]


def figure(tree, title):
  (found,) = [
    one
    for one in tree.iter("figure")
    if (caption := one.find("figcaption")) is not None
    and (caption.text or "").startswith(title)
  ]
  return found


def cells(tree, caption):
  """The rows of a table."""
  (found,) = [
    one
    for one in tree.iter("table")
    if one.find("caption") is not None and one.find("caption").text == caption
  ]
  return [["".join(c.itertext()) for c in row] for row in found.iter("tr")]


def test_all_plots_are_drawn(workdir):
  _, tree = written(workdir)
  for title in TITLES:
    one = figure(tree, title)
    drawing = one.find("svg")
    assert drawing is not None, title
    assert drawing.get("role") == "img" and drawing.get("aria-label")
    assert list(drawing.iter("path")) or list(drawing.iter("rect"))
    if "data-chart" in one.attrib:
      data = json.loads(one.get("data-chart"))
      outputs = [x for x in one.iter("output")]
      assert len(outputs) == len(data["lines"])
      assert one.find("details").find("div") is not None  # Numbers behind it.
  loss = json.loads(figure(tree, "Loss").get("data-chart"))["lines"][0]
  assert loss["name"] == "train/loss = train/cross_entropy" and loss[
    "x"
  ] == list(range(1, 101))
  np.testing.assert_allclose(loss["y"], 10 / np.arange(1, 101), rtol=1e-5)


def test_headlines(workdir):
  _, tree = written(workdir)
  cards = {
    one.find("span").text: one.find("b").text
    for one in tree.iter("li")
    if one.find("b") is not None
  }
  assert cards["steps"] == "100 of 100, finished"
  assert cards["lfw: accuracy"] == "91.00% ± 1.00%"
  assert cards["loss in training"] == "0.1"
  assert cards["accuracy in training"] == "100 %"
  assert cards["wall time"] == "1 min 40 s"
  assert cards["of it in steps"] == "95.0%"
  assert cards["parameters of the backbone"] == "1,234,567"
  assert cards["identities"] == "100"


def test_roc_and_scores_are_those_of_the_evaluation(workdir):
  _, tree = written(workdir)
  score_counts = evaluation("lfw").score_counts
  roc = json.loads(figure(tree, "ROC").get("data-chart"))
  (line,) = roc["lines"]
  assert roc["log"] and line["x"][0] == pytest.approx(1 / 300, rel=1e-5)
  np.testing.assert_allclose(
    line["y"],
    score_counts.curve.tar_at_far(
      np.clip(np.array(line["x"]) * (1 + 1e-5), 0, 1)
    ),
    atol=0.01,
  )
  scores = json.loads(figure(tree, "Scores").get("data-chart"))["lines"]
  for line, counts in zip(
    scores,
    (score_counts.negative_counts, score_counts.positive_counts),
    strict=True,
  ):
    assert "300 pairs" in line["name"]
    assert max(line["y"]) == pytest.approx(counts.max() / 300, rel=1e-5)
  rows = cells(tree, "All numbers of lfw; in brackets 95 % intervals")
  assert ["lfw/accuracy", "0.910000 [0.9000, 0.9200]"] in rows


def test_settings_say_who_set_them(workdir):
  _, tree = written(workdir)
  rows = cells(tree, "Settings that are not the default")
  assert rows[0] == ["setting", "w", "default", "set by", "meaning"]
  assert rows[1:] == [
    [
      "data.threads",
      "4",
      "2",
      "command line",
      "Batches read and decoded at once, per process.",
    ],
    [
      "head.scale",
      "32.0",
      "64.0",
      "recipe",
      "Multiplies the cosines in the softmax.",
    ],
  ]
  rest = cells(tree, "Settings that are the default")
  every = values(Settings())
  assert len(rest) - 1 + 2 == len(every)


def test_origin(workdir):
  text, tree = written(workdir)
  (command,) = tree.iter("pre")
  assert command.text == (
    "python -m main --config=configs/x.py --config.data.threads=4"
  )
  rows = dict(cells(tree, "Versions and devices"))
  assert rows["devices"] == "8 cpu (cpu), 1 process(es)"
  assert rows["python"] == sys.version.split()[0]


def test_a_run_that_has_just_begun(tmp_path):
  workdir = tmp_path / "w"
  check_or_save(Settings(), RunDirectory(str(workdir)))
  text, tree = written(workdir)
  assert not list(tree.iter("svg"))
  for title in TITLES[:7]:
    assert "No data yet" in "".join(figure(tree, title).itertext())
  assert text.count("No data yet") >= 10
  assert "a version that noted no starts" in text
  assert "All settings" not in text


def test_frozen_margins_are_said_to_be(workdir):
  profile = class_profile.describe(np.array([1, 2, 3]), {})
  class_profile.write(RunDirectory(str(workdir)).classes, profile)
  text, _ = written(workdir)
  assert "None is learned" in text


def test_several_runs_are_compared(tmp_path, monkeypatch):
  one = make_run(tmp_path / "a" / "w", monkeypatch=monkeypatch)
  changed = {"head.scale": 16.0}
  two = make_run(tmp_path / "b" / "w", monkeypatch=monkeypatch, **changed)
  _, tree = written(one, two)
  lines = json.loads(figure(tree, "ROC").get("data-chart"))["lines"]
  assert [line["name"][:5] for line in lines] == ["a/w: ", "b/w: "]
  loss = json.loads(figure(tree, "Loss").get("data-chart"))["lines"]
  assert [line["name"] for line in loss] == [
    "a/w: train/loss = train/cross_entropy",
    "b/w: train/loss = train/cross_entropy",
  ]
  rows = cells(tree, "Settings in which the runs differ")
  assert [row[:3] for row in rows[1:]] == [["head.scale", "32.0", "16.0"]]
  rows = cells(tree, "The runs")
  assert rows[0] == ["number", "a/w", "b/w"]
  assert ["lfw: accuracy", "91.00% ± 1.00%", "91.00% ± 1.00%"] in rows
  with pytest.raises(InputError, match="given twice"):
    write_page([one, one], tmp_path / "x.html")


def test_results_of_evaluate_are_there_too(workdir):
  run = RunDirectory(str(workdir))
  run.evaluation.create()
  results.write_results(
    run.evaluation.results, [evaluation("cfp_fp")], {"step": 100}
  )
  _, tree = written(workdir)
  assert "ROC of cfp_fp (evaluate)" in captions(tree)
  assert "ROC of lfw" in captions(tree)


def test_groups_of_people_have_a_table(workdir):
  groups = [
    GroupResult("x", 7, 40, 1300, {"accuracy": 0.5, "fmr@1e-1": 0.2}, {}),
    GroupResult(None, 9, 0, 5, {"accuracy": 1.0}, {"accuracy": (0.5, 1.0)}),
  ]
  one = dataclasses.replace(evaluation("lfw"), groups=groups)
  results.write_results(
    RunDirectory(str(workdir)).results, [one], {"step": 100}
  )
  _, tree = written(workdir)
  assert cells(
    tree,
    "Groups of people in lfw, at thresholds of the whole set; in brackets 95 %"
    " intervals",
  ) == [
    ["number", "group x", "people of two groups"],
    ["people", "7", "9"],
    ["pairs of one person", "40", "0"],
    ["pairs of two people", "1,300", "5"],
    ["accuracy", "0.5000", "1.0000 [0.5000, 1.0000]"],
    ["fmr@1e-1", "0.2000", "not measured"],
  ]


def test_new_images_of_known_people_by_class_size(tmp_path, monkeypatch):
  table = [
    {"smallest": 2, "largest": 2, "accuracy": 0.1, "adjusted_accuracy": 0.3},
    {"smallest": 3, "largest": 9, "accuracy": 0.6, "adjusted_accuracy": 0.5},
  ]
  known = Evaluation("new", "nearest class right", {}, {}, {})
  for name in "ab":
    make_run(tmp_path / name, monkeypatch=monkeypatch)
    one = dataclasses.replace(known, facts={"by_class_size": table})
    results.write_results(
      RunDirectory(str(tmp_path / name)).results, [one], {"step": 100}
    )
  title = "Nearest class right for new images of new"

  def lines(*names):
    drawn = figure(written(*(tmp_path / n for n in names))[1], title)
    return {
      line["name"]: (line["x"], line["y"])
      for line in json.loads(drawn.get("data-chart"))["lines"]
    }

  assert lines("a") == {
    "accuracy": ([1, 2], [0.1, 0.6]),
    "with log(images) / scale taken off cosines": ([1, 2], [0.3, 0.5]),
  }
  assert lines("a", "b") == {
    "a: accuracy": ([1, 2], [0.1, 0.6]),
    "b: accuracy": ([1, 2], [0.1, 0.6]),
  }
  del table[0]["adjusted_accuracy"]  # Of a run before there was one.
  results.write_results(
    RunDirectory(str(tmp_path / "a")).results,
    [dataclasses.replace(known, facts={"by_class_size": table})],
    {"step": 100},
  )
  assert [*lines("a")] == ["accuracy"]


EVIL = "</title></style></script><script>alert(1)</script>\"'&<img src=//x.y>"


def test_names_and_settings_are_escaped(tmp_path, monkeypatch):
  settings = {
    "data.directory": EVIL,
    "model.name": EVIL,
    "checkpoint.keep_best": EVIL,
  }
  workdir = make_run(
    tmp_path / "w<b>&",
    name=EVIL,
    command=[EVIL],
    monkeypatch=monkeypatch,
    **settings,
  )
  text, tree = written(workdir)
  assert text.count("<script>") == 1 and "//x.y>" not in text
  assert f"ROC of {EVIL}" in captions(tree)
  rows = cells(tree, "Settings that are not the default")
  assert [
    "model.name",
    EVIL,
    "iresnet50",
    "recipe",
    "Name of the backbone, see docs/recipes.md.",
  ] in rows


def images_in(tree):
  return [one.get("src") for one in tree.iter("img")]


def synthetic_copy(dataset, directory, synthetic):
  """A copy of a data set that says whether it is synthetic."""
  shutil.copytree(dataset, directory)
  path = directory / "dataset.json"
  index = json.loads(path.read_text()) | {"synthetic": synthetic}
  path.write_text(json.dumps(index))
  return str(directory)


@pytest.mark.parametrize("synthetic", [False, True])
def test_faces_are_shown_if_synthetic_or_asked(
  dataset, tmp_path, monkeypatch, synthetic
):
  data = synthetic_copy(dataset, tmp_path / "data", synthetic)
  settings = {
    "data.directory": data,
    "evaluation.data": data,
    "data.image_size": 32,
  }
  workdir = make_run(
    tmp_path / "w", name="tiny", monkeypatch=monkeypatch, **settings
  )
  text, tree = written(workdir)
  assert bool(images_in(tree)) == synthetic
  assert ("--faces" in text) == (not synthetic)
  names = RecordSource(data, 32).names()
  assert any(name in text for name in names) == synthetic
  _, tree = written(workdir, every_face=True)
  found = images_in(tree)
  assert len(found) >= 6 * 3 + 2 * 2 * 6  # Classes, and pairs of both kinds.
  pixels = cv2.imdecode(
    np.frombuffer(base64.b64decode(found[0].split(",")[1]), np.uint8),
    cv2.IMREAD_COLOR,
  )
  assert pixels.shape == (32, 32, 3)
  alternatives = [one.get("alt") for one in tree.iter("img")]
  assert alternatives[0].startswith("class ") and all(alternatives)
  assert sum(f"{name} and " in one for one in alternatives for name in names)


def test_converted_images_are_not_synthetic(dataset, image_folder, tmp_path):
  convert(image_folder, tmp_path / "data")
  for directory in (dataset, tmp_path / "data"):
    assert not RecordSource(str(directory), 32).synthetic
  with DatasetWriter(
    str(tmp_path / "drawn"),
    name="drawn",
    classes=["a"],
    source="x",
    synthetic=True,
  ) as writer:
    encoded = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    writer.add(0, "a/1.png", encoded, (8, 8))
  assert RecordSource(str(tmp_path / "drawn"), 32).synthetic


def test_data_that_are_gone_are_no_obstacle(tmp_path, monkeypatch):
  settings = {"data.directory": "/nowhere/at/all"}
  workdir = make_run(tmp_path / "w", monkeypatch=monkeypatch, **settings)
  text, _ = written(workdir)
  assert "Not shown: data set &#x27;/nowhere/at/all&#x27;" in text


@pytest.mark.parametrize(
  "name", ["classes.json", "goodput.json", "results.json"]
)
def test_damaged_files_are_named(workdir, name):
  (workdir / name).write_text("{")
  with pytest.raises(InputError, match=f"{name}' is damaged"):
    write_page([workdir], workdir / "out.html")
  assert not (workdir / "out.html").exists()


def test_command(workdir, run, tmp_path):
  done = run("jamsface_jax.report", f"--workdir={workdir}")
  assert done.returncode == 0, done.stderr
  assert done.stdout == f"report: {workdir}/report.html\n"
  check_page((workdir / "report.html").read_text())
  done = run("jamsface_jax.report", tmp_path / "nothing")
  assert_one_sentence(done, "nothing", "not a work directory")
  both = f"--workdir={workdir}", f"--workdir={tmp_path}"
  done = run("jamsface_jax.report", *both)
  assert_one_sentence(done, "--output", "compared.html")
  assert_one_sentence(run("jamsface_jax.report"), "--workdir is needed")
  done = run("jamsface_jax.report", workdir, "--output=/nowhere/x.html")
  assert_one_sentence(done, "/nowhere/x.html", "choose another place")


def test_it_needs_neither_jax_nor_matplotlib():
  code = (
    "import sys; import jamsface_jax.report;"
    "assert 'matplotlib' not in sys.modules;"
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def colors(css):
  return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", css))


def contrast(one, other):
  """The contrast ratio of two colours (WCAG 2.2, 'contrast ratio')."""

  def luminance(color):
    parts = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(
      parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4
    )
    return linear @ [0.2126, 0.7152, 0.0722]

  low, high = sorted((luminance(one), luminance(other)))
  return (high + 0.05) / (low + 0.05)


def test_colours_can_be_told_from_the_page():
  css = (ROOT / "jamsface_jax" / "reports" / "report.css").read_text()
  light, dark = css.split("@media (prefers-color-scheme: dark)")
  for scheme in (colors(light), colors(dark)):
    for behind in ("page", "card"):
      for text in ("ink", "soft", "accent"):  # Texts: WCAG AA.
        assert contrast(scheme[text], scheme[behind]) >= 4.5, text
      for line in ("c0", "c1", "c2", "c3", "c4", "c5"):  # Graphics need 3.
        assert contrast(scheme[line], scheme[behind]) >= 4.5, line
