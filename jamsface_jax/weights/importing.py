"""Turns published weights into a work directory."""

import os
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jamsface_jax import shell
from jamsface_jax.data.records import COLOR_ORDER, file_digest
from jamsface_jax.errors import InputError, one_line
from jamsface_jax.models import MODELS, backbone_shapes
from jamsface_jax.run.checkpoint import Checkpoints
from jamsface_jax.run.components import make_model
from jamsface_jax.run.state import TrainState
from jamsface_jax.run.versions import versions
from jamsface_jax.settings.names import replaced, settings_from
from jamsface_jax.settings.sections import Settings
from jamsface_jax.settings.stored import check_or_save
from jamsface_jax.storage import plain_json
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.weights import onnx_file, weight_files
from jamsface_jax.weights.comparison import difference, noise, reference
from jamsface_jax.weights.fitting import fitted
from jamsface_jax.weights.matching import MisfitError, match
from jamsface_jax.weights.nearest import nearest
from jamsface_jax.weights.normalization import (
  NORMALIZATION,
  PIXELS,
  Normalization,
  parse,
)
from jamsface_jax.weights.onnx_file import OnnxFile
from jamsface_jax.weights.onnx_layers import OnnxEntry
from jamsface_jax.weights.pytorch_names import (
  from_pytorch,
  pytorch_shapes,
)
from jamsface_jax.weights.trainers import networks
from jamsface_jax.weights.weight_files import WeightFile

# insightface's names; its others are ours. And AdaFace's.
SHORT_NAMES = {f"r{n}": f"iresnet{n}" for n in (18, 34, 50, 100, 200)} | {
  f"ir_{n}": f"ir{n}" for n in (18, 34, 50, 101)
}
# Of many authors, who trained them on images of many kinds; who publishes
# the others takes RGB and `NORMALIZATION`.
_OF_MANY = re.compile(r"(ir|evolve)\d+|mbf_(paper|separable)")
_TOLERANCE = 1e-3  # Of an ONNX file, as a share of the largest number.


def import_weights(
  path: str,
  run: RunDirectory,
  *,
  model: str | None,
  embedding_size: int | None,
  image_size: int | None,
  color_order: str | None,
  normalization: str | None = None,
  activation: str | None = None,
) -> None:
  """Makes a work directory of a file of weights.

  Its checkpoint, of step 0, has a backbone and neither classes nor an
  optimizer; its metadata say under `origin` what it was made of.

  Args:
    path: the file of weights.
    run: the new work directory.
    model: a name of `SHORT_NAMES` or `MODELS`; None: what the file says.
    embedding_size: length of an embedding; None: what the file says or has.
    image_size: height and width in pixels; None: what the file says, or 112.
    color_order: "RGB" or "BGR"; None: what the file says, or RGB.
    normalization: what the network takes, see `normalization.parse`; None: what
      is usual for the model, or what the file says.
    activation: of a MobileFaceNet; None: what the file has.

  Raises:
    InputError: the file cannot be read or does not fit, or the work directory
      exists.
  """
  if run.exists():
    raise InputError(
      f"--workdir={run.path!r} exists: give the name of a new directory."
    )
  onnx = path.endswith(".onnx")
  file = onnx_file.read(path) if onnx else weight_files.read(path)
  described = "model" in file.metadata
  if model is None and not described:
    raise InputError(
      f"--model is missing, and {path!r} does not say it"
      f" ({nearest(next(networks(file)))}):"
      f" give one of {', '.join((*SHORT_NAMES, *MODELS))}."
    )
  settings, order = make_settings(
    path,
    file.metadata,
    model=model,
    embedding_size=embedding_size,
    image_size=image_size,
    color_order=color_order,
  )
  make_model(settings)  # Refuses names that there are not.
  given = _normalization(path, settings, file, normalization, color_order)
  taken = given if described else _with_entry(file, given, order)
  settings, variables, matched = _fit(
    path, settings, file, order, taken, embedding_size, activation
  )
  if onnx:
    check_onnx(path, settings, variables, order, given)
  origin = {
    "file": os.path.basename(path),
    "sha256": file_digest(path)[0],
    "matched_by": matched,
    "color_order": order,
    "normalization": str(taken),
    "metadata": dict(file.metadata),
  }
  save(run, settings, variables, origin)
  count = sum(array.size for array in jax.tree.leaves(variables["params"]))
  words = (f"--workdir={run.path}", "--images=DIR", "--output=E")
  print(
    f"{run.path}: {settings.model.name}, {count:,} parameters, matched by"
    f" {matched}\nnext: {shell.command('jamsface_jax.embed', *words)}"
  )


def _fit(
  path: str,
  settings: Settings,
  file: WeightFile | OnnxFile,
  order: str,
  taken: Normalization,
  embedding_size: int | None,
  activation: str | None,
) -> tuple[Settings, dict[str, Any], str]:
  """All settings, the variables for RGB, and what these were matched by.

  Raises:
    InputError: the file does not fit, or has numbers that no network has.
  """
  described = "model" in file.metadata
  failure = None
  for network in networks(file):
    whole = settings
    if not described:
      whole = replaced(
        fitted(path, settings, network, embedding_size, activation),
        {"model.pixel_mean": taken.mean, "model.pixel_std": taken.std},
      )
    try:
      return whole, *_variables(path, whole, network, order)
    except MisfitError as error:
      failure = failure or error
  advice = "use the version that wrote it"
  if not described:
    advice = nearest(next(networks(file)))
  raise InputError(f"{failure}: {advice}.")


def _variables(
  path: str, settings: Settings, file: WeightFile | OnnxFile, order: str
) -> tuple[dict[str, Any], str]:
  """The variables for RGB, and what they were matched by.

  Raises:
    MisfitError: the file does not fit.
    InputError: it has numbers that no network has.
  """
  network = make_model(settings)
  shapes = backbone_shapes(network, settings.data.image_size)
  what = f"{path!r} does not fit {settings.model.name!r}"
  arrays, matched = match(what, file, network, pytorch_shapes(network, shapes))
  check_numbers(path, arrays)
  if order == "BGR":
    first = next(name for name in arrays if arrays[name].ndim == 4)
    arrays[first] = arrays[first][:, ::-1]
  return from_pytorch(network, shapes, arrays), matched


def _normalization(
  path: str,
  settings: Settings,
  file: WeightFile | OnnxFile,
  text: str | None,
  color_order: str | None,
) -> Normalization:
  """What a file takes.

  Raises:
    InputError: it is not known, or contradicts what the file says.
  """
  if "model" in file.metadata:
    if text is not None:
      raise InputError(
        f"--normalization={text} contradicts {path!r}, which says its own:"
        " leave the flag out."
      )
    return Normalization()
  name = settings.model.name
  normalizes = _entry(file) is not None
  if _OF_MANY.fullmatch(name):
    flags = {"--color_order": color_order}
    if not normalizes:
      flags = {"--normalization": text} | flags
    missing = [flag for flag, value in flags.items() if value is None]
    if missing:
      raise InputError(
        f"{' and '.join(missing)} missing: networks like {name!r} were trained"
        f" in many ways, and {path!r} does not say which; look at how its own"
        " code reads images (insightface's, 127.5:127.5 and RGB; AdaFace's,"
        " 127.5:127.5 and BGR; MobileFaceNet_Pytorch's, 127.5:128 and RGB)."
      )
  if text is None:
    return PIXELS if normalizes else Normalization()
  return parse(text)


def _entry(file: WeightFile | OnnxFile) -> OnnxEntry | None:
  """How a graph normalises images itself; None: it does not."""
  entry = file.entry if isinstance(file, OnnxFile) else None
  return None if entry is None or entry.is_plain else entry


def _with_entry(
  file: WeightFile | OnnxFile, given: Normalization, color_order: str
) -> Normalization:
  """What the layers of a network take, of red, green and blue.

  Args:
    file: whose graph may normalise what it is given once more.
    given: what it takes.
    color_order: of the graph.
  """
  entry = _entry(file)
  if entry is None:
    return given
  turn = -1 if color_order == "BGR" else 1
  mean, std = np.array(given.mean), np.array(given.std)
  factor = np.float64(entry.factor[::turn])
  mean = mean - entry.summand[::turn] / factor * std
  return Normalization(tuple(mean.tolist()), tuple((std / factor).tolist()))


def make_settings(
  path: str,
  metadata: Mapping[str, str],
  *,
  model: str | None,
  embedding_size: int | None,
  image_size: int | None,
  color_order: str | None,
) -> tuple[Settings, str]:
  """Settings of the work directory, and the colour order of the file.

  Args:
    path: the file of weights, for messages.
    metadata: what it says of itself, as `exporting.describe` does.
    model: see `import_weights`; so the others.
    embedding_size: see there.
    image_size: see there.
    color_order: see there.

  Raises:
    InputError: flags and file contradict each other.
  """
  settings = Settings()
  name = model and SHORT_NAMES.get(model, model)
  said = "model" in metadata
  if said:
    settings = _described(path, metadata["model"])
  if metadata.get("normalization", NORMALIZATION) != NORMALIZATION:
    raise InputError(
      f"{path!r} normalises pixels as {metadata['normalization']!r}, but"
      f" networks here take {NORMALIZATION!r}: give another file."
    )

  def choose(flag: str, asked: Any, stored: Any, default: Any) -> Any:
    if stored is not None and asked not in (None, stored):
      raise InputError(
        f"--{flag}={asked} contradicts {path!r}, which says {stored}: leave the"
        " flag out."
      )
    return next(v for v in (stored, asked, default) if v is not None)

  stored = settings.model
  size = metadata.get("image_size", "")
  stored_size = int(size) if size.isdecimal() else None
  order = choose(
    "color_order", color_order, metadata.get("color_order"), COLOR_ORDER
  )
  length = stored.embedding_size if said else None
  found = {
    "model.name": choose("model", name, stored.name if said else None, None),
    "model.embedding_size": choose(
      "embedding_size", embedding_size, length, 512
    ),
    "data.image_size": choose("image_size", image_size, stored_size, 112),
  }
  return replaced(settings, found), order


def _described(path: str, text: str) -> Settings:
  """Settings with those of a model that a file says.

  Raises:
    InputError: they are not understood.
  """
  try:
    described = plain_json.parse(text).items()
    return settings_from({f"model.{k}": v for k, v in described})
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise InputError(
      f"{path!r} has settings of a model that this version does not know"
      f" ({one_line(error, 100)}): use the version that wrote it."
    ) from None


def check_numbers(path: str, arrays: Mapping[str, np.ndarray]) -> None:
  """Refuses numbers that no trained network has.

  Args:
    path: the file of weights, for messages.
    arrays: what it holds, by PyTorch's names.

  Raises:
    InputError: a number is not finite, no number, or a variance below 0.
  """
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
  path: str,
  settings: Settings,
  variables: dict[str, Any],
  color_order: str,
  normalization: Normalization,
) -> None:
  """Compares what was imported with the graph, on noise.

  Args:
    path: the ONNX file.
    settings: of the model and of the size of images.
    variables: its `params` and `batch_stats`, for images in RGB.
    color_order: which the graph takes.
    normalization: of what it takes, of red, green and blue.

  Raises:
    InputError: they compute different things.
  """
  model, size = make_model(settings), settings.data.image_size
  pixels = noise(np.random.default_rng(0), 2, size)
  given = pixels
  if color_order != COLOR_ORDER:
    given = pixels[..., ::-1]
    normalization = Normalization(
      normalization.mean[::-1], normalization.std[::-1]
    )
  crop = model.entry.side_crop
  given = given[:, :, crop : size - crop]
  try:
    expected = onnx_file.session(path, normalization)(given)
  except Exception as error:  # onnxruntime has a class per kind of failure.
    raise InputError(
      f"{path!r} cannot be run on {size}x{size} images"
      f" ({one_line(error)}): give the --image_size that it has."
    ) from None
  embeddings = reference(model, variables)(pixels)
  if np.allclose(np.linalg.norm(expected, axis=-1), 1, atol=1e-3):
    # As AdaFace's network, which scales embeddings itself.
    embeddings = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
  found = difference(embeddings, expected)
  name = os.path.basename(path)
  print(f"largest difference from {name}: {found.largest:.2g}")
  if not found.share < _TOLERANCE:
    raise InputError(
      f"{path!r} has the layers of the network but computes something else:"
      f" embeddings differ by {found.share:.2g} of the largest number."
    )


def save(
  run: RunDirectory,
  settings: Settings,
  variables: dict[str, Any],
  origin: dict[str, Any],
) -> None:
  """Writes a work directory, under another name until it is complete.

  Args:
    run: the new work directory.
    settings: all settings of it.
    variables: `params` and `batch_stats` of the backbone.
    origin: what it was made of, for the checkpoint's metadata.

  Raises:
    InputError: it cannot be written.
  """
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
    seen={},
    rejected=jnp.zeros(2, jnp.int32),
  )
  metadata = {
    "num_classes": 0,
    "num_images": 0,
    "data_fingerprint": f"none: imported from {origin['file']}",
    "color_order": COLOR_ORDER,
    "image_size": settings.data.image_size,
    "embedding_size": settings.model.embedding_size,
    "versions": versions(),
    "origin": origin,
  }
  with run.created_whole() as partial:
    check_or_save(settings, partial)
    checkpoints = Checkpoints(partial, keep_last=1, keep_best="")
    checkpoints.save(0, state, metadata)
    checkpoints.close()
