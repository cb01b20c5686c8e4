"""Images a second of the whole training step, beside PyTorch's.

Forward, backward and update of a network with its head, batch 32 at 112x112 by
default, in float32, on images in memory. Ours is `train_step` as it trains;
PyTorch's is the same network written plainly, channels last, with cross-entropy
over fixed margins and SGD; `compiled` is that by `torch.compile`. Each runs
in a process of its own; they take turns. Both take a GPU where there is one.
With `--dtype=bfloat16` ours computes in it, PyTorch's under autocast.
`convolutions` are those of our step alone, each compiled by itself and their
best times added: what is left for everything else, and what XLA's convolutions
leave to be wished for. `arcface_torch` is InsightFace's network and
PartialFC_V2, unchanged, with float16 and scaled gradients as its `train_v2.py`
has them; `--arcface_torch=DIR` holds their files.

PyTorch is needed for its rows alone: without it they are left out.

  python benchmarks/step.py
  python benchmarks/step.py --models=iresnet100 --batch=256 --dtype=bfloat16
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import time
from functools import partial

VARIANTS = (
  "this",
  "convolutions",
  "PyTorch",
  "PyTorch, contiguous",
  "PyTorch, compiled",
  "arcface_torch",
)


def main() -> None:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--models", default="iresnet18,iresnet50,mbf,vit_t")
  parser.add_argument("--classes", type=int, default=10_000)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--size", type=int, default=112, help="of the images")
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument("--only", default="", help="variants, by semicolons")
  parser.add_argument("--arcface_torch", default="", metavar="DIR")
  parser.add_argument("--steps", type=int, default=3, help="timed, each turn")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    if args.child == "convolutions":
      print(json.dumps({"seconds": [_time_convolutions(args)]}))
      return
    build = {"this": _jax_step, "arcface_torch": _arcface_torch_step}
    step = build.get(args.child, _torch_step)(args)
    step()
    step()
    seconds = []
    for _ in range(args.steps):
      begin = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - begin)
    print(json.dumps({"seconds": seconds, "gpu_peak_mib": _gpu_peak_mib()}))
    return

  variants = args.only.split(";") if args.only else list(VARIANTS)
  if importlib.util.find_spec("torch") is None:
    variants = [v for v in variants if v in VARIANTS[:2]]
  if not args.arcface_torch:
    variants = [v for v in variants if v != "arcface_torch"]
  for model in args.models.split(","):
    seconds = {variant: [] for variant in variants}
    peaks = {}
    for _ in range(args.rounds):
      for variant in variants:
        command = [sys.executable, __file__, f"--child={variant}"]
        command += [f"--models={model}", f"--steps={args.steps}"]
        command += [f"--classes={args.classes}", f"--batch={args.batch}"]
        command += [f"--size={args.size}", f"--dtype={args.dtype}"]
        command += [f"--arcface_torch={args.arcface_torch}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
          sys.exit(f"{variant} failed:\n{done.stderr[-2000:]}")
        result = json.loads(done.stdout.splitlines()[-1])
        seconds[variant] += result["seconds"]
        peaks[variant] = result.get("gpu_peak_mib")
    print(
      f"\n{model}, batch {args.batch} at {args.size}x{args.size},"
      f" {args.classes:,} classes, {args.dtype}"
    )
    header = f"{'':22}{'images/s':>10}{'quartiles':>20}{'this / it':>11}"
    if any(peaks.values()):
      header += f"{'GPU MiB':>10}"
    print(header)
    ours = statistics.median(seconds[variants[0]])
    for variant, times in seconds.items():
      if len(times) == 1:  # Of one round; quantiles need two.
        times = 2 * times
      slow, median, fast = (
        args.batch / t for t in statistics.quantiles(times, n=4)[::-1]
      )
      ratio = statistics.median(times) / ours
      print(
        f"{variant:22}{median:10.2f}{slow:10.2f} -{fast:8.2f}{ratio:11.2f}"
        + (f"{peaks[variant]:10,.0f}" if peaks[variant] else ""),
        flush=True,
      )


def _gpu_peak_mib():
  """Largest memory of the GPU that this process held, None without one."""
  if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
    return sys.modules["torch"].cuda.max_memory_allocated() / 2**20
  if "jax" in sys.modules and sys.modules["jax"].default_backend() == "gpu":
    (device,) = sys.modules["jax"].devices()
    return device.memory_stats()["peak_bytes_in_use"] / 2**20
  return None


def _settings(args):
  from jamsface_jax.settings.defaults import base_config, make_settings

  config = base_config()
  config.model.name = args.models
  config.data.batch_size = args.batch
  config.data.image_size = args.size
  config.model.dtype = config.head.product_dtype = args.dtype
  config.head.learn_angular = config.head.learn_cosine = False
  return make_settings(config)


def _time_convolutions(args):
  """Seconds of all convolutions of forward and backward, one by one."""
  import jax
  import jax.numpy as jnp
  from jax import lax

  from jamsface_jax import models
  from jamsface_jax.devices.compiling import compiler_options
  from jamsface_jax.run.components import make_model

  model = make_model(_settings(args))
  variables = jax.eval_shape(
    lambda key: models.init_backbone(key, model, args.size), jax.random.key(0)
  )
  images = jax.ShapeDtypeStruct(
    (args.batch, args.size, args.size, 3), jnp.float32
  )

  def network(params, images, batch_stats):
    return jax.grad(
      lambda params: model.apply(
        {"params": params, "batch_stats": batch_stats},
        images,
        train=True,
        mutable=["batch_stats"],
      )[0].sum()
    )(params)

  program = jax.make_jaxpr(network)(
    variables["params"], images, variables["batch_stats"]
  )
  seconds = {}  # Of each kind: the same shapes and settings.
  total = 0.0
  for equation in _convolutions_of(program.jaxpr):
    shapes = [v.aval for v in equation.invars]
    kind = str((shapes, sorted(equation.params.items(), key=str)))
    if kind not in seconds:
      operands = [
        jax.random.normal(jax.random.key(0), shape.shape) for shape in shapes
      ]
      run = (
        jax.jit(partial(lax.conv_general_dilated_p.bind, **equation.params))
        .lower(*operands)
        .compile(compiler_options(jax.default_backend()))
      )
      times = []
      for _ in range(4):
        begin = time.perf_counter()
        jax.block_until_ready(run(*operands))
        times.append(time.perf_counter() - begin)
      seconds[kind] = min(times)
    total += seconds[kind]
  return total


def _convolutions_of(jaxpr):
  """All convolutions of a program, those of the branch for a CPU."""
  from jax.extend import core

  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "conv_general_dilated":
      yield equation
    elif name == "cond":  # Of `platform_dependent`: the first is for CPUs.
      yield from _convolutions_of(equation.params["branches"][0].jaxpr)
    else:
      for inner in core.jaxprs_in_params(equation.params):
        yield from _convolutions_of(inner)


def _jax_step(args):
  import jax
  import numpy as np

  from jamsface_jax.devices import sharding
  from jamsface_jax.run import state
  from jamsface_jax.run.components import make_components
  from jamsface_jax.training.step import make_train_step, seed_key

  config = _settings(args)
  components = make_components(config, args.classes, 100_000)
  mesh = sharding.make_mesh(-1)
  now = [state.create_state(0, components, args.size, mesh)]
  step_fn = make_train_step(config, components, mesh)
  rng = np.random.default_rng(0)
  shape = (args.batch, args.size, args.size, 3)
  batch = {
    "images": rng.integers(0, 256, shape, dtype=np.uint8),
    "labels": rng.integers(0, args.classes, args.batch, dtype=np.int32),
  }
  rows = sharding.local_rows(args.batch, mesh)

  def step():
    placed = sharding.put_batch(batch, rows, args.batch, mesh)
    now[0], metrics = step_fn(now[0], placed, seed_key(0))
    jax.block_until_ready((now[0], metrics))

  return step


def _torch_step(args):
  import torch
  from torch.nn import functional

  tests = pathlib.Path(__file__).parent.parent / "tests"
  sys.path.insert(0, str(tests))
  import pytorch_networks

  torch.manual_seed(0)
  torch.backends.cudnn.benchmark = True
  device = "cuda" if torch.cuda.is_available() else "cpu"
  layout = torch.channels_last
  if args.child == "PyTorch, contiguous":
    layout = torch.contiguous_format
  network = pytorch_networks.PUBLISHED[args.models]().train()
  network = network.to(device, memory_format=layout)
  weights = torch.nn.Parameter(
    0.01 * torch.randn(args.classes, 512, device=device)
  )
  optimizer = torch.optim.SGD(
    [*network.parameters(), weights], lr=0.1, momentum=0.9, weight_decay=5e-4
  )
  images, y_b = _torch_batch(args)
  images = images.contiguous(memory_format=layout)
  row_b = torch.arange(args.batch, device=device)

  def loss(images, y_b):
    x_bd = network((images.float() - 127.5) / 127.5)
    cosine_bc = functional.linear(
      functional.normalize(x_bd), functional.normalize(weights)
    )
    true_b = cosine_bc[row_b, y_b].float().clamp(-1 + 1e-7, 1 - 1e-7)
    phi_b = torch.cos(torch.acos(true_b) + 0.3) - 0.2
    logits_bc = cosine_bc.index_put((row_b, y_b), phi_b.to(cosine_bc.dtype))
    return functional.cross_entropy(64 * logits_bc, y_b)

  if args.child == "PyTorch, compiled":
    loss = torch.compile(loss)

  def step():
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(
      device, torch.bfloat16, enabled=args.dtype == "bfloat16"
    ):
      value = loss(images.to(device), y_b.to(device))
    value.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()

  return step


def _torch_batch(args):
  import torch

  shape = (args.batch, 3, args.size, args.size)
  images = torch.randint(0, 256, shape, dtype=torch.uint8)
  return images, torch.randint(0, args.classes, (args.batch,))


def _arcface_torch_step(args):
  """A step as arcface_torch's `train_v2.py` has it, of its own parts."""
  import torch

  sys.path[:0] = [args.arcface_torch, f"{args.arcface_torch}/backbones"]
  torch.manual_seed(0)
  torch.backends.cudnn.benchmark = True
  device = "cuda" if torch.cuda.is_available() else "cpu"
  torch.distributed.init_process_group(
    "nccl" if device == "cuda" else "gloo",
    init_method="tcp://127.0.0.1:29511",
    rank=0,
    world_size=1,
  )
  import iresnet
  from losses import CombinedMarginLoss
  from partial_fc_v2 import PartialFC_V2

  if device == "cpu":  # It asks for a GPU without need.
    torch.Tensor.cuda = lambda tensor, *_, **__: tensor
  half = args.dtype == "bfloat16"  # It has float16 in its place.
  network = getattr(iresnet, args.models)(num_features=512, fp16=half)
  network = network.to(device).train()
  margin = CombinedMarginLoss(64, 1.0, 0.5, 0.0)
  head = PartialFC_V2(margin, 512, args.classes, 1.0, False)
  head = head.train().to(device)
  optimizer = torch.optim.SGD(
    [{"params": network.parameters()}, {"params": head.parameters()}],
    lr=0.1,
    momentum=0.9,
    weight_decay=5e-4,
  )
  scaler = torch.amp.GradScaler(device, growth_interval=100, enabled=half)
  images, y_b = _torch_batch(args)

  def step():
    images_now = images.to(device).float().sub_(127.5).div_(127.5)
    loss = head(network(images_now), y_b.to(device).clone())
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    if device == "cuda":
      torch.cuda.synchronize()

  return step


if __name__ == "__main__":
  main()
