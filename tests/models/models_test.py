"""Backbones against NumPy in float64, published sizes and one device."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jamsface_jax.devices import sharding
from jamsface_jax.errors import InputError
from jamsface_jax.models import MODELS, make_model, vit
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.iresnet import Block, SqueezeExcitation
from jamsface_jax.models.layers import BatchNorm, PReLU
from jamsface_jax.models.mobilefacenet import Bottleneck, ConvBlock

SETTINGS = {
  "name": "iresnet",
  "embedding_size": 6,
  "width": 1 / 16,
  "stem_stride": 1,
  "squeeze_reduction": 0,
  "drop_path": 0.0,
  "mask_ratio": 0.0,
  "stages": (1,),
  "dropout": 0.0,
  "dtype": "float32",
  "remat": False,
  "batch_norm_group": 0,
}


def tiny(**changes):
  return make_model(**(SETTINGS | changes))


def variable_shapes(model, images):
  return jax.eval_shape(
    lambda x: model.init(jax.random.key(0), x, train=False), images
  )


def random_variables(model, images):
  """Variables far from their initial values; nothing to compile."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    if path[-1].key == "kernel":
      return rng.normal(0, 0.2, leaf.shape).astype(np.float32)
    return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)

  return jax.tree.map_with_path(draw, variable_shapes(model, images))


def make_images(count, size=12, seed=1):
  rng = np.random.default_rng(seed)
  images = rng.uniform(-1, 1, (count, size, size, 3))
  return jnp.asarray(images, jnp.float32)


def normal(seed, *shape):
  draw = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(draw, jnp.float32)


def train_forward(model, variables, images, **kwargs):
  apply = jax.jit(model.apply, static_argnames=("train", "mutable"))
  return apply(
    variables, images, train=True, mutable=("batch_stats",), **kwargs
  )


def loss_and_gradients(model, variables, images):
  """Jitted: loss, gradients, embeddings and new statistics of a step."""

  def loss(params, stats, images):
    variables = {"params": params, "batch_stats": stats}
    embeddings, updated = train_forward(model, variables, images)
    # A fixed, uneven function of the embeddings: its gradient is not zero.
    target = jnp.sin(jnp.arange(embeddings.size, dtype=jnp.float32))
    target = target.reshape(embeddings.shape)
    return jnp.mean((embeddings - target) ** 2), (embeddings, updated)

  step = jax.jit(jax.value_and_grad(loss, has_aux=True))
  return step(variables["params"], variables["batch_stats"], images)


def assert_trees_close(actual, expected, tolerance):
  """Compares leaf by leaf, relative to the largest entry of each leaf."""
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  for (path, a), e in zip(
    jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True
  ):
    a, e = np.asarray(a), np.asarray(e)
    limit = tolerance * max(np.abs(e).max(), 1e-3)
    assert np.abs(a - e).max() <= limit, jax.tree_util.keystr(path)


# Float64 oracles.


def conv_oracle(x, kernel, stride, padding):
  """Direct convolution, padded by `padding` on all four sides."""
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  size = kernel.shape[0]
  height = (x.shape[1] - size) // stride + 1
  width = (x.shape[2] - size) // stride + 1
  y = np.zeros((len(x), height, width, kernel.shape[-1]))
  for i in range(height):
    for j in range(width):
      top, left = i * stride, j * stride
      patch = x[:, top : top + size, left : left + size]
      y[:, i, j] = np.tensordot(patch, kernel, 3)
  return y


def batch_norm_oracle(x, params, group_size=0):
  """Two passes, group by group; also the statistics of each group."""
  groups = np.split(x, len(x) // (group_size or len(x)))
  axes = tuple(range(x.ndim - 1))
  means = [group.mean(axes) for group in groups]
  variances = [
    ((group - mean) ** 2).mean(axes)
    for group, mean in zip(groups, means, strict=True)
  ]
  y = [
    (group - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]
    for group, mean, var in zip(groups, means, variances, strict=True)
  ]
  return np.concatenate(y), np.array(means), np.array(variances)


def block_oracle(x, params, stride):
  def batch_norm(name, x):
    return batch_norm_oracle(x, params[name])[0]

  if "shortcut_conv" in params:
    shortcut = conv_oracle(x, params["shortcut_conv"]["kernel"], stride, 0)
    shortcut = batch_norm("shortcut_bn", shortcut)
  else:
    shortcut = np.array(
      [[row[::stride] for row in image[::stride]] for image in x]
    )
  y = conv_oracle(batch_norm("bn1", x), params["conv1"]["kernel"], 1, 1)
  if "bn2" in params:
    y = batch_norm("bn2", y)
  y = np.where(y > 0, y, params["prelu"]["slope"] * y)
  y = conv_oracle(y, params["conv2"]["kernel"], stride, 1)
  return batch_norm("bn3", y) + shortcut


@pytest.mark.parametrize(
  ("name", "count"),
  [
    ("iresnet18", 24_025_600),
    ("iresnet34", 34_139_328),
    ("iresnet50", 43_590_848),
    ("iresnet100", 65_156_160),
    ("iresnet200", 118_833_920),
    ("mbf", 2_059_520),
    ("mbf_large", 6_314_880),
    ("vit_t", 19_137_792),
    ("vit_s", 76_023_296),
    ("vit_b", 113_833_472),
    ("vit_l", 255_684_352),
    # net.py of AdaFace has 1,024 fewer: its last layer has no scale and bias.
    ("ir18", 24_020_352 + 1_024),
    ("ir50", 43_585_600 + 1_024),
    ("ir101", 65_150_912 + 1_024),
    ("edgeface_xxs", 1_244_744),
    ("edgeface_xs", 1_770_492),
    ("edgeface_s", 3_652_520),
    ("edgeface_base", 18_225_812),
  ],
)
def test_parameter_counts_are_the_published_ones(name, count):
  """Counted by PyTorch on the networks of arcface_torch/backbones and EdgeFace.

  With 512 dimensions and 112 pixels; a ViT's include its mask token.
  """
  model = tiny(name=name, stages=(), width=1.0, embedding_size=512)
  images = np.zeros((1, 112, 112, 3), np.float32)
  variables = variable_shapes(model, images)
  sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
  assert sum(sizes) == count


def test_mobilefacenet_of_the_paper_has_its_parameters():
  """core/model.py of MobileFaceNet_Pytorch: 128 numbers of 112x96 pixels."""
  model = tiny(
    **{"name": "mbf_paper", "stages": (), "width": 1.0},
    **{"embedding_size": 128, "side_crop": 8},
  )
  images = np.zeros((1, 112, 112, 3), np.float32)
  variables = variable_shapes(model, images)
  sizes = [leaf.size for leaf in jax.tree.leaves(variables["params"])]
  assert sum(sizes) == 999_552
  kernel = variables["params"]["pool"]["conv"]["kernel"]
  assert kernel.shape == (7, 6, 1, 512)


def test_parameter_names_are_stable():
  # Checkpoints and conversions of published weights depend on these names.
  variables = variable_shapes(tiny(stages=(1, 1)), make_images(1))
  block = """
    bn1/bias bn1/scale bn2/bias bn2/scale bn3/bias bn3/scale conv1/kernel
    conv2/kernel prelu/slope shortcut_bn/bias shortcut_bn/scale
    shortcut_conv/kernel""".split()
  expected = [f"stage{i}_block1/{name}" for i in (1, 2) for name in block]
  expected += """
    stem_conv/kernel stem_bn/bias stem_bn/scale stem_prelu/slope final_bn/bias
    final_bn/scale embedding_fc/bias embedding_fc/kernel embedding_bn/bias
    embedding_bn/scale""".split()
  params = flax.traverse_util.flatten_dict(variables["params"], sep="/")
  assert sorted(params) == sorted(expected)
  stats = flax.traverse_util.flatten_dict(variables["batch_stats"], sep="/")
  assert sorted(stats) == sorted(
    name.removesuffix("scale") + kind
    for name in expected
    if name.endswith("/scale")
    for kind in ("mean", "var")
  )
  # Only a change of size or stride needs a convolution on the shortcut.
  deeper = variable_shapes(tiny(stages=(2,)), make_images(1))
  assert "shortcut_conv" in deeper["params"]["stage1_block1"]
  assert "shortcut_conv" not in deeper["params"]["stage1_block2"]


def test_initial_values():
  model = tiny(width=0.5, embedding_size=64)
  init = jax.jit(lambda key: model.init(key, make_images(1), train=False))
  params = init(jax.random.key(0))["params"]
  conv = params["stage1_block1"]["conv2"]["kernel"]
  np.testing.assert_allclose(conv.std(), 0.1, rtol=0.03)
  np.testing.assert_allclose(conv.mean(), 0.0, atol=0.003)
  kernel, bias = (
    params["embedding_fc"]["kernel"],
    params["embedding_fc"]["bias"],
  )
  bound = len(kernel) ** -0.5
  for values in (kernel, bias):
    assert 0.9 * bound < np.abs(values).max() <= bound
  np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.03)
  np.testing.assert_array_equal(params["stem_prelu"]["slope"], 0.25)
  np.testing.assert_array_equal(params["embedding_bn"]["scale"], 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_output_is_float32_of_the_asked_size(dtype):
  images = make_images(4, size=15)
  model = tiny(dtype=dtype)
  variables = random_variables(model, images)
  embeddings, updated = train_forward(model, variables, images)
  assert embeddings.shape == (4, 6) and embeddings.dtype == jnp.float32
  for leaf in jax.tree.leaves((variables, updated)):
    assert leaf.dtype == jnp.float32


def test_bfloat16_computes_in_bfloat16_and_stays_close():
  images = make_images(8)
  variables = random_variables(tiny(), images)
  exact = tiny().apply(variables, images, train=False)
  half = tiny(dtype="bfloat16").apply(variables, images, train=False)
  error = np.abs(half - exact).max() / np.abs(exact).max()
  assert 1e-5 < error < 0.02  # 0 would mean that it computed in float32.
  model = tiny(dtype="bfloat16")
  traced = jax.make_jaxpr(lambda v: model.apply(v, images, train=False))
  dtypes = {"conv_general_dilated": set(), "dot_general": set()}
  for equation in traced(variables).eqns:
    if equation.primitive.name in dtypes:
      (result,) = equation.outvars
      dtypes[equation.primitive.name].add(str(result.aval.dtype))
  assert dtypes["conv_general_dilated"] == {"bfloat16"}
  assert dtypes["dot_general"] == {"float32"}  # The embedding layer.


@pytest.mark.parametrize(
  ("kind", "channels", "left_out"),
  [
    ("arcface", 3, set()),
    ("arcface", 2, set()),
    ("ir", 3, set()),
    ("ir", 2, {"shortcut_conv", "shortcut_bn"}),
    ("evolve", 2, {"shortcut_conv", "shortcut_bn", "bn2"}),
  ],
)
def test_block_matches_numpy(kind, channels, left_out):
  rng = np.random.default_rng(2)
  # An even size: padding (0, 1) instead of (1, 1) would show.
  x = jnp.asarray(rng.normal(size=(3, 6, 8, 2)), jnp.float32)
  block = Block(
    channels=channels,
    stride=2,
    kind=kind,
    squeeze_reduction=0,
    dtype="float32",
    batch_norm_group=0,
  )
  variables = random_variables(block, x)
  actual, _ = train_forward(block, variables, x)
  params = jax.tree.map(np.float64, variables["params"])
  expected = block_oracle(np.float64(x), params, stride=2)
  assert expected.shape == (3, 3, 4, channels)
  parts = "bn1 conv1 bn2 prelu conv2 bn3 shortcut_conv shortcut_bn".split()
  assert set(params) == set(parts) - left_out
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12, 5, 4, 3), (12, 3)])
@pytest.mark.parametrize("group_size", [0, 4, 12])
def test_batch_norm_matches_numpy(shape, group_size):
  rng = np.random.default_rng(3)
  # Means of up to ten spreads, another one for each example.
  x = rng.normal(size=shape) + rng.uniform(-10, 10, (12,) + shape[1:])
  x = x.astype(np.float32)
  layer = BatchNorm(group_size, "float32")
  variables = random_variables(layer, x)
  actual, updated = train_forward(layer, variables, x)
  before = jax.tree.map(np.float64, variables)
  expected, means, variances = batch_norm_oracle(
    np.float64(x), before["params"], group_size
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
  for name, groups in (("mean", means), ("var", variances)):
    kept = 0.9 * before["batch_stats"][name] + 0.1 * groups.mean(0)
    np.testing.assert_allclose(updated["batch_stats"][name], kept, rtol=1e-5)

  running = before["batch_stats"]
  evaluated = layer.apply(variables, jnp.asarray(x), train=False)
  expected = (x - running["mean"]) / np.sqrt(running["var"] + 1e-5)
  expected = expected * before["params"]["scale"] + before["params"]["bias"]
  np.testing.assert_allclose(evaluated, expected, rtol=1e-4, atol=1e-5)


def test_batch_norm_survives_cancellation():
  rng = np.random.default_rng(4)
  noise = rng.normal(size=(64, 8, 8, 2))
  layer = BatchNorm(0, "float32")
  # A mean of 100 spreads: the variance is the difference of two sums that
  # agree in four digits of about eight.
  x = (noise + 100).astype(np.float32)
  variables = {
    "params": {"scale": jnp.ones(2), "bias": jnp.zeros(2)},
    "batch_stats": {"mean": jnp.zeros(2), "var": jnp.ones(2)},
  }
  actual, _ = train_forward(layer, variables, x)
  unit = {"scale": 1.0, "bias": 0.0}
  expected = batch_norm_oracle(np.float64(x), unit)[0]
  np.testing.assert_allclose(actual, expected, atol=5e-3)
  # A constant channel: its variance must not round to below zero.
  for value in (1234.567, 3e-4, -77.7):
    constant = np.full((64, 8, 8, 2), value, np.float32)
    actual, updated = train_forward(layer, variables, constant)
    assert np.isfinite(actual).all()
    assert (np.asarray(updated["batch_stats"]["var"]) >= 0.9).all()


def test_batch_norm_gradients_match_differences():
  # Against central differences of the float64 oracle, in random directions.
  rng = np.random.default_rng(5)
  x = rng.normal(size=(6, 2, 2, 3)) + 1
  weight = rng.normal(size=x.shape)
  params = {"scale": rng.uniform(0.5, 2, 3), "bias": rng.normal(size=3)}
  layer = BatchNorm(3, "float32")
  stats = {"mean": jnp.zeros(3), "var": jnp.ones(3)}

  def loss(params, x):
    y, _ = train_forward(layer, {"params": params, "batch_stats": stats}, x)
    return jnp.sum(y * weight.astype(np.float32))

  def oracle(params, x):
    return np.sum(batch_norm_oracle(x, params, 3)[0] * weight)

  single = jax.tree.map(np.float32, (params, x))
  gradients = jax.grad(loss, argnums=(0, 1))(*single)
  for _ in range(3):
    step = jax.tree.map(lambda v: 1e-5 * rng.normal(size=v.shape), (params, x))
    up = oracle(*jax.tree.map(np.add, (params, x), step))
    down = oracle(*jax.tree.map(np.subtract, (params, x), step))
    products = jax.tree.map(lambda g, s: np.sum(g * s), gradients, step)
    np.testing.assert_allclose(
      2 * sum(jax.tree.leaves(products)), up - down, rtol=1e-3
    )


def test_prelu_and_its_gradients():
  x = np.array([[-2.0, 3.0, -1.0], [0.5, -4.0, 0.0]], np.float32)
  slope = np.array([0.1, 0.5, -2.0], np.float32)

  def apply(slope, x):
    return PReLU().apply({"params": {"slope": slope}}, jnp.asarray(x))

  y, vjp = jax.vjp(apply, slope, x)
  np.testing.assert_allclose(y, [[-0.2, 3.0, 2.0], [0.5, -2.0, 0.0]])
  slope_gradient, x_gradient = vjp(jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 0]]))
  np.testing.assert_allclose(slope_gradient, [-2.0, -20.0, -3.0])
  np.testing.assert_allclose(x_gradient, [[0.1, 2.0, -6.0], [4.0, 2.5, 0.0]])
  assert apply(slope, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


@pytest.mark.slow
def test_remat_changes_nothing_but_memory():
  images = make_images(6)
  variables = random_variables(tiny(), images)
  plain = loss_and_gradients(tiny(), variables, images)
  remat = loss_and_gradients(tiny(remat=True), variables, images)
  assert_trees_close(remat, plain, 1e-3)
  traced = jax.make_jaxpr(lambda v: train_forward(tiny(remat=True), v, images))
  assert str(traced(variables)).count("remat") == 1  # One block.


def test_dropout_acts_in_training_only():
  images = make_images(6)
  model = tiny(dropout=0.5)
  variables = random_variables(model, images)

  @jax.jit
  def train(seed):
    rngs = {"dropout": jax.random.key(seed)}
    return train_forward(model, variables, images, rngs=rngs)[0]

  np.testing.assert_array_equal(train(0), train(0))
  assert np.abs(train(0) - train(1)).max() > 0.01
  np.testing.assert_array_equal(
    model.apply(variables, images, train=False),
    tiny().apply(variables, images, train=False),
  )


def test_evaluation_of_a_row_ignores_the_rest_of_the_batch():
  images = make_images(6)
  model = tiny(batch_norm_group=4)  # It does not divide 6: no matter here.
  variables = random_variables(model, images)
  apply = jax.jit(lambda images: model.apply(variables, images, train=False))
  whole = apply(images)
  for i in range(6):
    np.testing.assert_allclose(
      apply(images[i : i + 1]), whole[i : i + 1], rtol=1e-4, atol=1e-5
    )
  assert np.abs(np.diff(whole, axis=0)).max() > 0.01


@pytest.mark.parametrize("group", [0, 4])
def test_sharded_batch_equals_one_device(mesh, group):
  images = make_images(32, size=8)
  model = tiny(batch_norm_group=group)
  variables = random_variables(model, images)
  expected = loss_and_gradients(model, variables, images)
  batch = NamedSharding(mesh, PartitionSpec(("data", "model")))
  replicated = NamedSharding(mesh, PartitionSpec())
  actual = loss_and_gradients(
    model,
    jax.device_put(variables, replicated),
    jax.device_put(images, batch),
  )
  assert_trees_close(actual, expected, 1e-3)


def test_groups_within_a_device_need_no_communication():
  mesh = sharding.make_mesh(4)
  batch = NamedSharding(mesh, PartitionSpec(("data", "model")))
  images = jax.device_put(make_images(32, size=8), batch)

  def collectives(group):
    model = tiny(batch_norm_group=group)
    variables = random_variables(model, images)
    forward = jax.jit(lambda x: train_forward(model, variables, x)[0])
    hlo = forward.lower(images).compile().as_text()
    names = "all-reduce", "all-gather", "all-to-all", "collective-permute"
    return {name for name in names if name in hlo}

  assert collectives(4) == set()  # 8 devices with 4 examples each.
  assert collectives(0) == {"all-reduce"}


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"name": "resnet"}, ["model.name", *MODELS]),
    ({"stages": ()}, ["model.stages"]),
    ({"stages": (1, 0)}, ["model.stages"]),
    ({"name": "iresnet18"}, ["model.stages", "iresnet18"]),
    ({"width": 0.3}, ["model.width", "1/64"]),
    ({"width": 0.0}, ["model.width"]),
    ({"width": float("nan")}, ["model.width"]),
    ({"name": "vit", "width": 1 / 128}, ["model.width", "1/64"]),
    ({"name": "vit", "stages": (1, 1)}, ["model.stages", "(12,)"]),
    ({"name": "mobilefacenet"}, ["model.stages", "(1,4,6,2)"]),
    ({"name": "edgenext"}, ["model.stages", "(2,2,6,2)"]),
    (
      {"name": "edgeface_xs", "stages": (), "width": 1 / 2},
      ["model.width", "1/1"],
    ),
    (
      {
        "name": "edgeface_xs",
        "stages": (),
        "width": 1.0,
        "batch_norm_group": 2,
      },
      ["model.batch_norm_group", "no batch normalisation"],
    ),
    ({"name": "mbf"}, ["model.stages", "'mobilefacenet'"]),
    ({"squeeze_reduction": -1}, ["model.squeeze_reduction"]),
    ({"drop_path": 0.1}, ["model.drop_path", "'vit'", "'iresnet'"]),
    ({"mask_ratio": 0.1}, ["model.mask_ratio", "'vit'"]),
    ({"mask_ratio": 1.0}, ["model.mask_ratio", "below 1"]),
    (
      {"name": "vit", "squeeze_reduction": 16},
      ["model.squeeze_reduction", "'iresnet'", "leave it at 0"],
    ),
    (
      {"name": "mbf", "stages": (), "stem_stride": 2},
      ["model.stem_stride", "leave it at 1"],
    ),
    ({"activation": "relu"}, ["model.activation", "'mobilefacenet'"]),
    ({"activation": "gelu"}, ["model.activation", "prelu, relu, relu6"]),
    ({"side_crop": -1}, ["model.side_crop"]),
    ({"pixel_std": (1.0, 1.0, 0.0)}, ["model.pixel_std", "above 0"]),
    ({"pixel_mean": (1.0,)}, ["model.pixel_mean", "three numbers"]),
    ({"embedding_size": 0}, ["model.embedding_size"]),
    ({"dropout": 1.0}, ["model.dropout"]),
    ({"dtype": "float16"}, ["model.dtype", "bfloat16"]),
    ({"batch_norm_group": 1}, ["model.batch_norm_group"]),
  ],
)
def test_bad_settings_are_named(changes, words):
  with pytest.raises(InputError) as caught:
    tiny(**changes)
  for word in words:
    assert word in str(caught.value)


def test_a_group_must_divide_the_batch():
  images = make_images(6)
  model = tiny(batch_norm_group=4)
  variables = random_variables(model, images)
  with pytest.raises(InputError, match=r"model\.batch_norm_group=4 .* 6 "):
    train_forward(model, variables, images)


def float64(variables):
  return jax.tree.map(np.float64, variables["params"])


def test_squeeze_and_excitation_matches_numpy():
  x = normal(6, 3, 4, 5, 8)
  layer = SqueezeExcitation(reduction=4, dtype="float32")
  shapes = jax.eval_shape(lambda x: layer.init(jax.random.key(0), x), x)
  draw = np.random.default_rng(7).normal
  variables = jax.tree.map(
    lambda leaf: draw(0, 2, leaf.shape).astype(np.float32), shapes
  )
  params = float64(variables)
  means = np.float64(x).mean((1, 2))
  hidden = np.maximum(means @ params["fc1"]["kernel"][0, 0], 0)
  gates = 1 / (1 + np.exp(-hidden @ params["fc2"]["kernel"][0, 0]))
  assert hidden.shape == (3, 2) and 0.05 < gates.std()
  np.testing.assert_allclose(
    layer.apply(variables, x),
    np.float64(x) * gates[:, None, None],
    rtol=1e-4,
    atol=1e-5,
  )


def grouped_conv_oracle(x, kernel, stride, padding):
  """Each group of outputs sees its own group of inputs."""
  groups = x.shape[-1] // kernel.shape[2]
  outputs = [
    conv_oracle(part, part_kernel, stride, padding)
    for part, part_kernel in zip(
      np.split(x, groups, axis=-1),
      np.split(kernel, groups, axis=-1),
      strict=True,
    )
  ]
  return np.concatenate(outputs, axis=-1)


ORACLES = {"": lambda x: x, "relu": lambda x: np.maximum(x, 0)}
ORACLES["relu6"] = lambda x: np.minimum(np.maximum(x, 0), 6)


def conv_block_oracle(x, params, stride, padding, activation="prelu"):
  x = grouped_conv_oracle(x, params["conv"]["kernel"], stride, padding)
  x = batch_norm_oracle(x, params["bn"])[0]
  if activation == "prelu":
    return np.where(x > 0, x, params["prelu"]["slope"] * x)
  assert "prelu" not in params
  return ORACLES[activation](x)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", ["prelu", "relu", "relu6"])
def test_bottleneck_matches_numpy(stride, activation):
  x = normal(7, 3, 6, 8, 4)
  block = Bottleneck(
    4,
    6,
    stride,
    dtype="float32",
    batch_norm_group=0,
    activation=activation,
  )
  variables = random_variables(block, x)
  variables["params"]["expand"]["bn"]["scale"] *= 9  # Both corners of ReLU6.
  actual, _ = train_forward(block, variables, x)
  params = float64(variables)
  y = conv_block_oracle(np.float64(x), params["expand"], 1, 0, activation)
  assert activation != "relu6" or (y.min(), y.max()) == (0, 6)
  y = conv_block_oracle(y, params["depthwise"], stride, 1, activation)
  y = conv_block_oracle(y, params["project"], 1, 0, "")
  expected = np.float64(x) + y if stride == 1 else y
  assert params["depthwise"]["conv"]["kernel"].shape == (3, 3, 1, 6)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_window_of_the_whole_image_per_channel():
  x = normal(8, 4, 5, 5, 6)
  block = ConvBlock(6, "float32", 0, kernel=0, groups=6, activation="")
  variables = random_variables(block, x)
  actual, _ = train_forward(block, variables, x)
  expected = conv_block_oracle(np.float64(x), float64(variables), 1, 0, "")
  assert actual.shape == (4, 1, 1, 6)
  np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_separable_first_stage_has_relu():
  """As MobileNet's; what comes after has the network's own activation."""
  images = make_images(2, size=16)
  settings = {"name": "mbf_separable", "stages": (), "width": 1 / 16}
  model = tiny(**settings, activation="relu6")
  variables = random_variables(model, images)
  variables["params"]["stage1_point"]["bn"]["bias"] += 10
  _, state = model.apply(
    variables,
    images,
    train=False,
    capture_intermediates=True,
    mutable=["intermediates"],
  )
  seen = state["intermediates"]
  (stem,) = seen["stem"]["__call__"]
  found = np.float64(stem)
  for name in ("stage1_conv", "stage1_point"):
    params = float64(variables)[name]
    stats = jax.tree.map(np.float64, variables["batch_stats"][name]["bn"])
    padding = params["conv"]["kernel"].shape[0] // 2
    found = grouped_conv_oracle(found, params["conv"]["kernel"], 1, padding)
    scale = params["bn"]["scale"] / np.sqrt(stats["var"] + 1e-5)
    found = (found - stats["mean"]) * scale + params["bn"]["bias"]
    found = np.maximum(found, 0)
    (actual,) = seen[name]["__call__"]
    np.testing.assert_allclose(actual, found, rtol=1e-4, atol=1e-4)
  assert found.max() > 6  # ReLU6 would be seen.


@pytest.mark.parametrize("crop", [0, 2])
def test_entry_normalises_as_the_network_was_trained(crop):
  pixels = np.random.default_rng(3).integers(0, 256, (2, 5, 9, 3))
  mean, std = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
  entry = Entry(crop, mean, std)
  found = entry.apply({}, jnp.asarray(pixels / 127.5 - 1, jnp.float32))
  expected = (pixels[:, :, crop : 9 - crop] - np.array(mean)) / np.array(std)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  plain = Entry(crop).apply({}, jnp.asarray(pixels, jnp.float32))
  np.testing.assert_array_equal(plain, pixels[:, :, crop : 9 - crop])


def layer_norm_oracle(x, params):
  x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
  return x * params["scale"] + params["bias"]


def attention_oracle(x, params):
  """Example by example, head by head."""
  result = np.empty_like(x)
  size = x.shape[-1] // 8
  for b, tokens in enumerate(x):
    qkv = tokens @ params["qkv"]["kernel"]
    query, key, value = np.split(qkv, 3, axis=-1)
    for head in range(8):
      mine = slice(head * size, (head + 1) * size)
      scores = query[:, mine] @ key[:, mine].T / np.sqrt(size)
      weights = np.exp(scores)
      weights /= weights.sum(-1, keepdims=True)
      result[b, :, mine] = weights @ value[:, mine]
  return result @ params["proj"]["kernel"] + params["proj"]["bias"]


def test_transformer_block_matches_numpy():
  x = normal(9, 2, 5, 32)
  block = vit.Block(drop_path=0.0, dtype="float32")
  variables = random_variables(block, x)
  variables["params"]["fc1"]["bias"] += 2
  params, expected = float64(variables), np.float64(x)
  y = layer_norm_oracle(expected, params["norm1"])
  expected = expected + attention_oracle(y, params["attn"])
  y = layer_norm_oracle(expected, params["norm2"])
  y = y @ params["fc1"]["kernel"] + params["fc1"]["bias"]
  assert y.min() < -0.1 and y.max() > 6.1  # Both corners of ReLU6.
  y = np.clip(y, 0, 6) @ params["fc2"]["kernel"] + params["fc2"]["bias"]
  np.testing.assert_allclose(
    block.apply(variables, x, train=False), expected + y, rtol=1e-4, atol=1e-4
  )


def test_an_edgenext_is_the_same_when_recomputed():
  images = make_images(4, size=35)
  settings = {"name": "edgenext", "stages": (1, 2, 1, 1), "width": 0.5}
  found = []
  for remat in (False, True):
    model = tiny(**settings | {"batch_norm_group": 0, "remat": remat})
    variables = random_variables(model, images)
    assert set(variables) == {"params"}

    def loss(params, model=model):
      return jnp.sin(model.apply({"params": params}, images, train=True)).sum()

    found.append(jax.jit(jax.grad(loss))(variables["params"]))
  jax.tree.map(
    lambda plain, again: np.testing.assert_allclose(
      plain, again, rtol=1e-4, atol=1e-5 * np.abs(plain).max()
    ),
    *found,
  )


def test_an_edgenext_of_small_images_is_refused():
  model = tiny(
    **{"name": "edgenext", "stages": (1, 1, 1, 1), "width": 0.5},
    batch_norm_group=0,
  )
  with pytest.raises(InputError, match="data.image_size=31.* 32 or more"):
    variable_shapes(model, make_images(2, size=31))


def tiny_vit(**changes):
  settings = {"name": "vit", "stages": (2,), "width": 1 / 16}
  return tiny(**settings | {"batch_norm_group": 0} | changes)


@pytest.mark.slow
def test_hidden_tokens_are_not_seen():
  images = make_images(6, size=27)
  model = tiny_vit(mask_ratio=0.85)
  variables = random_variables(model, images)
  rngs = {"dropout": jax.random.key(0)}
  seen = np.zeros((6, 9))

  @jax.jit
  def forward(images):
    return train_forward(model, variables, images, rngs=rngs)[0]

  @jax.jit
  def slopes(images):
    return jax.jacrev(lambda x: forward(x).sum())(images)

  whole = np.abs(slopes(images)).sum(-1)
  for row in range(3):
    for column in range(3):
      patch = whole[:, 9 * row : 9 * row + 9, 9 * column : 9 * column + 9]
      seen[:, 3 * row + column] = patch.sum((1, 2)) > 0
  np.testing.assert_array_equal(seen.sum(1), 1)  # int(9 * 0.15) of 9.
  assert len({row.tobytes() for row in seen}) > 1  # Another in each example.
  other = forward(images)
  assert np.isfinite(other).all() and other.std() > 0.1
  evaluated = model.apply(variables, images, train=False)
  np.testing.assert_allclose(
    evaluated, tiny_vit().apply(variables, images, train=False)
  )


def test_dropped_paths_leave_the_example_as_it_was():
  x = normal(10, 64, 3, 32)
  block = vit.Block(drop_path=0.5, dtype="float32")
  variables = random_variables(block, x)
  y = block.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
  same = (np.asarray(y) == x).all((1, 2))
  # Both of two paths are left out of a quarter of the examples.
  assert 6 <= same.sum() <= 26
  # The first block never drops: the rate rises from 0.
  images = make_images(4, size=27)
  model = tiny_vit(stages=(1,), drop_path=0.9)
  variables = random_variables(model, images)
  trained, _ = train_forward(
    model, variables, images, rngs={"dropout": jax.random.key(0)}
  )
  plain, _ = train_forward(tiny_vit(stages=(1,)), variables, images)
  np.testing.assert_allclose(trained, plain, rtol=1e-5)


def test_images_smaller_than_a_patch_are_refused():
  with pytest.raises(InputError, match="data.image_size=8 .* 9 or more"):
    variable_shapes(tiny_vit(), make_images(2, size=8))
