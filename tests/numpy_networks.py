"""Published networks in NumPy, float64, read from the code of their authors."""

import math

import numpy as np


def conv(x, kernel, stride=1, padding=0):
  """PyTorch's Conv2d without bias: [N, C, H, W], one group or one a channel."""
  x = np.pad(x, [(0, 0), (0, 0), (padding,) * 2, (padding,) * 2])
  windows = np.lib.stride_tricks.sliding_window_view(
    x, kernel.shape[2:], axis=(2, 3)
  )[:, :, ::stride, ::stride]
  if kernel.shape[1] == 1 < x.shape[1]:
    return np.einsum("nchwij,cij->nchw", windows, kernel[:, 0])
  return np.tensordot(windows, kernel, ((1, 4, 5), (1, 2, 3))).transpose(
    0, 3, 1, 2
  )


def mobilefacenet(arrays, x):
  """core/model.py of Xiaoccer/MobileFaceNet_Pytorch at 26bd8d26.

  Args:
    arrays: its state_dict.
    x: images [N, 3, H, W] as its own code normalises them.

  Returns:
    Embeddings [N, 128].
  """
  a = {name: np.float64(array) for name, array in arrays.items()}

  def norm(x, name):
    mean, var, scale, bias = (
      a[f"{name}.{part}"][:, None, None]
      for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

  def prelu(x, name):
    return np.where(x > 0, x, x * a[f"{name}.weight"][:, None, None])

  def block(x, name, stride=1, padding=0, linear=False):
    x = conv(x, a[f"{name}.conv.weight"], stride, padding)
    x = norm(x, f"{name}.bn")
    return x if linear else prelu(x, f"{name}.prelu")

  x = block(np.float64(x), "conv1", 2, 1)
  x = block(x, "dw_conv1", 1, 1)
  halving = (0, 5, 12)  # Of 5, 1, 6, 1 and 2 blocks.
  for k in range(15):
    name = f"blocks.{k}.conv"
    stride = 2 if k in halving else 1
    y = conv(x, a[f"{name}.0.weight"])
    y = prelu(norm(y, f"{name}.1"), f"{name}.2")
    y = conv(y, a[f"{name}.3.weight"], stride, 1)
    y = prelu(norm(y, f"{name}.4"), f"{name}.5")
    y = norm(conv(y, a[f"{name}.6.weight"]), f"{name}.7")
    x = y + x if stride == 1 else y
  x = block(x, "conv2")
  x = block(x, "linear7", linear=True)
  return block(x, "linear1", linear=True)[:, :, 0, 0]


def edgenext(arrays, x, heads):
  """timm/models/edgenext.py of timm 1.0.31, with EdgeFace's low ranks.

  Args:
    arrays: its state_dict.
    x: images [N, 3, H, W] as its own code normalises them.
    heads: of its attention.

  Returns:
    Embeddings [N, D].
  """
  a = {name: np.float64(array) for name, array in arrays.items()}
  erf = np.vectorize(math.erf)

  def patches(x, name, size):
    rows, columns = (count // size for count in x.shape[2:])
    x = x[:, :, : rows * size, : columns * size]
    x = x.reshape(*x.shape[:2], rows, size, columns, size)
    y = np.einsum("ncisjt,fcst->nfij", x, a[f"{name}.weight"])
    return y + a[f"{name}.bias"][:, None, None]

  def within(x, name):
    kernel = a[f"{name}.weight"]
    padding = kernel.shape[-1] // 2
    return conv(x, kernel, padding=padding) + a[f"{name}.bias"][:, None, None]

  def norm(x, name, axis=-1):
    x = np.moveaxis(x, axis, -1)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return np.moveaxis(x * a[f"{name}.weight"] + a[f"{name}.bias"], -1, axis)

  def linear(x, name):
    if f"{name}.linear1.weight" in a:
      x, name = x @ a[f"{name}.linear1.weight"].T, f"{name}.linear2"
    return x @ a[f"{name}.weight"].T + a[f"{name}.bias"]

  def encoding(name, height, width):
    position = np.zeros((64, height, width))
    for k in range(32):
      wave = (np.sin, np.cos)[k % 2]
      length = 10_000 ** (2 * (k // 2) / 32)
      for i in range(height):
        angle = (i + 1) / (height + 1e-6) * 2 * np.pi / length
        position[k, i] = wave(angle)
      for j in range(width):
        angle = (j + 1) / (width + 1e-6) * 2 * np.pi / length
        position[32 + k, :, j] = wave(angle)
    y = np.einsum("fc,chw->fhw", a[f"{name}.weight"][:, :, 0, 0], position)
    return y + a[f"{name}.bias"][:, None, None]

  def attention(x, name):
    count, tokens, channels = x.shape
    x = linear(x, f"{name}.qkv").reshape(count, tokens, 3, heads, -1)
    query, key, value = x.transpose(2, 0, 3, 4, 1)
    query, key = (
      one / np.linalg.norm(one, axis=-1, keepdims=True) for one in (query, key)
    )
    scores = query @ key.swapaxes(-1, -2) * a[f"{name}.temperature"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    x = weights / weights.sum(-1, keepdims=True) @ value
    x = x.transpose(0, 3, 1, 2).reshape(count, tokens, channels)
    return linear(x, f"{name}.proj")

  def block(x, name, parts):
    if f"{name}.conv_dw.weight" in a:
      y = within(x, f"{name}.conv_dw").transpose(0, 2, 3, 1)
    else:
      *early, last = np.split(
        x,
        range(-(-x.shape[1] // parts), x.shape[1], -(-x.shape[1] // parts)),
        1,
      )
      found = []
      for k, part in enumerate(early):
        part = part + found[-1] if found else part
        found.append(within(part, f"{name}.convs.{k}"))
      y = np.concatenate([*found, last], axis=1)
      if f"{name}.pos_embd.token_projection.weight" in a:
        y = y + encoding(f"{name}.pos_embd.token_projection", *y.shape[2:])
      y = y.reshape(*y.shape[:2], -1).transpose(0, 2, 1)
      y = y + a[f"{name}.gamma_xca"] * attention(
        norm(y, f"{name}.norm_xca"), f"{name}.xca"
      )
      y = y.reshape(len(x), *x.shape[2:], -1)
    y = linear(norm(y, f"{name}.norm"), f"{name}.mlp.fc1")
    y = linear(y * (1 + erf(y / 2**0.5)) / 2, f"{name}.mlp.fc2")
    return x + (y * a[f"{name}.gamma"]).transpose(0, 3, 1, 2)

  x = norm(patches(np.float64(x), "stem.0", 4), "stem.1", axis=1)
  for stage in range(4):
    if stage:
      x = norm(x, f"stages.{stage}.downsample.0", axis=1)
      x = patches(x, f"stages.{stage}.downsample.1", 2)
    number = 0
    while f"stages.{stage}.blocks.{number}.norm.weight" in a:
      x = block(x, f"stages.{stage}.blocks.{number}", stage + 1)
      number += 1
  return linear(norm(x.mean((2, 3)), "head.norm"), "head.fc")
