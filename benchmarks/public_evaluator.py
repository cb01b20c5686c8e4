r"""The evaluators of insightface and ours on the same embeddings.

  git clone https://github.com/deepinsight/insightface DIR
  python benchmarks/public_evaluator.py --insightface=DIR
  python benchmarks/public_evaluator.py --insightface=DIR \
      --embeddings=E.npy --protocol=DATA_SET

insightface's functions run as they are: `evaluate` and `calculate_roc` of
recognition/arcface_torch/eval/verification.py; pooling, 1:1, the table of TAR
and 1:N of recognition/_evaluation_/ijb/ijb_evals.py; pooling and scores of
recognition/arcface_torch/eval_ijbc.py, which is a script and whose two
functions are taken out of its text. Empty modules stand in for mxnet, torch
(but `no_grad`), cv2 and skimage, which none of these functions uses. pandas and
tabulate must be there: `pip install pandas tabulate`.

Without --embeddings they are random, of people with a centre each: 6,000 pairs
in ten folds as LFW, and templates as IJB-C's, a tenth of them. Then come small
sets, each made to show one difference.
"""

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import io
import os
import sys
import time
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import sklearn.decomposition
import sklearn.metrics
import sklearn.model_selection
import sklearn.preprocessing

from jamsface_jax.data.records import PAIRS_FILE
from jamsface_jax.data.sources import RecordSource
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.evaluation.foreign_embeddings import open_embeddings
from jamsface_jax.metrics.folds import kfold_accuracy
from jamsface_jax.metrics.identification import identify
from jamsface_jax.metrics.roc import Roc, rate_name, roc, tar_name
from jamsface_jax.protocols.pair_list import PairList
from jamsface_jax.protocols.pairs_file import Pairs, read_pairs
from jamsface_jax.protocols.pooling import Pooling
from jamsface_jax.protocols.template_files import (
  SubjectList,
  Templates,
  has_templates,
  read_templates,
)
from jamsface_jax.protocols.template_set import TemplateSet
from jamsface_jax.protocols.test_set import Evaluation, JudgingSettings

SIZE = 512
FARS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
FPIRS = (1e-2, 1e-1)
STAND_INS = ("mxnet", "torch", "cv2", "skimage")

NOT_GIVEN = "not given"  # Where there are too few negatives.

Result = TypeVar("Result")

Value = float | str


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    quantity: what was measured.
    theirs: insightface's number, or what it did instead.
    ours: our number, or what we did instead.
    why: why they differ, or are bound to.
  """

  quantity: str
  theirs: Value
  ours: Value
  why: str = ""


@dataclasses.dataclass(frozen=True)
class Insightface:
  """Its evaluators: two modules, and functions of a script."""

  verification: types.ModuleType
  ijb_evals: types.ModuleType
  eval_ijbc: types.SimpleNamespace


def main() -> int:
  """Runs both evaluators and prints the table."""
  parser = argparse.ArgumentParser(
    prog="python benchmarks/public_evaluator.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--insightface", required=True, help="a checkout of its repository")
  add("--embeddings", help="a .npy file [N, D] instead of random ones")
  add("--protocol", help="the data set, of pairs or templates, of its rows")
  arguments = parser.parse_args()
  if bool(arguments.embeddings) != bool(arguments.protocol):
    raise InputError(
      "flags: --embeddings and --protocol go together: give both or none."
    )
  public = load(arguments.insightface)
  if arguments.embeddings:
    print_table(*compare_file(public, arguments.embeddings, arguments.protocol))
    return 0
  print_table(
    "6,000 random pairs in ten folds", compare_pairs(public, *pairs())
  )
  print_table(
    "Random templates, a tenth of IJB-C",
    compare_templates(public, *templates(), probes="mixed"),
  )
  print_table("Sets that show one difference each", differences(public))
  return 0


def load(directory: str) -> Insightface:
  """Imports the evaluators, with stand-ins for what is not used of them.

  Raises:
    InputError: not a checkout of insightface.
  """
  for package in ("pandas", "tabulate"):
    if importlib.util.find_spec(package) is None:
      raise InputError(
        f"insightface's evaluators need {package}: pip install pandas tabulate."
      )
  recognition = os.path.join(directory, "recognition")
  stand_ins = {name: types.ModuleType(name) for name in STAND_INS}
  vars(stand_ins["mxnet"])["ndarray"] = None
  vars(stand_ins["skimage"])["transform"] = None
  vars(stand_ins["torch"])["no_grad"] = lambda: lambda function: function
  saved = {name: sys.modules.get(name) for name in stand_ins}
  sys.modules |= stand_ins
  try:
    return Insightface(
      _import(recognition, "arcface_torch", "eval", "verification.py"),
      _import(recognition, "_evaluation_", "ijb", "ijb_evals.py"),
      _functions(
        os.path.join(recognition, "arcface_torch", "eval_ijbc.py"),
        "read_template_media_list",
        "image2template_feature",
        "verification",
      ),
    )
  except FileNotFoundError as error:
    raise InputError(
      f"--insightface={directory!r} has no {error.filename!r}: give a checkout"
      " of https://github.com/deepinsight/insightface."
    ) from None
  finally:
    for name, module in saved.items():
      del sys.modules[name]
      if module:
        sys.modules[name] = module


def _import(*parts: str) -> types.ModuleType:
  path = os.path.join(*parts)
  name = f"insightface_{os.path.splitext(parts[-1])[0]}"
  spec = importlib.util.spec_from_file_location(name, path)
  if spec is None or spec.loader is None:
    raise FileNotFoundError(path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _functions(path: str, *names: str) -> types.SimpleNamespace:
  """Functions of a script whose other lines would run a network on a GPU."""
  with open(path, encoding="utf-8") as file:
    tree = ast.parse(file.read(), path)
  tree.body = [
    node
    for node in tree.body
    if isinstance(node, ast.FunctionDef) and node.name in names
  ]
  pandas = importlib.import_module("pandas")
  scope = {"np": np, "sklearn": sklearn, "pd": pandas}
  exec(compile(tree, path, "exec"), scope)
  return types.SimpleNamespace(**{name: scope[name] for name in names})


def pairs() -> tuple[np.ndarray, Pairs]:
  """Embeddings of 12,000 images, and pairs of them in folds as LFW's."""
  rng = np.random.default_rng(0)
  first = rng.standard_normal((6000, SIZE), np.float32)
  second = rng.standard_normal((6000, SIZE), np.float32)
  same = np.tile(np.repeat([True, False], 300), 10)
  shared = 0.9 + 0.4 * rng.standard_normal((6000, 1), np.float32)
  second = np.where(same[:, np.newaxis], shared * first + second, second)
  # What faces have in common brings strangers together, some more.
  common = rng.standard_normal(SIZE, np.float32)
  towards = 0.5 * rng.standard_normal((2, 6000, 1), np.float32)
  rows = np.stack([first, second]) + towards * common
  return rows.reshape(-1, SIZE), Pairs(
    first=np.arange(6000),
    second=6000 + np.arange(6000),
    same=same,
    folds=np.arange(6000) // 600,
  )


def templates() -> tuple[np.ndarray, Templates]:
  """Embeddings of 46,937 images; 2,312 templates; 1,565,848 pairs; 1:N."""
  rng = np.random.default_rng(1)
  images, count, num_pairs, people = 46_937, 2_312, 1_565_848, 353
  subjects = np.r_[np.arange(people), rng.integers(0, people, count - people)]
  which = np.sort(
    np.r_[np.arange(count), rng.integers(0, count, images - count)]
  )
  # Media of about four images; a medium belongs to one template.
  media = np.cumsum(
    (rng.random(images) < 0.25) | (np.diff(which, prepend=-1) > 0)
  )
  centres = rng.standard_normal((people, SIZE), np.float32)
  rows = centres[subjects[which]]
  rows *= rng.uniform(0.1, 0.9, count).astype(np.float32)[which][:, np.newaxis]
  rows += 3 * rng.standard_normal(rows.shape, np.float32)
  first, second = rng.integers(0, count, (2, num_pairs))
  # About as many of one person as IJB-C's, for its size.
  chosen = rng.choice(num_pairs, 2_000, replace=False)
  order = np.argsort(subjects, kind="stable")
  follower = np.empty(count, np.int64)
  follower[order] = np.roll(order, -1)
  second[chosen] = follower[first[chosen]]
  keep = first != second
  first, second = first[keep], second[keep]
  # A template of each person is its gallery entry, in one of two galleries.
  halves = np.array_split(rng.permutation(people), 2)
  probes = np.arange(people, count)
  return rows, Templates(
    templates=which,
    media=media,
    scores=rng.uniform(0.5, 1, images),
    first=first,
    second=second,
    same=subjects[first] == subjects[second],
    galleries=[
      SubjectList(f"G{number}", half, half)
      for number, half in enumerate(halves, start=1)
    ],
    probes=[SubjectList("mixed", probes, subjects[probes])],
  )


def compare_file(
  public: Insightface, path: str, directory: str
) -> tuple[str, list[Row]]:
  """Compares on embeddings of the user's."""
  rows = np.asarray(open_embeddings(path), np.float32)
  source = RecordSource(directory, 112)
  if len(source) != len(rows):
    raise InputError(
      f"{path}: has {len(rows)} rows and {directory!r} {len(source)} images;"
      " give the embeddings of all its images in order."
    )
  title = f"{path} by {directory}"
  if has_templates(directory):
    found = read_templates(directory, len(source), source.names)
    probes = found.probes[0].name if found.probes else None
    return title, compare_templates(public, rows, found, probes=probes)
  found = read_pairs(os.path.join(directory, PAIRS_FILE), source.names())
  return title, compare_pairs(public, rows, found)


def compare_pairs(
  public: Insightface, rows: np.ndarray, found: Pairs
) -> list[Row]:
  """Accuracy in folds and TAR at FAR 1e-3 of a list of pairs."""
  # Its folds are equal runs of the list.
  order = np.argsort(found.folds, kind="stable")
  sizes = np.unique(found.folds, return_counts=True)[1]
  if np.ptp(sizes) > 1 or np.any(np.diff(sizes) > 0):
    raise InputError("insightface cuts folds of equal size: these are not.")
  found = Pairs(
    first=found.first[order],
    second=found.second[order],
    same=found.same[order],
    folds=found.folds[order],
  )
  both = np.empty((2 * len(order), rows.shape[1]), rows.dtype)
  both[0::2], both[1::2] = rows[found.first], rows[found.second]
  units = sklearn.preprocessing.normalize(both)
  folds = len(sizes)

  _, whole = attempt(
    lambda: public.verification.evaluate(units, found.same, nrof_folds=folds)
  )
  thresholds = np.arange(0, 4, 0.01)  # As `evaluate` has it.
  theirs_time, (_, _, accuracy) = timed(
    lambda: public.verification.calculate_roc(
      thresholds, units[0::2], units[1::2], found.same, nrof_folds=folds
    )
  )

  def ours() -> list[Evaluation]:
    test_set = PairList("pairs", found, None)
    wanted = rows[test_set.ids]
    return test_set.judge([wanted], _settings(), what="embeddings")

  ours_time, (judged,) = timed(ours)
  assert judged.score_counts is not None  # Pairs were compared.
  curve = judged.score_counts.curve
  metrics = judged.metrics
  val = far = whole
  why = "its interp1d refuses FARs that several thresholds share"
  if not isinstance(whole, str):
    val, far = whole[3], whole[5]
    why = "its thresholds are interpolated, on the other folds"
  (threshold,) = curve.threshold_at_far([1e-3])
  return [
    Row(
      "accuracy",
      accuracy.mean(),
      metrics["pairs/accuracy"],
      "its squared distances are cut at multiples of 0.01",
    ),
    Row(
      "... standard deviation", accuracy.std(), metrics["pairs/accuracy_std"]
    ),
    Row("TAR at FAR 1e-3", val, metrics.get("pairs/tar@1e-3", NOT_GIVEN), why),
    Row(
      "... FAR that it has",
      far,
      float(*curve.far[curve.thresholds == threshold])
      if np.isfinite(threshold)
      else NOT_GIVEN,
    ),
    Row("seconds", theirs_time, ours_time, "accuracy alone; all metrics"),
  ]


def compare_templates(
  public: Insightface, rows: np.ndarray, found: Templates, *, probes: str | None
) -> list[Row]:
  """1:1 and, with a name of probes, 1:N of templates."""
  ijb, script = public.ijb_evals, public.eval_ijbc
  scores = np.ones(len(rows)) if found.scores is None else found.scores
  weighed = np.asarray(scores, np.float32)

  def theirs_11() -> tuple[np.ndarray, np.ndarray, Any]:
    # Its "norm score" divides the lengths out: False keeps them, our N1.
    images = ijb.process_embeddings(
      rows, use_norm_score=False, use_detector_score=True, face_scores=weighed
    )
    pooled, numbers, _ = ijb.image2template_feature(
      images, found.templates, found.media
    )
    values = ijb.verification_11(pooled, numbers, found.first, found.second)
    return (
      images,
      values,
      ijb.plot_roc_and_calculate_tpr([values], label=found.same.astype(int))[0],
    )

  theirs_time, (images, values, table) = timed(theirs_11)
  script_time, script_values = timed(
    lambda: script.verification(
      *script.image2template_feature(images, found.templates, found.media),
      found.first,
      found.second,
    )
  )
  pooling = Pooling(detector=found.scores is not None, norm=True)
  one_to_one = dataclasses.replace(found, galleries=[], probes=[])
  ours_time, (judged,) = timed(
    lambda: TemplateSet("ijb", one_to_one).judge(
      [rows], _settings(pooling), what="embeddings"
    )
  )
  metrics = judged.metrics
  exact = roc(values, found.same)
  result = [
    Row("AUC", float(table["AUC"].iloc[0]), metrics["ijb/auc"], "float32"),
  ]
  for far, theirs in zip(FARS, table.iloc[0, -2::-1], strict=True):
    ours = metrics.get(f"ijb/{tar_name(far)}", NOT_GIVEN)
    why = _why_tar(exact, far, theirs)
    result.append(Row(f"TAR at FAR {far:g}", float(theirs), ours, why))
  apart = np.abs(values - script_values.ravel()).max()
  why = (
    f"eval_ijbc.py {script_time:.1f} without its ROC, the same scores to"
    f" {apart:.0e}"
  )
  result.append(Row("seconds", theirs_time, ours_time, why))
  if probes is None:
    return result
  return result + _compare_searches(public, images, rows, found, probes)


def _why_tar(exact: Roc, far: float, theirs: float) -> str:
  """Says what FAR its choice of the nearest point of the curve has."""
  if far < 1 / exact.num_negatives:
    return "its point has no false accept at all"
  real = exact.far[np.searchsorted(exact.tar, theirs - 1e-12)]
  return f"its point has FAR {real:.5g}"


def _compare_searches(
  public: Insightface,
  images: np.ndarray,
  rows: np.ndarray,
  found: Templates,
  name: str,
) -> list[Row]:
  """Rank 1, 5 and 10 and TPIR of the mean of two galleries."""
  ijb = public.ijb_evals
  probes = next(p for p in found.probes if p.name == name)

  def pooled(chosen: SubjectList) -> tuple[np.ndarray, np.ndarray]:
    units, _, subjects = ijb.image2template_feature(
      images, found.templates, found.media, chosen.templates, chosen.subjects
    )
    return units, subjects

  def theirs() -> tuple[list[float], np.ndarray]:
    searched, subjects = pooled(probes)
    each = []
    for gallery in found.galleries:
      units, owners = pooled(gallery)
      each.append(
        ijb.evaluation_1N(searched, units, subjects, owners, list(FPIRS))
      )
    # As its run_model_test_1N does.
    ranks = [sum(one[k] for one in each) / len(searched) for k in range(3)]
    return ranks, np.mean([one[4] for one in each], axis=0)

  theirs_time, (ranks, tpirs) = timed(theirs)
  pooling = Pooling(detector=found.scores is not None, norm=True)
  first = slice(0, 10)  # The least of 1:1, which a judgement has.
  few = np.r_[
    np.flatnonzero(found.same)[first], np.flatnonzero(~found.same)[first]
  ]
  only = dataclasses.replace(
    found,
    first=found.first[few],
    second=found.second[few],
    same=found.same[few],
  )
  ours_time, (judged,) = timed(
    lambda: TemplateSet("ijb", only).judge(
      [rows], _settings(pooling), what="embeddings"
    )
  )
  metrics = judged.metrics
  result = [
    Row(
      f"rank {k}",
      rank,
      metrics[f"ijb/{name}/rank{k}"],
      "it counts all probes of both galleries alike; ours is the mean of both",
    )
    for k, rank in zip((1, 5, 10), ranks, strict=True)
  ]
  for fpir, tpir in zip(FPIRS, tpirs, strict=True):
    result.append(
      Row(
        f"TPIR at FPIR {fpir:g}",
        float(tpir),
        metrics.get(f"ijb/{name}/tpir@{rate_name(fpir)}", NOT_GIVEN),
        "it allows one false answer less than the FPIR does",
      )
    )
  return [*result, Row("seconds", theirs_time, ours_time, "1:N with pooling")]


def differences(public: Insightface) -> list[Row]:
  """Small sets on which insightface's figures mislead, or stop it."""
  verification, ijb = public.verification, public.ijb_evals

  def tar(
    positives: np.ndarray, negatives: np.ndarray, far: float
  ) -> tuple[float, Value]:
    scores = np.r_[positives, negatives]
    same = np.r_[np.ones(len(positives)), np.zeros(len(negatives))]
    table, _ = quietly(
      lambda: ijb.plot_roc_and_calculate_tpr([scores], label=same)
    )
    theirs = dict(zip(FARS, table.iloc[0, -2::-1], strict=True))[far]
    (ours,) = roc(scores, same > 0).tar_at_far([far])
    return float(theirs), NOT_GIVEN if np.isnan(ours) else float(ours)

  # Half of the positives above all negatives; half below the 19th of 1,000.
  low = np.linspace(0, 0.5, 981)
  tail = np.linspace(0.6, 0.7, 19)
  halves = np.r_[np.full(50, 0.9), np.full(50, 0.55)]
  result = [
    Row(
      "TAR at FAR 0.01, half of the positives below 19 of 1,000 negatives",
      *tar(halves, np.r_[low, tail], 1e-2),
      "the nearest corner of the curve, whose FAR is 0.019",
    ),
    Row(
      "TAR at FAR 1e-6 by 50 negatives",
      *tar(halves, np.linspace(0, 0.5, 50), 1e-6),
      "50 negatives say nothing of FAR 1e-6",
    ),
  ]

  def accuracy(
    rows: np.ndarray, same: np.ndarray, folds: np.ndarray
  ) -> tuple[float, float]:
    theirs = quietly(
      lambda: verification.calculate_roc(
        np.arange(0, 4, 0.01), rows[0::2], rows[1::2], same
      )[2].mean()
    )
    cosines = np.sum(np.float64(rows[0::2]) * rows[1::2], axis=1)
    return float(theirs), float(kfold_accuracy(cosines, same, folds)[0].mean())

  # Distances of at most 0.009, those of one person half of the others'.
  rng = np.random.default_rng(2)
  same = np.arange(200) % 2 == 0
  angle = np.where(same, 0.04, 0.09) * rng.uniform(0.9, 1.1, 200)
  near = np.zeros((400, 2))
  near[0::2, 0], near[1::2, 0] = 1, np.cos(angle)
  near[1::2, 1] = np.sin(angle)
  result.append(
    Row(
      "accuracy, embeddings in a narrow cone, perfectly separable",
      *accuracy(near, same, np.arange(200) // 20),
      "all distances are below the first threshold of its grid",
    )
  )
  # 100 people in two galleries, 100 probes of them, and 100 of strangers.
  people = np.eye(300)
  probes = np.r_[np.arange(100), 200 + np.arange(100)]

  def search(
    halves: Sequence[np.ndarray], subjects: np.ndarray
  ) -> tuple[float, float]:
    each = [
      quietly(
        lambda half=half: ijb.evaluation_1N(
          people[subjects], people[half], subjects, half, [0.1]
        )
      )
      for half in halves
    ]
    ours = [
      identify(
        people[subjects].astype(np.float32),
        subjects,
        people[half].astype(np.float32),
        half,
        same_images=False,
      ).rank(1)
      for half in halves
    ]
    return sum(one[0] for one in each) / len(subjects), float(np.mean(ours))

  result += [
    Row(
      "rank 1, perfect embeddings, half of the probes in no gallery",
      *search([np.arange(50), np.arange(50, 100)], probes),
      "it divides by all probes",
    ),
    Row(
      "rank 1, perfect embeddings, half of the people in both galleries",
      *search([np.arange(75), np.arange(25, 100)], np.arange(100)),
      "likewise: a share above 1",
    ),
  ]
  _, outcome = attempt(
    lambda: ijb.evaluation_1N(
      people[:50], people[:50], np.arange(50), np.arange(50), [0.1]
    )
  )
  result.append(
    Row(
      "1:N, all probes in the gallery",
      outcome if isinstance(outcome, str) else outcome[0] / 50,
      identify(
        people[:50].astype(np.float32),
        np.arange(50),
        people[:50].astype(np.float32),
        np.arange(50),
        same_images=False,
      ).rank(1),
      "a maximum over no probes",
    )
  )
  text = io.StringIO("1.jpg 1 7\n2.jpg 2 8\n")
  _, outcome = attempt(lambda: public.eval_ijbc.read_template_media_list(text))
  result.append(
    Row(
      "eval_ijbc.py reads its list of templates",
      outcome if isinstance(outcome, str) else "read",
      "read",
      "np.int is no more",
    )
  )
  return result


def _settings(*poolings: Pooling) -> JudgingSettings:
  return JudgingSettings(
    fars=None, poolings=poolings, flip=None, plain=True, replicates=0
  )


def quietly(function: Callable[[], Result]) -> Result:
  """Calls it without what it prints, says of warnings, and draws."""
  with (
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
    warnings.catch_warnings(),
  ):
    warnings.simplefilter("ignore")
    return function()


def timed(function: Callable[[], Result]) -> tuple[float, Result]:
  """Seconds that it takes, and what it returns."""
  begin = time.monotonic()
  result = quietly(function)
  return time.monotonic() - begin, result


def attempt(function: Callable[[], Result]) -> tuple[float, Result | str]:
  """As `timed`; the name of an exception is a result too."""
  begin = time.monotonic()
  try:
    return timed(function)
  except Exception as error:
    return time.monotonic() - begin, type(error).__name__


def print_table(title: str, rows: list[Row]) -> None:
  """Prints the lines."""
  print(f"\n{title}")
  print(f"{'':68}{'insightface':>14}{'ours':>11}{'difference':>12}  why")
  for row in rows:
    theirs, ours = row.theirs, row.ours
    cells = [x if isinstance(x, str) else f"{x:.6f}" for x in (theirs, ours)]
    difference = ""
    if not isinstance(theirs, str) and not isinstance(ours, str):
      difference = f"{theirs - ours:+.6f}"
    line = f"{row.quantity:68}{cells[0]:>14}{cells[1]:>11}{difference:>12}"
    print(f"{line}  {row.why}".rstrip())


if __name__ == "__main__":
  os.environ.setdefault("MPLBACKEND", "Agg")
  run_command(main)
