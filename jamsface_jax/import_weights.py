"""Makes a work directory of a published network, for embed and evaluate.

  python -m jamsface_jax.import_weights --input=FILE --workdir=W --model=r50

Reads .safetensors, .npz, .onnx, and the .pth of torch.save, the last without
PyTorch and without running what is in it. Arrays are matched by the names of
insightface's networks if the file has all of them, else by order, when every
shape fits. Weights that take BGR images are turned to take RGB.

Models: the names of config.model.name, and r18, r34, r50, r100, r200 for
IResNets. A file of jamsface_jax.export says its model itself.
"""

import argparse

from jamsface_jax.devices import processes
from jamsface_jax.errors import run_command
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights.importing import import_weights


def main() -> int:
  """Reads the flags and imports."""
  parser = argparse.ArgumentParser(
    prog="python -m jamsface_jax.import_weights",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--input", required=True, help="the file of weights")
  add("--workdir", required=True, help="of the new run; must not exist")
  add("--model", help="its network; default: what the file says")
  add("--embedding_size", type=int, help="default: the file's, or 512")
  add("--image_size", type=int, help="default: the file's, or 112")
  add(
    "--color_order",
    choices=("RGB", "BGR"),
    help="of the images it was trained on; default: the file's, or RGB",
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
  )
  return 0


if __name__ == "__main__":
  run_command(main)
