"""A convolution that suits a CPU too, with strides or channel by channel."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32

from jamsface_jax.models import gradient_sum

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_FEW = 4  # Channels of a group, that XLA:CPU has no product for.


def keep_parameters(
  *arrays: Any, dtype: Any = None, inexact: bool = True
) -> list[Any]:
  """What a `nn.Conv` may have as `promote_dtype`: the kernel stays as it is.

  Args:
    *arrays: input, kernel and bias, or None for no bias.
    dtype: what the input is cast to.
    inexact: not looked at: there are no whole numbers here.
  """
  x, *parameters = arrays
  return [jnp.asarray(x, dtype), *parameters]


def convolve(
  x: Float[Array, "b h w c"],
  kernel: Float[Array | np.ndarray, "k l g f"],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
  **rest: Any,
) -> Float[Array, "b i j f"]:
  """`lax.conv_general_dilated`, to be that of a `nn.Conv`.

  The kernel is cast to the dtype of `x`; see `gradient_sum` for its gradient.
  What else it does is said at `_convolve`.

  Args:
    x: [B, H, W, C].
    kernel: [h, w, C, F]; [h, w, C/n, F] for n groups.
    strides: steps of the window along H and W.
    padding: zeros before and after, along H and W.
    **rest: what else `nn.Conv` passes.

  Returns:
    [B, H', W', F].
  """
  one_dtype = partial(_convolve, strides=strides, padding=padding, **rest)
  return gradient_sum.apply(one_dtype, x, kernel)


def _convolve(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l g f"],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
  **rest: Any,
) -> Float[Array, "b i j f"]:
  """A convolution that is fast on CPUs too.

  A stride s leaves the gradient of the input with s^2 - 1 zeros beside each
  number of the output's gradient, and XLA:CPU multiplies by all of them. There
  it is computed by `input_gradient` instead: 278 to 106 ms for 3x3 kernels of
  stride 2 on 32 images of 112x112x64 (two cores, jaxlib 0.10.2). Of groups of
  few channels, as MobileFaceNets have, it makes loops of single numbers: there
  all is done by `grouped`, and where gradients are wanted by `by_rows`,
  `grouped_input_gradient` and `grouped_kernel_gradient`. A kernel for each
  channel, 3x3 on 16 images of 56x56x128: 943 to 24 ms, its gradients 993 to 76;
  64 groups of two channels there, with normalisation, activation and gradients:
  42.7 to 1.2 s. Other platforms have kernels of their own for both.

  Arguments and result are those of `convolve`, the kernel of the dtype of `x`.
  """
  plain = partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, **rest
  )
  groups = rest.get("feature_group_count", 1)
  if is_taken_apart(groups, kernel.shape[2]):
    return _in_groups(x, kernel, strides, padding, plain)
  if max(strides) == 1 or groups > 1:
    return plain(x, kernel)

  @jax.custom_vjp
  def strided(x: Array, kernel: Array) -> Array:
    return plain(x, kernel)

  def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return plain(x, kernel), (x, kernel)

  def backward(
    saved: tuple[Array, Array], gradient: Array
  ) -> tuple[Array, Array]:
    x, kernel = saved

    def by_xla(gradient: Array, x: Array, kernel: Array) -> Array:
      return jax.vjp(lambda x: plain(x, kernel), x)[1](gradient)[0]

    def by_phase(gradient: Array, x: Array, kernel: Array) -> Array:
      return input_gradient(gradient, kernel, x.shape, strides, padding)

    of_kernel = jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](gradient)[0]
    of_x = lax.platform_dependent(
      gradient, x, kernel, cpu=by_phase, default=by_xla
    )
    return of_x, of_kernel

  strided.defvjp(forward, backward)
  return strided(x, kernel)


def is_taken_apart(groups: int, channels: int) -> bool:
  """Whether `convolve` takes groups of so many channels apart on CPUs."""
  return groups > 1 and channels <= _FEW


def _in_groups(
  x: Array,
  kernel: Array,
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
  plain: Callable[[Array, Array], Array],
) -> Array:
  """`grouped` on a CPU, elsewhere `plain`; and so with the gradients."""
  by_tap = partial(grouped, strides=strides, padding=padding)

  @jax.custom_vjp
  def convolved(x: Array, kernel: Array) -> Array:
    return lax.platform_dependent(x, kernel, cpu=by_tap, default=plain)

  def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    once = partial(by_rows, strides=strides, padding=padding)
    y = lax.platform_dependent(x, kernel, cpu=once, default=plain)
    return y, (x, kernel)

  def backward(
    saved: tuple[Array, Array], gradient: Array
  ) -> tuple[Array, Array]:
    def on_cpu(gradient: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
      of_x = grouped_input_gradient(gradient, kernel, x.shape, strides, padding)
      of_kernel = grouped_kernel_gradient(
        x, gradient, kernel.shape, strides, padding
      )
      return of_x, of_kernel.astype(kernel.dtype)

    def by_xla(gradient: Array, x: Array, kernel: Array) -> tuple[Array, Array]:
      return jax.vjp(plain, x, kernel)[1](gradient)

    return lax.platform_dependent(gradient, *saved, cpu=on_cpu, default=by_xla)

  convolved.defvjp(forward, backward)
  return convolved(x, kernel)


def grouped(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l g f"],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> Float[Array, "b i j f"]:
  """Convolves groups of channels apart, tap by tap and channel by channel.

  Args:
    x: [B, H, W, C].
    kernel: [h, w, C/n, F] for n groups; output f is of group f n // F.
    strides: steps of the window along H and W.
    padding: zeros before and after, along H and W.

  Returns:
    [B, H', W', F] of the dtype of x; sums are float32.
  """
  outputs, kernel = kernel.shape[-1], kernel.astype(jnp.float32)
  rows, columns, channels, _ = kernel.shape
  result = jnp.float32(0)
  for g in range(channels):
    of_each = _channel_of_each_group(x, g, channels, outputs, padding)
    if of_each.shape[1:3] == (rows, columns):  # The window has all of them.
      met = of_each * kernel[None, :, :, g]
      result = result + jnp.sum(met, axis=(1, 2), keepdims=True)
      continue
    for i in range(rows):
      for j in range(columns):
        down = of_each.shape[1] - rows + 1 + i
        across = of_each.shape[2] - columns + 1 + j
        # What the tap meets: every s-th row and column from its own on.
        met = lax.slice(
          of_each,
          (0, i, j, 0),
          (x.shape[0], down, across, outputs),
          (1, *strides, 1),
        )
        result = result + met * kernel[None, None, None, i, j, g]
  return result.astype(x.dtype)


def by_rows(
  x: Float[Array, "b h w c"],
  kernel: Float[Array, "k l g f"],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> Float[Array, "b i j f"]:
  """`grouped`, a row of the result at a time, so that it is made once.

  XLA:CPU makes it anew in everything that reads it otherwise, of which there is
  much where gradients are wanted. Arguments and result are those of `grouped`.
  """
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  rows, columns, _, outputs = kernel.shape
  height = (x.shape[1] - rows) // strides[0] + 1
  width = (x.shape[2] - columns) // strides[1] + 1

  def add_row(i: Array, result: Array) -> Array:
    met = lax.dynamic_slice_in_dim(x, i * strides[0], rows, axis=1)
    row = grouped(met, kernel, strides, ((0, 0), (0, 0)))
    return lax.dynamic_update_slice_in_dim(result, row, i, axis=1)

  shape = (x.shape[0], height, width, outputs)
  return lax.fori_loop(0, height, add_row, jnp.zeros(shape, x.dtype))


def grouped_input_gradient(
  gradient: Float[Array, "b i j f"],
  kernel: Float[Array, "k l g f"],
  shape: tuple[int, ...],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> Float[Array, "b h w c"]:
  """Gradient of `grouped` in its input: `grouped` too, the kernel turned round.

  The transpose that JAX makes of `grouped` writes an array of the input's size
  for each tap, and adds them afterwards: a fifth of a MobileFaceNet's step.

  Args:
    gradient: the gradient of the result, [B, H', W', F].
    kernel: [h, w, C/n, F] for n groups.
    shape: the input's, (B, H, W, C).
    strides: steps of the window along H and W.
    padding: zeros before and after, along H and W.

  Returns:
    [B, H, W, C] of the dtype of `gradient`.
  """
  if gradient.shape[1:3] == (1, 1):  # Each tap meets one number at most.
    x = jax.ShapeDtypeStruct(shape, gradient.dtype)
    pull_back = jax.linear_transpose(
      lambda x: grouped(x, kernel, strides, padding), x
    )
    return pull_back(gradient)[0]
  *size, channels, _ = kernel.shape
  groups = shape[-1] // channels
  # Taps from last to first; outputs of a group are what is summed over.
  turned = kernel[::-1, ::-1].reshape(*size, channels, groups, -1)
  turned = turned.transpose(0, 1, 4, 3, 2).reshape(*size, -1, shape[-1])
  spread = [(0, 0, 0)]
  for axis in (0, 1):  # Zeros where the window stepped over, and around.
    before = size[axis] - 1 - padding[axis][0]
    reached = (gradient.shape[1 + axis] - 1) * strides[axis] + 1
    after = shape[1 + axis] + size[axis] - 1 - reached - before
    spread.append((before, after, strides[axis] - 1))
  zero = jnp.zeros((), gradient.dtype)
  met = lax.pad(gradient, zero, [*spread, (0, 0, 0)])
  return by_rows(met, turned, (1, 1), ((0, 0), (0, 0)))


def grouped_kernel_gradient(
  x: Float[Array, "b h w c"],
  gradient: Float[Array, "b i j f"],
  shape: tuple[int, ...],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> Float32[Array, "k l g f"]:
  """Gradient of `grouped` in its kernel, one row of the output at a time.

  So what is read stays in the cache. Sums over the batch come last, since it
  may be split over devices.

  Args:
    x: its input, [B, H, W, C].
    gradient: the gradient of its result, [B, H', W', F].
    shape: the kernel's, (h, w, C/n, F).
    strides: steps of the window along H and W.
    padding: zeros before and after, along H and W.

  Returns:
    float32 [h, w, C/n, F].
  """
  gradient = gradient.astype(jnp.float32)
  batch, height, _, outputs = gradient.shape
  rows, columns, channels, _ = shape

  def of_channel(g: int) -> Array:
    of_each = _channel_of_each_group(x, g, channels, outputs, padding)
    if of_each.shape[1:3] == (rows, columns):  # The window has all of them.
      return jnp.sum(of_each * gradient, axis=0)

    def add_row(i: Array, sums: list[Array]) -> list[Array]:
      met = lax.dynamic_slice_in_dim(of_each, i * strides[0], rows, axis=1)
      of_row = lax.dynamic_slice_in_dim(gradient, i, 1, axis=1)
      across = of_each.shape[2] - columns + 1
      return [
        total
        + jnp.sum(
          lax.slice_in_dim(met, j, across + j, strides[1], axis=2) * of_row,
          axis=2,
        )
        for j, total in enumerate(sums)
      ]

    start = [jnp.zeros((batch, rows, outputs)) for _ in range(columns)]
    sums = lax.fori_loop(0, height, add_row, start)
    return jnp.stack([jnp.sum(total, axis=0) for total in sums], axis=1)

  return jnp.stack([of_channel(g) for g in range(channels)], axis=2)


def _channel_of_each_group(
  x: Array,
  g: int,
  channels: int,
  outputs: int,
  padding: Sequence[tuple[int, int]],
) -> Array:
  """Channel g of each group, once for each output of it, padded, float32."""
  of_each = x[..., g::channels].astype(jnp.float32)
  of_each = jnp.repeat(of_each, outputs // of_each.shape[-1], axis=-1)
  return jnp.pad(of_each, ((0, 0), *padding, (0, 0)))


def input_gradient(
  gradient: Float[Array, "b i j f"],
  kernel: Float[Array, "k l c f"],
  shape: tuple[int, ...],
  strides: tuple[int, int],
  padding: Sequence[tuple[int, int]],
) -> Float[Array, "b h w c"]:
  """Gradient of a convolution in its input, one phase of the stride at a time.

  Of stride s and padding p, row s q + r of the input meets the kernel's rows k
  with k = r + p (mod s), and of the output rows q + (r + p - k) / s: for each r
  a convolution of the output's gradient without stride or zeros (ours; known as
  polyphase decomposition).

  Args:
    gradient: the gradient of the result, [B, H', W', F].
    kernel: [h, w, C, F].
    shape: the input's, (B, H, W, C).
    strides: steps of the window along H and W.
    padding: zeros before and after, along H and W.

  Returns:
    [B, H, W, C].
  """
  kernel = kernel.swapaxes(2, 3).astype(gradient.dtype)

  def phase(axis: int, r: int) -> tuple[slice, tuple[int, int], int]:
    """The taps that meet phase r, the first row's first; padding; rows."""
    s, p = strides[axis], padding[axis][0]
    last = (r + p) % s  # The smallest tap, of the last row met.
    first = last + (kernel.shape[axis] - 1 - last) // s * s
    rows = -(-(shape[1 + axis] - r) // s)
    above = (first - r - p) // s
    below = rows + (r + p - last) // s - gradient.shape[1 + axis]
    return slice(first, None, -s), (above, below), rows

  def of_phase(i: int, j: int) -> Array:
    down, vertical, rows = phase(0, i)
    across, horizontal, columns = phase(1, j)
    if down.start < 0 or across.start < 0:  # No tap meets it.
      return jnp.zeros((shape[0], rows, columns, shape[3]), gradient.dtype)
    return lax.conv_general_dilated(
      gradient,
      kernel[down, across],
      (1, 1),
      (vertical, horizontal),
      dimension_numbers=_LAYOUT,
    )

  by_row = [
    _interleave([of_phase(i, j) for j in range(strides[1])], 2, shape[2])
    for i in range(strides[0])
  ]
  return _interleave(by_row, 1, shape[1])


def _interleave(parts: list[Array], axis: int, length: int) -> Array:
  """Puts one of each part in turn; parts differ by at most one in length."""
  longest = parts[0].shape[axis]
  width = [(0, 0)] * 4

  def filled(part: Array) -> Array:
    width[axis] = (0, longest - part.shape[axis])
    return jnp.pad(part, width)

  both = jnp.stack([filled(part) for part in parts], axis + 1)
  merged = both.reshape(
    *both.shape[:axis], longest * len(parts), *both.shape[axis + 2 :]
  )
  return lax.slice_in_dim(merged, 0, length, axis=axis)
