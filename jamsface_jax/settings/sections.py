"""Every setting, with its default, its meaning and its limits.

`Settings` holds all of a run, a section a subject. Whoever holds one holds
settings that can be meant: sections refuse the others when they are made.
`model` and `head.loss` name what models and losses know; `models.make_model`
and `losses.make_loss` refuse the names that they do not.
"""

import dataclasses

from jamsface_jax.errors import InputError
from jamsface_jax.settings.fields import (
  Section,
  not_negative,
  one_of,
  positive,
  setting,
  share,
)
from jamsface_jax.settings.head_section import Head


@dataclasses.dataclass(frozen=True)
class Data(Section):
  """Settings of what is trained on, and how it is read."""

  PREFIX = "data."

  directory: str = setting(
    "",
    "Data set to train on, or several with commas between, each with classes of"
    " its own; empty: noise images.",
  )
  sampling: str = setting(
    "uniform",
    "How often the images of a class are seen: all alike (uniform), all classes"
    " alike (class_balanced), or between (square_root).",
    one_of("uniform", "class_balanced", "square_root"),
  )
  image_size: int = setting(
    112, "Height and width that the network sees.", positive
  )
  batch_size: int = setting(
    1024, "Images of a step, over all devices and processes.", positive
  )
  threads: int = setting(
    2, "Batches read and decoded at once, per process.", positive
  )
  noise_classes: int = setting(64, "Classes of the noise images.")
  noise_images: int = setting(512, "Number of the noise images.")
  skip_steps: str = setting(
    "",
    'Steps that read and learn nothing, such as "120:130,400", first and last'
    " included; empty: none.",
  )

  def check(self) -> None:
    """Refuses steps that are none."""
    _ = self.skipped_steps

  @property
  def skipped_steps(self) -> tuple[range, ...]:
    """Numbers of the steps that are left out.

    Raises:
      InputError: `skip_steps` is not steps and ranges of them, rising.
    """
    return tuple(
      _steps("data.skip_steps", one if ":" in one else f"{one}:{one}")
      for one in self.skip_steps.split(",")
      if one
    )


@dataclasses.dataclass(frozen=True)
class Augment(Section):
  """Settings of the random changes of training images."""

  PREFIX = "augment."

  flip: bool = setting(True, "Mirror half of the images.")
  shift: int = setting(
    0, "Move images by up to so many pixels, each way.", not_negative
  )
  brightness: float = setting(
    0.0,
    "Change the brightness by up to so much of half the range of pixels, each"
    " way.",
    not_negative,
  )
  contrast: float = setting(
    0.0, "Change the contrast by a factor up to so far from 1.", not_negative
  )
  cover: float = setting(
    0.0, "Probability of a mask over mouth and nose.", share
  )
  crop: float = setting(
    0.0, "Probability that a box is cut out and scaled up.", share
  )
  color: float = setting(
    0.0,
    "Probability of other brightness, contrast, saturation and hue.",
    share,
  )
  grey: float = setting(0.0, "Probability that colours are taken away.", share)
  blur: float = setting(0.0, "Probability of Gaussian blur.", share)
  resolution: float = setting(
    0.0, "Probability of scaling down and up again.", share
  )
  jpeg: float = setting(0.0, "Probability of strong compression.", share)
  erase: float = setting(0.0, "Probability of a box of noise.", share)
  random_changes: int = setting(
    0,
    "RandAugment: so many of these eight too, drawn for each image.",
    not_negative,
  )
  strength: float = setting(0.5, "Strength of these eight, 0 to 1.", share)

  def check(self) -> None:
    """Refuses more changes than there are."""
    if self.random_changes > 8:
      raise InputError(
        f"augment.random_changes={self.random_changes} must be at most 8, the"
        " number of changes to draw from."
      )


@dataclasses.dataclass(frozen=True)
class Model(Section):
  """Settings of the backbone, the arguments of `models.make_model`."""

  PREFIX = "model."

  name: str = setting("iresnet50", "Name of the backbone, see docs/recipes.md.")
  embedding_size: int = setting(512, "Numbers in an embedding.")
  width: float = setting(1.0, "Multiplies all channel counts.")
  stages: tuple[int, ...] = setting(
    (), "Blocks of each stage, if the name does not fix them."
  )
  stem_stride: int = setting(
    1, "Stride of an IResNet's stem: 1 as published; 2: 4 times cheaper."
  )
  squeeze_reduction: int = setting(
    0, "Squeeze and excitation in an IResNet: 16 is usual; 0: none."
  )
  drop_path: float = setting(
    0.0, "Probability to leave out a path of a ViT in training."
  )
  mask_ratio: float = setting(
    0.0, "Share of a ViT's tokens that are hidden in training."
  )
  dropout: float = setting(0.0, "Dropout before the embedding layer.")
  dtype: str = setting(
    "float32",
    "The network computes in it: float32 or bfloat16; parameters stay float32.",
  )
  remat: bool = setting(
    False, "Recompute blocks in the backward pass, to save memory."
  )
  batch_norm_group: int = setting(
    0, "Examples that share batch statistics; 0: all of the batch."
  )
  activation: str = setting(
    "prelu", "Activation of a MobileFaceNet: prelu, relu or relu6."
  )
  side_crop: int = setting(
    0, "Columns left out on either side: 8 of 112x112 gives 112x96."
  )
  pixel_mean: tuple[float, ...] = setting(
    (127.5, 127.5, 127.5), "Taken from red, green and blue pixels."
  )
  pixel_std: tuple[float, ...] = setting(
    (127.5, 127.5, 127.5), "What pixels are then divided by."
  )
  lanes: int = setting(
    0,
    "An IResNet's maps of fewer channels have pixels folded into them: 0: as"
    " the device likes it, 128 on TPUs; 1: none.",
  )


@dataclasses.dataclass(frozen=True)
class Optimizer(Section):
  """Settings of what moves the parameters."""

  PREFIX = "optimizer."

  name: str = setting(
    "sgd",
    "Optimizer of backbone and class weights: sgd, adamw or lars; margins have"
    " sgd.",
    one_of("sgd", "adamw", "lars"),
  )
  learning_rate: float = setting(
    0.1, "Largest learning rate, at optimizer.reference_batch.", positive
  )
  reference_batch: int = setting(
    1024, "The learning rate grows as data.batch_size over this.", positive
  )
  momentum: float = setting(
    0.9, "Momentum of sgd and lars; margins have their own.", not_negative
  )
  betas: tuple[float, ...] = setting(
    (0.9, 0.999), "Decay of the two running means of adamw."
  )
  eps: float = setting(1e-8, "Added to the root in adamw.", positive)
  trust_coefficient: float = setting(
    0.001,
    "Step of lars at a learning rate of 1, over the norm of a parameter.",
    positive,
  )
  weight_decay: float = setting(
    5e-4, "Weight decay; margins have none.", not_negative
  )
  decay_vectors: bool = setting(
    True, "Weight decay of biases, batch normalisations and PReLUs too."
  )
  last_scale: str = setting(
    "by_loss",
    "Scale of the last batch normalisation: learned where the loss reads"
    " lengths of embeddings (by_loss), always (learned) or never (fixed).",
    one_of("by_loss", "learned", "fixed"),
  )
  clip_norm: float = setting(
    5.0, "Largest norm of the backbone's gradient; 0: no limit.", not_negative
  )
  accumulation: int = setting(
    1, "Micro-batches that the backbone sees a batch in.", positive
  )
  gradient_dtype: str = setting(
    "float32",
    "Gradients of the backbone are summed over devices in it: float32, or"
    " bfloat16 where the network computes in that.",
    one_of("float32", "bfloat16"),
  )
  reject_in_a_row: int = setting(
    0,
    "Steps in a row that may be rejected as not finite before the run stops.",
    not_negative,
  )

  def check(self) -> None:
    """Refuses decays that do not decay."""
    if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
      raise InputError(
        f"optimizer.betas={self.betas} must be two numbers, at least 0 and"
        " below 1."
      )


@dataclasses.dataclass(frozen=True)
class Schedule(Section):
  """Settings of the length of the run and of its learning rate over time."""

  PREFIX = "schedule."

  unit: str = setting(
    "epochs",
    "What length, warmup and milestones count: epochs or steps.",
    one_of("epochs", "steps"),
  )
  length: float = setting(20.0, "Length of the run.", positive)
  warmup: float = setting(
    0.0, "So long the learning rate rises from 0, linearly.", not_negative
  )
  milestones: tuple[float, ...] = setting(
    (), 'Where decay "step" multiplies the learning rate by schedule.factor.'
  )
  decay: str = setting(
    "polynomial",
    "How the learning rate falls: polynomial, step, cosine or constant.",
    one_of("polynomial", "step", "cosine", "constant"),
  )
  power: float = setting(1.0, 'Power of decay "polynomial"; 1: linear.')
  factor: float = setting(0.1, 'Factor of decay "step".')

  def check(self) -> None:
    """Refuses a warm-up without an end."""
    if not self.warmup < self.length:
      raise InputError(
        f"schedule.warmup={self.warmup} leaves nothing of"
        f" schedule.length={self.length}: shorten the warm-up."
      )


@dataclasses.dataclass(frozen=True)
class Mesh(Section):
  """Settings of how devices share the work."""

  PREFIX = "mesh."

  model: int = setting(-1, "Devices that share the classes; -1: all.")


@dataclasses.dataclass(frozen=True)
class Checkpoint(Section):
  """Settings of what is kept of a run."""

  PREFIX = "checkpoint."

  every: int = setting(1000, "Steps between checkpoints.", positive)
  keep_last: int = setting(2, "Number of the newest that are kept.", positive)
  keep_best: str = setting(
    "",
    "Metric such as lfw/accuracy, whose best checkpoint is kept too; empty:"
    " none.",
  )


@dataclasses.dataclass(frozen=True)
class Evaluation(Section):
  """Settings of evaluations in the course of a run."""

  PREFIX = "evaluation."

  data: str = setting("", "Data sets with a protocol, commas between.")
  beside: str = setting(
    "",
    "Where data names none: names of sets that are evaluated on if they lie"
    " beside data.directory, commas between.",
  )
  known: str = setting(
    "", "Data sets of new images of the classes trained on, commas between."
  )
  every: int = setting(
    0, "Steps between evaluations; 0: at the end only.", not_negative
  )
  batch_size: int = setting(
    256, "Images embedded at once, over all devices and processes.", positive
  )
  flip: bool = setting(True, "Add the embedding of the mirrored image.")
  fars: tuple[float, ...] = setting(
    (0.1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6),
    "False accept rates at which TAR is measured; a set leaves out those it has"
    " too few negatives for.",
  )
  pooling: str = setting(
    "D1N1",
    "Images of a template weigh by detector score (D1) and by feature norm"
    " (N1): D1N1, D1N0, D0N1 or D0N0.",
  )


@dataclasses.dataclass(frozen=True)
class Wandb(Section):
  """Settings of Weights & Biases, where the metrics may go too."""

  PREFIX = "wandb."

  project: str = setting(
    "", "Project of Weights & Biases to log to as well; empty: none."
  )
  entity: str = setting(
    "", "User or team there; empty: the one that is logged in."
  )


@dataclasses.dataclass(frozen=True)
class Settings(Section):
  """All settings of a run."""

  seed: int = setting(
    0,
    "Seed of first values, of the order of examples and of augmentation.",
    not_negative,
  )
  log_every: int = setting(20, "Steps between lines of metrics.", positive)
  deterministic: bool = setting(
    False, "On GPUs: the same bits at every run, slower."
  )
  profile_steps: str = setting(
    "", 'Steps to trace, such as "10:15", both included; empty: none.'
  )
  data: Data = Data()
  augment: Augment = Augment()
  model: Model = Model()
  head: Head = Head()
  optimizer: Optimizer = Optimizer()
  schedule: Schedule = Schedule()
  mesh: Mesh = Mesh()
  checkpoint: Checkpoint = Checkpoint()
  evaluation: Evaluation = Evaluation()
  wandb: Wandb = Wandb()

  def check(self) -> None:
    """Refuses what concerns several sections."""
    if self.head.logit_adjustment and self.data.sampling == "class_balanced":
      raise InputError(
        f"head.logit_adjustment={self.head.logit_adjustment} makes up for"
        " classes that are seen more often, but data.sampling='class_balanced'"
        " shows all alike: set one of them back."
      )
    if self.data.batch_size % self.optimizer.accumulation:
      raise InputError(
        f"optimizer.accumulation={self.optimizer.accumulation} does not divide"
        f" data.batch_size={self.data.batch_size}: use a divisor of it."
      )
    if self.optimizer.name == "lars" and self.head.fused_update:
      raise InputError(
        "optimizer.name='lars' needs the norms of all class weights and of"
        " their gradient, which head.fused_update never has at once: set"
        " head.fused_update=False."
      )
    if self.optimizer.gradient_dtype not in ("float32", self.model.dtype):
      raise InputError(
        f"optimizer.gradient_dtype={self.optimizer.gradient_dtype!r} needs"
        f" model.dtype={self.optimizer.gradient_dtype!r}: set that, or leave it"
        " at 'float32'."
      )
    group = self.model.batch_norm_group
    micro_batch = self.data.batch_size // self.optimizer.accumulation
    if self.optimizer.accumulation > 1 and group and micro_batch % group:
      raise InputError(
        f"model.batch_norm_group={group} does not divide the {micro_batch}"
        " examples of a micro-batch (data.batch_size /"
        " optimizer.accumulation): use a divisor of it, or 0 for all of them."
      )
    _ = self.profiled_steps  # Refuses what it cannot read.

  @property
  def profiled_steps(self) -> range:
    """Numbers of the steps to trace.

    Raises:
      InputError: `profile_steps` is not two numbers of steps, rising.
    """
    if not self.profile_steps:
      return range(0)
    return _steps("profile_steps", self.profile_steps)


def _steps(name: str, text: str) -> range:
  """Reads the first and the last of some steps, "10:15".

  Raises:
    InputError: it is not two numbers of steps, rising.
  """
  first, _, last = text.partition(":")
  try:
    steps = range(int(first), int(last) + 1)
  except ValueError:
    steps = range(0)
  if not steps or steps.start < 1:
    raise InputError(
      f"{name}={text!r} names no steps: give the first and the last, such as"
      " '10:15'."
    )
  return steps
