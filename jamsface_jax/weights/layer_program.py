"""A backbone as a program of its layers, read off the module itself.

JAX traces the module with every layer as one equation. What is left between
layers are a few sums and reshapes, so that who writes a network in another form
needs to know layers and these, and no network.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.core
import jax.extend.core
import jax.numpy as jnp
from jaxtyping import Array

from jamsface_jax.models import backbone_shapes
from jamsface_jax.models.edgenext import (
  CrossCovariance,
  Encoding,
  Factor,
  Gelu,
  SplitConvs,
)
from jamsface_jax.models.entry import Entry
from jamsface_jax.models.iresnet import SqueezeExcitation
from jamsface_jax.models.layers import BatchNorm, Conv, Linear, PReLU
from jamsface_jax.models.vit import Attention

LAYERS = (
  nn.Conv,
  Conv,
  nn.Dense,
  Linear,
  nn.LayerNorm,
  BatchNorm,
  PReLU,
  SqueezeExcitation,
  Attention,
  CrossCovariance,
  SplitConvs,
  Encoding,
  Factor,
  Gelu,
  Entry,
)
LAYER = jax.extend.core.Primitive("layer")
Value = jax.extend.core.Var | jax.extend.core.Literal


@LAYER.def_abstract_eval
def _result(
  x: jax.core.AbstractValue,
  *,
  path: str,
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike,
) -> jax.core.ShapedArray:
  return jax.core.ShapedArray(shape, dtype)


@dataclasses.dataclass(frozen=True)
class LayerProgram:
  """What a backbone computes of one image, outside of training.

  Attributes:
    equations: those of `LAYER`, with the module's path joined by "/" as the
      parameter `path`, and those of JAX between them. All that an equation's
      first operand needs stands before what the second needs, as in graphs
      that PyTorch writes: a shortcut comes after the path that it is beside.
    images: stands for the images, float32 [1, H, W, 3].
    result: stands for the embeddings, float32 [1, D].
    parameters: what stands for a parameter, with its path.
    modules: the layers by their paths.
  """

  equations: list[jax.extend.core.JaxprEqn]
  images: Value
  result: Value
  parameters: Mapping[Value, str]
  modules: Mapping[str, nn.Module]


def shape_of(value: Value) -> tuple[int, ...]:
  """The shape of what a variable of a program stands for."""
  assert isinstance(value.aval, jax.core.ShapedArray)
  return value.aval.shape


def trace(model: nn.Module, image_size: int) -> LayerProgram:
  """Reads the program of a backbone, computing in float32.

  Args:
    model: the backbone.
    image_size: height and width of the images, in pixels.
  """
  model = model.clone(dtype="float32", remat=False)
  modules: dict[str, nn.Module] = {}

  def intercept(
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    context: nn.module.InterceptorContext,
  ) -> Any:
    module = context.module
    if context.method_name != "__call__" or not isinstance(module, LAYERS):
      return call(*args, **kwargs)
    x, *rest = args
    path = "/".join(module.path)
    modules[path] = module
    result = jax.eval_shape(lambda x: call(x, *rest, **kwargs), x)
    return LAYER.bind(x, path=path, shape=result.shape, dtype=result.dtype)

  def forward(variables: dict[str, Any], images: Array) -> Any:
    with nn.intercept_methods(intercept):
      return model.apply(variables, images, train=False)

  shapes = backbone_shapes(model, image_size)
  images = jax.ShapeDtypeStruct((1, image_size, image_size, 3), jnp.float32)
  jaxpr = jax.make_jaxpr(forward)(shapes, images).jaxpr
  *parameters, images = jaxpr.invars
  paths = [
    "/".join(key.key for key in keys[1:])  # Without the collection.
    for keys, _ in jax.tree.leaves_with_path(shapes)
  ]
  return LayerProgram(
    equations=list(_by_operand(jaxpr)),
    images=images,
    result=jaxpr.outvars[0],
    parameters=dict(zip(parameters, paths, strict=True)),
    modules=modules,
  )


def _by_operand(
  jaxpr: jax.extend.core.Jaxpr,
) -> Iterator[jax.extend.core.JaxprEqn]:
  """The equations that the result needs, in the order of `LayerProgram`."""
  makers: dict[Value, jax.extend.core.JaxprEqn] = {
    equation.outvars[0]: equation for equation in jaxpr.eqns
  }
  waiting = [makers[jaxpr.outvars[0]]]
  while waiting:
    missing = [
      makers[value]
      for value in waiting[-1].invars
      if isinstance(value, jax.extend.core.Var) and value in makers
    ]
    if missing:
      waiting.append(missing[0])
    else:
      equation = waiting.pop()
      yield equation
      del makers[equation.outvars[0]]
