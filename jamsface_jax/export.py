"""Writes a trained network in a form that others load.

  python -m jamsface_jax.export --workdir=W --format=onnx --output=FILE

onnx         a graph for the field's runtimes, checked with onnxruntime
stablehlo    for jax.export.deserialize, on CPUs, NVIDIA GPUs and TPUs
safetensors  the parameters under the names of insightface's PyTorch networks
numpy        the same arrays, as .npz

Every file says the colour order, the size and the normalisation of the images:
onnx in its metadata_props, safetensors in its __metadata__, numpy in the entry
'metadata' (JSON), stablehlo in the fun_name of what is loaded (JSON). Networks
compute in float32, whatever training did, and embed an image without its mirror
image; embeddings are not scaled to length 1.
"""

import argparse

from jamsface_jax import shell
from jamsface_jax.devices import processes
from jamsface_jax.errors import run_command
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.storage.upload import write_file
from jamsface_jax.weights.exporting import export

FORMATS = ("onnx", "stablehlo", "safetensors", "numpy")
INPUTS = ("uint8", "float32")
DTYPES = ("float32", "float16")


def main() -> int:
  """Reads the flags and exports."""
  parser = argparse.ArgumentParser(
    prog=shell.name("jamsface_jax.export"),
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add("--workdir", required=True, help="of a training run")
  add("--format", required=True, choices=FORMATS)
  add("--output", required=True, help="the file; must not exist")
  add("--step", type=int, help="of the checkpoint; default: the newest")
  add(
    "--input",
    choices=INPUTS,
    default="uint8",
    help="of onnx and stablehlo: uint8 [N, H, W, 3], pixels (default); or"
    " float32, normalised, for onnx [N, 3, H, W]",
  )
  add(
    "--dtype",
    choices=DTYPES,
    default="float32",
    help="of the numbers in the file; float16 halves it, and what that changes"
    " is measured and said; computed in float32 all the same",
  )
  arguments = parser.parse_args()
  processes.refuse_several("export")
  write_file(
    arguments.output,
    lambda output: export(
      RunDirectory(arguments.workdir),
      arguments.format,
      output,
      step=arguments.step,
      input_dtype=arguments.input,
      dtype=arguments.dtype,
    ),
  )
  return 0


if __name__ == "__main__":
  run_command(main)
