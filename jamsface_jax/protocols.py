"""What to do with the embeddings of a test set: pairs, templates, searches.

A protocol says which images it needs and judges their embeddings, which may
come from a network here or from another system. Embeddings arrive in blocks,
and only what a protocol needs of them is kept.
"""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import numpy as np

from jamsface_jax import verification
from jamsface_jax.bootstrap import (
  PairResampler,
  SearchResampler,
  connected_people,
  interval,
)
from jamsface_jax.cosines import (
  many_pair_cosines,
  pair_cosines,
  tiles,
  unit_rows,
)
from jamsface_jax.data import records
from jamsface_jax.data.groups import Groups, open_groups
from jamsface_jax.data.pairs import Pairs, read_pairs
from jamsface_jax.data.searches import (
  SEARCH_FILE,
  Search,
  has_search,
  is_search,
  read_search,
)
from jamsface_jax.data.templates import (
  SubjectList,
  Templates,
  has_templates,
  read_templates,
)
from jamsface_jax.demographics import (
  GroupedPairs,
  GroupResult,
  judge_groups,
)
from jamsface_jax.errors import InputError
from jamsface_jax.identification import (
  Identification,
  identify,
  identify_among_distractors,
)
from jamsface_jax.pooling import Pooling, TemplatePooler
from jamsface_jax.roc import Roc, rate_name, tar_name
from jamsface_jax.tally import PairTally, Tally, tally_pairs

ALL_PAIRS = "all_pairs"
RANKS = (1, 5, 10)
FPIRS = (1e-1, 1e-2)
SEED = 0  # Of the bootstrap: the same embeddings give the same intervals.


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to judge.

  Attributes:
    fars: false accept rates at which to give TAR, those that the negatives can
      measure; None for every power of ten that they can.
    poolings: of templates.
    flip: whether embeddings are flip sums; None if nobody knows.
    plain: results go by the plain name of the set, of several poolings those of
      the first; all others have the switches in their name.
    replicates: resamples of the identities for intervals; 0 for none.
  """

  fars: Sequence[float] | None
  poolings: Sequence[Pooling]
  flip: bool | None
  plain: bool
  replicates: int


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluation:
  """What came out of one protocol on one set.

  Attributes:
    name: of the set, the prefix of its metrics.
    headline: the result in a few words.
    metrics: `<set>/accuracy`, `<set>/eer`, ...
    intervals: 95 % intervals of some of them.
    facts: what was measured on: numbers of pairs, switches.
    tally: of the scores of pairs, if pairs were compared.
    threshold: cosine from which on a pair is accepted, if one was chosen.
    searches: identifications by name.
    groups: what came out for groups of people, if the set has them.
  """

  name: str
  headline: str
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  facts: dict[str, object]
  tally: Tally | None = None
  threshold: float | None = None
  searches: dict[str, Identification] = dataclasses.field(default_factory=dict)
  groups: Sequence[GroupResult] = ()


class TestSet(Protocol):
  """A set and how it is judged.

  Attributes:
    name: the prefix of its metrics.
    ids: the images that it needs, in the order in which it wants them, int64.
  """

  name: str
  ids: np.ndarray

  def rising_metrics(self, settings: Settings) -> list[str]:
    """Names of the metrics that are better when larger."""

  def judge(
    self, blocks: Iterable[np.ndarray], settings: Settings, *, what: str
  ) -> list[Evaluation]:
    """Judges embeddings.

    Args:
      blocks: float32 [n, D] each, together the embeddings of `ids` in order.
      settings: how.
      what: the embeddings are, for messages.

    Raises:
      InputError: embeddings that cannot be compared.
    """


class PairList:
  """A list of pairs of images in folds, as LFW's.

  Args:
    name: of the set.
    pairs: by number of the image.
    labels: the class of every image, int [N]; used as identities if they agree
      with the pairs.
    groups: of the classes, to be judged one by one too.
  """

  def __init__(
    self,
    name: str,
    pairs: Pairs,
    labels: np.ndarray | None,
    groups: Groups | None = None,
  ):
    self.name = name
    self._groups = groups
    self._labels = labels
    # Only images that a pair names are needed, each once.
    self.ids, where = np.unique(
      np.concatenate([pairs.first, pairs.second]), return_inverse=True
    )
    self._first, self._second = np.split(where, 2)
    self._pairs = pairs
    self._identities = people(
      len(self.ids),
      self._first,
      self._second,
      pairs.same,
      None if labels is None else labels[self.ids],
    )

  def rising_metrics(self, settings: Settings) -> list[str]:
    """See `TestSet`."""
    fars = supported(settings.fars, int((~self._pairs.same).sum()))
    names = ["accuracy", "auc", *map(tar_name, fars)]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: Settings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`."""
    embeddings = np.concatenate(list(blocks))
    pairs, first, second = self._pairs, self._first, self._second
    scores = pair_cosines(embeddings, first, second, what=what)
    tally = tally_pairs(scores, pairs.same, pairs.first, pairs.second)
    accuracies, thresholds = verification.kfold_accuracy(
      scores, pairs.same, pairs.folds
    )
    metrics = {
      "accuracy": float(accuracies.mean()),
      "accuracy_std": float(accuracies.std()),
      "threshold": float(thresholds.mean()),
    } | curve_metrics(tally.curve, settings.fars)
    _, fold = np.unique(pairs.folds, return_inverse=True)
    right = (scores >= thresholds[fold]) == pairs.same
    intervals = pair_intervals(
      (scores, pairs.same, first, second, self._identities), settings, right
    )
    thresholds = self._thresholds(tally.curve, settings)
    groups = self._judge_groups(
      scores, metrics["threshold"], thresholds, settings
    )
    name = set_name(self.name, settings)
    return [
      Evaluation(
        name=name,
        headline=f"accuracy {metrics['accuracy']:.2%} +-"
        f" {metrics['accuracy_std']:.2%} on {len(scores):,} pairs",
        metrics=prefixed(name, metrics),
        intervals=prefixed(name, intervals),
        facts=pair_facts(tally)
        | {
          "folds": len(accuracies),
          "identities": int(self._identities.max()) + 1,
          "flip_sum": settings.flip,
        }
        | {f"threshold@{far}": t for far, t in thresholds.items()},
        tally=tally,
        threshold=metrics["threshold"],
        groups=groups,
      )
    ]

  def _thresholds(self, curve, settings):
    """Those at the FARs, by the FAR's name; groups are judged at them."""
    if self._groups is None:
      return {}
    fars = supported(settings.fars, curve.num_negatives)
    found = curve.threshold_at_far(fars).tolist()
    return dict(zip(map(rate_name, fars), found, strict=True))

  def _judge_groups(self, scores, threshold, thresholds, settings):
    """Each group at the thresholds of the whole set; [] without groups."""
    if self._groups is None:
      return []
    pairs = self._pairs
    of_image = self._groups.of_class[self._labels]
    return judge_groups(
      GroupedPairs(
        scores=scores,
        same=pairs.same,
        first=self._identities[self._first],
        second=self._identities[self._second],
        first_group=of_image[pairs.first],
        second_group=of_image[pairs.second],
      ),
      self._groups.names,
      threshold,
      thresholds,
      replicates=settings.replicates,
      seed=SEED,
    )


class AllPairs:
  """Every image compared with every other, and searched among the others.

  Args:
    name: of the set.
    labels: the class of every image, int [N].
  """

  def __init__(self, name: str, labels: np.ndarray):
    _, sizes = np.unique(labels, return_counts=True)
    if len(sizes) < 2 or sizes.max() < 2:
      raise InputError(
        f"data set {name!r} has no pairs of one person and of two: all_pairs"
        " needs two people, and one of them twice."
      )
    self.name = name
    self.ids = np.arange(len(labels))
    self._labels = labels
    total = len(labels) * (len(labels) - 1) // 2
    self._negatives = total - int((sizes * (sizes - 1) // 2).sum())

  def rising_metrics(self, settings: Settings) -> list[str]:
    """See `TestSet`."""
    fars = supported(settings.fars, self._negatives)
    names = ["auc", *map(tar_name, fars), *map(rank_name, RANKS)]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: Settings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`."""
    units = unit_rows(np.concatenate(list(blocks)), what=what)
    tally = tally_all_pairs(units, self._labels)
    found = identify(units, self._labels, units, self._labels, same_images=True)
    metrics = curve_metrics(tally.curve, settings.fars)
    metrics |= search_metrics(found)
    intervals = search_intervals(found, settings)
    name = set_name(self.name, settings)
    return [
      Evaluation(
        name=name,
        headline=f"EER {metrics['eer']:.2%}, rank 1 {metrics['rank1']:.2%} on"
        f" {len(units):,} images",
        metrics=prefixed(name, metrics),
        intervals=prefixed(name, intervals),
        facts=pair_facts(tally)
        | search_facts(found)
        | {"flip_sum": settings.flip},
        tally=tally,
        searches={name: found},
      )
    ]


class TemplateSet:
  """Templates compared and searched, as IJB-B and IJB-C.

  Args:
    name: of the set.
    templates: which they are.
  """

  def __init__(self, name: str, templates: Templates):
    self.name = name
    self.ids = np.arange(len(templates.templates))
    self.has_scores = templates.scores is not None
    self._templates = templates

  def check(self, poolings: Sequence[Pooling]) -> None:
    """Refuses poolings that these templates cannot have.

    Raises:
      InputError: no detector's scores, which one needs.
    """
    if not self.has_scores and any(p.detector for p in poolings):
      raise InputError(
        f"data set {self.name!r} has no detector scores, which D1 needs: choose"
        " a pooling with D0, or write the set again with its scores."
      )

  def rising_metrics(self, settings: Settings) -> list[str]:
    """See `TestSet`."""
    fars = supported(settings.fars, int((~self._templates.same).sum()))
    names = ["auc", *map(tar_name, fars)]
    if self._templates.galleries:
      for probes in self._templates.probes:
        names += [f"{probes.name}/{rank_name(k)}" for k in RANKS]
    return [f"{self.name}/{name}" for name in names]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: Settings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`; an evaluation for each pooling."""
    templates = self._templates
    self.check(settings.poolings)
    pooler = TemplatePooler(
      templates.templates,
      templates.media,
      templates.scores,
      poolings=settings.poolings,
      what=what,
    )
    for block in blocks:
      pooler.add(block)
    return [
      self._judge(units, pooling, settings)
      for pooling, units in pooler.units().items()
    ]

  def _judge(self, units, pooling, settings):
    templates = self._templates
    first, second, same = templates.first, templates.second, templates.same
    scores = many_pair_cosines(units, first, second)
    tally = tally_pairs(scores, same, first, second)
    metrics = curve_metrics(tally.curve, settings.fars)
    intervals = {}
    if settings.replicates:
      identities = people(len(units), first, second, same, self._subjects())
      intervals = pair_intervals(
        (scores, same, first, second, identities), settings, None
      )
    searches = {}
    for probes in templates.probes if templates.galleries else ():
      each = [search(units, probes, other) for other in templates.galleries]
      for gallery, found in zip(templates.galleries, each, strict=True):
        name = f"{probes.name}/{gallery.name}"
        searches[name] = found
        metrics |= prefixed(name, search_metrics(found))
        intervals |= prefixed(name, search_intervals(found, settings))
      all_metrics = [search_metrics(found) for found in each]
      metrics |= {
        f"{probes.name}/{name}": float(np.mean([m[name] for m in all_metrics]))
        for name in all_metrics[0]
      }
    switches = f"{pooling}"
    if settings.flip is not None:
      switches = f"F{settings.flip:d}{pooling}"
    plain = settings.plain and pooling == settings.poolings[0]
    name = self.name if plain else f"{self.name}/{switches}"
    best = "tar@1e-4" if "tar@1e-4" in metrics else "auc"
    return Evaluation(
      name=name,
      headline=f"{best} {metrics[best]:.2%} on {len(scores):,} pairs of"
      f" {len(units):,} templates ({switches})",
      metrics=prefixed(name, metrics),
      intervals=prefixed(name, intervals),
      facts=pair_facts(tally)
      | {
        "templates": len(units),
        "images": len(self.ids),
        "flip_sum": settings.flip,
        "detector_score": pooling.detector,
        "feature_norm": pooling.norm,
      }
      | {
        f"{key} {k}": v
        for key, one in searches.items()
        for k, v in search_facts(one).items()
      },
      tally=tally,
      searches=searches,
    )

  def _subjects(self):
    """The person of each template, from the lists; None if one is missing."""
    subjects = np.full(self._templates.templates.max() + 1, -1)
    for one in self._templates.galleries + self._templates.probes:
      subjects[one.templates] = one.subjects
    compared = np.union1d(self._templates.first, self._templates.second)
    return None if (subjects[compared] < 0).any() else subjects


class SearchSet:
  """Single images searched in a gallery or among distractors.

  Args:
    name: of the set.
    search: by number of the image.
  """

  def __init__(self, name: str, search: Search):
    self.name = name
    parts = search.probes, search.gallery, search.distractors
    self.ids = np.concatenate(parts)
    self._ends = np.cumsum([len(part) for part in parts])[:2]
    self._search = search

  def rising_metrics(self, settings: Settings) -> list[str]:
    """See `TestSet`."""
    return [f"{self.name}/{rank_name(k)}" for k in RANKS]

  def judge(
    self, blocks: Iterable[np.ndarray], settings: Settings, *, what: str
  ) -> list[Evaluation]:
    """See `TestSet`."""
    units = unit_rows(np.concatenate(list(blocks)), what=what)
    probes, gallery, distractors = np.split(units, self._ends)
    if len(gallery):
      return [self._gallery(probes, gallery, distractors, settings)]
    return [self._distractors(probes, distractors, settings)]

  def _gallery(self, probes, gallery, distractors, settings):
    nobody = np.full(len(distractors), -1)
    found = identify(
      probes,
      self._search.probe_subjects,
      np.concatenate([gallery, distractors]),
      np.concatenate([self._search.gallery_subjects, nobody]),
      same_images=False,
    )
    metrics = search_metrics(found)
    name = set_name(self.name, settings)
    return Evaluation(
      name=name,
      headline=f"rank 1 {metrics['rank1']:.2%} of {len(found.ranks):,} probes"
      f" among {found.gallery_size:,}",
      metrics=prefixed(name, metrics),
      intervals=prefixed(name, search_intervals(found, settings)),
      facts=search_facts(found)
      | {"distractors": len(distractors), "flip_sum": settings.flip},
      searches={name: found},
    )

  def _distractors(self, probes, distractors, settings):
    powers = 10 ** np.arange(1, 1 + int(np.log10(len(distractors))))
    sizes = np.union1d(powers, len(distractors)).tolist()
    ranks = identify_among_distractors(
      probes, self._search.probe_subjects, distractors, sizes
    )
    metrics = {}
    for size, row in zip(sizes, ranks, strict=True):
      of_size = {rank_name(k): float(np.mean(row <= k)) for k in RANKS}
      # The plain name is of all distractors; rank1@1000 of the first 1,000.
      metrics |= {f"{key}@{size}": value for key, value in of_size.items()}
    metrics |= of_size
    name = set_name(self.name, settings)
    return Evaluation(
      name=name,
      headline=f"rank 1 {metrics['rank1']:.2%} of {ranks.shape[1]:,} searches"
      f" among {len(distractors):,} distractors",
      metrics=prefixed(name, metrics),
      intervals={},
      facts={
        "probes": len(probes),
        "searches": ranks.shape[1],
        "distractors": len(distractors),
        "flip_sum": settings.flip,
      },
    )


def open_protocols(
  name: str,
  directory: str,
  count: int,
  names: Callable[[], Sequence[str]],
  labels: Callable[[], np.ndarray],
) -> list[TestSet]:
  """Opens the protocols that lie in a data set.

  Args:
    name: of the data set.
    directory: of the data set.
    count: of its images.
    names: gives the paths of its images.
    labels: gives the class of each.

  Returns:
    At least one.

  Raises:
    InputError: none is there, or one that does not fit.
  """
  found: list[TestSet] = []
  path = os.path.join(directory, records.PAIRS_FILE)
  if os.path.exists(path):
    pairs = read_pairs(path, names())
    found.append(PairList(name, pairs, labels(), open_groups(directory)))
  if has_templates(directory):
    found.append(TemplateSet(name, read_templates(directory, count, names)))
  if has_search(directory):
    path = os.path.join(directory, SEARCH_FILE)
    found.append(SearchSet(name, read_search(path, names())))
  if not found:
    raise InputError(
      f"data set {directory!r} has no {records.PAIRS_FILE}, no templates and no"
      f" {SEARCH_FILE}: write it again with 'data_prep.from_folder"
      " --pairs=FILE', or compare all its images with"
      f" '{directory}:{ALL_PAIRS}'."
    )
  return found


def open_list(path: str, names: Sequence[str]) -> TestSet:
  """Opens a protocol in a file of its own: a search.csv, or else pairs.

  Args:
    path: of the file; its stem is the name of the set.
    names: of the images.

  Raises:
    InputError: it cannot be read, or does not fit the images.
  """
  name = os.path.splitext(os.path.basename(path))[0]
  if is_search(path):
    return SearchSet(name, read_search(path, names))
  return PairList(name, read_pairs(path, names), labels=None)


def set_name(name: str, settings: Settings) -> str:
  """The name that results of single images go by."""
  return name if settings.plain else f"{name}/F{settings.flip:d}"


def people(
  count: int,
  first: np.ndarray,
  second: np.ndarray,
  same: np.ndarray,
  labels: np.ndarray | None,
) -> np.ndarray:
  """Identities for resampling, int64 [count], from 0 on.

  Args:
    count: number of images or templates.
    first: of each pair, integers [P].
    second: of each pair, integers [P].
    same: whether it shows one person, bool [P].
    labels: what may be the identities; used if the pairs agree.
  """
  if labels is not None and np.array_equal(
    labels[first] == labels[second], same
  ):
    return np.unique(labels, return_inverse=True)[1]
  return connected_people(count, first, second, same)


def supported(fars: Sequence[float] | None, num_negatives: int) -> list[float]:
  """The FARs that so many negatives can measure, falling."""
  if fars is None:
    fars = [float(f"1e-{k}") for k in range(1, 16)]
  return [far for far in fars if far >= 1 / num_negatives]


def curve_metrics(curve: Roc, fars: Sequence[float] | None) -> dict[str, float]:
  """EER, AUC, TAR at each FAR that the negatives support and at their least."""
  fars = supported(fars, curve.num_negatives)
  tars = dict(zip(fars, curve.tar_at_far(fars).tolist(), strict=True))
  (smallest,) = curve.tar_at_far([1 / curve.num_negatives])
  return (
    {"eer": curve.equal_error_rate(), "auc": curve.auc()}
    | {tar_name(far): tar for far, tar in tars.items()}
    | {"tar@smallest": float(smallest)}
  )


def pair_intervals(pairs, settings, right) -> dict[str, tuple[float, float]]:
  """Intervals of the metrics of pairs; see `bootstrap`.

  Args:
    pairs: scores, kinds, first, second and the identities of all images.
    settings: has the number of replicates.
    right: whether each decision of the folds was right, bool [P], or None.
      Their thresholds stay as they are.
  """
  if not settings.replicates:
    return {}
  scores, same, first, second, identities = pairs
  resampler = PairResampler(scores, same, identities[first], identities[second])
  rng = np.random.default_rng(SEED)
  rows = []
  for _ in range(settings.replicates):
    if drawn := resampler.draw(rng):
      curve, weights = drawn
      row = curve_metrics(curve, settings.fars)
      if right is not None:
        row["accuracy"] = float(weights @ right / weights.sum())
      rows.append(row)
  names = rows[0] if rows else {}
  return {name: interval(np.array([r[name] for r in rows])) for name in names}


def search_intervals(
  found: Identification, settings: Settings
) -> dict[str, tuple[float, float]]:
  """Intervals of the metrics of a search; see `bootstrap`."""
  if not settings.replicates:
    return {}
  resampler = SearchResampler(found, RANKS, FPIRS)
  rng = np.random.default_rng(SEED)
  rows = np.array([resampler.draw(rng) for _ in range(settings.replicates)])
  names = search_metrics(found)
  return {
    name: interval(values)
    for name, values in zip(all_search_names(), rows.T, strict=True)
    if name in names
  }


def all_search_names() -> list[str]:
  """Metrics of a search in an open set."""
  return [*map(rank_name, RANKS), *(f"tpir@{rate_name(f)}" for f in FPIRS)]


def search_metrics(found: Identification) -> dict[str, float]:
  """Rates at `RANKS` and at those of `FPIRS` that can be measured."""
  rates = [*found.cmc(RANKS), *found.tpir_at_fpir(FPIRS)]
  return {
    name: float(rate)
    for name, rate in zip(all_search_names(), rates, strict=True)
    if not np.isnan(rate)
  }


def search(
  units: np.ndarray, probes: SubjectList, gallery: SubjectList
) -> Identification:
  """Searches templates among templates."""
  return identify(
    units[probes.templates],
    probes.subjects,
    units[gallery.templates],
    gallery.subjects,
    same_images=False,
  )


def tally_all_pairs(units: np.ndarray, labels: np.ndarray) -> Tally:
  """The tally of every pair of rows, a tile of cosines in memory at a time.

  Args:
    units: float32 [N, D], rows of length 1.
    labels: the class of each, integers [N].
  """
  # By class, so that positives lie in few tiles, next to the diagonal.
  order = np.argsort(labels, kind="stable")
  units, labels = units[order], np.asarray(labels)[order]
  upper = [
    (rows, columns)
    for rows, columns in tiles(units, units)
    if min(columns.stop, len(units)) - 1 > rows.start
  ]

  def kinds(rows, columns):
    """Of a tile, what is above the diagonal, and what of it is positive."""
    number = np.arange(len(units))
    above = number[rows, np.newaxis] < number[columns]
    return above, above & (labels[rows, np.newaxis] == labels[columns])

  def names(rows, columns, places):
    width = len(units[columns])
    row, column = np.divmod(places, width)
    return order[rows.start + row], order[columns.start + column]

  # The same tiles twice: a tie must be a tie both times.
  found = []
  for rows, columns in upper:
    if labels[rows][-1] >= labels[columns.start]:
      _, positive = kinds(rows, columns)
      places = np.flatnonzero(positive)
      cosines = units[rows] @ units[columns].T
      found.append((cosines.ravel()[places], *names(rows, columns, places)))
  tally = PairTally(*map(np.concatenate, zip(*found, strict=True)))
  for rows, columns in upper:
    cosines = (units[rows] @ units[columns].T).ravel()
    if labels[rows][-1] >= labels[columns.start] or rows.stop > columns.start:
      above, positive = kinds(rows, columns)
      places = np.flatnonzero(above & ~positive)
      cosines = cosines[places]
    else:
      places = np.arange(len(cosines))
    tally.add(
      cosines,
      lambda chosen, rows=rows, columns=columns, places=places: names(
        rows, columns, places[chosen]
      ),
    )
  return tally.tally()


def pair_facts(tally: Tally) -> dict[str, object]:
  """How many pairs there were, and what they can measure."""
  return {
    "pairs": tally.num_positives + tally.curve.num_negatives,
    "positive_pairs": tally.num_positives,
    "negative_pairs": tally.curve.num_negatives,
    "smallest_far": 1 / tally.curve.num_negatives,
  }


def search_facts(found: Identification) -> dict[str, object]:
  """How many searches there were."""
  return {
    "mated_probes": len(found.ranks),
    "other_probes": len(found.other_scores),
    "gallery": found.gallery_size,
  }


def rank_name(k: int) -> str:
  """The metric's name: "rank1"."""
  return f"rank{k}"


def prefixed(prefix: str, values: dict) -> dict:
  """The same values under names with a prefix."""
  return {f"{prefix}/{name}": value for name, value in values.items()}
