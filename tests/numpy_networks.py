"""Published networks in NumPy, float64, read from the code of their authors."""

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
