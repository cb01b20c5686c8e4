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
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jamsface_jax import config as config_lib
from jamsface_jax import distributed, onnx_file, weight_files
from jamsface_jax.checkpoint import Checkpoints, versions
from jamsface_jax.compiling import compiler_options
from jamsface_jax.data.augmentation import normalize
from jamsface_jax.data.records import COLOR_ORDER, file_digest
from jamsface_jax.errors import InputError, run_command
from jamsface_jax.export import NORMALIZATION
from jamsface_jax.models import MODELS
from jamsface_jax.models.layout import (
  BATCH_NORM,
  FLAT_LINEAR,
  LINEAR,
  from_pytorch,
  layers,
  pytorch_shapes,
)
from jamsface_jax.state import TrainState, init_backbone, make_model

# insightface's names; its others are ours.
SHORT_NAMES = {f"r{n}": f"iresnet{n}" for n in (18, 34, 50, 100, 200)}
# What wrappers put before the names of a network.
PREFIXES = ("module.", "backbone.", "model.", "_orig_mod.")
_LISTED = 8  # Names in a message, of each kind.
_TOLERANCE = 1e-3  # Of an ONNX file, as a share of the largest number.


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
  distributed.refuse_several("import_weights")
  import_weights(
    arguments.input,
    arguments.workdir,
    model=arguments.model,
    embedding_size=arguments.embedding_size,
    image_size=arguments.image_size,
    color_order=arguments.color_order,
  )
  return 0


def import_weights(
  path: str,
  workdir: str,
  *,
  model: str | None,
  embedding_size: int | None,
  image_size: int | None,
  color_order: str | None,
) -> None:
  """Makes a work directory; see the flags of this command.

  Its checkpoint, of step 0, has a backbone and neither classes nor an
  optimizer; its metadata say under `origin` what it was made of.

  Raises:
    InputError: the file cannot be read or does not fit, or the work directory
      exists.
  """
  if os.path.exists(workdir):
    raise InputError(
      f"--workdir={workdir!r} exists: give the name of a new directory."
    )
  onnx = path.endswith(".onnx")
  file = onnx_file.read(path) if onnx else weight_files.read(path)
  config, color_order = make_config(
    path, file.metadata, model, embedding_size, image_size, color_order
  )
  config_lib.validate(config)
  network, size = make_model(config), config.data.image_size
  shapes = jax.eval_shape(
    lambda key: init_backbone(key, network, size), jax.random.key(0)
  )
  expected = pytorch_shapes(network, shapes)
  what = f"{path!r} does not fit {config.model.name!r}"
  if onnx and "mask_token" in expected:  # Training's alone: no graph has it.
    file.arrays["mask_token"] = np.zeros(expected["mask_token"], np.float32)
  arrays, matched = match_names(file.arrays, expected), "names"
  if arrays is None and onnx:
    arrays, matched = match_layers(what, file, network, expected), "layers"
  elif arrays is None:
    arrays = match_order(what, file.arrays, expected, ordered=file.ordered)
    matched = "order"
  check_numbers(path, arrays)
  if color_order == "BGR":
    first = next(name for name in arrays if arrays[name].ndim == 4)
    arrays[first] = arrays[first][:, ::-1]
  variables = from_pytorch(network, shapes, arrays)
  if onnx:
    check_onnx(path, network, variables, size, color_order)
  origin = {
    "file": os.path.basename(path),
    "sha256": file_digest(path)[0],
    "matched_by": matched,
    "color_order": color_order,
    "metadata": dict(file.metadata),
  }
  save(workdir, config, variables, origin)
  count = sum(array.size for array in jax.tree.leaves(variables["params"]))
  print(
    f"{workdir}: {config.model.name}, {count:,} parameters, matched by"
    f" {matched}\nnext: python -m jamsface_jax.embed --workdir={workdir}"
    " --images=DIR --output=E"
  )


def make_config(
  path: str,
  metadata: Mapping[str, str],
  model: str | None,
  embedding_size: int | None,
  image_size: int | None,
  color_order: str | None,
) -> tuple[ConfigDict, str]:
  """Settings of the work directory, and the colour order of the file.

  Args:
    path: of the file.
    metadata: what it says of itself, as `export.describe` does.
    model: see the flags; so the others.
    embedding_size: see the flags.
    image_size: see the flags.
    color_order: see the flags.

  Raises:
    InputError: flags and file contradict each other, or nothing says which
      network it is.
  """
  config = config_lib.base_config()
  name = SHORT_NAMES.get(model, model)
  if "model" in metadata:
    config.lock()  # Against settings that are unknown.
    try:
      config.model.update(json.loads(metadata["model"]))
      config.model.stages = tuple(config.model.stages)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
      raise InputError(
        f"{path!r} has settings of a model that this version does not know"
        f" ({' '.join(str(error).split())[:100]}): use the version that wrote"
        " it."
      ) from None
  elif name is None:
    raise InputError(
      f"--model is missing, and {path!r} does not say it: give one of"
      f" {', '.join((*SHORT_NAMES, *MODELS))}."
    )
  if metadata.get("normalization", NORMALIZATION) != NORMALIZATION:
    raise InputError(
      f"{path!r} normalises pixels as {metadata['normalization']!r}, but"
      f" networks here take {NORMALIZATION!r}: give another file."
    )

  def choose(flag, asked, stored, default):
    if stored is not None and asked not in (None, stored):
      raise InputError(
        f"--{flag}={asked} contradicts {path!r}, which says {stored}: leave the"
        " flag out."
      )
    return next(v for v in (stored, asked, default) if v is not None)

  said = "model" in metadata
  config.model.name = choose(
    "model", name, config.model.name if said else None, None
  )
  config.model.embedding_size = choose(
    "embedding_size",
    embedding_size,
    config.model.embedding_size if said else None,
    512,
  )
  stored_size = metadata.get("image_size", "")
  config.data.image_size = choose(
    "image_size",
    image_size,
    int(stored_size) if stored_size.isdecimal() else None,
    112,
  )
  order = choose(
    "color_order", color_order, metadata.get("color_order"), COLOR_ORDER
  )
  return config, order


def match_names(
  arrays: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray] | None:
  """Takes the arrays by the names of PyTorch's network.

  Args:
    arrays: of the file.
    expected: shapes by name.

  Returns:
    The expected arrays, in the expected order; None if one is missing, is of
    another shape, or others than counters are left over.
  """
  renamed = {}
  for name, array in arrays.items():
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
      name = name.removeprefix(prefix)
    renamed[name] = array
  found = {}
  for name, shape in expected.items():
    if name not in renamed:
      return None
    array = renamed[name]
    # ONNX keeps a PReLU's slopes as (C, 1, 1).
    if array.shape != shape and array.shape != (*shape, 1, 1):
      return None
    found[name] = array.reshape(shape)
  extra = [
    name
    for name, array in renamed.items()
    if name not in expected and array.dtype.kind not in "iub" and array.ndim
  ]
  return None if extra else found


def match_order(
  what: str,
  arrays: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  *,
  ordered: bool,
) -> dict[str, np.ndarray]:
  """Takes the arrays in their order.

  Args:
    what: the start of a message.
    arrays: of the file; whole numbers, such as counters, are skipped.
    expected: shapes by name.
    ordered: whether their order means anything.

  Returns:
    The expected arrays by PyTorch's names.

  Raises:
    InputError: a list of what does not fit.
  """
  given = {
    name: array
    for name, array in arrays.items()
    if array.dtype.kind not in "iub" and array.ndim
  }
  wanted = list(expected.items())
  fits = ordered and [a.shape for a in given.values()] == [
    shape for _, shape in wanted
  ]
  if fits:
    return dict(zip(expected, given.values(), strict=True))
  missing = [f"{n} {s}" for n, s in wanted if n not in given]
  extra = [f"{n} {a.shape}" for n, a in given.items() if n not in expected]
  other = [
    f"{n} {given[n].shape} instead of {s}"
    for n, s in wanted
    if n in given and given[n].shape != s
  ]
  if len(missing) == len(wanted):  # No name is known: the order decides.
    pairs = zip(wanted, given.items(), strict=False)
    other = [
      f"{n} {a.shape} instead of {name} {shape}"
      for (name, shape), (n, a) in pairs
      if a.shape != shape
    ]
    missing = [f"{n} {s}" for n, s in wanted[len(given) :]]
    extra = [f"{n} {a.shape}" for n, a in list(given.items())[len(wanted) :]]
    if not ordered and not other:
      other = ["names that are not insightface's, in a file without order"]
  raise _misfit(what, missing, extra, other)


def match_layers(
  what: str,
  file: onnx_file.OnnxFile,
  model: nn.Module,
  expected: Mapping[str, tuple[int, ...]],
) -> dict[str, np.ndarray]:
  """Takes the layers of an ONNX graph in their order.

  Exporters fold a batch normalisation into the convolution before it: such a
  one becomes the bias of one that does nothing else.

  Args:
    what: the start of a message.
    file: the graph.
    model: the backbone.
    expected: shapes by name.

  Returns:
    The expected arrays by PyTorch's names.

  Raises:
    InputError: what does not fit.
  """
  if file.layers is None:
    raise InputError(
      f"{what}: {file.obstacle} has no place in such a network; give the"
      " --model that it is, or its PyTorch file."
    )
  found, waiting = {}, list(file.layers)
  folded: np.ndarray | None = None
  for layer in layers(model):
    names = [n for n in expected if n.rpartition(".")[0] == layer.torch]
    last_is_linear = found and not waiting and layer.kind == BATCH_NORM
    if layer.kind == BATCH_NORM and (folded is not None or last_is_linear):
      channels = expected[names[0]]
      bias = np.zeros(channels, np.float32) if folded is None else folded
      # With an epsilon of 1e-5 the factor is exactly 1.
      given = {
        "weight": np.ones(channels, np.float32),
        "bias": bias,
        "running_mean": np.zeros(channels, np.float32),
        "running_var": np.full(channels, 1 - 1e-5, np.float32),
      }
      folded = None
    else:
      if not waiting:
        raise _misfit(what, [layer.torch], [], [])
      next_layer = waiting.pop(0)
      given = dict(next_layer.arrays)
      kind = LINEAR if layer.kind == FLAT_LINEAR else layer.kind
      if next_layer.kind != kind:
        raise _misfit(
          what, [], [], [f"a {next_layer.kind} instead of {layer.torch}"]
        )
      if f"{layer.torch}.bias" not in expected:
        folded = given.pop("bias", None)
      elif kind == LINEAR and "bias" not in given:
        given["bias"] = np.zeros(expected[f"{layer.torch}.bias"], np.float32)
    for name in names:
      array = given.get(name.rpartition(".")[2])
      if array is None or array.shape != expected[name]:
        shape = "nothing" if array is None else array.shape
        other = f"{name} {shape} instead of {expected[name]}"
        raise _misfit(what, [], [], [other])
      found[name] = array
  if waiting:
    extra = [f"{one.kind} {one.arrays['weight'].shape}" for one in waiting]
    raise _misfit(what, [], extra, [])
  return found


def _misfit(
  what: str, missing: Sequence, extra: Sequence, other: Sequence
) -> InputError:
  """An error with lists of what does not fit."""
  parts = []
  for kind, items in (
    ("missing", missing),
    ("left over", extra),
    ("different", other),
  ):
    if items:
      more = len(items) - _LISTED
      shown = ", ".join(items[:_LISTED])
      parts.append(
        f"{kind}: {shown}" + (f" and {more} more" if more > 0 else "")
      )
  return InputError(
    f"{what} ({'; '.join(parts)}): give the --model, --embedding_size and"
    " --image_size that it has."
  )


def check_numbers(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Refuses numbers that no trained network has."""
  for name, array in arrays.items():
    if array.dtype.kind in "OUSVc" and array.dtype.name != "bfloat16":
      raise InputError(f"{path!r} has no numbers in {name!r}: it is damaged.")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
      raise InputError(
        f"{path!r} has numbers in {name!r} that are not finite: give a network"
        " that was trained without a failure."
      )
    if name.endswith("running_var") and (array < 0).any():
      raise InputError(
        f"{path!r} has a variance below 0 in {name!r}: it does not fit, or is"
        " damaged."
      )


def check_onnx(
  path: str, model: nn.Module, variables: dict, size: int, color_order: str
) -> None:
  """Compares what was imported with the graph, on noise.

  Raises:
    InputError: they compute different things.
  """
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (2, size, size, 3), np.uint8)
  given = pixels if color_order == COLOR_ORDER else pixels[..., ::-1]
  try:
    expected = onnx_file.session(path)(given)
  except Exception as error:  # onnxruntime has a class per kind of failure.
    raise InputError(
      f"{path!r} cannot be run on {size}x{size} images"
      f" ({' '.join(str(error).split())[:200]}): give the --image_size that it"
      " has."
    ) from None
  apply = jax.jit(
    lambda variables, pixels: model.apply(
      variables, normalize(pixels), train=False
    ),
    compiler_options=compiler_options(jax.default_backend()),
  )
  difference = np.abs(apply(variables, pixels) - expected).max()
  share = difference / np.abs(expected).max()
  print(f"largest difference from {os.path.basename(path)}: {difference:.2g}")
  if not share < _TOLERANCE:
    raise InputError(
      f"{path!r} has the layers of the network but computes something else:"
      f" embeddings differ by {share:.2g} of the largest number."
    )


def save(
  workdir: str, config: ConfigDict, variables: dict, origin: dict[str, Any]
) -> None:
  """Writes a work directory, under another name until it is complete."""
  partial = workdir.rstrip("/") + ".partial"
  try:
    os.makedirs(os.path.dirname(partial) or ".", exist_ok=True)
    os.mkdir(partial)
  except FileExistsError:
    raise InputError(
      f"{partial!r} is left of an import that was interrupted: remove it."
    ) from None
  except OSError as error:
    raise InputError(
      f"--workdir={workdir!r} cannot be written ({error.strerror}): choose"
      " another directory."
    ) from None
  checkpoints = Checkpoints(partial, keep_last=1, keep_best="")
  state = TrainState(
    step=jnp.int32(0),
    # Orbax keeps nothing that is empty.
    params={
      "backbone": variables["params"],
      "head": {"num_classes": jnp.int32(0)},
    },
    batch_stats=variables["batch_stats"],
    opt_state={},
    running={},
    rejected=jnp.zeros(2, jnp.int32),
  )
  metadata = {
    "num_classes": 0,
    "num_images": 0,
    "data_fingerprint": f"none: imported from {origin['file']}",
    "color_order": COLOR_ORDER,
    "image_size": config.data.image_size,
    "embedding_size": config.model.embedding_size,
    "versions": versions(),
    "origin": origin,
  }
  checkpoints.save(0, state, metadata)
  checkpoints.close()
  config_lib.check_or_save(config, partial, save=True)
  os.rename(partial, workdir)


if __name__ == "__main__":
  run_command(main)
