"""Heads and inputs for the tests of the head, and a dense float64 oracle."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jamsface_jax import head as head_lib
from jamsface_jax.devices import sharding
from jamsface_jax.head import (
  ANGULAR,
  CLASS_SIZES,
  COSINE,
  LOG_SCALE,
  WEIGHTS,
  losses,
)

SIZE = 16


def make_margin(initial, upper=1.0, *, learned=True, **changes):
  settings = {"power": 0.0, "rule": "mean", "lower": 0.0, "bounds": "box"}
  settings |= {"slope": 0.0, "curve": ()}
  settings |= {"strength": 0.0, "rewarded": "classes", "start": 0}
  return head_lib.Margin(
    initial=initial, learned=learned, upper=upper, **settings | changes
  )


def make_head(classes=37, multiple=8, chunk=3, smooth=True, **changes):
  settings = {
    "loss": losses.Joint(smooth=smooth, straight_through=False),
    "sub_centers": 1,
    "scale": 8.0,
    "learn_scale": False,
    "angular": make_margin(0.3, 0.8),
    "cosine": make_margin(0.2, 0.6),
    "count_power": 0.0,
    "held": "classes",
    "gradient_power": 0.0,
    "concentration_temperature": 0.4,
    "concentration_share": 0.7,
    "logit_adjustment": 0.0,
    "ignore_above": 1.0,
    "sample_rate": 1.0,
    "weigh_sample": False,
    "keep_bytes": 0,
    "skip_below": 0.0,
    "product_dtype": "float32",
  }
  return head_lib.Head(
    num_classes=classes,
    padded_classes=head_lib.pad_classes(classes, multiple),
    embedding_size=SIZE,
    chunk_classes=chunk,
    **settings | changes,
  )


def random_inputs(head, batch, seed=0):
  """Parameters, embeddings and labels, float64; padded rows hold noise."""
  rng = np.random.default_rng(seed)
  classes, centers = head.padded_classes, head.sub_centers
  params = {
    WEIGHTS: rng.normal(size=(classes * centers, SIZE)),
    ANGULAR: rng.uniform(0.0, 0.8, classes),
    COSINE: rng.uniform(0.0, 0.6, classes),
  }
  if head.learn_scale:
    params[LOG_SCALE] = np.log(np.float64(1.3 * head.scale))
  labels = rng.integers(0, head.num_classes, batch)
  if head.counts_images:
    params[CLASS_SIZES] = np.float64(1 + np.arange(classes) ** 2 % 101)
  embeddings = rng.normal(size=(batch, SIZE))
  # Some examples near their class, some opposite: both sides of the seam.
  sign = np.where(np.arange(batch) % 3 == 2, -6.0, 1.0)
  embeddings += sign[:, None] * params[WEIGHTS][labels * centers]
  return params, embeddings, labels


def put(mesh, params, embeddings, labels):
  """The same on a mesh, float32 and int32."""

  def place(array, spec):
    return jax.device_put(array, NamedSharding(mesh, spec))

  return (
    {
      name: place(
        np.asarray(value, np.float32),
        sharding.CLASSES if np.ndim(value) else sharding.REPLICATED,
      )
      for name, value in params.items()
    },
    place(embeddings.astype(np.float32), sharding.BATCH),
    place(labels.astype(np.int32), sharding.BATCH),
  )


def dense(params, embeddings, labels, head, classes=None, log_weights=None):
  """The definition with arccos and a full softmax, as is, in float64.

  Args:
    params: as `random_inputs` returns.
    embeddings: [B, D].
    labels: [B].
    head: of them.
    classes: which classes are in the softmax, each once; None: all.
    log_weights: what is added to the logits of all but the true one, or None.

  Returns:
    Cross-entropy [B].
  """
  if classes is None:
    classes = np.arange(head.num_classes)
  scale = jnp.exp(params[LOG_SCALE]) if head.learn_scale else head.scale
  w = params[WEIGHTS].reshape(-1, head.sub_centers, SIZE)
  w = w / jnp.linalg.norm(w, axis=2, keepdims=True)
  x = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
  target = jnp.einsum("bd,bkd->bk", x, w[labels]).max(axis=1)
  a, c = params[ANGULAR][labels], params[COSINE][labels]
  theta = jnp.arccos(target)
  if head.loss.smooth:
    beyond = -2 - jnp.cos(theta + a)
  else:
    beyond = jnp.cos(theta) - a * jnp.sin(a)
  phi = jnp.where(theta + a < jnp.pi, jnp.cos(theta + a), beyond) - c
  cosine = jnp.einsum("bd,nkd->bnk", x, w[classes]).max(axis=2)
  others = scale * cosine
  if log_weights is not None:
    others += log_weights[None]
  true = scale * phi
  if head.logit_adjustment:
    sizes = jax.lax.stop_gradient(params[CLASS_SIZES])
    others += head.logit_adjustment * jnp.log(sizes[classes])[None]
    true += head.logit_adjustment * jnp.log(sizes[labels])
  others = jnp.where(cosine > head.ignore_above, -jnp.inf, others)
  others = jnp.where(classes[None] == labels[:, None], -jnp.inf, others)
  all_logits = jnp.concatenate([true[:, None], others], axis=1)
  return jax.nn.logsumexp(all_logits, axis=1) - all_logits[:, 0]
