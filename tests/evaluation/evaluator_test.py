"""A network on test sets, whatever the batch: mirrored, and in training."""

import json
import pathlib
import shutil
import sys

import cv2
import numpy as np
import pytest
from conftest import convert

from data_prep import from_ijb
from jamsface_jax import evaluate
from jamsface_jax.devices import sharding
from jamsface_jax.embedding.embedder import open_embedder
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation.tasks import open_tasks
from jamsface_jax.protocols.pooling import parse_pooling
from jamsface_jax.protocols.test_set import JudgingSettings
from jamsface_jax.run.checkpoint import CheckpointReader
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import tiny
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.train import train

SETTINGS = JudgingSettings(
  fars=None,
  poolings=[parse_pooling("D0N1")],
  flip=True,
  plain=True,
  replicates=0,
)


def scores_of(workdir, data, *, batch_size, mesh, flip=True):
  """Every metric, and the cosines that were kept."""
  embedder, variables, _ = open_embedder(
    RunDirectory(workdir),
    step=None,
    batch_size=batch_size,
    flip=flip,
    mesh=mesh,
  )
  metrics, kept = {}, []
  for task in open_tasks(data, 32):
    for one in task.evaluate(embedder, variables, SETTINGS, threads=2):
      metrics |= one.metrics
      for hardest in (
        one.score_counts.hardest_positives,
        one.score_counts.hardest_negatives,
      ):
        kept.append(hardest.scores)
  return metrics, np.concatenate(kept)


@pytest.fixture(scope="module")
def ijbx(image_folder, tmp_path_factory):
  """The images as templates, one a person but for the first, which has two."""
  root = tmp_path_factory.mktemp("ijbx")
  paths = sorted((image_folder / "images").rglob("*.jpg"))
  (root / "crops").mkdir()
  (root / "meta").mkdir()
  faces = []
  for number, path in enumerate(paths):
    shutil.copy(path, root / "crops" / f"{number}.jpg")
    person = int(path.parent.name[-2:])
    template = 12 if path.stem.endswith("0_0003") else person
    faces.append(f"{number}.jpg {template} {number % 2}")
  texts = {
    "x_face_tid_mid.txt": faces,
    "x_template_pair_label.txt": [
      f"{a} {b} {int((a, b) == (0, 12))}"
      for a in range(12)
      for b in range(a + 1, 13)
    ],
    "x_1N_gallery_G1.csv": ["t,s", *(f"{t},{t}" for t in range(6))],
    "x_1N_probe_mixed.csv": ["t,s", "12,0", "7,7"],
  }
  for file, lines in texts.items():
    (root / "meta" / file).write_text("\n".join(lines) + "\n")
  from_ijb.convert(
    str(root / "crops"),
    str(root / "d"),
    meta=str(root / "meta"),
    name="ijbx",
    skip_bad=False,
    threads=2,
  )
  return str(root / "d")


def test_neither_batch_nor_devices_change_the_scores(
  untrained, dataset, ijbx, mesh
):
  data = f"{dataset},{ijbx}"
  once, scores = scores_of(untrained, data, batch_size=16, mesh=mesh)
  assert {"tiny/accuracy", "ijbx/auc", "ijbx/mixed/G1/rank1"} < set(once)
  for batch_size in (8, 40):
    _, other = scores_of(untrained, data, batch_size=batch_size, mesh=mesh)
    np.testing.assert_allclose(other, scores, atol=1e-5)


def test_mirrored_images_give_the_same_scores(
  untrained, image_folder, dataset, tmp_path
):
  for path in (image_folder / "images").rglob("*.jpg"):
    place = tmp_path / "images" / path.parent.name / (path.stem + ".png")
    place.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(place), cv2.imread(str(path)))
    place = pathlib.Path(str(place).replace("/images/", "/mirrored/"))
    place.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(place), cv2.imread(str(path))[:, ::-1])
  results = {}
  for kind in ("images", "mirrored"):
    folder = tmp_path / f"as_{kind}"
    folder.mkdir()
    (tmp_path / kind).rename(folder / "images")
    shutil.copy(image_folder / "pairs.txt", folder)
    convert(folder, tmp_path / kind)
    for flip in (True, False):
      results[kind, flip] = scores_of(
        untrained,
        str(tmp_path / kind),
        batch_size=16,
        mesh=sharding.make_mesh(-1),
        flip=flip,
      )[1]
  both = results["images", True], results["mirrored", True]
  np.testing.assert_allclose(*both, atol=1e-5)
  alone = results["images", False], results["mirrored", False]
  assert np.abs(alone[0] - alone[1]).max() > 1e-3  # The sum does it.


def run_evaluate(monkeypatch, output, *flags):
  argv = ["evaluate", f"--output={output}", *map(str, flags)]
  monkeypatch.setattr(sys, "argv", argv)
  assert evaluate.main() == 0
  results = json.loads((output / "results.json").read_text())
  return {one["name"]: one for one in results["sets"]}


@pytest.mark.slow
def test_a_network_and_its_embeddings_are_judged_alike(
  untrained, dataset, ijbx, tmp_path, monkeypatch
):
  for name, directory in ("tiny", dataset), ("ijbx", ijbx):
    ours = run_evaluate(
      monkeypatch,
      tmp_path / "ours",
      f"--workdir={untrained}",
      f"--data={directory}",
      "--flip=both",
    )
    embedder, variables, _ = open_embedder(
      RunDirectory(untrained),
      step=None,
      batch_size=16,
      flip=False,
      mesh=sharding.make_mesh(-1),
    )
    (task,) = open_tasks(directory, 32)
    source = task.source
    arrays = {}
    for kind, turn in ("e", 1), ("f", -1):
      blocks = embedder.embed(
        variables,
        lambda n, turn=turn, source=source: source.read(n)[0][:, :, ::turn],
        len(source),
        threads=1,
      )
      arrays[kind] = tmp_path / f"{name}_{kind}.npy"
      np.save(arrays[kind], np.concatenate(list(blocks)))
    theirs = run_evaluate(
      monkeypatch,
      tmp_path / "theirs",
      f"--embeddings={arrays['e']}",
      f"--flipped={arrays['f']}",
      f"--protocol={directory}",
    )
    assert set(ours) == set(theirs)
    for key, one in ours.items():
      wanted = theirs[key]
      assert one["metrics"] == pytest.approx(wanted["metrics"], abs=1e-5)
      assert one["facts"] == wanted["facts"]
  # No detector scores here: D1 is not there, and says so if asked for.
  assert set(ours) == {"ijbx", "ijbx/F1D0N0", "ijbx/F0D0N1", "ijbx/F0D0N0"}
  with pytest.raises(InputError, match="'ijbx' has no detector scores"):
    run_evaluate(
      monkeypatch,
      tmp_path / "o",
      f"--workdir={untrained}",
      f"--data={ijbx}",
      "--pooling=D1N0",
    )


def test_a_folder_is_judged_as_its_data_set(
  untrained, image_folder, dataset, tmp_path, monkeypatch
):
  workdir = f"--workdir={untrained}"
  folder = f"--data={image_folder / 'images'}"
  pairs = f"--protocol={image_folder / 'pairs.txt'}"
  ours = run_evaluate(monkeypatch, tmp_path / "a", workdir, folder, pairs)
  known = run_evaluate(
    monkeypatch, tmp_path / "b", workdir, f"--data={dataset}"
  )
  got = {k.split("/")[1]: v for k, v in ours["pairs"]["metrics"].items()}
  wanted = {k.split("/")[1]: v for k, v in known["tiny"]["metrics"].items()}
  assert got == pytest.approx(wanted, abs=1e-6)
  everything = run_evaluate(
    monkeypatch, tmp_path / "c", workdir, folder, "--protocol=all_pairs"
  )
  known = run_evaluate(
    monkeypatch, tmp_path / "d", workdir, f"--data={dataset}:all_pairs"
  )
  assert everything["images"]["facts"] == known["tiny"]["facts"]
  for broken, message in (
    ((workdir, folder, f"--protocol={tmp_path}/no.txt"), "no.txt"),
    ((workdir, f"--data={tmp_path}/no", pairs), "not a folder"),
    ((workdir, f"--data={tmp_path}", pairs), "has no image"),
  ):
    with pytest.raises(InputError, match=message):
      run_evaluate(monkeypatch, tmp_path / "o", *broken)


def searches(names):
  """A search of each person's first image among the others, of all of them."""
  lines = ["image,subject,role"]
  for name in names:
    role = "probe" if name.endswith("_0001.jpg") else "gallery"
    lines.append(f"{name},{name.split('/')[0]},{role}")
  return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
  ("protocol", "counts"),
  [
    ("pairs.txt", {"images": 2, "pairs": 4}),
    ("all_pairs", {"images": 2}),
    ("search.csv", {"images": 2, "probes": 1}),
  ],
)
def test_broken_images_of_a_folder_are_left_out(
  untrained, image_folder, tmp_path, monkeypatch, capsys, run, protocol, counts
):
  """As if they were not there: `embed` leaves them out by another way."""
  images = tmp_path / "images"
  shutil.copytree(image_folder / "images", images)
  names = sorted(str(p.relative_to(images)) for p in images.rglob("*.jpg"))
  gone = ["Person_03/Person_03_0001.jpg", "Person_07/Person_07_0002.jpg"]
  for name in gone:
    (images / name).write_bytes(b"x")
  (tmp_path / "search.csv").write_text(searches(names))
  shutil.copy(image_folder / "pairs.txt", tmp_path)
  workdir = f"--workdir={untrained}"
  by = protocol if protocol == "all_pairs" else str(tmp_path / protocol)
  flags = (workdir, f"--data={images}", f"--protocol={by}")
  (ours,) = run_evaluate(monkeypatch, tmp_path / "a", *flags).values()
  said = capsys.readouterr().err
  assert "2 of 37 images" in said and all(name in said for name in gone)
  assert ours["facts"].pop("left_out") == counts
  if protocol == "all_pairs":
    for name in gone:
      (images / name).unlink()
    (wanted,) = run_evaluate(monkeypatch, tmp_path / "b", *flags).values()
  else:
    done = run(
      "jamsface_jax.embed",
      workdir,
      f"--images={images}",
      f"--output={tmp_path / 'e'}",
    )
    assert done.returncode == 0, done.stderr
    (wanted,) = run_evaluate(
      monkeypatch,
      tmp_path / "b",
      f"--embeddings={tmp_path / 'e' / 'embeddings.npy'}",
      f"--protocol={by}",
    ).values()
    assert wanted["facts"].pop("left_out") == counts
  assert ours["metrics"] == pytest.approx(wanted["metrics"], abs=1e-6)
  assert ours["facts"] == wanted["facts"]


def test_a_folder_whose_people_are_broken_is_no_test_set(
  untrained, image_folder, tmp_path, monkeypatch
):
  images = tmp_path / "images"
  shutil.copytree(image_folder / "images", images)
  for path in images.rglob("*_000[2-4].jpg"):
    path.write_bytes(b"")
  names = sorted(str(p.relative_to(images)) for p in images.rglob("*.jpg"))
  (tmp_path / "search.csv").write_text(searches(names))
  for protocol, said in (
    ("all_pairs", "needs two people"),
    (image_folder / "pairs.txt", "mend the images"),
    (tmp_path / "search.csv", "mend the images"),
  ):
    with pytest.raises(InputError, match=said):
      run_evaluate(
        monkeypatch,
        tmp_path / "o",
        f"--workdir={untrained}",
        f"--data={images}",
        f"--protocol={protocol}",
      )


@pytest.mark.slow
def test_training_evaluates_all_of_it(dataset, ijbx, tmp_path):
  config = tiny(base_config())
  config.data.directory = dataset
  config.schedule.length = 4.0
  config.evaluation.data = f"{dataset}:all_pairs,{ijbx}"
  config.evaluation.pooling = "D0N1"
  config.evaluation.every = 2
  config.checkpoint.keep_best = "ijbx/mixed/rank1"
  assert train(make_settings(config), RunDirectory(str(tmp_path / "w"))) == 0
  lines = (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()
  evaluated = [json.loads(line) for line in lines if "ijbx/auc" in line]
  assert len(evaluated) >= 2
  names = {"tiny/rank1", "tiny/tar@1e-2", "ijbx/mixed/G1/rank1", "ijbx/eer"}
  assert names < set(evaluated[-1])
  for name in ("roc", "cmc_tiny", "cmc_ijbx", "hardest_ijbx", "scores_tiny"):
    assert (tmp_path / "w" / "plots" / f"{name}.png").exists()


def test_settings_are_refused_before_training(dataset, ijbx, tmp_path):
  config = tiny(base_config())
  config.data.directory = dataset
  config.evaluation.data = ijbx
  with pytest.raises(InputError, match="has no detector scores"):
    train(make_settings(config), RunDirectory(str(tmp_path / "w")))
  config.evaluation.pooling = "D3"
  with pytest.raises(InputError, match="'D3' is not of the form"):
    train(make_settings(config), RunDirectory(str(tmp_path / "w")))
  config.evaluation.data = f"{dataset},{dataset}:all_pairs"
  config.evaluation.pooling = "D0N0"
  with pytest.raises(InputError, match="has the name 'tiny' of another"):
    train(make_settings(config), RunDirectory(str(tmp_path / "w")))
  assert not (tmp_path / "w").exists()


def test_colours_of_another_order_are_refused(
  untrained, dataset, tmp_path, monkeypatch
):
  flags = [f"--workdir={untrained}", f"--data={tmp_path / 'bgr'}"]
  shutil.copytree(dataset, tmp_path / "bgr")
  index = tmp_path / "bgr" / "dataset.json"
  content = json.loads(index.read_text())
  index.write_text(json.dumps(content | {"color_order": "BGR"}))
  with pytest.raises(InputError, match="color_order 'BGR'.*RGB"):
    run_evaluate(monkeypatch, tmp_path / "o", *flags)
  index.write_text(json.dumps(content))
  read = CheckpointReader.metadata
  monkeypatch.setattr(
    CheckpointReader,
    "metadata",
    lambda self, step: read(self, step) | {"color_order": "BGR"},
  )
  with pytest.raises(InputError, match="takes BGR images.*decode to RGB"):
    run_evaluate(monkeypatch, tmp_path / "o", *flags)
  assert not (tmp_path / "o").exists()
