"""Every loss beside its authors' PyTorch code: loss, gradients, twenty steps.

  python benchmarks/peers.py --peers=DIR
  python benchmarks/peers.py --peers=DIR --losses=arcface,magface --steps=5
  python benchmarks/peers.py --peers=DIR --configurations

DIR holds clones of public repositories by owner and name, such as
DIR/deepinsight/insightface; nothing is fetched, and a row whose file is not
there says so:

  deepinsight/insightface 7fadd42, recognition/arcface_torch
  JDAI-CV/FaceX-Zoo 16b793a, head
  IrvingMeng/MagFace 99bae61, models/magface.py
  HuangYG123/CurricularFace 68c8727, head/metrics.py
  mk-minchul/AdaFace c60eaa7, head.py
  fdbtrs/ElasticFace 5496ec0, utils/losses.py
  kaidic/LDAM-DRW 2536330, losses.py, models/resnet_cifar.py
  ydwen/opensphere a679e82, opensphere/module/head
  clcarwin/sphereface_pytorch e2f11f0, net_sphere.py
  4uiiurz1/pytorch-adacos 35c086c, metrics.py
  CVI-SZU/UniFace 00ade47, head.py
  Leminhbinh0209/KappaFace 5158b2f, losses.py, momentum_head.py

Their files run as they are, on the CPU. What asks for a GPU without need is
answered by the CPU (`Tensor.cuda`, `torch.cuda.FloatTensor`), ElasticFace's
`torch.normal` gives the numbers that ours has drawn, and empty modules stand in
for MagFace's backbone and termcolor. PartialFC_V2 runs in a group of one
process. Losses that no public code has (jamsface, fixed_joint, combined) are
written out in PyTorch, all logits in one array, and called `written out`.

Both sides get the same embeddings, class weights and labels. A third of the
examples are near their class, a third near none, a third near another class
and away from their own. Theirs computes in float64 (--dtype), ours in float32
as always. A difference is the largest of an array, over the largest entry of
theirs; of weights after the steps, over what the steps have changed. `at the
ends` are those of loss and gradients where half of the examples lie on their
class (cosines above 0.9995) and half opposite (below -0.95).

--configurations runs the head of each line of docs/insightface.md against
CombinedMarginLoss and PartialFC_V2, lines of one head together: gradients of
embeddings and class weights, theirs in float64, in float32, and with the
products of the recipe as they are. Where classes are sampled theirs is given
ours.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import itertools
import pathlib
import runpy
import subprocess
import sys
import types
import unittest.mock
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jamsface_jax import head as head_lib
from jamsface_jax.head import (
  ANGULAR,
  BIAS,
  COSINE,
  WEIGHTS,
  class_sampling,
  concentration,
)
from jamsface_jax.head.layout import mesh_for
from jamsface_jax.head.optimizer import of_margins_and_scalars
from jamsface_jax.run.components import make_head
from jamsface_jax.settings.defaults import base_config, make_settings
from jamsface_jax.settings.variants import PUBLISHED

ROOT = pathlib.Path(__file__).resolve().parents[1]
RATE, MOMENTUM = 0.1, 0.9
WRITTEN = "written out"
ARCFACE_TORCH = "recognition/arcface_torch"


@dataclasses.dataclass
class Batch:
  """Embeddings, labels and standard normal numbers of a step, NumPy."""

  x: np.ndarray
  y: np.ndarray
  noise: np.ndarray


@dataclasses.dataclass
class Task:
  """What both sides are given.

  Attributes:
    settings: ours.
    head: ours, of them.
    sizes: images of each class.
    first: our first parameters, float32, without padded classes.
    batches: those of the steps, the first of which is compared alone.
    ends: one on both ends of the true cosine.
    seen: all images of a pass before, which margins follow from; None if none
      does.
  """

  settings: Any
  head: head_lib.Head
  sizes: np.ndarray
  first: dict[str, np.ndarray]
  batches: list[Batch]
  ends: Batch
  seen: Batch | None = None


@dataclasses.dataclass
class Theirs:
  """The other side, in PyTorch.

  Attributes:
    loss: of embeddings, labels, noise and the number of the step from 0.
    weights: class weights.
    by_column: whether each class is a column of them.
    learned: their other parameters by our names.
    state: what the loss remembers, by our names.
    constrain: after each step.
  """

  loss: Callable[..., Any]
  weights: Any
  by_column: bool = False
  learned: dict[str, Any] = dataclasses.field(default_factory=dict)
  state: Callable[[], dict[str, float]] = dict
  constrain: Callable[[], None] = lambda: None


@dataclasses.dataclass(frozen=True)
class Row:
  """A line of the table.

  Attributes:
    word: our loss.
    peer: owner and name of the repository; "" if written out here.
    paths: its files, the first of which is named.
    build: makes the other side of a task and the modules of these files.
    note: what must be said beside the figures.
    changes: our settings beside the word's.
    length: factor on the lengths of embeddings.
    unit: whether the first class weights are of length 1.
    across: compare what of the weights' gradient is across the weight.
    alike: and let their weights follow that, and ours be of length 1 before
      each step, as theirs are.
    late_scale: give our step the scale that it finds.
  """

  word: str
  peer: str
  paths: tuple[str, ...]
  build: Callable[..., Theirs]
  note: str = ""
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  length: float = 1.0
  unit: bool = False
  across: bool = False
  alike: bool = False
  late_scale: bool = False


def main() -> None:
  """Reads the flags, compares, prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--peers", default="", metavar="DIR")
  parser.add_argument("--losses", default="", help="some of them, by commas")
  parser.add_argument("--classes", type=int, default=400)
  parser.add_argument("--batch", type=int, default=63)
  parser.add_argument("--size", type=int, default=64, help="of an embedding")
  parser.add_argument("--steps", type=int, default=20)
  parser.add_argument("--scale", type=float, default=32.0)
  parser.add_argument(
    "--dtype", default="float64", choices=("float32", "float64"), help="theirs"
  )
  parser.add_argument("--configurations", action="store_true")
  args = parser.parse_args()
  if importlib.util.find_spec("torch") is None:
    print("PyTorch is not there: no row can be compared.")
  warnings.simplefilter("ignore")  # Of their use of old names.
  if args.configurations:
    _print_configurations(args)
  else:
    _print_losses(args)


def _print_losses(args: argparse.Namespace) -> None:
  words = args.losses.split(",") if args.losses else list(PUBLISHED)
  if unknown := set(words) - set(PUBLISHED):
    sys.exit(f"--losses: {', '.join(unknown)} is not of {', '.join(PUBLISHED)}")
  print(
    f"| loss | beside | loss | gradients | state after {args.steps} steps |"
    " largest | at the ends |\n|---|---|---|---|---|---|---|"
  )
  notes = []
  for word in words:
    for row in [row for row in ROWS if row.word == word]:
      changed = "".join(f" `{k}={v}`" for k, v in row.changes.items())
      name = f"`{word}`{changed}"
      note = ""
      if row.note:
        notes.append(row.note)
        note = f" ({len(notes)})"
      print(f"| {name}{note} | {_source(row, args)} | {_cells(row, args)} |")
      sys.stdout.flush()
  for number, note in enumerate(notes, 1):
    print(f"\n({number}) {note}", end="")
  print()


def _source(row: Row, args: argparse.Namespace) -> str:
  if not row.peer:
    return WRITTEN
  return f"{row.peer} {_commit(args.peers, row.peer)}, `{row.paths[0]}`"


def _commit(peers: str, peer: str) -> str:
  """The commit of a clone, short; nothing where there is none."""
  folder = pathlib.Path(peers or "nowhere") / peer
  if not (folder / ".git").exists():
    return ""
  command = ["git", "-C", str(folder), "rev-parse", "HEAD"]
  done = subprocess.run(command, capture_output=True, text=True)
  return done.stdout[:7]


def _cells(row: Row, args: argparse.Namespace) -> str:
  """The figures of a line, or why there are none."""
  folder = pathlib.Path(args.peers or "nowhere") / row.peer
  missing = [path for path in row.paths if not (folder / path).exists()]
  if row.peer and (not args.peers or missing):
    return "not there | | | |"
  if importlib.util.find_spec("torch") is None:
    return "no PyTorch | | | |"
  import torch

  torch.set_default_dtype(getattr(torch, args.dtype))
  task = _make_task(row, args)
  modules = [_load(folder, path) for path in row.paths]
  with _on_the_cpu(torch):
    found = _compare(row, task, modules, args.steps)
  largest = max(found[:3])
  shown = [f"{value:.0e}" for value in (*found[:3], largest, *found[3:])]
  return " | ".join([*shown[:4], ", ".join(shown[4:])])


def _make_task(row: Row, args: argparse.Namespace) -> Task:
  """The same for each loss, but for what `row` says."""
  config = base_config()
  config.model.embedding_size = args.size
  config.head.product_dtype = "float32"
  config.head.scale = args.scale
  config.head.update_from_flattened_dict(PUBLISHED[row.word])
  for name, value in row.changes.items():
    config.head.update_from_flattened_dict({name.removeprefix("head."): value})
  return _with_inputs(make_settings(config), row, args)


def _with_inputs(settings: Any, row: Row, args: argparse.Namespace) -> Task:
  head = make_head(settings, args.classes, 100 * args.classes)
  size = head.embedding_size
  rng = np.random.default_rng(0)
  sizes = 1 + (500 / (1 + rng.permutation(args.classes)) ** 0.7).astype(int)
  params = head_lib.init(jax.random.key(0), head, class_sizes=sizes)
  first = {
    name: np.array(value)[: args.classes] if np.ndim(value) else np.array(value)
    for name, value in params.items()
  }
  w = rng.normal(size=(args.classes, size))
  w /= np.linalg.norm(w, axis=1, keepdims=True)
  if not row.unit:
    w *= rng.uniform(0.5, 2.0, (args.classes, 1))
  first[WEIGHTS] = w.astype(np.float32)
  for name in (ANGULAR, COSINE):  # Learned ones differ from class to class.
    if head.margin(name).learned:
      first[name] += rng.uniform(-0.1, 0.1, args.classes).astype(np.float32)
      first[name] += np.float32(head.margin(name).initial) - first[name].mean()
  seen = None
  if head.makes_anew:
    seen = _make_pass(rng, w, sizes)
    before = concentration.add(
      concentration.start(head),
      jnp.asarray(seen.x),
      jnp.asarray(seen.y, jnp.int32),
      head=head,
    )
    params, _ = concentration.end_pass(params, before, head=head)
    first[ANGULAR] = np.array(params[ANGULAR])[: args.classes]
  make = functools.partial(
    _make_batch, rng, w, sizes / sizes.sum(), args.batch, row.length
  )
  batches = [make(_ORDINARY) for _ in range(max(args.steps, 1))]
  return Task(settings, head, sizes, first, batches, make(_ENDS), seen)


# How much of the own class and of another one an example has, and how much of
# neither; in turns.
_ORDINARY = ((1.0, 0.0, 0.7), (0.0, 0.0, 1.0), (-0.3, 0.6, 0.8))
_ENDS = ((1.0, 0.0, 0.02), (-1.0, 0.0, 0.15))


def _make_batch(
  rng: np.random.Generator,
  w: np.ndarray,
  share: np.ndarray,
  batch: int,
  length: float,
  kinds: tuple[tuple[float, float, float], ...],
) -> Batch:
  """Embeddings of several kinds, lengths from below 10 to above 110."""
  classes, size = w.shape
  unit = w / np.linalg.norm(w, axis=1, keepdims=True)
  y = rng.choice(classes, batch, p=share)
  other = (y + rng.integers(1, classes, batch)) % classes
  kind = np.array(list(itertools.islice(itertools.cycle(kinds), batch)))
  noise = rng.normal(size=(batch, size))
  noise /= np.linalg.norm(noise, axis=1, keepdims=True)
  x = kind[:, :1] * unit[y] + kind[:, 1:2] * unit[other] + kind[:, 2:] * noise
  x /= np.linalg.norm(x, axis=1, keepdims=True)
  x *= length * np.exp(rng.uniform(np.log(5), np.log(130), (batch, 1)))
  return Batch(x.astype(np.float32), y, np.zeros(batch))


def _make_pass(
  rng: np.random.Generator, w: np.ndarray, sizes: np.ndarray
) -> Batch:
  """Every image of every class once, some classes closer than others."""
  y = np.repeat(np.arange(len(sizes)), sizes)
  spread = rng.uniform(0.5, 3.0, len(sizes)) / np.sqrt(w.shape[1])
  x = w / np.linalg.norm(w, axis=1, keepdims=True)
  x = x[y] + spread[y, None] * rng.normal(size=(len(y), w.shape[1]))
  return Batch(x.astype(np.float32), y, np.zeros(len(y)))


def _load(folder: pathlib.Path, path: str) -> Any:
  """A file of theirs as a module, without the package that it is of.

  What it imports from beside itself is found; its package's `__init__` is not
  run.
  """
  file = folder / path
  package = f"peer_{abs(hash(str(file.parent)))}"
  if package not in sys.modules:
    holder = types.ModuleType(package)
    holder.__path__ = [str(file.parent)]
    sys.modules[package] = holder
  models = types.ModuleType("models")
  models.iresnet = None
  termcolor = types.ModuleType("termcolor")
  termcolor.cprint = print
  stand_ins = {"models": models, "termcolor": termcolor}
  search = list(sys.path)
  with unittest.mock.patch.dict(sys.modules, stand_ins):
    module = importlib.import_module(f"{package}.{file.stem}")
  sys.path[:] = search  # Some add to it.
  return module


@contextlib.contextmanager
def _on_the_cpu(torch: Any) -> Iterator[None]:
  """Answers what asks for a GPU, and opens a group of one process."""
  plain = {
    torch.float32: torch.FloatTensor,
    torch.float64: torch.DoubleTensor,
  }[torch.get_default_dtype()]
  if not torch.distributed.is_initialized():
    torch.distributed.init_process_group(
      "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
  patch = unittest.mock.patch.object
  with (
    patch(torch.Tensor, "cuda", lambda tensor, *_, **__: tensor),
    patch(torch.cuda, "FloatTensor", plain),
  ):
    yield


def _compare(
  row: Row, task: Task, modules: list[Any], steps: int
) -> tuple[float, float, float, float, float]:
  """Differences: loss, gradients, after the steps; loss, gradients at ends."""
  alone = _Ours(row, task), _Sides(row, task, modules)
  loss, gradients = _difference(*alone, task.batches[0], row)
  at_ends = _Ours(row, task), _Sides(row, task, modules)
  ends = _difference(*at_ends, task.ends, row)
  ours, theirs = _Ours(row, task), _Sides(row, task, modules)
  for batch in task.batches[:steps]:
    ours.step(batch)
    theirs.step(batch)
  after = [0.0]
  mine, other = ours.values(), theirs.values()
  for name, value in other.items():
    first = task.first.get(name)
    mine_now = mine[name]
    if name == WEIGHTS and row.across:
      value, mine_now = _unit(value), _unit(mine_now)
    change = value if first is None else value - first
    after.append(_relative(mine_now - value, change))
  return loss, gradients, max(after), *ends


def _difference(
  ours: "_Ours", theirs: "_Sides", batch: Batch, row: Row
) -> tuple[float, float]:
  mine, of_mine = ours.loss_and_gradients(batch)
  other, of_other = theirs.loss_and_gradients(batch)
  if row.across:
    w = _unit(theirs.values()[WEIGHTS])
    of_other[WEIGHTS] = _across(of_other[WEIGHTS], w)
  gradients = [
    _relative(of_mine[name] - value, value) for name, value in of_other.items()
  ]
  return _relative(np.asarray(mine - other), np.asarray(other)), max(gradients)


def _unit(rows: np.ndarray) -> np.ndarray:
  return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _across(rows: np.ndarray, unit: np.ndarray) -> np.ndarray:
  """What of each row is across a unit vector."""
  return rows - (rows * unit).sum(axis=1, keepdims=True) * unit


def _relative(difference: np.ndarray, of: np.ndarray) -> float:
  return float(np.abs(difference).max() / np.abs(of).max())


class _Ours:
  """Our side: the head under `jax.grad`, and its optimizers."""

  def __init__(self, row: Row, task: Task):
    self._row, self._head = row, task.head
    pad = task.head.padded_classes - task.head.num_classes
    self._params = {
      name: jnp.asarray(
        np.pad(value, [(0, pad)] + [(0, 0)] * (value.ndim - 1))
        if value.ndim
        else value
      )
      for name, value in task.first.items()
    }
    self._state = head_lib.first_state(task.head)
    self._key = 0
    chosen = task.settings.head
    self._main = optax.sgd(RATE, momentum=MOMENTUM)
    self._rest = of_margins_and_scalars(
      task.head,
      chosen.margin_rate * RATE,
      bias=optax.sgd(RATE, momentum=MOMENTUM),
      margin_momentum=chosen.margin_momentum,
    )
    rest = head_lib.margins_and_scalars(self._params)
    self._main_state = self._main.init(self._params[WEIGHTS])
    self._rest_state = self._rest.init(rest)

  def loss_and_gradients(
    self, batch: Batch
  ) -> tuple[float, dict[str, np.ndarray]]:
    gradient = jax.value_and_grad(
      functools.partial(head_lib.mean_loss, head=self._head),
      argnums=(0, 1),
      has_aux=True,
    )
    key = jax.random.key(self._key)
    # What the other side is to draw too.
    batch.noise = np.asarray(jax.random.normal(key, (len(batch.y),)))
    x, y = jnp.asarray(batch.x), jnp.asarray(batch.y, jnp.int32)
    more = {"loss_state": self._state, "key": key}
    (loss, measured), found = gradient(self._params, x, y, **more)
    if self._row.late_scale:
      more["loss_state"] = measured.loss_state
      (loss, _), found = gradient(self._params, x, y, **more)
    self._gradients, self._measured = found[0], measured
    return float(loss), {
      "embeddings": np.asarray(found[1], np.float64),
      **self._real(found[0]),
    }

  def _real(self, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The same without padded classes."""
    return {
      name: np.asarray(value, np.float64)[: self._head.num_classes]
      if np.ndim(value)
      else np.asarray(value, np.float64)
      for name, value in params.items()
    }

  def step(self, batch: Batch) -> None:
    if self._row.alike:
      w = self._params[WEIGHTS]
      length = jnp.linalg.norm(w, axis=1, keepdims=True)
      self._params[WEIGHTS] = w / jnp.maximum(length, 1e-6)
    self.loss_and_gradients(batch)
    self._key += 1
    self._state = self._measured.loss_state
    w = self._params[WEIGHTS]
    move, self._main_state = self._main.update(
      self._gradients[WEIGHTS], self._main_state, w
    )
    rest = head_lib.margins_and_scalars(self._params)
    moves, self._rest_state = self._rest.update(
      head_lib.margins_and_scalars(self._gradients), self._rest_state, rest
    )
    rest = head_lib.constrain(optax.apply_updates(rest, moves), self._head)
    self._params = {WEIGHTS: w + move, **rest}

  def values(self) -> dict[str, np.ndarray]:
    return self._real(self._params) | {
      name: np.asarray(value, np.float64) for name, value in self._state.items()
    }


class _Sides:
  """The other side: their loss under autograd, and SGD."""

  def __init__(self, row: Row, task: Task, modules: list[Any]):
    import torch

    self._torch, self._row, self._steps = torch, row, 0
    self._theirs = theirs = row.build(torch, task, *modules)
    w = task.first[WEIGHTS]
    self._put(theirs.weights, w.T if theirs.by_column else w)
    for name, parameter in theirs.learned.items():
      self._put(parameter, task.first[name])
    chosen = task.settings.head
    groups = [{"params": [theirs.weights], "lr": RATE, "momentum": MOMENTUM}]
    for name, parameter in theirs.learned.items():
      of_margin = name in (ANGULAR, COSINE)
      groups.append(
        {
          "params": [parameter],
          "lr": RATE * chosen.margin_rate if of_margin else RATE,
          "momentum": chosen.margin_momentum if of_margin else MOMENTUM,
        }
      )
    self._optimizer = torch.optim.SGD(groups)

  def _put(self, parameter: Any, value: np.ndarray) -> None:
    # Some make theirs float32 whatever the default is.
    dtype = self._torch.get_default_dtype()
    tensor = self._torch.tensor(value, dtype=dtype)
    parameter.data = tensor.reshape(parameter.shape)

  def loss_and_gradients(
    self, batch: Batch
  ) -> tuple[float, dict[str, np.ndarray]]:
    torch, theirs = self._torch, self._theirs
    dtype = torch.get_default_dtype()
    x = torch.tensor(batch.x, dtype=dtype, requires_grad=True)
    y, noise = torch.tensor(batch.y), torch.tensor(batch.noise, dtype=dtype)
    self._optimizer.zero_grad()
    loss = theirs.loss(x, y, noise, self._steps)
    loss.backward()
    found = {
      name: self._like_ours(name, parameter.grad)
      for name, parameter in self._parameters().items()
    }
    return float(loss), found | {"embeddings": x.grad.double().numpy()}

  def _parameters(self) -> dict[str, Any]:
    return {WEIGHTS: self._theirs.weights, **self._theirs.learned}

  def _like_ours(self, name: str, tensor: Any) -> np.ndarray:
    value = tensor.detach().double().numpy().copy()
    if name == WEIGHTS:
      return value.T if self._theirs.by_column else value
    return value.reshape(()) if name == BIAS else value.ravel()

  def step(self, batch: Batch) -> None:
    self.loss_and_gradients(batch)
    self._steps += 1
    if self._row.alike:
      w = self._theirs.weights  # Of length 1 since they were used.
      w.grad -= (w.grad * w.data).sum(dim=1, keepdim=True) * w.data
    self._optimizer.step()
    self._theirs.constrain()

  def values(self) -> dict[str, np.ndarray]:
    return {
      name: self._like_ours(name, parameter)
      for name, parameter in self._parameters().items()
    } | {
      name: np.asarray(float(value))
      for name, value in self._theirs.state().items()
    }


# The other sides, each of PyTorch, a task and the modules of its row.


def _written(torch: Any, task: Task) -> Theirs:
  """cos(m t + a) - c and a full softmax, learned or not."""
  head = task.head
  weights = torch.nn.Parameter(torch.tensor(task.first[WEIGHTS]).double())
  weights.data = weights.data.to(torch.get_default_dtype())
  margins = {
    name: torch.nn.Parameter(
      torch.tensor(task.first[name], dtype=weights.dtype),
      requires_grad=head.margin(name).learned,
    )
    for name in (ANGULAR, COSINE)
  }
  multiplier = getattr(head.loss, "m", 1.0)

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    normalize = torch.nn.functional.normalize
    cosine = normalize(x) @ normalize(weights).T
    row = torch.arange(len(y))
    angle = multiplier * torch.acos(cosine[row, y]) + margins[ANGULAR][y]
    beyond = -2 - torch.cos(angle)
    phi = torch.where(angle < torch.pi, torch.cos(angle), beyond)
    logits = cosine.index_put((row, y), phi - margins[COSINE][y])
    return torch.nn.functional.cross_entropy(head.scale * logits, y)

  def hold_means() -> None:
    for name, parameter in margins.items():
      margin = head.margin(name)
      if not margin.learned:
        continue
      low, high = -2.0, 2.0
      for _ in range(60):  # The mean rises with what is added before the cut.
        middle = (low + high) / 2
        cut = (parameter.data + middle).clamp(margin.lower, margin.upper)
        low, high = (
          (middle, high) if cut.mean() < margin.initial else (low, middle)
        )
      parameter.data = cut

  learned = {n: p for n, p in margins.items() if p.requires_grad}
  return Theirs(loss, weights, learned=learned, constrain=hold_means)


def _partial_fc(torch: Any, task: Task, losses: Any, partial_fc: Any) -> Theirs:
  head = task.head
  margin = losses.CombinedMarginLoss(
    head.scale, 1.0, head.angular.initial, head.cosine.initial
  )
  return _of_partial_fc(head, margin, partial_fc)


def _published_combined(
  torch: Any, task: Task, losses: Any, partial_fc: Any
) -> Theirs:
  margin = losses.CombinedMarginLoss(task.head.scale, 1.0, 0.3, 0.2)
  return _of_partial_fc(task.head, margin, partial_fc)


def _of_partial_fc(head: head_lib.Head, margin: Any, partial_fc: Any) -> Theirs:
  module = partial_fc.PartialFC_V2(
    margin, head.embedding_size, head.num_classes
  )
  return Theirs(
    lambda x, y, noise, step: module(x, y.clone()),  # It writes into labels.
    module.weight,
  )


def _cross_entropy(torch: Any, module: Any, *, pick: Any = None) -> Any:
  """The mean cross-entropy of what a module of (x, y) says."""

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    logits = module(x, y)
    logits = logits if pick is None else logits[pick]
    return torch.nn.functional.cross_entropy(logits, y)

  return loss


def _shape(task: Task) -> tuple[int, int]:
  return task.head.embedding_size, task.head.num_classes


def _normface(torch: Any, task: Task, uniface: Any) -> Theirs:
  module = uniface.Normalized_Softmax_Loss(
    *_shape(task), m=0.0, s=task.head.scale
  )
  every = torch.arange(task.head.num_classes)
  return Theirs(lambda x, y, noise, step: module(x, y, every), module.weight)


def _softmax(torch: Any, task: Task, file: Any) -> Theirs:
  module = file.SoftmaxLoss(*_shape(task))
  return Theirs(lambda x, y, noise, step: module(x, y), module.w, True)


def _sphereface(torch: Any, task: Task, net: Any) -> Theirs:
  module = net.AngleLinear(*_shape(task))
  criterion = net.AngleLoss()
  ours = task.head.loss

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    wanted = max(ours.lambda_min, ours.lambda_max / (1 + 0.12 * (step + 1)))
    criterion.it = (criterion.LambdaMax / wanted - 1) / 0.1 - 1
    return criterion(module(x), y)

  return Theirs(loss, module.weight, True)


def _sphereface_r(torch: Any, task: Task, file: Any) -> Theirs:
  module = file.SphereFace(*_shape(task), s=task.head.scale, m=task.head.loss.m)
  return Theirs(lambda x, y, noise, step: module(x, y), module.w)


def _adacos(torch: Any, task: Task, metrics: Any) -> Theirs:
  module = metrics.AdaCos(*_shape(task))
  return Theirs(
    _cross_entropy(torch, module),
    module.W,
    state=lambda: {"scale": module.s},
  )


def _adaptiveface(torch: Any, task: Task, file: Any) -> Theirs:
  strength = task.head.cosine.strength
  module = file.Adam_Softmax(*_shape(task), task.head.scale, strength)

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    logits, reward = module(x, y)
    cross_entropy = torch.nn.functional.cross_entropy(logits, y)
    return cross_entropy + reward.sum() - strength

  return Theirs(
    loss,
    module.kernel,
    True,
    learned={COSINE: module.adam},
    # As its next call would.
    constrain=lambda: module.adam.data.clamp_(0, 1),
  )


def _ldam(torch: Any, task: Task, losses: Any, networks: Any) -> Theirs:
  linear = networks.NormedLinear(*_shape(task))
  criterion = losses.LDAMLoss(
    task.sizes, max_m=task.head.cosine.initial, s=task.head.scale
  )
  return Theirs(
    lambda x, y, noise, step: criterion(linear(x), y), linear.weight, True
  )


def _mv_softmax(torch: Any, task: Task, file: Any) -> Theirs:
  head = task.head
  module = file.MV_Softmax(
    *_shape(task),
    is_am=not head.angular.initial,
    margin=head.angular.initial or head.cosine.initial,
    mv_weight=head.loss.t,
    scale=head.scale,
  )
  return Theirs(_cross_entropy(torch, module), module.weight, True)


def _true_arcface(torch: Any, task: Task, metrics: Any) -> Theirs:
  head = task.head
  module = metrics.ArcFace(*_shape(task), s=head.scale, m=head.angular.initial)
  return Theirs(_cross_entropy(torch, module, pick=0), module.kernel, True)


def _curricularface(torch: Any, task: Task, metrics: Any) -> Theirs:
  head = task.head
  module = metrics.CurricularFace(
    *_shape(task), m=head.angular.initial, s=head.scale
  )
  return Theirs(
    _cross_entropy(torch, module, pick=0),
    module.kernel,
    True,
    state=lambda: {"t": module.t},
  )


def _magface(torch: Any, task: Task, file: Any) -> Theirs:
  ours = task.head.loss
  linear = file.MagLinear(
    *_shape(task), scale=task.head.scale, easy_margin=ours.easy_margin
  )
  criterion = file.MagLoss(
    ours.l_a, ours.u_a, ours.l_m, ours.u_m, scale=task.head.scale
  )

  def margin(length: Any) -> Any:
    per_length = (ours.u_m - ours.l_m) / (ours.u_a - ours.l_a)
    return per_length * (length - ours.l_a) + ours.l_m

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    logits, length = linear(x, margin, ours.l_a, ours.u_a)
    cross_entropy, penalty, _ = criterion(logits, y, length)
    return cross_entropy + ours.lambda_g * penalty

  return Theirs(loss, linear.weight, True)


def _adaface(torch: Any, task: Task, file: Any) -> Theirs:
  head = task.head
  with contextlib.redirect_stdout(None):
    module = file.AdaFace(
      *_shape(task),
      m=head.cosine.initial,
      h=head.loss.h,
      s=head.scale,
      t_alpha=head.loss.momentum,
    )

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    length = x.norm(dim=1, keepdim=True)
    logits = module(x / length, length, y)
    return torch.nn.functional.cross_entropy(logits, y)

  def state() -> dict[str, float]:
    return {"mean": module.batch_mean, "deviation": module.batch_std}

  return Theirs(loss, module.kernel, True, state=state)


def _elasticface(torch: Any, task: Task, losses: Any) -> Theirs:
  head = task.head
  if head.loss.space == "angular":
    kind, mean = losses.ElasticArcFace, head.angular.initial
  else:
    kind, mean = losses.ElasticCosFace, head.cosine.initial
  module = kind(*_shape(task), s=head.scale, m=mean, std=head.loss.deviation)

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    def drawn(mean: float, std: float, size: Any, device: Any) -> Any:
      return (mean + std * noise).reshape(size)

    with unittest.mock.patch.object(torch, "normal", drawn):
      return torch.nn.functional.cross_entropy(module(x, y), y)

  return Theirs(loss, module.kernel, True)


def _kappaface(
  torch: Any, task: Task, losses: Any, momentum_head: Any
) -> Theirs:
  normalize = torch.nn.functional.normalize
  head = task.head
  assert task.seen is not None
  calculator = momentum_head.MomentumCalcHead(
    head.embedding_size,
    task.sizes.tolist(),
    T=head.concentration_temperature,
    gamma=head.concentration_share,
    device="cpu",
  )
  seen = torch.tensor(task.seen.x, dtype=torch.get_default_dtype())
  calculator(normalize(seen), torch.tensor(task.seen.y), None)
  calculator.update_kappa()
  of_margins = calculator.update_weights()
  module = losses.KappaFace(s=head.scale, m=head.angular.initial)
  weights = torch.nn.Parameter(torch.zeros(_shape(task)[::-1]))

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    cosine = normalize(x) @ normalize(weights).T
    logits = module(cosine, y, of_margins)
    return torch.nn.functional.cross_entropy(logits, y)

  return Theirs(loss, weights)


def _uniface(torch: Any, task: Task, file: Any) -> Theirs:
  head = task.head
  module = file.Unified_Cross_Entropy_Loss(
    *_shape(task), m=head.cosine.initial, s=head.scale, l=head.loss.weight
  )
  every = torch.arange(head.num_classes)
  return Theirs(
    lambda x, y, noise, step: module(x, y, every),
    module.weight,
    learned={BIAS: module.bias},
  )


def _uniface_uncut(torch: Any, task: Task, file: Any) -> Theirs:
  theirs = _uniface(torch, task, file)
  cut = theirs.loss

  def loss(*batch: Any) -> Any:
    with unittest.mock.patch.object(torch.Tensor, "clamp", lambda x, **_: x):
      return cut(*batch)

  return dataclasses.replace(theirs, loss=loss)


_INSIGHTFACE = (
  "deepinsight/insightface",
  (f"{ARCFACE_TORCH}/losses.py", f"{ARCFACE_TORCH}/partial_fc_v2.py"),
)
_OPENSPHERE = "opensphere/module/head"
ROWS = (
  Row("jamsface", "", (), _written),
  Row("fixed_joint", "", (), _written),
  Row(
    "arcface",
    *_INSIGHTFACE,
    _partial_fc,
    changes={"head.straight_through": True},
    note="Beyond pi - a theirs is cos(t + a), which rises again, ours falls on:"
    " the loss is another there, the gradient is not, since the slope is 1 in"
    " both. The loss of an example ends at 69.08 (-log 1e-30) there.",
  ),
  Row(
    "arcface",
    "HuangYG123/CurricularFace",
    ("head/metrics.py",),
    _true_arcface,
    note="Its ArcFace, with the true gradient as the word has it.",
  ),
  Row("cosface", *_INSIGHTFACE, _partial_fc),
  Row("combined", "", (), _written),
  Row(
    "combined",
    *_INSIGHTFACE,
    _published_combined,
    note="Where m3 is above 0, m1 and m2 have no effect there: it is CosFace"
    " with m3, as the next line has it.",
  ),
  Row(
    "combined",
    *_INSIGHTFACE,
    _published_combined,
    changes={"head.angular_margin": 0.0},
  ),
  Row(
    "normface",
    "CVI-SZU/UniFace",
    ("head.py",),
    _normface,
    note="Its normalised softmax with a margin of 0.",
  ),
  Row(
    "softmax",
    "ydwen/opensphere",
    (f"{_OPENSPHERE}/softmaxloss.py",),
    _softmax,
    length=0.2,
  ),
  Row(
    "sphereface",
    "clcarwin/sphereface_pytorch",
    ("net_sphere.py",),
    _sphereface,
    length=0.2,
    note="At our lambda, 1000 / (1 + 0.12 k) in step k. Theirs is"
    " 1500 / (1 + 0.1 k); both end at 5.",
  ),
  Row(
    "sphereface_r",
    "ydwen/opensphere",
    (f"{_OPENSPHERE}/sphereface.py",),
    _sphereface_r,
    unit=True,
    across=True,
    note="Theirs sets weights to length 1 before each step and differentiates"
    " nothing of that. Across a weight, which is what the column compares, the"
    " gradients are equal; theirs has a part along it too, which shortens or"
    " lengthens what the step turns.",
  ),
  Row(
    "sphereface_r",
    "ydwen/opensphere",
    (f"{_OPENSPHERE}/sphereface.py",),
    _sphereface_r,
    unit=True,
    across=True,
    alike=True,
    note="The same steps with that part left out of theirs, and our weights set"
    " to length 1 too.",
  ),
  Row(
    "adacos",
    "4uiiurz1/pytorch-adacos",
    ("metrics.py",),
    _adacos,
    late_scale=True,
    note="A step with the scale that it finds itself, as there. Theirs takes"
    " the lower of the two middle angles of an even batch, ours their mean.",
  ),
  Row(
    "adacos",
    "4uiiurz1/pytorch-adacos",
    ("metrics.py",),
    _adacos,
    note="As it is here: a step with the scale that the one before has found.",
  ),
  Row(
    "adaptiveface",
    "JDAI-CV/FaceX-Zoo",
    ("head/AdaM_Softmax.py",),
    _adaptiveface,
    note="Their loss is larger by lambda, which is taken off here.",
  ),
  Row(
    "ldam",
    "kaidic/LDAM-DRW",
    ("losses.py", "models/resnet_cifar.py"),
    _ldam,
  ),
  Row("mv_softmax", "JDAI-CV/FaceX-Zoo", ("head/MV_Softmax.py",), _mv_softmax),
  Row(
    "mv_softmax",
    "JDAI-CV/FaceX-Zoo",
    ("head/MV_Softmax.py",),
    _mv_softmax,
    changes={"head.angular_margin": 0.0, "head.cosine_margin": 0.35},
  ),
  Row(
    "curricularface",
    "HuangYG123/CurricularFace",
    ("head/metrics.py",),
    _curricularface,
  ),
  Row("magface", "IrvingMeng/MagFace", ("models/magface.py",), _magface),
  Row(
    "magface",
    "IrvingMeng/MagFace",
    ("models/magface.py",),
    _magface,
    changes={"head.magface.easy_margin": False},
  ),
  Row(
    "adaface",
    "mk-minchul/AdaFace",
    ("head.py",),
    _adaface,
    note="Theirs cuts all cosines to 0.001 from -1 and 1, and has no gradient"
    " beyond; ours keeps the angle with its margin there alone.",
  ),
  Row(
    "elasticface",
    "fdbtrs/ElasticFace",
    ("utils/losses.py",),
    _elasticface,
    note="Beyond pi - a theirs is cos(t + a) with its true gradient, which"
    " there drives an example away from its class; ours goes on as ArcFace.",
  ),
  Row(
    "elasticface_cos",
    "fdbtrs/ElasticFace",
    ("utils/losses.py",),
    _elasticface,
  ),
  Row(
    "kappaface",
    "Leminhbinh0209/KappaFace",
    ("losses.py", "momentum_head.py"),
    _kappaface,
    note="With the margins that each made of the same pass over all images."
    " Beyond pi - a theirs is cos(t + a) with its true gradient, as in"
    " ElasticFace.",
  ),
  Row(
    "uniface",
    "CVI-SZU/UniFace",
    ("head.py",),
    _uniface,
    note="Theirs cuts s phi - b and s cos t - b to [-s, s]: an example whose"
    " cosine is below c - 1 + b / s has no gradient of its class. Ours has it.",
  ),
  Row(
    "uniface",
    "CVI-SZU/UniFace",
    ("head.py",),
    _uniface_uncut,
    note="The same without that cut.",
  ),
)


def _print_configurations(args: argparse.Namespace) -> None:
  row = Row("arcface", *_INSIGHTFACE, _configured)
  folder = pathlib.Path(args.peers or "nowhere") / row.peer
  print(
    "| lines | margins a, c | sample | filter | embeddings | class weights |"
    " theirs in float32 | products of the recipe |\n"
    "|---|---|---|---|---|---|---|---|"
  )
  plain = make_settings(base_config())
  groups: dict[Any, list[str]] = {}
  for name, settings in _configurations():
    # What of the network the head does not see is left out.
    alike = dataclasses.replace(plain, head=settings.head)
    groups.setdefault(alike, []).append(name)
  there = all((folder / path).exists() for path in row.paths)
  for settings, names in groups.items():
    chosen = settings.head
    more = f" and {len(names) - 1} more" if names[1:] else ""
    cells = [
      f"`{names[0]}`{more}",
      f"{chosen.angular_margin}, {chosen.cosine_margin}",
      f"{chosen.sample_rate}",
      "" if chosen.ignore_above == 1 else f"{chosen.ignore_above}",
    ]
    if not args.peers or not there:
      cells += ["not there", "", "", ""]
    elif importlib.util.find_spec("torch") is None:
      cells += ["no PyTorch", "", "", ""]
    else:
      cells += _of_configuration(settings, row, args)
    print(f"| {' | '.join(cells)} |", flush=True)


def _of_configuration(
  settings: Any, row: Row, args: argparse.Namespace
) -> list[str]:
  """The figures of a line."""
  import torch

  folder = pathlib.Path(args.peers) / row.peer
  modules = [_load(folder, path) for path in row.paths]
  found = []
  for theirs, products in (
    ("float64", "float32"),
    ("float32", "float32"),
    ("float64", settings.head.product_dtype),
  ):
    torch.set_default_dtype(getattr(torch, theirs))
    head = dataclasses.replace(settings.head, product_dtype=products)
    task = _with_inputs(dataclasses.replace(settings, head=head), row, args)
    batch = task.batches[0]
    with _on_the_cpu(torch):
      _, of_mine = _Ours(row, task).loss_and_gradients(batch)
      _, of_theirs = _Sides(row, task, modules).loss_and_gradients(batch)
    found.append(
      [
        _relative(of_mine[name] - of_theirs[name], of_theirs[name])
        for name in ("embeddings", WEIGHTS)
      ]
    )
  exact, single, rounded = found
  return [f"{value:.0e}" for value in (*exact, max(single), max(rounded))]


def _configurations() -> Iterator[tuple[str, Any]]:
  """Name and settings of each line of docs/insightface.md."""
  text = (ROOT / "docs" / "insightface.md").read_text(encoding="utf-8")
  for line in text.partition("## Configurations")[2].splitlines():
    cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
    if len(cells) != 11 or not cells[9].startswith("configs/"):
      continue
    path, _, variant = cells[9].partition(":")
    config = runpy.run_path(str(ROOT / path))["get_config"](variant)
    for word in cells[10].split():
      key, _, value = word.partition("=")
      *sections, last = key.split(".")
      section = functools.reduce(getattr, sections, config)
      kind = type(section[last])
      section[last] = value == "True" if kind is bool else kind(value)
    yield cells[0], make_settings(config)


def _configured(torch: Any, task: Task, losses: Any, partial_fc: Any) -> Theirs:
  """PartialFC_V2 with the sample that ours draws."""
  head = task.head
  off = head.ignore_above == 1  # 0 there.
  margin = losses.CombinedMarginLoss(
    head.scale,
    1.0,
    head.angular.initial,
    head.cosine.initial,
    0 if off else head.ignore_above,
  )
  module = partial_fc.PartialFC_V2(
    margin, head.embedding_size, head.num_classes, head.sample_rate
  )

  def loss(x: Any, y: Any, noise: Any, step: int) -> Any:
    if head.sample_rate == 1:
      return module(x, y.clone())
    labels = jnp.asarray(y.numpy(), jnp.int32)
    key = jax.random.fold_in(jax.random.key(step), 1)  # As `mean_loss` does.
    mesh = mesh_for(labels, None)
    drawn = np.asarray(class_sampling.draw(key, labels, head, mesh).classes)
    chosen = torch.zeros(head.num_classes)
    chosen[torch.tensor(drawn[drawn >= 0])] = 1.0
    module.num_sample = int(chosen.sum())
    with unittest.mock.patch.object(torch, "rand", lambda size: chosen.clone()):
      return module(x, y.clone())

  return Theirs(loss, module.weight)


if __name__ == "__main__":
  main()
