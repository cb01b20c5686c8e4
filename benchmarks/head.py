"""Time and memory of one training step of the head, beside PyTorch's.

A step is forward, backward, and SGD with momentum and weight decay, on random
embeddings and labels. Every variant runs in a process of its own, so that its
memory is its own; all of them take turns, some steps each, several rounds.
`products` is the limit: the four matrix products that an exact head needs which
keeps no logits, chunk by chunk, and nothing else. `differentiable` is
`head.mean_loss` under `jax.grad`, `written` the head as one would write it
in JAX: all logits in one array, one margin for all classes. With
`--dtype=bfloat16` products round what they multiply, PyTorch's under autocast;
weights stay float32. Both take a GPU where there is one.

Columns: median milliseconds of a step and half the distance of the quartiles;
the same over `products`; peak memory beyond that of a started process, of the
GPU or else resident; what the compiler says that the program holds at once;
that without weights and momentum.

PyTorch is needed for its rows alone. `--partial_fc=DIR` adds InsightFace's
PartialFC_V2, where DIR holds its `partial_fc_v2.py`.

  python benchmarks/head.py --classes=10000,100000,200000
  python benchmarks/head.py --classes=1000000 --rounds=2 --steps=2
  python benchmarks/head.py --classes=1000000 --batch=1024 --dtype=bfloat16
"""

import argparse
import ctypes
import gc
import importlib.util
import json
import statistics
import subprocess
import sys
import time

VARIANTS = (
  "products",
  "fused",
  "keep 256",
  "plain",
  "differentiable",
  "written",
  "skip 1e-6",
  "rate 0.1",
)
IN_PYTORCH = ("PyTorch", "PartialFC_V2", "PartialFC_V2 0.1")


def main() -> None:
  """Reads the flags, measures, prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--classes", default="10000,100000,200000")
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--size", type=int, default=512, help="of an embedding")
  parser.add_argument("--chunk", type=int, default=None, help="classes at once")
  parser.add_argument(
    "--dtype", default="float32", choices=("float32", "bfloat16")
  )
  parser.add_argument("--steps", type=int, default=5, help="timed, each turn")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--only", default="", help="variants, by commas")
  parser.add_argument("--partial_fc", default="", metavar="DIR")
  parser.add_argument("--plot", default="", metavar="PNG")
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(_measure(args.child, args)))
    return

  variants = args.only.split(",") if args.only else [*VARIANTS, *IN_PYTORCH]
  if importlib.util.find_spec("torch") is None:
    variants = [v for v in variants if v not in IN_PYTORCH]
  if not args.partial_fc:
    variants = [v for v in variants if "PartialFC" not in v]
  rows = []
  for classes in map(int, args.classes.split(",")):
    rows += _table(classes, variants, args)
  if args.plot:
    _plot(rows, args.plot)


def _table(classes: int, variants: list[str], args) -> list[dict]:
  """Measures all variants at one number of classes and prints them."""
  results = {variant: [] for variant in variants}
  for _ in range(args.rounds):
    for variant in list(results):
      command = [
        sys.executable,
        __file__,
        f"--child={variant}",
        f"--classes={classes}",
        f"--batch={args.batch}",
        f"--size={args.size}",
        f"--steps={args.steps}",
        f"--dtype={args.dtype}",
        f"--partial_fc={args.partial_fc}",
      ]
      if args.chunk:
        command.append(f"--chunk={args.chunk}")
      done = subprocess.run(command, capture_output=True, text=True)
      if "OutOfMemoryError" in done.stderr:
        print(f"{variant}: the device's memory is too small")
        results.pop(variant, None)
        continue
      if done.returncode:
        sys.exit(f"{variant} failed:\n{done.stderr[-2000:]}")
      results[variant].append(json.loads(done.stdout.splitlines()[-1]))
  state_mib = 2 * classes * args.size * 4 / 2**20
  products = _median(results["products"]) if "products" in results else None
  print(
    f"\n{classes:,} classes, batch {args.batch}, {args.size} numbers,"
    f" {args.dtype}; weights and momentum {state_mib:,.0f} MiB"
  )
  print(
    f"{'':18}{'ms':>9}{'+-':>7}{'/ products':>12}{'peak MiB':>10}"
    f"{'XLA MiB':>10}{'beyond':>9}"
  )
  rows = []
  for variant, runs in results.items():
    median = _median(runs)
    low, _, high = statistics.quantiles(_times(runs), n=4)
    peak = max(run["peak_mib"] for run in runs)
    xla = runs[0].get("xla_mib")
    rows.append(
      {"variant": variant, "classes": classes, "ms": 1e3 * median, "xla": xla,
       "peak": peak, "beyond": (xla or peak) - state_mib}
    )  # fmt: skip
    over = f"{median / products:12.2f}" if products else f"{'':12}"
    held = f"{xla:10,.0f}{xla - state_mib:9,.0f}" if xla else ""
    print(
      f"{variant:18}{1e3 * median:9,.1f}{5e2 * (high - low):7,.1f}{over}"
      f"{peak:10,.0f}{held}",
      flush=True,
    )
  return rows


def _times(runs: list[dict]) -> list[float]:
  return [seconds for run in runs for seconds in run["seconds"]]


def _median(runs: list[dict]) -> float:
  return statistics.median(_times(runs))


def _measure(variant: str, args) -> dict:
  """Runs one variant in this process."""
  classes = int(args.classes)
  build = _torch_step if variant in IN_PYTORCH else _jax_step
  start, step, xla_mib = build(variant, classes, args)
  _forget_peak()
  step()
  seconds = []
  for _ in range(args.steps):
    begin = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - begin)
  return {
    "seconds": seconds,
    "peak_mib": _peak_mib() - start,
    "xla_mib": xla_mib,
  }


def _peak_mib() -> float:
  """Largest memory since the start, or since it was forgotten.

  Of the GPU that this process works with, or resident; JAX does not forget.
  """
  if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
    return sys.modules["torch"].cuda.max_memory_allocated() / 2**20
  if "jax" in sys.modules and sys.modules["jax"].default_backend() == "gpu":
    (device,) = sys.modules["jax"].devices()
    return device.memory_stats()["peak_bytes_in_use"] / 2**20
  with open("/proc/self/status", encoding="ascii") as file:
    (line,) = (line for line in file if line.startswith("VmHWM"))
  return int(line.split()[1]) / 1024


def _forget_peak() -> None:
  """Starts the measurement of the peak anew, without what was freed."""
  gc.collect()
  if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
    sys.modules["torch"].cuda.reset_peak_memory_stats()
  ctypes.CDLL("libc.so.6").malloc_trim(0)
  with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
    file.write("5")


def _jax_step(variant: str, classes: int, args):
  import jax
  import jax.numpy as jnp

  from jamsface_jax import head as head_lib
  from jamsface_jax.devices import sharding
  from jamsface_jax.devices.compiling import compiler_options
  from jamsface_jax.head import WEIGHTS, class_sampling, logits
  from jamsface_jax.run.components import make_head
  from jamsface_jax.run.optimizer import make_optimizers
  from jamsface_jax.settings.defaults import base_config, make_settings

  config = base_config()
  config.model.embedding_size = args.size
  config.head.product_dtype = args.dtype
  if args.chunk:
    config.head.chunk_classes = args.chunk
  kind, _, value = variant.partition(" ")
  config.head.keep_mib = int(value) if kind == "keep" else 0
  if kind == "rate":
    config.head.sample_rate = float(value)
  elif kind == "skip":
    config.head.skip_below = float(value)
  settings = make_settings(config)
  head = make_head(settings, classes, classes)
  mesh = sharding.make_mesh(-1)
  optimizer = make_optimizers(settings, lambda step: 0.1, head).weights
  key = jax.random.key(0)
  start = {"loss_state": {}, "key": key}
  x_bd = jax.random.normal(key, (args.batch, args.size))
  y_b = jax.random.randint(key, (args.batch,), 0, classes)
  jax.block_until_ready(jax.jit(lambda x: x @ x.T)(x_bd))
  begin = _peak_mib()
  params = jax.jit(lambda key: head_lib.init(key, head, mesh))(key)
  opt_state = jax.jit(optimizer.init)(params[WEIGHTS])

  def fused(params, opt_state, key, accept):
    sample = None
    if head.sample_rate < 1:
      sample = class_sampling.draw(key, y_b, head, mesh)
    on_head = {"head": head, "mesh": mesh, "sample": sample}
    loss = head_lib.loss(params, x_bd, y_b, **start, **on_head)
    new = head_lib.update_weights(
      params,
      opt_state,
      loss.residuals,
      accept,
      optimizer=optimizer,
      clip_norm=0.0,
      **on_head,
    )
    return (
      params | {WEIGHTS: new.weights},
      new.opt_state,
      loss.embedding_gradient,
    )

  def plain(params, opt_state, key, accept):
    loss = head_lib.loss(params, x_bd, y_b, **start, head=head, mesh=mesh)
    gradient = head_lib.weight_gradient(
      params, loss.residuals, head=head, mesh=mesh
    )
    updates, opt_state = optimizer.update(gradient, opt_state, params[WEIGHTS])
    weights = params[WEIGHTS] + updates
    return params | {WEIGHTS: weights}, opt_state, loss.embedding_gradient

  def by_gradient(loss_of, params, opt_state):
    gradients, of_embeddings = jax.grad(loss_of, argnums=(0, 1))(params, x_bd)
    updates, opt_state = optimizer.update(
      gradients[WEIGHTS], opt_state, params[WEIGHTS]
    )
    weights = params[WEIGHTS] + updates
    return params | {WEIGHTS: weights}, opt_state, of_embeddings

  def differentiable(params, opt_state, key, accept):
    def loss_of(params, x_bd):
      return head_lib.mean_loss(params, x_bd, y_b, head=head, mesh=mesh)[0]

    return by_gradient(loss_of, params, opt_state)

  def written_out(params, opt_state, key, accept):
    def loss_of(params, x_bd):
      w_cd = params[WEIGHTS][:classes]
      w_cd /= jnp.linalg.norm(w_cd, axis=1, keepdims=True)
      unit_bd = x_bd / jnp.linalg.norm(x_bd, axis=1, keepdims=True)
      cosine_bc = logits.product(unit_bd, w_cd, (1, 1), head)
      rows = jnp.arange(len(y_b))
      true_b = jnp.clip(cosine_bc[rows, y_b], -1 + 1e-7, 1 - 1e-7)
      phi_b = jnp.cos(jnp.arccos(true_b) + 0.3) - 0.2
      logit_bc = head.scale * cosine_bc.at[rows, y_b].set(phi_b)
      log_share_bc = jax.nn.log_softmax(logit_bc)
      return -log_share_bc[rows, y_b].mean()

    return by_gradient(loss_of, params, opt_state)

  def products(params, opt_state, key, accept):
    """The same loops with nothing in them but products."""
    size = min(head.chunk_classes, head.padded_classes)

    def product(left, right, axes):
      return logits.product(left, right, axes, head)

    def cut(k, array):
      start = jnp.minimum(k * size, len(array) - size)
      return jax.lax.dynamic_slice_in_dim(array, start, size), start

    def forward(k, sum_bd):
      w_nd, _ = cut(k, params[WEIGHTS])
      return sum_bd + product(product(w_nd, x_bd, (1, 1)), w_nd, (0, 0))

    def back(k, w_cd):
      w_nd, start = cut(k, w_cd)
      gradient_nd = product(product(w_nd, sum_bd, (1, 1)), x_bd, (1, 0))
      return jax.lax.dynamic_update_slice_in_dim(w_cd, gradient_nd, start, 0)

    chunks = -(-head.padded_classes // size)
    sum_bd = jax.lax.fori_loop(0, chunks, forward, jnp.zeros_like(x_bd))
    weights = jax.lax.fori_loop(0, chunks, back, params[WEIGHTS])
    return params | {WEIGHTS: weights}, opt_state, sum_bd

  run = {
    "plain": plain,
    "products": products,
    "differentiable": differentiable,
    "written": written_out,
  }.get(kind, fused)
  program = (
    jax.jit(
      run,
      donate_argnums=(0, 1),
      compiler_options=compiler_options(jax.default_backend()),
    )
    .lower(params, opt_state, key, jnp.array(True))
    .compile()
  )
  memory = program.memory_analysis()
  held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
  held += memory.output_size_in_bytes - memory.alias_size_in_bytes
  now = [params, opt_state, 0]
  del params, opt_state

  def step():
    now[0], now[1], gradient = program(
      *now[:2], jax.random.key(now[2]), jnp.array(True)
    )
    now[2] += 1
    jax.block_until_ready((now[:2], gradient))

  return begin, step, held / 2**20


def _torch_step(variant: str, classes: int, args):
  import torch
  from torch.nn import functional

  torch.manual_seed(0)
  device = "cuda" if torch.cuda.is_available() else "cpu"
  half = args.dtype == "bfloat16"
  x_bd = torch.randn(args.batch, args.size, device=device, requires_grad=True)
  y_b = torch.randint(0, classes, (args.batch,), device=device)
  (x_bd @ x_bd.T).sum().backward()
  sgd = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
  begin = _peak_mib()
  if variant == "PyTorch":
    weights = torch.nn.Parameter(
      0.01 * torch.randn(classes, args.size, device=device)
    )
    optimizer = torch.optim.SGD([weights], **sgd)
    row_b = torch.arange(args.batch, device=device)

    def loss():
      cosine_bc = functional.linear(
        functional.normalize(x_bd), functional.normalize(weights)
      )
      true_b = cosine_bc[row_b, y_b].clamp(-1 + 1e-7, 1 - 1e-7)
      phi_b = torch.cos(torch.acos(true_b) + 0.3) - 0.2
      logits_bc = cosine_bc.index_put((row_b, y_b), phi_b)
      return functional.cross_entropy(64 * logits_bc, y_b)

  else:
    sys.path.insert(0, args.partial_fc)
    torch.distributed.init_process_group(
      "nccl" if device == "cuda" else "gloo",
      init_method="tcp://127.0.0.1:29511",
      rank=0,
      world_size=1,
    )
    from partial_fc_v2 import PartialFC_V2

    if device == "cpu":  # It asks for a GPU without need.
      torch.Tensor.cuda = lambda tensor, *_, **__: tensor

    def margin(logits_bc, label_b):
      row_b = torch.where(label_b != -1)[0]
      column_b = label_b[row_b]
      true_b = logits_bc[row_b, column_b].clamp(-1 + 1e-7, 1 - 1e-7)
      phi_b = torch.cos(torch.acos(true_b) + 0.3) - 0.2
      return 64 * logits_bc.index_put((row_b, column_b), phi_b)

    rate = 0.1 if variant.endswith("0.1") else 1.0
    module = PartialFC_V2(margin, args.size, classes, rate, half)
    module.train().to(device)
    optimizer = torch.optim.SGD(module.parameters(), **sgd)

    def loss():
      return module(x_bd, y_b.clone())  # It writes into its labels.

  def step():
    x_bd.grad = None
    optimizer.zero_grad(set_to_none=True)
    # PartialFC_V2 has autocast inside, in float16.
    with torch.autocast(
      device, torch.bfloat16, enabled=half and variant == "PyTorch"
    ):
      value = loss()
    value.backward()
    optimizer.step()
    if device == "cuda":
      torch.cuda.synchronize()

  return begin, step, None


def _plot(rows: list[dict], path: str) -> None:
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
  for axis, name, label in (
    (axes[0], "ms", "milliseconds a step"),
    (axes[1], "beyond", "MiB beyond weights and momentum"),
  ):
    for variant in dict.fromkeys(row["variant"] for row in rows):
      mine = [row for row in rows if row["variant"] == variant]
      axis.plot(
        [row["classes"] for row in mine],
        [row[name] for row in mine],
        marker="o",
        label=variant,
      )
    axis.set(xscale="log", xlabel="classes", ylabel=label)
    axis.grid(alpha=0.3)
  axes[0].set_yscale("log")
  axes[1].set_yscale("log")
  axes[0].legend(fontsize=8)
  figure.savefig(path, dpi=120)


if __name__ == "__main__":
  main()
