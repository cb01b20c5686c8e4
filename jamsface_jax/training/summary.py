"""What a run says of itself at its start and at its end."""

import shlex
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jamsface_jax.data.sources import Source
from jamsface_jax.head import memory
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.run.components import Components
from jamsface_jax.run.progress import clock
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory


def opening(
  config: Settings,
  source: Source,
  components: Components,
  mesh: Mesh,
  cost: memory.HeadCost,
  first: int,
  total_steps: int,
) -> str:
  """What the run is, in a few lines."""
  weights = count_parameters(config, components, mesh)
  operations = count_operations(config, components, mesh)
  settings = config.head
  rate = memory.measure_rate(components.head, cost.examples)
  # Forward and, twice that, backward of the backbone; the head.
  batch = config.data.batch_size
  step = (3 * operations * batch / mesh.size + cost.operations) / rate
  return "\n".join(
    [
      f"data      {len(source):,} images of {source.num_classes:,} classes"
      f" ({source.class_sizes.min()} to {source.class_sizes.max()} each)",
      f"model     {config.model.name}, {weights:,} parameters,"
      f" {config.data.image_size}x{config.data.image_size} pixels to"
      f" {config.model.embedding_size} numbers, {config.model.dtype}",
      f"          {operations / 1e9:,.3g} Gflop an image, forward",
      f"head      loss {settings.loss}, scale {settings.scale:g}, margins"
      f" angular {_margin_text(components.head.angular)}, cosine"
      f" {_margin_text(components.head.cosine)}",
      f"          {memory.describe(cost, memory.device_memory(), rate)}",
      f"devices   {mesh.size} {jax.devices()[0].platform}, mesh data"
      f" {mesh.shape['data']} x model {mesh.shape['model']},"
      f" {jax.process_count()} process(es)",
      f"steps     {first} done of {total_steps}, {batch:,} images each:"
      f" {total_steps * batch / len(source):.3g} epochs",
      f"schedule  {_schedule_text(config)}",
      f"time      at least {clock((total_steps - first) * step)}, were all of"
      f" it products of matrices at {rate / 1e9:,.0f} Gflop/s a device; the"
      " first steps will tell",
    ]
  )


def count_parameters(
  config: Settings, components: Components, mesh: Mesh
) -> int:
  """Numbers that the backbone learns."""
  shapes = state_shapes(components, config.data.image_size, mesh)
  return sum(p.size for p in jax.tree.leaves(shapes.params["backbone"]))


def count_operations(
  config: Settings, components: Components, mesh: Mesh
) -> float:
  """Floating-point operations of the backbone's forward, for one image."""
  size = config.data.image_size
  shapes = state_shapes(components, size, mesh)
  variables = {
    "params": shapes.params["backbone"],
    "batch_stats": shapes.batch_stats,
  }
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  forward = jax.jit(lambda v, x: components.model.apply(v, x, train=False))
  return forward.lower(variables, image).cost_analysis()["flops"]


def facts(
  config: Settings, source: Source, components: Components, mesh: Mesh
) -> dict[str, Any]:
  """What a report says of the data, the model and the devices; JSON values."""
  device = jax.devices()[0]
  return {
    "data_fingerprint": source.fingerprint,
    "parameters": count_parameters(config, components, mesh),
    "devices": mesh.size,
    "platform": device.platform,
    "device_kind": device.device_kind,
    "processes": jax.process_count(),
  }


def _schedule_text(config: Settings) -> str:
  """The learning rate from the first step on, in words."""
  schedule = config.schedule
  peak = config.optimizer.learning_rate
  peak *= config.data.batch_size / config.optimizer.reference_batch
  texts = [f"learning rate {peak:g}"]
  if schedule.warmup:
    texts.append(f"warm-up {schedule.warmup:g} {schedule.unit}")
  decay = schedule.decay
  if decay == "step":
    milestones = ", ".join(f"{one:g}" for one in schedule.milestones)
    decay += f" by {schedule.factor:g} at {milestones}"
  texts.append(f"decay {decay}")
  return ", ".join(texts)


def _margin_text(margin: head_lib.Margin) -> str:
  if not margin.learned:
    by_size = ", falling with class size" if margin.power else ""
    return f"{margin.initial:g} (fixed{by_size})"
  if margin.rule == "mean":
    return f"learned with mean {margin.initial:g}"
  return f"learned from {margin.initial:g}, lambda {margin.strength:g}"


def close(
  run: RunDirectory, total_steps: int, evaluations: list[Evaluation]
) -> None:
  """Prints the last lines of a run, and keeps them.

  They say what came out, where it is, and what to type next.
  """
  quoted = shlex.quote(run.path)
  lines = [f"finished {total_steps} steps"]
  for one in evaluations:
    lines.append(f"{one.name}: {one.headline}")
  lines += [
    f"work directory: {run.path}",
    f"report: {run.report.path}, to open in a browser",
    f"next: python -m jamsface_jax.embed --workdir={quoted} --images=DIR"
    " --output=E",
    f"      python -m jamsface_jax.evaluate --workdir={quoted} --data=DATASET",
    f"      python -m jamsface_jax.export --workdir={quoted} --format=onnx"
    " --output=FILE",
  ]
  text = "\n".join(lines)
  run.summary.write_text(text + "\n")
  print(text)
