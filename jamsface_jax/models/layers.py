"""Layers that Flax lacks in the form needed here.

Those of maps take them with pixels folded into channels, see `folding`; their
parameters are those of the plain map.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, PRNGKeyArray

from jamsface_jax.errors import InputError
from jamsface_jax.models import gradient_sum
from jamsface_jax.models.convolution import convolve
from jamsface_jax.models.folding import fold_kernel, refold


def relu(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
  """The larger of a number and 0."""
  return jnp.maximum(x, 0)


def relu6(x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
  """The nearest number of [0, 6]."""
  return jnp.clip(x, 0, 6)


# Those without parameters, by name.
ACTIVATIONS = {"relu": relu, "relu6": relu6}


class Conv(nn.Module):
  """A square convolution without bias, padded as PyTorch's.

  With zeros on both sides: "SAME" with stride 2 pads (0, 1) on an even size,
  where PyTorch pads (1, 1), and published weights would see a shifted grid.

  Attributes:
    features: channels of the result.
    kernel_size: rows and columns of the kernel, odd.
    stride: steps of the window.
    dtype: compute dtype.
    kernel_init: what first values are drawn with.
    fold: pixels that are folded in the input.
    fold_out: pixels that are to be folded in the result.

  Parameter `kernel`: float32 [kernel_size, kernel_size, C, features].
  """

  features: int
  kernel_size: int
  stride: int
  dtype: jax.typing.DTypeLike
  kernel_init: nn.initializers.Initializer
  fold: int = 1
  fold_out: int = 1

  @nn.compact
  def __call__(
    self, x: Float[Array | np.ndarray, "b h w c"]
  ) -> Float[Array, "b i j f"]:
    """Convolves `x`, [B, H, W, C] folded."""
    x = jnp.asarray(x, self.dtype)
    size, stride, padding = self.kernel_size, self.stride, self.kernel_size // 2
    channels = x.shape[-1] // self.fold
    kernel = self.param(
      "kernel", self.kernel_init, (size, size, channels, self.features)
    )
    fold, across, step = self.fold, (padding, padding), stride
    # Columns that the window steps over must be whole folded ones.
    if stride * self.fold_out % fold:
      x, fold = refold(x, fold, 1), 1
    if (fold, self.fold_out) != (1, 1):
      columns = -(-x.shape[2] * fold // stride) // self.fold_out
      kernel, step, left = fold_kernel(
        kernel, stride, padding, fold, self.fold_out
      )
      met = step * (columns - 1) + kernel.shape[1]
      across = (left, met - left - x.shape[2])
    return convolve(
      x,
      kernel,
      (stride, step),
      ((padding, padding), across),
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last, optionally in groups.

  With `group_size` n > 0 the batch is split into contiguous groups of n
  examples and each is normalised by its own statistics ("ghost batch
  normalisation", https://arxiv.org/abs/1705.08741); the running statistics take
  the average over groups. Under jit a batch is global, however it is sharded,
  so groups are also how to get the statistics of trainers that normalise per
  device: when no group crosses a device, only the running statistics need
  communication.

  Variances are biased (divided by n), the running one included; PyTorch
  divides its running variance by n - 1.

  Attributes:
    group_size: examples per group; 0 means the whole batch.
    dtype: dtype of the result. Statistics and normalisation are float32.
    fold: pixels that are folded in the input.
    momentum: share of the old running statistic kept at each step.
    epsilon: added to the variance.

  Parameters `scale` and `bias`, batch statistics `mean` and `var`: float32 [C].
  """

  group_size: int
  dtype: jax.typing.DTypeLike
  fold: int = 1
  momentum: float = 0.9
  epsilon: float = 1e-5

  @nn.compact
  def __call__(
    self, x: Float[Array, "b *s c"], train: bool
  ) -> Float[Array, "b *s c"]:
    """Normalises `x` [B, ..., C]; `train` uses and records its statistics.

    Raises:
      InputError: in training, if `group_size` does not divide B.
    """
    channels = x.shape[-1] // self.fold
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    shape = (channels,)
    zeros, ones = jnp.zeros, jnp.ones
    running_mean = self.variable("batch_stats", "mean", zeros, shape)
    running_var = self.variable("batch_stats", "var", ones, shape)

    groups = self._num_groups(len(x)) if train else 1
    grouped = x.astype(jnp.float32).reshape(groups, -1, *x.shape[1:])
    if train:
      # One pass. E[x^2] - E[x]^2 cancels: it loses (mean/std)^2 times the
      # rounding error of the sums. A mean of 100 spreads, far beyond what
      # activations have, costs 5e-4 of the result (as with Flax's
      # `use_fast_variance`). Rounding may make it negative, hence the maximum.
      axes = tuple(range(1, grouped.ndim - 1))
      mean = self._over_folded(grouped.mean(axes))
      mean_square = self._over_folded(jnp.square(grouped).mean(axes))
      var = jnp.maximum(mean_square - jnp.square(mean), 0.0)
      if not self.is_initializing():
        rate = 1 - self.momentum
        running_mean.value += rate * (mean.mean(0) - running_mean.value)
        running_var.value += rate * (var.mean(0) - running_var.value)
    else:
      mean, var = running_mean.value[None], running_var.value[None]

    # One multiply-add an element; multiplier and offset are [groups, C].
    multiplier = jax.lax.rsqrt(var + self.epsilon) * scale[None]
    offset = bias[None] - mean * multiplier
    spread = (groups, *(1,) * (grouped.ndim - 2), x.shape[-1])

    def of_all(of_channels: jax.Array) -> jax.Array:
      return jnp.tile(of_channels, self.fold).reshape(spread)

    y = grouped * of_all(multiplier) + of_all(offset)
    return y.reshape(x.shape).astype(self.dtype)

  def _over_folded(self, mean: Float[Array, "g fc"]) -> Float[Array, "g c"]:
    """Means of channels from those of folded ones."""
    if self.fold == 1:
      return mean
    return mean.reshape(len(mean), self.fold, -1).mean(1)

  def _num_groups(self, batch_size: int) -> int:
    if not self.group_size:
      return 1
    if batch_size % self.group_size:
      raise InputError(
        f"model.batch_norm_group={self.group_size} does not divide the batch"
        f" of {batch_size} examples: use a divisor of it, or 0 for the whole"
        " batch."
      )
    return batch_size // self.group_size


class PReLU(nn.Module):
  """Leaky ReLU with one learned slope per channel, initially 0.25.

  https://arxiv.org/abs/1502.01852. (`nn.PReLU` learns one slope for all.)

  Attributes:
    fold: pixels that are folded in the input.

  Parameter `slope`: float32 [C].
  """

  fold: int = 1

  @nn.compact
  def __call__(self, x: Float[Array, "*s c"]) -> Float[Array, "*s c"]:
    """Applies it to `x` [..., C]; keeps dtype and shape."""
    initial = nn.initializers.constant(0.25)
    slope = self.param("slope", initial, (x.shape[-1] // self.fold,))
    slope = jnp.tile(slope, self.fold)
    slope = slope.reshape((1,) * (x.ndim - 1) + slope.shape)
    # In float32, as the normalisation before it: the sum that is the gradient
    # of the slope then goes into the pass that has its sums, where in bfloat16
    # XLA:TPU makes a pass of its own, a tenth of an IResNet-50's step.
    wide = x.astype(jnp.float32)
    # As a product: the backward pass then stores the least. (max and min
    # have a gradient of half and half at 0, which XLA computes and keeps.)
    return (wide * jnp.where(wide >= 0, 1.0, slope)).astype(x.dtype)


class Linear(nn.Module):
  """A linear map of the last axis, as `nn.Dense`.

  Attributes:
    channels: length of the last axis of the result.
    dtype: compute dtype.
    kernel_init: initial values of the matrix.
    use_bias: whether a vector is added.

  Parameters `kernel` [C, channels] and `bias` [channels], float32; for their
  gradients see `gradient_sum`.
  """

  channels: int
  dtype: jax.typing.DTypeLike
  kernel_init: Callable[..., Array]
  use_bias: bool = True

  @nn.compact
  def __call__(self, x: Float[Array, "b *s c"]) -> Float[Array, "b *s f"]:
    """Maps `x` [B, ..., C] to [B, ..., channels]."""
    shape = (x.shape[-1], self.channels)
    kernel = self.param("kernel", self.kernel_init, shape)
    if not self.use_bias:
      return gradient_sum.apply(jnp.dot, x.astype(self.dtype), kernel)
    bias = self.param("bias", nn.initializers.zeros, (self.channels,))

    def multiply(x: Array, kernel: Array, bias: Array) -> Array:
      y = jnp.dot(x, kernel)
      return y + jnp.broadcast_to(bias, y.shape)

    return gradient_sum.apply(multiply, x.astype(self.dtype), kernel, bias)


class Linears(nn.Module):
  """Linear maps of the same input whose matrices lie side by side in one.

  On a TPU each is a product of its own, since it puts what one product gives in
  another order to take it apart: a quarter of a ViT's step, by the compiler's
  cycles. A CPU has one product, 5 % faster in a ViT's forward pass.

  Attributes:
    channels: length of the last axis of each result.
    count: how many there are.
    dtype: compute dtype.
    kernel_init: initial values of the matrix.

  Parameter `kernel` [C, count channels], float32; for its gradient see
  `gradient_sum`.
  """

  channels: int
  count: int
  dtype: jax.typing.DTypeLike
  kernel_init: Callable[..., Array]

  @nn.compact
  def __call__(self, x: Float[Array, "b *s c"]) -> list[Float[Array, "b *s f"]]:
    """Maps `x` [B, ..., C] to `count` arrays [B, ..., channels]."""
    shape = (x.shape[-1], self.count * self.channels)
    kernel = self.param("kernel", self.kernel_init, shape)

    def cut_kernel(x: Array, kernel: Array) -> list[Array]:
      parts = jnp.split(kernel, self.count, axis=1)
      return [jnp.dot(x, part) for part in parts]

    def cut_result(x: Array, kernel: Array) -> list[Array]:
      return jnp.split(jnp.dot(x, kernel), self.count, axis=-1)

    def multiply(x: Array, kernel: Array) -> list[Array]:
      return lax.platform_dependent(
        x, kernel, tpu=cut_kernel, default=cut_result
      )

    return gradient_sum.apply(multiply, x.astype(self.dtype), kernel)


def torch_linear_init(fan_in: int) -> Callable[..., Array]:
  """The default initialiser of PyTorch's `nn.Linear`, for kernel and bias.

  Args:
    fan_in: number of inputs.

  Returns:
    An initialiser: uniform on [-1/sqrt(fan_in), 1/sqrt(fan_in)].
  """
  bound = fan_in**-0.5

  def init(
    key: PRNGKeyArray,
    shape: tuple[int, ...],
    dtype: jax.typing.DTypeLike = jnp.float32,
  ) -> Array:
    return jax.random.uniform(key, shape, dtype, minval=-bound, maxval=bound)

  return init


def embed_map(
  x: Float[Array, "b h w c"],
  train: bool,
  *,
  embedding_size: int,
  dropout: float,
  dtype: jax.typing.DTypeLike,
  batch_norm_group: int,
) -> Float32[Array, "b d"]:
  """Makes the embedding of a flattened map, as insightface's networks do.

  Called within a module, whose own its layers are: `final_bn`, `embedding_fc`
  and `embedding_bn`.

  Args:
    x: the last map, [B, H, W, C].
    train: use and update batch statistics, and drop out.
    embedding_size: length D of the result.
    dropout: rate before the linear layer, in training.
    dtype: of the map's normalisation; what follows is float32.
    batch_norm_group: examples per statistics group; 0 means the whole batch.
  """
  x = BatchNorm(batch_norm_group, dtype, name="final_bn")(x, train)
  x = nn.Dropout(dropout, deterministic=not train)(x)
  x = x.reshape(x.shape[0], -1)  # len() refuses a symbolic size.
  init = torch_linear_init(fan_in=x.shape[-1])
  x = nn.Dense(
    embedding_size,
    dtype=jnp.float32,
    kernel_init=init,
    bias_init=init,
    name="embedding_fc",
  )(x)
  return BatchNorm(batch_norm_group, jnp.float32, name="embedding_bn")(x, train)
