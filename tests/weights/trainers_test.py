"""Files as trainers write them: wrapped, beside classes, nested."""

import numpy as np
import pytest
from export_test import variables_of

from jamsface_jax.errors import InputError
from jamsface_jax.weights import matching, weight_files
from jamsface_jax.weights.pytorch_names import pytorch_shapes, to_pytorch
from jamsface_jax.weights.trainers import networks
from jamsface_jax.weights.weight_files import (
  WeightFile,
  write_npz,
  write_safetensors,
)

RNG = np.random.default_rng(0)
CLASSES = RNG.normal(size=(77, 12)).astype(np.float32)
PREFIXES = ("", "module.", "module.module.", "backbone.", "model.net.")


@pytest.fixture(scope="module")
def network():
  model, shapes, variables = variables_of("mbf")
  arrays = to_pytorch(model, variables)
  return model, arrays, pytorch_shapes(model, shapes)


def one_by_one(arrays):
  """Names that are nobody's, a module a number."""
  starts = list(dict.fromkeys(n.rpartition(".")[0] for n in arrays))
  return {
    f"{starts.index(name.rpartition('.')[0])}.{name.rpartition('.')[2]}": array
    for name, array in arrays.items()
  }


def check(network, given):
  model, arrays, expected = network
  file = WeightFile("pytorch", given, {}, ordered=True)
  failures = []
  for one in networks(file):
    try:
      found, by = matching.match("it", one, model, expected)
    except matching.MisfitError as error:
      failures.append(error)
      continue
    for name, array in arrays.items():
      np.testing.assert_array_equal(found[name], array, err_msg=name)
    return by
  raise failures[0]


BESIDE = {
  "head.weight": CLASSES,
  "head.kernel": CLASSES.T,
  "module.head.weight": CLASSES,
  "classifier.weight": CLASSES,
  "fc.weight": CLASSES,
  "kernel": CLASSES.T,
  "margin.weight": CLASSES,
}


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("beside", BESIDE)
def test_wrapped_and_beside_classes(network, prefix, beside):
  _, arrays, _ = network
  if beside.startswith("module.") and not prefix.startswith("module."):
    prefix = f"module.{prefix}"
  given = {f"{prefix}{name}": array for name, array in arrays.items()}
  assert check(network, given | {beside: BESIDE[beside]}) == "names"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_other_names_and_a_matrix_of_classes(network, prefix):
  _, arrays, _ = network
  given = {f"{prefix}{n}": a for n, a in one_by_one(arrays).items()}
  assert check(network, given) == "order"
  for array in (CLASSES, CLASSES.T):
    assert check(network, given | {f"{prefix}fc.weight": array}) == "order"
  both = {f"{prefix}fc.weight": CLASSES, f"{prefix}fc.bias": CLASSES[:, 0]}
  assert check(network, given | both) == "order"


def test_a_part_that_is_called_like_a_wrapper(network):
  """`model` may be all of a network but its end."""
  _, arrays, _ = network
  given = {
    (name if k > len(arrays) - 6 else f"model.{name}"): array
    for k, (name, array) in enumerate(one_by_one(arrays).items())
  }
  assert check(network, given) == "order"


def test_what_is_beside_and_no_classes_is_a_misfit(network):
  _, arrays, _ = network
  stray = {"fc.weight": RNG.normal(size=(7, 13)).astype(np.float32)}
  with pytest.raises(matching.MisfitError, match="left over"):
    check(network, arrays | stray)


def test_half_precision_is_read(network):
  _, arrays, _ = network
  given = {name: array.astype(np.float16) for name, array in arrays.items()}
  model, _, expected = network
  file = WeightFile("pytorch", given, {}, ordered=True)
  found, _ = matching.match("it", next(networks(file)), model, expected)
  assert {a.dtype for a in found.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize("write", [write_npz, write_safetensors])
def test_a_prefix_in_every_format(network, write, tmp_path):
  _, arrays, _ = network
  path = str(tmp_path / "w")
  write(path, {f"backbone.{n}": a for n, a in arrays.items()}, {})
  read = weight_files.read(path)
  assert check(network, read.arrays) == "names"


# How files of others begin: HDF5's specification, MXNet's ndarray.cc
# (kMXAPINDArrayListMagic), TensorFlow Lite's schema.fbs, ncnn's net.cpp.
OTHERS = {
  "w.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "tf2onnx.convert --keras"),
  "w.params": ((0x112).to_bytes(8, "little") + bytes(100), "MXNet"),
  "w.tflite": (b"\x1c\0\0\0TFL3" + bytes(100), "tf2onnx.convert --tflite"),
  "w.param": (b"7767517\n120 135\n", "ncnn"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_others_say_what_to_do(tmp_path, name):
  data, says = OTHERS[name]
  (tmp_path / name).write_bytes(data)
  with pytest.raises(InputError, match=says) as error:
    weight_files.read(str(tmp_path / name))
  assert "\n" not in str(error.value)
