"""Images a second of a network that embeds, beside onnxruntime and PyTorch.

Forward alone, without mirror images, pixels in memory, float32, batch 32 at
112x112 by default. Ours is what `jamsface_jax.embed` calls for each batch;
onnxruntime runs our own export of the same network; PyTorch's is the same
network written plainly, channels last, in inference mode. Each runs in a
process of its own with all cores; they take turns.

PyTorch is needed for its row alone: without it that is left out.

  python benchmarks/forward.py
  python benchmarks/forward.py --models=mbf,vit_t --batch=1
"""

import argparse
import importlib.util
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

VARIANTS = ("this", "onnxruntime", "PyTorch")
MODELS = "iresnet18,iresnet50,iresnet100,mbf,vit_t,vit_s"


def main() -> None:
  """Reads the flags, measures, prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--models", default=MODELS)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--size", type=int, default=112, help="of the images")
  parser.add_argument("--steps", type=int, default=5, help="timed, each turn")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--only", default="", help="variants, by semicolons")
  parser.add_argument("--child", default="", help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    print(json.dumps(_measure(args)))
    return

  variants = args.only.split(";") if args.only else list(VARIANTS)
  if importlib.util.find_spec("torch") is None:
    variants = [one for one in variants if one != "PyTorch"]
  print(f"batch {args.batch} at {args.size}x{args.size}, images a second")
  print(
    f"{'':12}"
    + "".join(f"{one:>14}" for one in variants)
    + "".join(f"{'this / ' + one:>20}" for one in variants[1:])
  )
  for model in args.models.split(","):
    seconds = {variant: [] for variant in variants}
    for _ in range(args.rounds):
      for variant in variants:
        command = [sys.executable, __file__, f"--child={variant}"]
        command += [f"--models={model}", f"--batch={args.batch}"]
        command += [f"--size={args.size}", f"--steps={args.steps}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
          sys.exit(f"{variant} failed:\n{done.stderr[-2000:]}")
        seconds[variant].append(json.loads(done.stdout.splitlines()[-1]))
    middle = {
      variant: statistics.median(found)
      for variant, rounds in seconds.items()
      if (found := sum(rounds, []))
    }
    rates = [args.batch / middle[v] if v in middle else None for v in variants]
    ratios = [rates[0] / rate if rate else None for rate in rates[1:]]
    print(
      f"{model:12}"
      + "".join(f"{rate:14.1f}" if rate else f"{'-':>14}" for rate in rates)
      + "".join(f"{one:20.2f}" if one else f"{'-':>20}" for one in ratios),
      flush=True,
    )


def _measure(args: argparse.Namespace) -> list[float]:
  """Seconds of each timed call, after two that are not; none: no network."""
  build = {"this": _this, "onnxruntime": _onnxruntime, "PyTorch": _pytorch}
  forward = build[args.child](args)
  if forward is None:
    return []
  forward()
  forward()
  seconds = []
  for _ in range(args.steps):
    begin = time.perf_counter()
    forward()
    seconds.append(time.perf_counter() - begin)
  return seconds


def _pixels(args):
  import numpy as np

  shape = (args.batch, args.size, args.size, 3)
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def _network(args):
  """The model and its first values."""
  import jax

  from jamsface_jax import models
  from jamsface_jax.run.components import make_model
  from jamsface_jax.settings.defaults import base_config, make_settings

  config = base_config()
  config.model.name = args.models
  config.data.image_size = args.size
  model = make_model(make_settings(config))
  init = jax.jit(lambda key: models.init_backbone(key, model, args.size))
  return model, init(jax.random.key(0))


def _this(args) -> Callable[[], object]:
  import numpy as np

  from jamsface_jax.devices.sharding import make_mesh
  from jamsface_jax.embedding.embedder import Embedder

  model, variables = _network(args)
  embedder = Embedder(
    model,
    mesh=make_mesh(-1),
    batch_size=args.batch,
    image_size=args.size,
    flip=False,
  )
  pixels = _pixels(args)
  return lambda: np.asarray(embedder.start(variables, pixels))


def _onnxruntime(args) -> Callable[[], object]:
  import jax

  from jamsface_jax.weights import onnx_file, onnx_graph
  from jamsface_jax.weights.pytorch_names import to_pytorch

  model, variables = _network(args)
  data = onnx_graph.build(
    model,
    to_pytorch(model, jax.device_get(variables)),
    {},
    image_size=args.size,
    uint8=True,
  )
  pixels = _pixels(args)
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "network.onnx"
    path.write_bytes(data)
    run = onnx_file.session(str(path))
  return lambda: run(pixels)


def _pytorch(args) -> Callable[[], object] | None:
  import torch

  sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "tests"))
  import pytorch_networks

  if args.models not in pytorch_networks.PUBLISHED:
    return None
  network = pytorch_networks.PUBLISHED[args.models]().eval()
  network = network.to(memory_format=torch.channels_last)
  pixels = torch.from_numpy(_pixels(args)).permute(0, 3, 1, 2)

  def forward():
    with torch.inference_mode():
      return network((pixels.float() - 127.5) / 127.5)

  return forward


if __name__ == "__main__":
  main()
