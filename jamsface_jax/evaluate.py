"""Evaluates a trained network on verification sets.

  python -m jamsface_jax.evaluate --workdir=W --data=LFW_DIR[,CFP_DIR...]

Prints a table, and draws ROC curves and score histograms.
"""

import argparse
import os

from jamsface_jax import inference, sharding
from jamsface_jax.config import read_config
from jamsface_jax.errors import run_command
from jamsface_jax.evaluation import open_sets, plot_evaluations


def main() -> int:
  """Reads the flags and evaluates."""
  parser = argparse.ArgumentParser(
    prog="python -m jamsface_jax.evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--data", required=True, help="data sets with pairs, comma between")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add("--output", help="directory of the plots; default: WORKDIR/plots")
  arguments = parser.parse_args()

  config = read_config(arguments.workdir)
  settings = config.evaluation
  embedder, variables, metadata = inference.load(
    arguments.workdir,
    step=arguments.step,
    batch_size=settings.batch_size,
    flip=settings.flip,
    mesh=sharding.make_mesh(-1),
  )
  sets = open_sets(arguments.data, embedder.image_size)
  print(f"checkpoint {metadata['step']} of {arguments.workdir}")
  evaluations = []
  for one in sets:
    evaluation = one.evaluate(
      embedder, variables, fars=settings.fars, threads=config.data.threads
    )
    evaluations.append(evaluation)
    for name, value in evaluation.metrics.items():
      print(f"{name:32} {value:.4f}")
  output = arguments.output or os.path.join(arguments.workdir, "plots")
  plot_evaluations(output, evaluations)
  print(f"plots: {output}")
  return 0


if __name__ == "__main__":
  run_command(main)
