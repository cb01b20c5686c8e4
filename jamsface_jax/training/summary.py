"""What a run says of itself at its start and at its end."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jamsface_jax import shell
from jamsface_jax.devices.capacity import device_memory
from jamsface_jax.devices.speed import measure_rate
from jamsface_jax.head import memory
from jamsface_jax.head import parameters as head_lib
from jamsface_jax.protocols.test_set import Evaluation
from jamsface_jax.run import operations
from jamsface_jax.run.progress import clock
from jamsface_jax.run.state import state_shapes
from jamsface_jax.settings.sections import Settings
from jamsface_jax.storage.run_directory import RunDirectory
from jamsface_jax.training.setup import Setup

# Fewer images than that of LFW's training set, which makes a weak network.
_FEW = 4000


def opening(setup: Setup, first: int, *, fine_tuned: bool) -> str:
  """What the run is, in a few lines.

  Args:
    setup: what the run is.
    first: steps done before.
    fine_tuned: whether it began with parts of another run.
  """
  settings, source, mesh = setup.settings, setup.source, setup.mesh
  head, cost, total_steps = settings.head, setup.head_cost, setup.total_steps
  of_image = count_operations(setup)
  of_head = measure_rate(
    head.product_dtype, setup.components.head.product_precision
  )
  rate = measure_rate(settings.model.dtype)
  # Forward, of micro-batches twice, and backward, twice that; the head.
  passes = 3 if settings.optimizer.accumulation == 1 else 4
  batch, size = settings.data.batch_size, settings.data.image_size
  step = (
    passes * of_image * batch / mesh.size / rate + cost.operations / of_head
  )
  return "\n".join(
    [
      f"data      {len(source):,} images of {source.num_classes:,} classes"
      f" ({source.class_sizes.min()} to {source.class_sizes.max()} each)"
      + _warn_of_batch(batch, len(source))
      + ("" if fine_tuned else _warn_of_beginning(settings, len(source))),
      f"model     {settings.model.name}, {count_parameters(setup):,}"
      f" parameters, {size}x{size} pixels to"
      f" {settings.model.embedding_size} numbers, {settings.model.dtype}",
      f"          {of_image / 1e9:,.3g} Gflop an image, forward",
      f"head      loss {head.loss}, scale {head.scale:g}, margins"
      f" angular {_margin_text(setup.components.head.angular)}, cosine"
      f" {_margin_text(setup.components.head.cosine)}",
      f"          {memory.describe(cost, device_memory(), of_head)}",
      f"memory    about {memory.to_text(setup.step_memory.total)} of"
      f" {memory.to_text(device_memory())} on each device in a step"
      f" ({setup.step_memory})",
      f"devices   {mesh.size} {jax.devices()[0].platform}, mesh data"
      f" {mesh.shape['data']} x model {mesh.shape['model']},"
      f" {jax.process_count()} process(es)",
      f"steps     {first} done of {total_steps}, {batch:,} images each:"
      f" {total_steps * batch / len(source):.3g} epochs",
      f"schedule  {_schedule_text(settings)}",
      f"time      at least {clock((total_steps - first) * step)}, were all of"
      f" it products of matrices at {rate / 1e9:,.0f} Gflop/s a device; the"
      " first steps will tell",
    ]
  )


def not_evaluated(missing: Sequence[str]) -> str:
  """Says which of `evaluation.beside` are not there: their directories."""
  return (
    f"tests     not evaluated on {', '.join(missing)}, which are not there:"
    f" '{shell.name('data_prep.from_bin')}' makes them"
  )


def _warn_of_batch(batch: int, images: int) -> str:
  if batch <= images:
    return ""
  return (
    f"\nwarning   a batch of {batch:,} has every image {batch / images:.3g}"
    " times: lower data.batch_size, or give more images"
  )


def _warn_of_beginning(settings: Settings, images: int) -> str:
  if images >= _FEW or not settings.data.directory:
    return ""
  return (
    f"\nwarning   {images:,} images teach a network that begins from nothing"
    " these people, and to tell others hardly apart: begin with published"
    " weights, --fine_tune_from (docs/export.md)"
  )


def count_parameters(setup: Setup) -> int:
  """Numbers that the backbone learns."""
  size = setup.settings.data.image_size
  shapes = state_shapes(setup.components, size, setup.mesh)
  return sum(p.size for p in jax.tree.leaves(shapes.params["backbone"]))


def count_operations(setup: Setup) -> int:
  """Floating-point operations of the backbone's forward, for one image."""
  size, model = setup.settings.data.image_size, setup.components.model
  shapes = state_shapes(setup.components, size, setup.mesh)
  variables = {
    "params": shapes.params["backbone"],
    "batch_stats": shapes.batch_stats,
  }
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  program = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False))
  return operations.count_operations(program(variables, image).jaxpr)


def facts(setup: Setup, first: int) -> dict[str, Any]:
  """What a report says of a launch: steps, data, model, devices; JSON values.

  Args:
    setup: what the run is.
    first: steps done before.
  """
  device = jax.devices()[0]
  return {
    "first": first,
    "total_steps": setup.total_steps,
    "data_fingerprint": setup.source.fingerprint,
    "parameters": count_parameters(setup),
    "devices": setup.mesh.size,
    "platform": device.platform,
    "device_kind": device.device_kind,
    "processes": jax.process_count(),
  }


def _schedule_text(settings: Settings) -> str:
  """The learning rate from the first step on, in words."""
  schedule = settings.schedule
  peak = settings.optimizer.learning_rate
  peak *= settings.data.batch_size / settings.optimizer.reference_batch
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
  """How one kind of margins comes by its values, in words."""
  if margin.made_anew:
    return f"{margin.initial:g} (by concentration, made anew each epoch)"
  if not margin.learned:
    by_size = ", falling with class size" if margin.power else ""
    return f"{margin.initial:g} (fixed{by_size})"
  if margin.rule == "mean":
    return f"learned with mean {margin.initial:g}"
  return f"learned from {margin.initial:g}, lambda {margin.strength:g}"


def closing(
  run: RunDirectory, total_steps: int, evaluations: Sequence[Evaluation]
) -> str:
  """The last lines of a run: what came out, where it is, what to type next.

  Args:
    run: directory of the run.
    total_steps: steps of the whole run.
    evaluations: the last ones.
  """
  workdir = f"--workdir={run.path}"
  return "\n".join(
    [
      f"finished {total_steps} steps",
      *(f"{one.name}: {one.headline}" for one in evaluations),
      f"work directory: {run.path}",
      f"report: {run.report.path}, to open in a browser",
      "next: "
      + shell.command(
        "jamsface_jax.embed", workdir, "--images=DIR", "--output=E"
      ),
      "      "
      + shell.command("jamsface_jax.evaluate", workdir, "--data=DATASET"),
      "      "
      + shell.command(
        "jamsface_jax.export", workdir, "--format=onnx", "--output=FILE"
      ),
    ]
  )
