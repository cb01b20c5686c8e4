"""Every command and code block of the documentation, run or at least parsed.

Blocks are marked `sh`, `python` or `text`, nothing else is let through, and the
commands in a text and between backticks count too: none escapes. All are run,
in the order of the pages and in a folder that has what these presume, but for
those that `PARSED` and `SKIPPED` name. README's are typed into a fresh shell.
"""

import ast
import dataclasses
import functools
import math
import os
import pathlib
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from configparser import ConfigParser

import cv2
import fresh_shell
import jax
import numpy as np
import pytest
from conftest import check_builds, convert
from from_bin_test import jpegs
from from_ijb_test import FACES, write_ijb
from from_ijb_test import convert as convert_ijb
from from_pairs_test import write_agedb30, write_cfp, write_two_lines
from messages_test import messages
from recordio_test import IMAGES, LABELS, insightface, save
from torch_files import write_pth

from data_prep.synthetic.photos import draw_identity
from jamsface_jax import head
from jamsface_jax.commands import commands, find
from jamsface_jax.data.decoding import decode_image
from jamsface_jax.detection.alignment import TEMPLATE
from jamsface_jax.models import init_backbone
from jamsface_jax.run.components import make_model
from jamsface_jax.run.schedule import make_schedule
from jamsface_jax.settings.defaults import base_config
from jamsface_jax.settings.names import meanings, replaced
from jamsface_jax.settings.sections import Settings
from jamsface_jax.weights.pytorch_names import pytorch_shapes

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [
  *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
  *sorted((ROOT / "docs").rglob("*.md")),
]
MODULES = [*commands("jamsface_jax"), *commands("data_prep")]
SHORT = {name.partition(".")[2]: name for name in MODULES}
# The first words of what is a command between backticks.
PROGRAMS = {"python", "python3", "make", "pip", "tensorboard", "xpk"} | {
  "jamsface"
}

# Flags are read by the command's own parser, and settings are checked, but
# nothing is done. Each begins a command, and has the reason.
PARSED = {
  "python -m jamsface_jax.ablate": "dozens of runs; ablate_test makes a few",
  "python -m jamsface_jax.compile_check": "compiles for TPUs: make test-pods",
  "pods_env/bin/python -m jamsface_jax.compile_check": "likewise",
  "cuda_env/bin/python -m jamsface_jax.compile_check": "make test-cuda",
  "python -m data_prep.from_tfds": "downloads; from_tfds_test has a small one",
  "RAY_ADDRESS=HEAD:6379 python": "needs a cluster; ray_engine_test has one",
  "python -m jamsface_jax.import_weights --input=MobileFaceNet_Pytorch": "a"
  " published file; published_files_test reads it where it is",
  "python -m jamsface_jax.evaluate --workdir=runs/068": "likewise",
  "python -m data_prep.from_pairs --protocol=lfw --input=lfw-112X112": "photo"
  "graphs; from_pairs_test has their layout",
  "python -m data_prep.align --input=images": "likewise; align_test",
  "python benchmarks/": "benchmarks_test runs them, smaller",
  "python -m jamsface_jax.main --config=configs/ms1m_r100.py"
  " --workdir=gs://": "needs a bucket; bucket_test has one",
  "python -m jamsface_jax.doctor --workdir=gs://": "likewise",
}
# No parser of ours.
SKIPPED = {
  "git clone": "the repository is here",
  "cd ": "likewise",
  fresh_shell.ACTIVATE: "begins each fresh shell",
  "pip install": "test_extras has what they name",
  "pods_env/bin/pip install": "likewise",
  "cuda_env/bin/pip install": "likewise",
  "python3 -m venv": "of Python",
  "printf": "builds an image, which needs Docker",
  "docker": "likewise",
  "gcloud": "needs an account",
  "xpk": "likewise",
  "TPU=": "launch_test runs the templates of launch/",
  "sbatch": "likewise",
  "python -m pytest": "the suite is here",
  "python tests/fuzz.py": "fuzz_test has a dose",
  "HOSTS=": "likewise",
  "python -m http.server": "of Python; serves until it is stopped",
  "awk": "of every Unix",
  "tensorboard": "another project's; reads files that metric_log_test checks",
}
# What makes a command small, or gives it what a page leaves to the reader.
SMALLER = {
  # Training: any recipe as its variant `tiny`, on images that are there.
  "main --config=\\.\\.\\. ": "main --config=configs/ms1m_r50.py ",
  "main --config=(configs/\\w+\\.py) ": "main --config=\\1:tiny ",
  "main --config=(configs/\\w+\\.py):(?!tiny)": "main --config=\\1:tiny,",
  "directory=data/ms1m_v3": "directory=data/mine",
  "data.batch_size=512": "data.batch_size=8",
  "batch_norm_group=128": "batch_norm_group=8",
  "profile_steps=10:15": "profile_steps=2:4",
  "main (.*)--workdir=(?!runs/mine|runs/tuned|runs/tiny)\\S+": "main \\1"
  "--workdir=out/NEW",
  "--workdir=runs/tuned": "--config.data.directory=data/mine"
  " --workdir=runs/tuned",
  "--input=backbone.pth --model=r50": "--input=backbone.pth --model=mbf"
  " --image_size=32",
  "--output=(D|FILE|data/ms1m_v3|data/lfw)$": "--output=out/NEW",
  "--workdir=W ": "--workdir=runs/mine ",
  "--data=DATASET": "--data=data/lfw",
  "--images=INPUT --output=E": "--images=DIR --output=out/NEW",
  "from_recordio --input=DIR": "from_recordio --input=faces_emore",
  "align --input=DIR": "align --input=PHOTOS",
  "search (.*)--gallery=PEOPLE --images=PHOTOS": "search"
  " \\1--gallery=DIR --images=PHOTOS",
  # So few pairs measure no FAR.
  "search (.*)--far=1e-2": "search \\1--threshold=0.3",
  "search (.*--align .*--output=F)$": "search \\1 --threshold=0.3",
  "data_prep.synthesize": "data_prep.synthesize --images=60 --identities=6"
  " --test_identities=20 --pairs=20",
  "(from_recordio|from_bin|from_folder) (--input=\\S+)$": "\\1 \\2"
  " --output=out/NEW",
  "from_pairs --protocol=lfw$": "from_pairs --protocol=lfw --input=DIR"
  " --pairs=pairs.txt --output=out/NEW",
  "from_pairs --protocol=(cfp)-(..)$": "from_pairs --protocol=\\1-\\2"
  " --input=\\1/images --pairs=\\1/Protocol --output=out/NEW",
  "from_pairs --protocol=(agedb30|calfw|cplfw)$": "from_pairs"
  " --protocol=\\1 --input=\\1/images --pairs=\\1/pairs.txt --output=out/NEW",
  "inspect (D|TRAIN)\\b": "inspect data/lfw",
  "--against=TEST": "--against=data/cfp_fp",
}
# What `make demo` leaves behind, smaller.
DEMO = (
  "python -m jamsface_jax.main --config=configs/ms1m_r50.py:tiny"
  " --config.data.directory=data/lfw --workdir=build/demo/run"
)
# What a block of Python presumes.
PYTHON = {
  "README.md": "import jamsface_jax, numpy as np\n"
  "images = np.zeros((3, 32, 32, 3), np.uint8)\n",
  "docs/embeddings.md": "import jamsface_jax, numpy as np\n"
  "images = np.zeros((3, 32, 32, 3), np.uint8)\n"
  "rows = probes = np.eye(8, dtype=np.float32)\n"
  "try:\n  import faiss\nexcept ImportError:\n  raise SystemExit(0)\n",
  "docs/names.md": "import jamsface_jax\n",
  "docs/head.md": "",
  "CONTRIBUTING.md": "import dataclasses, math, jax, jax.numpy as jnp\n"
  "from jamsface_jax.head import Loss, LossInputs, margins\n",
}


@dataclasses.dataclass(frozen=True)
class Command:
  """Words of a command, without the shell's comments.

  `line` begins with Python where `typed` begins with the script.
  """

  page: str
  typed: str

  @property
  def line(self):
    script = re.match(r"jamsface (\w+)?", self.typed)
    if not script:
      return self.typed
    module = find(script[1]) if script[1] else "jamsface_jax "
    return f"python -m {module}{self.typed[script.end() :]}"

  def as_typed(self, line):
    """A line of Python, with the script before it where the page has that."""
    if self.typed == self.line:
      return line
    words = [x for x in self.typed.split()[:2] if not x.startswith("-")]
    return re.sub(r"^python -m \S+", " ".join(words), line)

  def prefix(self, table):
    found = [start for start in table if self.line.startswith(start)]
    return max(found, key=len, default=None)


def read(page):
  """Returns (language, text) of each block, and the page without them."""
  text = page.read_text(encoding="utf-8")
  fence = re.compile(r"^```(.*)\n((?:.*\n)*?)```$", re.M)
  found = [match.groups() for match in fence.finditer(text)]
  rest = fence.sub("", text)
  assert "```" not in rest, f"{page}: a block that does not end"
  return found, rest


def spans(page):
  """What stands between backticks, lines joined."""
  found = re.findall(r"`([^`]+)`", read(page)[1])
  return [" ".join(span.split()) for span in found]


def split_commands(text):
  """The commands of some lines of shell."""
  line = ""
  for part in text.replace("\\\n", "").splitlines():
    line += part + "\n"
    try:
      words = shlex.split(line, comments=True)
    except ValueError:  # A quotation goes on in the next line.
      continue
    line, one = "", []
    for word in [*words, "&&"]:
      if word != "&&":
        one.append(word)
      elif one:
        yield " ".join(one)
        one = []
  assert not line, text


@functools.cache
def find_commands():
  found = []
  for page in PAGES:
    name = str(page.relative_to(ROOT))
    for language, text in read(page)[0]:
      lines = split_commands(text) if language == "sh" else []
      if language == "text":
        lines = re.findall(r"\b(?:python|make|pip|jamsface) .*", text)
      found += [Command(name, line) for line in lines]
    for span in spans(page):
      first, *more = span.split()
      if first in SHORT and more:
        found.append(
          Command(name, f"python -m {SHORT[first]} {' '.join(more)}")
        )
      elif first in PROGRAMS and more and (first != "jamsface" or more[1:]):
        found.append(Command(name, span))
  return found


def kind(command):
  """What is done with a command."""
  if command.line.startswith("make "):
    return "make"
  if command.prefix(SKIPPED):
    return "skipped"
  if command.prefix(PARSED):
    return "parsed"
  return "run"


def smaller(line, output):
  """A command with what it presumes and for small data.

  Args:
    line: as a page has it.
    output: name of what it writes where a page leaves that open.
  """
  for pattern, replacement in SMALLER.items():
    line = re.sub(pattern, replacement, line)
  return line.replace("NEW", output)


def write_published(path):
  """A small network of random numbers, as PyTorch saves its parameters."""
  model = make_model(replaced(Settings(), {"model.name": "mbf"}))
  shapes = jax.eval_shape(
    lambda key: init_backbone(key, model, 32), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    if shape[1:]
    else rng.uniform(0.5, 1.5, shape)
    for name, shape in pytorch_shapes(model, shapes).items()
  }
  write_pth(path, arrays)


@pytest.fixture(scope="module")
def world(tmp_path_factory, image_folder):
  """A folder with what the pages presume, of synthetic images."""
  root = tmp_path_factory.mktemp("world")
  write_world(root, image_folder)
  return root


def write_world(root, image_folder):
  (root / ".venv").symlink_to(sys.prefix)
  (root / "benchmarks").symlink_to(ROOT / "benchmarks")
  for name in ("jamsface_jax", "data_prep", "configs"):  # As in a clone.
    shutil.copytree(ROOT / name, root / name)
  people = sorted(os.listdir(image_folder / "images"))
  for name in ("LFW", "DIR", "FOLDER"):
    (root / name).symlink_to(image_folder / "images")
  for name in ("pairs.txt", "pairsDevTest.txt"):
    shutil.copy(image_folder / "pairs.txt", root / name)
  for name in ("peopleDevTrain.txt", "peopleDevTest.txt"):
    lines = [str(len(people)), *(f"{person}\t3" for person in people)]
    (root / name).write_text("\n".join(lines) + "\n")
  files = sorted((root / "DIR").glob("*/*.jpg"))
  lines = [
    f"{path.parent.name}/{path.name},{path.parent.name}" for path in files
  ]
  (root / "train.csv").write_text("\n".join(["path,label", *lines]) + "\n")
  (root / "data").mkdir()
  for name in ("lfw", "cfp_fp"):
    convert(image_folder, root / "data" / name, name=name)
  (root / "ijb").mkdir()
  made, _ = convert_ijb(write_ijb(root / "ijb"), name="ijbc")
  made.rename(root / "data" / "ijbc")
  np.save(root / "E.npy", np.eye(len(FACES), 32, dtype=np.float32))
  rec = insightface(LABELS, IMAGES)
  for name in ("faces_emore", "ms1m-retinaface-t1", "faces_webface_112x112"):
    save(root / name, *rec)
  for name in ("faces_vgg_112x112", "glint360k"):
    save(root / name, *rec)
  (root / "big.rec").write_bytes(rec[0])
  pairs = (jpegs(8), [k % 2 == 0 for k in range(4)])
  for name in ("lfw", "cfp_fp", "cfp_ff", "agedb_30", "calfw", "cplfw"):
    (root / f"{name}.bin").write_bytes(pickle.dumps(pairs, 2))
  shutil.copy(root / "lfw.bin", root / "ms1m-retinaface-t1")
  for role in ("probe", "gallery"):
    shutil.copytree(root / "DIR", root / "tinyface" / "Testing_Set" / role)
  write_cfp(root / "cfp")
  write_agedb30(root / "agedb30")
  for name in ("calfw", "cplfw"):
    write_two_lines(root / name, name)
  write_published(root / "backbone.pth")
  (root / "out").mkdir()
  (root / "runs").mkdir()
  for name in ("a", "b"):
    (root / "runs" / name).symlink_to("mine")
  for number, name in enumerate(("ann", "bob")):
    (data,) = draw_identity(0, 4 * number, range(1, 2), 224)
    photograph = cv2.copyMakeBorder(
      decode_image(data), *[60] * 4, cv2.BORDER_REPLICATE
    )[:, :, ::-1]
    (root / "PEOPLE" / name).mkdir(parents=True)
    for image in (1, 2, 3):
      path = root / "PEOPLE" / name / f"{image}.jpg"
      cv2.imwrite(str(path), np.roll(photograph, 3 * image, axis=1))
  (root / "ALBUM").mkdir()
  cv2.imwrite(str(root / "ALBUM" / "both.jpg"), np.hstack([photograph] * 2))
  # A photograph is a face at twice the size of the template.
  (root / "PHOTOS").mkdir()
  cv2.imwrite(str(root / "PHOTOS" / "a.png"), np.zeros((300, 300, 3), np.uint8))
  points = " ".join(f"{number:.3f}" for number in 2 * TEMPLATE.ravel() + 20)
  (root / "FILE").write_text(f"a.png {points}\n")


@pytest.fixture(scope="module")
def results(world, command_runner, tmp_path_factory):
  """What became of each command and of each block of Python."""
  home = tmp_path_factory.mktemp("home")
  environment = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
  }

  def run(words, **options):
    return command_runner.run(
      words, folder=world, environment=environment, **options
    )

  found = {Command("make demo", DEMO): run(DEMO.split()[1:])}
  once = {}
  for command in find_commands():
    once.setdefault(command.line, command)
  for command in once.values():
    line, todo = smaller(command.line, f"out{len(found)}"), kind(command)
    if todo == "run" and command.page == "README.md":
      typed = command.as_typed(line)
      found[command] = fresh_shell.type_in(typed, world, home)
    elif todo in ("run", "parsed"):
      words = [word for word in line.split() if "=" not in word.split("-")[0]]
      assert words[0].endswith("python"), command
      found[command] = run(words[1:], parse_only=todo == "parsed")
  for page in PAGES:
    name = str(page.relative_to(ROOT))
    for language, text in read(page)[0]:
      if language == "python":
        found[Command(name, text)] = run(["-c", PYTHON[name] + text])
  return found


@pytest.mark.slow
def test_commands_and_python(results):
  failed = [
    f"{command.page}: {command.line}\n{done.stdout}{done.stderr}"
    for command, done in results.items()
    if done.returncode
  ]
  assert not failed, "\n".join(failed)


def test_readme_says_how_to_activate():
  readme = [c for c in find_commands() if c.page == "README.md"]
  first = next(n for n, c in enumerate(readme) if kind(c) == "run")
  assert fresh_shell.ACTIVATE in [command.line for command in readme[:first]]


@pytest.mark.slow
@pytest.mark.usefixtures("results")
def test_readme_shows_the_last_lines_of_a_run(world):
  """They are those of a run, but for its name, its numbers and its test set."""
  ((_, shown),) = [b for b in read(ROOT / "README.md")[0] if b[0] == "text"]
  shown = [line for line in shown.splitlines() if "accuracy" not in line]
  printed = (world / "runs" / "mine" / "summary.txt").read_text()
  printed = printed.replace("runs/mine", "build/demo/run")
  # As make demo calls it, whatever called this.
  printed = printed.replace("jamsface ", ".venv/bin/jamsface ")
  printed = re.sub(r"finished \d+ steps", "finished 400 steps", printed)
  assert shown == printed.splitlines()


def test_blocks_say_what_they_are():
  for page in PAGES:
    for language, text in read(page)[0]:
      assert language in ("sh", "python", "text"), f"{page}: {text}"


def test_errors_shown_are_those_of_the_code():
  known = [
    "".join(".*" if part == "{}" else re.escape(part) for part in parts)
    for parts in (re.split(r"(\{\})", one.values[0]) for one in messages())
    if len("".join(parts)) > 60  # Others would be like anything.
  ]
  shown = [
    line.removeprefix("error: ")
    for page in PAGES
    for language, text in read(page)[0]
    for line in text.splitlines()
    if language == "text" and line.startswith("error: ")
  ]
  assert len(shown) == 3
  for line in shown:
    assert any(re.fullmatch(one, line) for one in known), line


@pytest.mark.parametrize("name", ["PARSED", "SKIPPED", "SMALLER"])
def test_tables_have_no_dead_entry(name):
  lines = [command.line for command in find_commands()]
  for entry in globals()[name]:
    if name == "SMALLER":
      assert any(re.search(entry, line) for line in lines), entry
    else:
      assert any(line.startswith(entry) for line in lines), entry


def test_make_has_the_targets():
  lines = {c.line for c in find_commands() if kind(c) == "make"}
  assert "make demo" in lines
  for line in lines:
    done = subprocess.run(
      [*line.split(), "--dry-run"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_extras():
  """What `pip install` names between brackets is there."""
  setup = ConfigParser()
  setup.read(ROOT / "setup.cfg")
  lines = [c.line for c in find_commands() if "pip install" in c.line]
  named = {
    name
    for line in lines
    for names in re.findall(r"(?:\.|jamsface-jax)\[(\w[\w,-]*)\]", line)
    for name in names.split(",")
  }
  assert {"onnx", "ray"} <= named <= set(setup["options.extras_require"])


FILES = (".py", ".csv", ".txt", ".npy", ".md", ".pt")
SECTIONS = "|".join(
  name
  for name, value in base_config().to_dict().items()
  if isinstance(value, dict)
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_settings_exist_and_can_be_set(page):
  """Those between backticks; several in one are set together."""
  known = meanings()
  in_python = {f"head.{name}" for name in head.__all__}  # docs/head.md
  for span in spans(page):
    words = [word.removeprefix("--config.") for word in span.split()]
    if span in in_python:
      continue
    name = rf"(?:{SECTIONS})(?:\.[a-z_]+)+"
    if not re.match(rf"{name}(=|$)", words[0]) or words[0].endswith(FILES):
      continue
    config = base_config()
    for key, sign, value in (word.partition("=") for word in words):
      assert key in known or key in SECTIONS.split("|"), f"{page.name}: {span}"
      *sections, last = key.split(".")
      section = functools.reduce(getattr, sections, config)
      if sign and not re.fullmatch("[A-Z]+", value):  # A word for the reader's.
        if isinstance(section[last], (bool, tuple)):
          section[last] = ast.literal_eval(value)
        else:
          section[last] = type(section[last])(value)
    check_builds(config)


FLAGS = set().union(
  *(
    re.findall(
      r'(?:add|add_argument|DEFINE_\w+)\(\s*"(?:--)?([a-z_]\w*)"',
      path.read_text(encoding="utf-8"),
    )
    for folder in ("jamsface_jax", "data_prep", "benchmarks")
    for path in (ROOT / folder).rglob("*.py")
  ),
  ("debug", "log_level", "max_pixels", "help", "config", "version"),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_flags_exist(page):
  for span in spans(page):
    for flag in re.findall(r"^--([a-z]\w*)", span):
      assert flag.removeprefix("no_") in FLAGS or flag in FLAGS, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_paths_exist(page):
  """Of links, and between backticks those that begin with a folder of ours."""
  folders = "configs|data_prep|docs|jamsface_jax|tests|benchmarks|launch"
  for span in spans(page):
    if re.fullmatch(rf"({folders})/[\w/.-]*", span):
      assert (ROOT / span).exists(), span
  for target in re.findall(r"\]\(([^)#]+)[^)]*\)", read(page)[1]):
    if not target.startswith(("https://", "http://")):
      assert (page.parent / target).exists(), target


def insightface_rows():
  """The lines of the last table: the configurations of arcface_torch."""
  text = (ROOT / "docs" / "insightface.md").read_text(encoding="utf-8")
  lines = text.partition("## Configurations")[2].splitlines()
  for line in lines:
    cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    if len(cells) == 11 and cells[9].startswith("configs/"):
      yield cells


@pytest.mark.parametrize("cells", list(insightface_rows()), ids=lambda c: c[0])
def test_recipes_are_those_of_insightface(cells):
  """What to set gives what the same line says of arcface_torch."""
  _, margins, network, rate, batch, of_one, *cells = cells
  peak, decay, epochs, recipe, more = cells
  path, _, variant = recipe.partition(":")
  config = runpy.run_path(str(ROOT / path))["get_config"](variant)
  for word in more.split():
    key, _, value = word.partition("=")
    *sections, last = key.split(".")
    section = functools.reduce(getattr, sections, config)
    kind = type(section[last])
    section[last] = value == "True" if kind is bool else kind(value)
  settings = check_builds(config)
  length, _, warmup = epochs.partition(", ")
  assert [
    config.head.angular_margin,
    config.head.cosine_margin,
    config.head.sample_rate,
    config.data.batch_size,
    config.schedule.length,
    config.schedule.warmup,
    config.optimizer.weight_decay,
  ] == [
    *map(float, margins.split(", ")),
    float(rate),
    float(batch.replace(",", "")),
    float(length),
    float(warmup or 0),
    float(decay),
  ]
  assert config.model.name == re.sub(r"^r(?=\d)", "iresnet", network)
  # The first rate after warm-up, as the schedule of this program has it.
  images = 100 * config.data.batch_size
  schedule = make_schedule(settings, images)
  at = math.ceil(config.schedule.warmup * 100)
  np.testing.assert_allclose(schedule(at), float(peak), rtol=1e-6)
  assert not config.head.learn_angular and not config.head.learn_cosine
  # Gradients: batch statistics of one GPU, and slope 1 in the cosine, which
  # cos t - c has by itself. Masks of ViT-B and -L, whatever their names say.
  assert config.model.batch_norm_group == int(of_one)
  assert config.head.straight_through or not config.head.angular_margin
  masked = {"vit_b": 0.1, "vit_l": 0.1}.get(network, 0.0)
  assert config.model.mask_ratio == masked
  assert config.model.drop_path == (0.05 if "vit" in network else 0.0)
  assert config.optimizer.name == ("adamw" if "vit" in network else "sgd")


def test_site_builds(tmp_path):
  """Strictly: every link between pages, anchors too, leads somewhere."""
  shutil.copytree(ROOT / "docs", tmp_path / "docs")
  for name in ("jamsface_jax", "README.md"):
    (tmp_path / name).symlink_to(ROOT / name)
  shutil.copy(ROOT / "zensical.toml", tmp_path)
  build = [sys.executable, "-m", "zensical", "build", "--strict"]
  done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  site = tmp_path / "build" / "site"
  pages = {path.stem for path in PAGES if path.parent.name == "docs"}
  assert pages <= {path.stem for path in site.glob("*.html")}
  for page in site.glob("*.html"):
    text = page.read_text(encoding="utf-8")
    fetched = re.findall(r'<(?:script|img|link)[^>]*(?:src|href)="(.*?)"', text)
    assert fetched and not [at for at in fetched if "//" in at], page
