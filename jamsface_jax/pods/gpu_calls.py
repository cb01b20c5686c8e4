"""Calls of NVIDIA's libraries in a compiled program.

XLA's CUDA compiler leaves convolutions to cuDNN and may leave products to
cuBLAS: custom calls, that say in attributes and settings what they compute
(as XLA of jaxlib 0.10.2 writes them).
"""

import re

from jamsface_jax.pods.program import Array, Computation, Instruction

# The window of each is the forward convolution's, whose arrays are operands
# and result in another order: input, kernel and output by their places among
# the operands, -1: the result.
_ORDER = {
  "__cudnn$convForward": (0, 1, -1),
  "__cudnn$convBiasActivationForward": (0, 1, -1),
  "__cudnn$convBackwardInput": (-1, 1, 0),
  "__cudnn$convBackwardFilter": (0, -1, 1),
}
CONVOLUTIONS = frozenset(_ORDER)
PRODUCTS = frozenset({"__cublas$gemm", "__cublas$lt$matmul"})


def target(instruction: Instruction) -> str:
  """What a custom call calls; "" for what is none."""
  found = re.search(r'custom_call_target="([^"]*)"', instruction.text)
  return found[1] if found else ""


def is_library(instruction: Instruction) -> bool:
  """Whether it is a call of a library of NVIDIA's."""
  return instruction.opcode == "custom-call" and target(instruction).startswith(
    "__cu"
  )


def convolution(
  instruction: Instruction, computation: Computation
) -> tuple[Array, Array, Array]:
  """Input, kernel and output of the forward convolution of a call of cuDNN."""
  places = _ORDER[target(instruction)]
  arrays = [
    instruction.results[0]
    if place < 0
    else computation[instruction.operands[place]].results[0]
    for place in places
  ]
  return arrays[0], arrays[1], arrays[2]


def contracted(instruction: Instruction) -> list[int]:
  """Axes of the first operand that a call of cuBLAS sums over."""
  found = re.search(
    r'"lhs_contracting_dimensions":\[([^\]]*)\]', instruction.text
  )
  return [int(n) for n in re.findall(r"\d+", found[1])] if found else []
