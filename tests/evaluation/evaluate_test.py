"""The command: embeddings of any system, judged as public evaluators do."""

import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from conftest import assert_one_sentence, convert
from sklearn import metrics

from data_prep import from_ijb
from jamsface_jax import evaluate
from jamsface_jax.errors import InputError
from jamsface_jax.evaluation import judging
from jamsface_jax.evaluation.tasks import open_tasks
from jamsface_jax.settings.names import replaced
from jamsface_jax.settings.stored import read_settings
from jamsface_jax.storage.run_directory import RunDirectory

NAN = float("nan")
PEOPLE, SIZE = 24, 16


def judge(monkeypatch, output, *flags):
  """Runs the command here; returns results.json with sets by name."""
  argv = ["evaluate", f"--output={output}", *map(str, flags)]
  monkeypatch.setattr(sys, "argv", argv)
  assert evaluate.main() == 0
  results = json.loads((output / "results.json").read_text())
  return results | {"sets": {one["name"]: one for one in results["sets"]}}


# --- A list of pairs, against InsightFace's and scikit-learn's figures.


@pytest.fixture
def listed(tmp_path):
  """400 embeddings of 100 people and ten folds of 60 pairs, in text."""
  rng = np.random.default_rng(0)
  people = np.arange(400) // 4
  centres = rng.normal(size=(100, 32))
  embeddings = (centres[people] + 1.4 * rng.normal(size=(400, 32))) * 3
  np.save(tmp_path / "e.npy", embeddings.astype(np.float32))
  names = [f"{p:03d}/{i}.jpg" for i, p in enumerate(people)]
  (tmp_path / "paths.txt").write_text("\n".join(names) + "\n")
  lines = []
  for fold in range(10):
    for pair in range(60):
      i = rng.integers(0, 400)
      j = i // 4 * 4 + (i + rng.integers(1, 4)) % 4
      if pair % 2:
        j = (i + rng.integers(4, 396)) % 400
      same = int(people[i] == people[j])
      lines.append(f"{names[i]} {names[j]} {same} {fold}")
  (tmp_path / "mine.txt").write_text("\n".join(lines) + "\n")
  pairs = np.array([[names.index(x) for x in s.split()[:2]] for s in lines])
  return tmp_path, embeddings.astype(np.float32), pairs


def insightface_accuracies(embeddings, pairs, same):
  """arcface_torch/eval/verification.py, from its description.

  Squared distances of unit embeddings; thresholds 0, 0.01, ... 4; of each fold
  the one, the smallest, that is best on the other folds.
  """
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  distances = ((unit[pairs[:, 0]] - unit[pairs[:, 1]]) ** 2).sum(axis=1)
  fold = np.arange(len(pairs)) * 10 // len(pairs)
  thresholds = np.arange(0, 4, 0.01)
  right = (distances[:, None] < thresholds) == same[:, None]
  accuracies = []
  for number in range(10):
    best = np.argmax(right[fold != number].mean(axis=0))
    accuracies.append(right[fold == number, best].mean())
  return np.array(accuracies)


def test_pairs_against_public_evaluators(listed, monkeypatch, capsys):
  folder, embeddings, pairs = listed
  same = pairs[:, 0] // 4 == pairs[:, 1] // 4
  results = judge(
    monkeypatch,
    folder / "out",
    f"--embeddings={folder / 'e.npy'}",
    f"--protocol={folder / 'mine.txt'}",
    "--bootstrap=200",
  )
  (one,) = results["sets"].values()
  got = one["metrics"]
  theirs = insightface_accuracies(embeddings, pairs, same)
  # Theirs is the better one of 400 thresholds, ours of all: they part by the
  # few pairs between two thresholds of the grid.
  assert got["mine/accuracy"] == pytest.approx(theirs.mean(), abs=0.01)
  assert 0.8 < theirs.mean() < 0.99
  unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  scores = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1)
  far, tar, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
  for name, rate in (("tar@1e-1", 0.1), ("tar@1e-2", 0.01)):
    wanted = tar[np.searchsorted(far, rate, "right") - 1]
    assert got[f"mine/{name}"] == pytest.approx(wanted)
  assert "mine/tar@1e-3" not in got  # 300 negatives cannot tell.
  assert got["mine/auc"] == pytest.approx(metrics.auc(far, tar))
  assert one["facts"] == {
    "pairs": 600,
    "positive_pairs": int(same.sum()),
    "negative_pairs": int((~same).sum()),
    "smallest_far": 1 / (~same).sum(),
    "folds": 10,
    "identities": one["facts"]["identities"],
    "flip_sum": None,
  }
  for name in ("accuracy", "eer", "auc", "tar@1e-1"):
    low, high = one["intervals_95"][f"mine/{name}"]
    assert low < got[f"mine/{name}"] < high
    assert high - low < (0.4 if name.startswith("tar") else 0.2)
  table = capsys.readouterr().out
  assert f"mine/auc {got['mine/auc']:.6f}" in " ".join(table.split())
  for name in ("roc", "scores_mine", "hardest_mine"):
    assert cv2.imread(str(folder / "out" / f"{name}.png")).std() > 5
  hardest = one["hardest_negatives"][0]
  at = np.argmax(np.where(same, -1, scores))
  assert [hardest["first"], hardest["second"]] == pairs[at].tolist()


def test_order_of_rows_and_scale_do_not_matter(listed, monkeypatch):
  folder, embeddings, _ = listed
  flags = [
    f"--embeddings={folder / 'e.npy'}",
    f"--protocol={folder / 'mine.txt'}",
  ]
  before = judge(monkeypatch, folder / "a", *flags)["sets"]["mine"]
  order = np.random.default_rng(1).permutation(400)
  names = np.array((folder / "paths.txt").read_text().split())
  lengths = np.random.default_rng(2).uniform(0.1, 9, (400, 1))
  np.save(folder / "e.npy", (embeddings.astype(float) * lengths)[order])
  (folder / "paths.txt").write_text("\n".join(names[order]) + "\n")
  after = judge(monkeypatch, folder / "b", *flags)["sets"]["mine"]
  assert after["metrics"] == pytest.approx(before["metrics"], abs=1e-9)


def test_mirror_images_are_added(listed, monkeypatch):
  folder, embeddings, _ = listed
  rng = np.random.default_rng(3)
  mirrored = (embeddings + rng.normal(size=embeddings.shape)).astype(np.float32)
  np.save(folder / "f.npy", mirrored)
  np.save(folder / "sum.npy", embeddings + mirrored)
  protocol = f"--protocol={folder / 'mine.txt'}"
  both = judge(
    monkeypatch,
    folder / "a",
    f"--embeddings={folder / 'e.npy'}",
    f"--flipped={folder / 'f.npy'}",
    protocol,
  )["sets"]
  assert set(both) == {"mine", "mine/F0"}
  for name, file in ("mine", "sum"), ("mine/F0", "e"):
    alone = judge(
      monkeypatch,
      folder / "b",
      f"--embeddings={folder / f'{file}.npy'}",
      protocol,
      f"--against={folder / 'a' / 'results.json'}",
    )["sets"]["mine"]
    got = {k.split("/")[-1]: v for k, v in both[name]["metrics"].items()}
    wanted = {k.split("/")[-1]: v for k, v in alone["metrics"].items()}
    assert got == pytest.approx(wanted, abs=1e-12)
  assert both["mine"]["facts"]["flip_sum"] is True
  assert both["mine/F0"]["facts"]["flip_sum"] is False


# --- IJB, against InsightFace's figures.


@pytest.fixture(scope="module")
def ijb(tmp_path_factory):
  """60 templates of 24 people in IJB's layout, and embeddings of the images."""
  root = tmp_path_factory.mktemp("ijb")
  rng = np.random.default_rng(5)
  for name in ("crops", "meta"):
    (root / name).mkdir()
  subjects = np.r_[
    np.arange(PEOPLE), np.arange(PEOPLE), rng.integers(0, 24, 12)
  ]
  faces = []
  for template, subject in enumerate(subjects):
    for _ in range(rng.integers(1, 6)):
      medium = int(rng.integers(0, 3))
      faces.append((f"{len(faces)}.jpg", 100 + template, medium, subject))
  pixels = rng.integers(0, 256, (8, 8, 3), np.uint8)
  for name, *_ in faces:
    cv2.imwrite(str(root / "crops" / name), pixels)
  scores = rng.uniform(0.2, 1, len(faces)).round(3)
  first, second = np.triu_indices(len(subjects), 1)
  # Gallery 1 has the first half of the people, gallery 2 the others.
  texts = {
    "x_face_tid_mid.txt": [f"{n} {t} {m}" for n, t, m, _ in faces],
    "x_template_pair_label.txt": [
      f"{100 + a} {100 + b} {int(subjects[a] == subjects[b])}"
      for a, b in zip(first, second, strict=True)
    ],
    "x_name_5pts_score.txt": [
      f"{face[0]} {' '.join(['1.5'] * 10)} {score}"
      for face, score in zip(faces, scores, strict=True)
    ],
  }
  for name, templates in (
    ("gallery_G1", range(12)),
    ("gallery_G2", range(12, 24)),
    ("probe_mixed", range(24, 60)),
  ):
    texts[f"x_1N_{name}.csv"] = ["TEMPLATE_ID,SUBJECT_ID"] + [
      f"{100 + t},{subjects[t]}" for t in templates
    ]
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
  centres = rng.normal(size=(PEOPLE, SIZE))
  embeddings = centres[[s for *_, s in faces]]
  embeddings = embeddings + 1.3 * rng.normal(size=embeddings.shape)
  embeddings *= rng.uniform(0.5, 2, (len(faces), 1))
  np.save(root / "e.npy", embeddings.astype(np.float32))
  np.save(
    root / "unit.npy", embeddings / np.linalg.norm(embeddings, axis=1)[:, None]
  )
  return root, embeddings, faces, scores, subjects


def ijb_templates(ijb, detector, norm):
  """InsightFace's image2template_feature, from its description."""
  _, features, faces, scores, subjects = ijb
  if not norm:
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
  if detector:
    features = features * scores[:, None]
  templates = np.array([t - 100 for _, t, _, _ in faces])
  media = np.array([m for _, _, m, _ in faces])
  rows = []
  for template in range(len(subjects)):
    mine = templates == template
    rows.append(
      sum(
        features[mine & (media == medium)].mean(axis=0)
        for medium in set(media[mine])
      )
    )
  return np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


def insightface_search(probes, probe_ids, gallery, gallery_ids, fpirs):
  """ijb_evals.py's evaluation_1N, from its description.

  Ranks by sorting; the threshold of an FPIR is that of n * FPIR probes without
  a mate, and mates must be above it and above everybody else.
  """
  cosines = probes @ gallery.T
  mated = np.isin(probe_ids, gallery_ids)
  tops, correct, mates = [], [], []
  for row, person in zip(cosines[mated], probe_ids[mated], strict=True):
    place = np.flatnonzero(gallery_ids == person)[0]
    tops.append(np.flatnonzero(np.argsort(-row) == place)[0])
    mates.append(row[place])
    correct.append(row[place] > np.delete(row, place).max())
  others = np.sort(cosines[~mated].max(axis=1))[::-1]
  tpirs = []
  for fpir in fpirs:
    threshold = others[max(int(len(others) * fpir) - 1, 0)]
    tpirs.append(np.mean(np.array(correct) & (np.array(mates) > threshold)))
  ranks = [np.mean(np.array(tops) < k) for k in (1, 5, 10)]
  return ranks, tpirs, len(others)


def test_templates_against_public_evaluators(ijb, monkeypatch):
  root, *_, subjects = ijb
  results = judge(
    monkeypatch,
    root / "out",
    f"--embeddings={root / 'e.npy'}",
    f"--protocol={root / 'd'}",
    "--bootstrap=20",
  )["sets"]
  assert set(results) == {"ijbx", "ijbx/D1N0", "ijbx/D0N1", "ijbx/D0N0"}
  first, second = np.triu_indices(60, 1)
  same = subjects[first] == subjects[second]
  seen = set()
  for name, one in results.items():
    facts = one["facts"]
    detector, norm = facts["detector_score"], facts["feature_norm"]
    assert facts["templates"] == 60
    templates = ijb_templates(ijb, detector, norm)
    scores = (templates[first] * templates[second]).sum(axis=1)
    far, tar, _ = metrics.roc_curve(same, scores)
    got = {k.removeprefix(name + "/"): v for k, v in one["metrics"].items()}
    assert got["auc"] == pytest.approx(metrics.auc(far, tar), abs=1e-6)
    for rate, key in ((0.1, "tar@1e-1"), (0.01, "tar@1e-2")):
      wanted = tar[np.searchsorted(far, rate, "right") - 1]
      assert got[key] == pytest.approx(wanted)
    both = []
    for gallery, rows in ("G1", range(12)), ("G2", range(12, 24)):
      ranks, *_ = insightface_search(
        templates[24:], subjects[24:], templates[rows], subjects[rows], [0.1]
      )
      keys = [f"mixed/{gallery}/rank{k}" for k in (1, 5, 10)]
      assert [got[k] for k in keys] == pytest.approx(ranks)
      both.append(ranks)
    keys = [f"mixed/rank{k}" for k in (1, 5, 10)]
    assert [got[k] for k in keys] == pytest.approx(np.mean(both, axis=0))
    assert got["mixed/tpir@1e-1"] == pytest.approx(
      np.mean([got[f"mixed/G{g}/tpir@1e-1"] for g in (1, 2)])
    )
    low, high = one["intervals_95"][f"{name}/eer"]
    assert low <= got["eer"] <= high
    seen.add((detector, norm, round(got["auc"], 9)))
  assert len({auc for *_, auc in seen}) == 4  # The switches do something.
  assert cv2.imread(str(root / "out" / "cmc_ijbx.png")).std() > 5


def test_tpir_is_insightfaces_one_answer_further(ijb, monkeypatch):
  # Their threshold is the last answer allowed, which then does not pass: with
  # their rate a little higher, so that it allows one more, both are the same.
  from jamsface_jax.metrics.identification import identify

  *_, subjects = ijb
  templates = ijb_templates(ijb, True, True).astype(np.float32)
  found = identify(
    templates[24:],
    subjects[24:],
    templates[:12],
    subjects[:12],
    same_images=False,
  )
  count = len(found.other_scores)
  assert count > 10
  for allowed in (1, 3, 7, 10):
    _, theirs, others = insightface_search(
      templates[24:],
      subjects[24:],
      templates[:12],
      subjects[:12],
      [(allowed + 1) / count + 1e-9],
    )
    assert others == count
    got = found.tpir_at_fpir([allowed / count])
    assert got == pytest.approx(theirs)


def test_lengths_that_say_nothing(ijb, monkeypatch):
  root, *_ = ijb
  flags = [f"--embeddings={root / 'unit.npy'}", f"--protocol={root / 'd'}"]
  results = judge(monkeypatch, root / "out", *flags)["sets"]
  assert set(results) == {"ijbx", "ijbx/D0N0"}
  with pytest.raises(InputError, match="N1 .* all have length 1"):
    judge(monkeypatch, root / "out", *flags, "--pooling=D1N1")


# --- Searches of single images, and all pairs.


@pytest.fixture
def searched(tmp_path):
  """90 embeddings of 20 people and 30 strangers; the names and subjects."""
  rng = np.random.default_rng(8)
  subjects = np.r_[np.arange(60) % 20, np.full(30, -1)]
  embeddings = rng.normal(size=(90, 12))
  embeddings[:60] += 1.5 * rng.normal(size=(20, 12))[subjects[:60]]
  np.save(tmp_path / "e.npy", embeddings)
  (tmp_path / "paths.txt").write_text("".join(f"{i}.jpg\n" for i in range(90)))
  units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
  return tmp_path, units, subjects


def write_search(path, rows):
  lines = ["image,subject,role", *(f"{i}.jpg,{s},{r}" for i, s, r in rows)]
  path.write_text("\n".join(lines) + "\n")


def test_tinyface(searched, monkeypatch):
  folder, units, subjects = searched
  rows = [(i, subjects[i], "probe") for i in range(20)]
  rows += [(i, subjects[i], "gallery") for i in range(20, 60)]
  rows += [(i, "", "distractor") for i in range(60, 90)]
  write_search(folder / "tinyface.csv", rows)
  results = judge(
    monkeypatch,
    folder / "out",
    f"--embeddings={folder / 'e.npy'}",
    f"--protocol={folder / 'tinyface.csv'}",
    "--bootstrap=50",
  )
  (one,) = results["sets"].values()
  cosines = units[:20] @ units[20:].T
  ordered = subjects[20:][np.argsort(-cosines, axis=1)]
  for k in (1, 5, 10):
    wanted = np.mean((ordered[:, :k] == subjects[:20, None]).any(axis=1))
    assert one["metrics"][f"tinyface/rank{k}"] == pytest.approx(wanted)
  assert 0.2 < one["metrics"]["tinyface/rank1"] < 0.99
  assert one["facts"]["gallery"] == 70 and one["facts"]["distractors"] == 30
  low, high = one["intervals_95"]["tinyface/rank1"]
  assert low < one["metrics"]["tinyface/rank1"] < high


def test_megaface(searched, monkeypatch):
  folder, units, subjects = searched
  rows = [(i, subjects[i], "probe") for i in range(60)]
  rows += [(i, "", "distractor") for i in range(60, 90)]
  write_search(folder / "mega.csv", rows)
  results = judge(
    monkeypatch,
    folder / "out",
    f"--embeddings={folder / 'e.npy'}",
    f"--protocol={folder / 'mega.csv'}",
  )
  (one,) = results["sets"].values()
  cosines = units @ units.T
  for count in (10, 30):
    hits = [
      cosines[i, j] > cosines[i, 60 : 60 + count].max()
      for i in range(60)
      for j in range(60)
      if i != j and subjects[i] == subjects[j]
    ]
    got = one["metrics"][f"mega/rank1@{count}"]
    assert got == pytest.approx(np.mean(hits))
  assert one["metrics"]["mega/rank1"] == got
  assert one["facts"]["searches"] == len(hits) == 120


def test_all_pairs(searched, monkeypatch):
  folder, units, subjects = searched
  labels = np.where(subjects < 0, np.arange(90) + 100, subjects)
  np.save(folder / "labels.npy", labels)
  (one,) = judge(
    monkeypatch,
    folder / "out",
    f"--embeddings={folder / 'e.npy'}",
    "--protocol=all_pairs",
  )["sets"].values()
  first, second = np.triu_indices(90, 1)
  scores = (units[first] * units[second]).sum(axis=1)
  far, tar, _ = metrics.roc_curve(labels[first] == labels[second], scores)
  got = one["metrics"]
  assert got["all_pairs/auc"] == pytest.approx(metrics.auc(far, tar), abs=1e-6)
  wanted = tar[np.searchsorted(far, 0.01, "right") - 1]
  assert got["all_pairs/tar@1e-2"] == pytest.approx(wanted)
  cosines = units @ units.T - 9 * np.eye(90)
  nearest = labels[cosines.argmax(axis=1)]
  hits = np.mean((nearest == labels)[:60])
  assert got["all_pairs/rank1"] == pytest.approx(hits)
  assert one["facts"]["other_probes"] == 30


# --- What is wrong with the input, in one sentence.


def spoil(folder, kind):
  """Breaks one thing; returns flags and what the sentence must have."""
  embeddings = np.load(folder / "e.npy")
  flags = [
    f"--embeddings={folder / 'e.npy'}",
    f"--protocol={folder / 'mine.txt'}",
  ]
  text = (folder / "mine.txt").read_text()
  if kind == "missing image":
    (folder / "mine.txt").write_text("gone.jpg 000/1.jpg 1 3\n" + text)
    return flags, ["mine.txt:1", "'gone.jpg'"]
  if kind == "other rows":
    np.save(folder / "e.npy", embeddings[:399])
    return flags, ["e.npy", "399 rows", "paths.txt", "400 images"]
  if kind == "not finite":
    embeddings[7, 3] = np.nan
    np.save(folder / "e.npy", embeddings)
    return flags, ["e.npy", "not finite"]
  if kind == "all zero":
    embeddings[7] = 0
    np.save(folder / "e.npy", embeddings)
    return flags, ["e.npy", "all zero"]
  if kind == "one fold":
    lines = [line.rsplit(" ", 1)[0] + " 3" for line in text.splitlines()]
    (folder / "mine.txt").write_text("\n".join(lines))
    return flags, ["mine.txt", "one fold"]
  if kind == "too few for folds":
    lines = [line.rsplit(" ", 1)[0] for line in text.splitlines()[:12]]
    (folder / "mine.txt").write_text("\n".join(lines))
    return flags, ["mine.txt", "do not make 10 folds"]
  if kind == "folds that do not divide":
    (folder / "mine.txt").write_text("10 30\n" + "000 1 2\n" * 599)
    return flags, ["mine.txt:1", "promises 600 pairs", "599 follow"]
  if kind == "no names":
    (folder / "paths.txt").unlink()
    return flags, ["paths.txt", "names"]
  if kind == "no labels":
    return [flags[0], "--protocol=all_pairs"], ["labels.npy", "classes"]
  if kind == "whole numbers":
    np.save(folder / "e.npy", embeddings.astype(int))
    return flags, ["e.npy", "int64 [400, 32]"]
  if kind == "one row of numbers":
    np.save(folder / "e.npy", embeddings[0])
    return flags, ["e.npy", "float32 [32]"]
  if kind == "not an array":
    (folder / "e.npy").write_text("hello")
    return flags, ["e.npy", "is not a .npy file"]
  if kind == "objects":
    np.save(folder / "e.npy", np.array([{}]), allow_pickle=True)
    return flags, ["e.npy", "is not a .npy file"]
  if kind == "no file":
    return [f"--embeddings={folder}/no.npy", flags[1]], ["no.npy", "No such"]
  if kind == "no protocol":
    return [flags[0], f"--protocol={folder}/no.txt"], ["no.txt"]
  if kind == "other mirror images":
    np.save(folder / "f.npy", embeddings[1:])
    flags.append(f"--flipped={folder / 'f.npy'}")
    return flags, ["f.npy", "[399, 32]", "[400, 32]"]
  if kind == "pooling":
    return [*flags, "--pooling=D2N1"], ["'D2N1'", "D1N0"]
  if kind == "rates":
    return [*flags, "--fars=0.1,2"], ["--fars='0.1,2'"]
  if kind == "resamples":
    return [*flags, "--bootstrap=-1"], ["--bootstrap=-1"]
  if kind == "both":
    return [*flags, "--workdir=w", "--data=d"], ["--workdir", "--embeddings"]
  if kind == "neither":
    return [flags[0]], ["--workdir", "--protocol"]
  if kind == "against nothing":
    return [*flags, f"--against={folder}/no.json"], ["no.json"]
  assert kind == "against something else"
  (folder / "other.json").write_text('{"format": 7}')
  return [*flags, f"--against={folder / 'other.json'}"], ["other.json"]


KINDS = (
  "missing image;other rows;not finite;all zero;one fold;too few for folds;"
  "folds that do not divide;no names;no labels;whole numbers;"
  "one row of numbers;not an array;objects;no file;no protocol;"
  "other mirror images;pooling;rates;resamples;both;neither;against nothing;"
  "against something else"
).split(";")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_input_is_one_sentence(listed, monkeypatch, kind):
  folder, *_ = listed
  flags, parts = spoil(folder, kind)
  with pytest.raises(InputError) as error:
    judge(monkeypatch, folder / "out", *flags)
  message = str(error.value)
  assert "\n" not in message and message.endswith(".")
  for part in parts:
    assert part in message, message
  assert not (folder / "out").exists()


def test_the_command_says_it_and_ends_with_2(listed, run):
  folder, *_ = listed
  flags, parts = spoil(folder, "not finite")
  assert_one_sentence(run("jamsface_jax.evaluate", *flags), *parts)


@pytest.mark.parametrize(
  ("rows", "parts"),
  [
    (["99.jpg,1,probe"], ["search.csv:2", "'99.jpg'"]),
    (["1.jpg,1,probe", "1.jpg,1,gallery"], ["search.csv:3", "second time"]),
    (["1.jpg,1,prob"], ["search.csv:2", "'prob'", "gallery"]),
    (["1.jpg,,probe"], ["search.csv:2", "subject ''"]),
    (["1.jpg,3,distractor"], ["search.csv:2", "subject '3'"]),
    (["1.jpg,3"], ["search.csv:2", "2 fields"]),
    (["1.jpg,1,probe", "2.jpg,2,gallery"], ["no probe", "in the gallery"]),
    (["1.jpg,1,probe", "2.jpg,,distractor"], ["no probe", "among the probes"]),
    (["1.jpg,1,probe", "2.jpg,1,probe"], ["neither gallery nor"]),
  ],
)
def test_bad_searches_are_one_sentence(searched, monkeypatch, rows, parts):
  folder, *_ = searched
  text = "\n".join(["image,subject,role", *rows]) + "\n"
  (folder / "search.csv").write_text(text)
  with pytest.raises(InputError) as error:
    judge(
      monkeypatch,
      folder / "out",
      f"--embeddings={folder / 'e.npy'}",
      f"--protocol={folder / 'search.csv'}",
    )
  for part in parts:
    assert part in str(error.value), error.value


@pytest.mark.parametrize(
  ("file", "content", "parts"),
  [
    ("faces.csv", "image,template\n", ["faces.csv", "first line"]),
    ("faces.csv", "image,template,medium,score\n0.jpg,x,1,\n", ["faces.csv:2"]),
    (
      "faces.csv",
      "image,template,medium,score\n0.jpg,1,1,nan\n",
      ["faces.csv:2", "score"],
    ),
    ("template_pairs.npy", np.zeros((4, 3)), ["float64 [4, 3]"]),
    ("template_pairs.npy", np.int32([[0, 99, 1]]), ["template 99"]),
    ("template_pairs.npy", np.int32([[0, 1, 1]]), ["some of both"]),
    ("template_pairs.npy", None, ["template_pairs.npy"]),
    ("gallery_G1.csv", "template,subject\n99,1\n", ["template 99"]),
    ("gallery_G1.csv", "template,subject\n-1,1\n", ["gallery_G1.csv:2"]),
    ("gallery_G1.csv", "template,subject\n1,2,3\n", ["3 fields"]),
    ("gallery_G1.csv", b"template,subject\n\xff,1\n", ["UTF-8"]),
  ],
)
def test_bad_templates_are_one_sentence(
  ijb, tmp_path, monkeypatch, file, content, parts
):
  root, *_ = ijb
  subprocess.run(["cp", "-r", root / "d", tmp_path / "d"], check=True)
  path = tmp_path / "d" / file
  if content is None:
    path.unlink()
  elif isinstance(content, np.ndarray):
    np.save(path, content)
  elif isinstance(content, bytes):
    path.write_bytes(content)
  else:
    path.write_text(content)
  with pytest.raises(InputError) as error:
    judge(
      monkeypatch,
      tmp_path / "out",
      f"--embeddings={root / 'e.npy'}",
      f"--protocol={tmp_path / 'd'}",
    )
  for part in parts:
    assert part in str(error.value), error.value


def test_images_left_out_are_found_by_name(ijb, tmp_path, monkeypatch):
  root, embeddings, faces, scores, subjects = ijb
  # One of a template that has another.
  templates = [template for _, template, *_ in faces]
  bad = next(i for i, t in enumerate(templates) if templates.count(t) > 1)
  crops = tmp_path / "crops"
  subprocess.run(["cp", "-r", root / "crops", crops], check=True)
  (crops / f"{bad}.jpg").write_bytes(b"broken")
  from_ijb.convert(
    str(crops),
    str(tmp_path / "d"),
    meta=str(root / "meta"),
    name="ijbx",
    skip_bad=True,
    threads=2,
  )
  np.save(tmp_path / "e.npy", np.delete(embeddings, bad, axis=0))
  one = judge(
    monkeypatch,
    tmp_path / "out",
    f"--embeddings={tmp_path / 'e.npy'}",
    f"--protocol={tmp_path / 'd'}",
  )["sets"]["ijbx"]
  assert one["facts"]["images"] == len(embeddings) - 1
  less = (
    root,
    np.delete(embeddings, bad, axis=0),
    faces[:bad] + faces[bad + 1 :],
    np.delete(scores, bad),
    subjects,
  )
  templates = ijb_templates(less, detector=True, norm=True)
  first, second = np.triu_indices(60, 1)
  cosines = (templates[first] * templates[second]).sum(axis=1)
  far, tar, _ = metrics.roc_curve(subjects[first] == subjects[second], cosines)
  wanted = metrics.auc(far, tar)
  assert one["metrics"]["ijbx/auc"] == pytest.approx(wanted, abs=1e-6)
  with pytest.raises(InputError, match=f"{len(embeddings)} rows"):
    judge(
      monkeypatch,
      tmp_path / "out",
      f"--embeddings={root / 'e.npy'}",
      f"--protocol={tmp_path / 'd'}",
    )


def test_a_data_set_without_protocol(image_folder, tmp_path, monkeypatch):
  convert(image_folder, tmp_path / "bare", pairs=None)
  np.save(tmp_path / "e.npy", np.random.default_rng(0).normal(size=(37, 8)))
  flags = [f"--embeddings={tmp_path / 'e.npy'}"]
  with pytest.raises(InputError, match="has no pairs.txt.*:all_pairs"):
    judge(
      monkeypatch, tmp_path / "o", *flags, f"--protocol={tmp_path / 'bare'}"
    )
  results = judge(
    monkeypatch,
    tmp_path / "o",
    *flags,
    f"--protocol={tmp_path / 'bare'}:all_pairs",
  )
  assert results["sets"]["tiny"]["facts"]["pairs"] == 37 * 36 // 2


# --- What a network is judged on where nothing is said of it.


def test_a_run_is_judged_on_its_own_test_sets(untrained, monkeypatch):
  """Which are those of its settings; it is told where it has none."""
  asked = []

  def stop(data, size):
    asked.append((data, size))
    raise InputError("seen")

  monkeypatch.setattr(judging, "open_tasks", stop)
  monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={untrained}"])
  with pytest.raises(InputError, match="no test set of its own"):
    evaluate.main()
  settings = read_settings(RunDirectory(untrained))
  settings = replaced(settings, {"evaluation.data": "data/lfw,data/cfp"})
  monkeypatch.setattr(judging, "read_settings", lambda _: settings)
  with pytest.raises(InputError, match="seen"):
    evaluate.main()
  assert asked == [("data/lfw,data/cfp", 32)]


def test_a_folder_of_images_is_told_its_protocols(image_folder):
  folder = str(image_folder / "images")
  with pytest.raises(InputError) as error:
    open_tasks(folder, 32)
  for part in ("--protocol=all_pairs", "pairs.txt", "from_folder", folder):
    assert part in str(error.value)
