"""Makes a work directory of a published network, for embed and evaluate.

  python -m jamsface_jax.import_weights --input=FILE --workdir=W --model=r50

Reads .safetensors, .npz, .onnx, and the .pth of torch.save, the last without
PyTorch and without running what is in it. Arrays are matched by the names of
insightface's networks if the file has all of them, else by order, when every
shape fits. Weights that take BGR images are turned to take RGB, and what else
was done to pixels becomes part of the network. docs/weights.md.

Models: the names of config.model.name, and r18, r34, r50, r100, r200 for
IResNets, ir_18, ir_34, ir_50, ir_101 for AdaFace's, CVLface's and TFace's. A
file of jamsface_jax.export says its model itself.
"""

import argparse

from jamsface_jax import shell
from jamsface_jax.devices import processes
from jamsface_jax.errors import run_command
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights.importing import import_weights


def main() -> int:
  """Reads the flags and imports."""
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.import_weights"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--input", required=True, help="the file of weights")
  add("--workdir", required=True, help="of the new run; must not exist")
  add("--model", help="its network; default: what the file says")
  add("--embedding_size", type=int, help="default: the file's")
  add("--image_size", type=int, help="default: the file's, or 112")
  add(
    "--color_order",
    choices=("RGB", "BGR"),
    help="of the images it was trained on; default: the file's, or RGB",
  )
  add(
    "--normalization",
    help="MEAN:STD of the pixels it was trained on, such as 127.5:128, or one"
    " of insightface, imagenet; default: insightface for its networks",
  )
  add(
    "--activation",
    choices=("prelu", "relu", "relu6"),
    help="of a MobileFaceNet; default: what the file has",
  )
  arguments = parser.parse_args()
  processes.refuse_several("import_weights")
  import_weights(
    arguments.input,
    RunDirectory(arguments.workdir),
    model=arguments.model,
    embedding_size=arguments.embedding_size,
    image_size=arguments.image_size,
    color_order=arguments.color_order,
    normalization=arguments.normalization,
    activation=arguments.activation,
  )
  return 0


if __name__ == "__main__":
  run_command(main)
