"""Images a second of the whole training step, beside PyTorch's.

Forward, backward and update of an IResNet with its head, batch 32 at 112x112 by
default, in float32, on images in memory. Ours is `train_step` as it trains;
PyTorch's is the same network written plainly, channels last, with cross-entropy
over fixed margins and SGD. Each runs in a process of its own; they take turns.
`convolutions` are those of our step alone, each compiled by itself and their
best times added: what is left for everything else, and what XLA's convolutions
leave to be wished for.

PyTorch is needed for its rows alone: without it they are left out.

  python benchmarks/step.py --models=iresnet18,iresnet50
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

VARIANTS = ("this", "convolutions", "PyTorch", "PyTorch, contiguous")


def main() -> None:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--models", default="iresnet18,iresnet50")
  parser.add_argument("--classes", type=int, default=10_000)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--size", type=int, default=112, help="of the images")
  parser.add_argument("--steps", type=int, default=3, help="timed, each turn")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    if args.child == "convolutions":
      print(json.dumps([_time_convolutions(args)]))
      return
    step = (_jax_step if args.child == "this" else _torch_step)(args)
    step()
    step()
    seconds = []
    for _ in range(args.steps):
      begin = time.perf_counter()
      step()
      seconds.append(time.perf_counter() - begin)
    print(json.dumps(seconds))
    return

  variants = list(VARIANTS)
  if importlib.util.find_spec("torch") is None:
    variants = variants[:2]
  for model in args.models.split(","):
    seconds = {variant: [] for variant in variants}
    for _ in range(args.rounds):
      for variant in variants:
        command = [sys.executable, __file__, f"--child={variant}"]
        command += [f"--models={model}", f"--steps={args.steps}"]
        command += [f"--classes={args.classes}", f"--batch={args.batch}"]
        command += [f"--size={args.size}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
          sys.exit(f"{variant} failed:\n{done.stderr[-2000:]}")
        seconds[variant] += json.loads(done.stdout.splitlines()[-1])
    print(
      f"\n{model}, batch {args.batch} at {args.size}x{args.size},"
      f" {args.classes:,} classes"
    )
    print(f"{'':22}{'images/s':>10}{'quartiles':>16}{'this / it':>11}")
    ours = statistics.median(seconds["this"])
    for variant, times in seconds.items():
      if len(times) == 1:  # Of one round; quantiles need two.
        times = 2 * times
      slow, median, fast = (
        args.batch / t for t in statistics.quantiles(times, n=4)[::-1]
      )
      ratio = statistics.median(times) / ours
      print(
        f"{variant:22}{median:10.2f}{slow:8.2f} -{fast:6.2f}{ratio:11.2f}",
        flush=True,
      )


def _settings(args):
  from jamsface_jax.settings.defaults import base_config, make_settings

  config = base_config()
  config.model.name = args.models
  config.data.batch_size = args.batch
  config.data.image_size = args.size
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
  from jamsface_jax.training.step import make_train_step

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
    now[0], metrics = step_fn(now[0], placed)
    jax.block_until_ready((now[0], metrics))

  return step


def _torch_step(args):
  import torch
  from torch.nn import functional

  tests = pathlib.Path(__file__).parent.parent / "tests"
  sys.path.insert(0, str(tests))
  import pytorch_networks

  torch.manual_seed(0)
  depths = {"iresnet18": (2, 2, 2, 2), "iresnet50": (3, 4, 14, 3)}
  network = pytorch_networks.IResNet(depths[args.models]).train()
  layout = torch.contiguous_format
  if args.child == "PyTorch":
    layout = torch.channels_last
  network = network.to(memory_format=layout)
  weights = torch.nn.Parameter(0.01 * torch.randn(args.classes, 512))
  optimizer = torch.optim.SGD(
    [*network.parameters(), weights], lr=0.1, momentum=0.9, weight_decay=5e-4
  )
  images = torch.randint(0, 256, (args.batch, 3, args.size, args.size))
  images = images.to(torch.uint8).contiguous(memory_format=layout)
  y_b = torch.randint(0, args.classes, (args.batch,))
  row_b = torch.arange(args.batch)

  def step():
    optimizer.zero_grad(set_to_none=True)
    x_bd = network((images.float() - 127.5) / 127.5)
    cosine_bc = functional.linear(
      functional.normalize(x_bd), functional.normalize(weights)
    )
    true_b = cosine_bc[row_b, y_b].clamp(-1 + 1e-7, 1 - 1e-7)
    phi_b = torch.cos(torch.acos(true_b) + 0.3) - 0.2
    logits_bc = cosine_bc.index_put((row_b, y_b), phi_b)
    functional.cross_entropy(64 * logits_bc, y_b).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()

  return step


if __name__ == "__main__":
  main()
