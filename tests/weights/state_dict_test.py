"""State dicts whose authors made the layers in another order than they run."""

import numpy as np
import pytest
from export_test import variables_of

from jamsface_jax.weights import fitting, matching, state_dict
from jamsface_jax.weights.pytorch_names import pytorch_shapes, to_pytorch
from jamsface_jax.weights.weight_files import WeightFile

# What foamliu/MobileFaceNet calls its parts, in the order in which they run,
# and in that in which it makes them; the last part is the end of the network.
RUN = ["conv1", "dw_conv", "features", "conv2", "gdconv", "conv3", "bn"]
MADE = ["conv1", "dw_conv", "conv2", "gdconv", "conv3", "bn", "features"]


def named_as_there(arrays):
  """A network's arrays under names of that kind, in the order they run."""
  parts = {
    "layers.0": "conv1",
    "layers.1": "dw_conv",
    "conv_sep": "conv2",
    "features.layers.0": "gdconv",
    "features.layers.2": "conv3",
    "features.layers.3": "bn",
  }
  found = {}
  for name, array in arrays.items():
    start = next((p for p in parts if name.startswith(f"{p}.")), None)
    if start is None:
      found[f"features.{name}"] = array
    else:
      found[parts[start] + name.removeprefix(start)] = array
  return found


def in_order(arrays, parts):
  return {
    name: array
    for part in parts
    for name, array in arrays.items()
    if name.partition(".")[0] == part
  }


def convolutions_first(arrays):
  """Within a part, all kernels before all normalisations."""
  parts = dict.fromkeys(name.partition(".")[0] for name in arrays)
  return {
    name: arrays[name]
    for part in parts
    for vectors in (False, True)
    for name in arrays
    if name.partition(".")[0] == part and (arrays[name].ndim == 1) == vectors
  }


def biases_first(arrays):
  """As PyTorch 0.3 and MXNet's converters wrote a normalisation."""
  names = sorted(arrays, key=lambda n: list(arrays).index(n))
  found = {}
  for name in names:
    bias = f"{name.rpartition('.')[0]}.bias"
    if name.endswith(".weight") and bias in arrays:
      found[bias] = arrays[bias]
    found.setdefault(name, arrays[name])
  return found


@pytest.fixture(scope="module")
def network():
  model, shapes, variables = variables_of("separable")
  arrays = to_pytorch(model, variables)
  return model, arrays, pytorch_shapes(model, shapes)


def matched(network, arrays):
  model, _, expected = network
  file = WeightFile("pytorch", arrays, {}, ordered=True)
  return matching.match("it", file, model, expected)


CHANGES = {
  "as it runs": lambda arrays: arrays,
  "parts as made": lambda arrays: in_order(arrays, MADE),
  "kernels first": convolutions_first,
  "biases first": biases_first,
  "all of it": lambda a: biases_first(convolutions_first(in_order(a, MADE))),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_order_in_which_layers_are_made_does_not_matter(network, change):
  _, arrays, _ = network
  given = named_as_there(arrays)
  assert list(dict.fromkeys(n.partition(".")[0] for n in given)) == RUN
  given = CHANGES[change](given)
  assert change == "as it runs" or list(given) != list(named_as_there(arrays))
  found, by = matched(network, given)
  assert by == "order" and list(found) == list(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_a_bias_before_a_normalisation_is_moved_into_it(network):
  _, arrays, _ = network
  given = named_as_there(arrays)
  bias = np.linspace(-1, 1, len(given["conv3.weight"]), dtype=np.float32)
  mean = given["bn.running_mean"] + bias
  given |= {"conv3.bias": bias, "bn.running_mean": mean}
  found, _ = matched(network, in_order(given, MADE))
  for name, array in arrays.items():
    np.testing.assert_allclose(found[name], array, atol=1e-6, err_msg=name)
  # It is no PReLU's.
  file = WeightFile("pytorch", given, {}, ordered=True)
  assert fitting._activation(file, list(given.values())) is None


def test_parts_that_fit_in_two_orders_are_refused():
  """Nothing says which of two layers of a kind comes first."""
  expected = {"a.weight": (4, 8, 1, 1), "b.weight": (4, 4), "c.weight": (4, 4)}
  same = {"y.weight": (4, 4), "z.weight": (4, 4), "x.weight": (4, 8, 1, 1)}
  assert state_dict.arrangement(same, expected) is None
  other = dict(reversed(same.items()))  # As it runs: taken as it is.
  assert state_dict.arrangement(other, expected) == list(other)


def test_what_is_of_no_such_order(network):
  _, arrays, _ = network
  given = named_as_there(arrays)
  for name in ("conv3.weight", "bn.running_var", "conv1.layers.1.bias"):
    assert name in given
    less = {n: a for n, a in given.items() if n != name}
    with pytest.raises(matching.MisfitError):
      matched(network, less)
  more = given | {"conv3.bias": np.ones(5, np.float32)}
  with pytest.raises(matching.MisfitError):
    matched(network, more)
