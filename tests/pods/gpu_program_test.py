"""Reading what XLA's CUDA compiler makes, as `programs/` has it.

The files are real: on 8 devices that share the batch, a 3x3 convolution with
both gradients (32 images of 14x14x32 to 64 channels at stride 2; the same with
a kernel for each channel at stride 1), and the product of 1024x512 and
512x2048, by Triton or, with `xla_gpu_enable_triton_gemm=false`, by cuBLAS.
"""

import pathlib

import pytest

from jamsface_jax.pods.collectives import find_collectives
from jamsface_jax.pods.gpu_targets import GPU_TARGETS
from jamsface_jax.pods.program import parse
from jamsface_jax.pods.work import each_work, unknown_calls

PROGRAMS = pathlib.Path(__file__).parent / "programs"


def program(name):
  return parse((PROGRAMS / f"{name}.txt").read_text(encoding="utf-8"))


def inside(size, stride):
  """Places of a window of 3 that are inside of 14 pixels, along one axis."""
  return sum(
    0 <= stride * i + k - 1 < 14 for i in range(size) for k in range(3)
  )


def test_convolutions_of_cudnn():
  """All three make the same products, on four images of each device."""
  work = [w for w in each_work(program("h100_convolution")) if w.operations]
  once = 2 * 4 * inside(7, 2) ** 2 * 32 * 64
  assert [w.operations for w in work] == [once] * 3
  images, kernel, result = 4 * 14**2 * 32, 9 * 32 * 64, 4 * 7**2 * 64
  assert {w.bytes for w in work} == {2 * (images + kernel + result)}


def test_convolutions_of_each_channel():
  work = [w for w in each_work(program("h100_grouped")) if w.operations]
  assert [w.operations for w in work] == [2 * 4 * inside(14, 1) ** 2 * 32] * 3


@pytest.mark.parametrize(
  ("name", "size", "passes"),
  [
    ("h100_triton", 2, 1),
    ("a100_triton", 2, 1),
    ("h100_cublas", 2, 1),
    ("h100_cublas_float32", 4, 2),
  ],
)
def test_products_of_triton_and_cublas(name, size, passes):
  found = program(name)
  work = list(each_work(found, float32_passes=2))
  (product,) = (w for w in work if w.operations)
  assert product.operations == 2 * 128 * 512 * 2048
  assert product.passes == passes
  result = 4 * 128 * 2048
  if name == "h100_triton":
    # Untuned, it cuts the sum in four, and another kernel adds the parts.
    result *= 4
    assert len(work) == 2
  # What cuBLAS works in is not moved.
  assert product.bytes == size * (128 * 512 + 512 * 2048) + result
  assert not unknown_calls(found)


def test_collectives_and_what_runs_meanwhile():
  found = program("h100_convolution")
  (gradient,) = find_collectives(found, {"data": 1, "model": 8})
  assert (gradient.kind, gradient.axis, gradient.group) == (
    "all-reduce",
    "model",
    8,
  )
  assert (gradient.dtype, gradient.bytes) == ("bf16", 2 * 9 * 32 * 64)
  # The kernel's transposition and two convolutions.
  assert gradient.meanwhile == 3


def test_calls_that_nobody_knows_are_named():
  text = (PROGRAMS / "h100_convolution.txt").read_text(encoding="utf-8")
  found = parse(text.replace("convBackwardInput", "convSideways"))
  assert unknown_calls(found) == ["__cudnn$convSideways"]
  assert sum(w.operations > 0 for w in each_work(found)) == 2


@pytest.mark.parametrize("kind", sorted(GPU_TARGETS))
def test_a_target_is_text_that_closes_its_braces(kind):
  text = GPU_TARGETS[kind].text()
  assert text.count("{") == text.count("}")
  assert f'device_description_str: "{GPU_TARGETS[kind].name}"' in text
