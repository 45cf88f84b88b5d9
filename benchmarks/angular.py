# SPDX-License-Identifier: Apache-2.0
"""Times angular losses and triplets, value and gradient, against other code.

``python -m benchmarks angular`` prints the time of each loss of features and
class vectors as a ratio to optax's cross-entropy of the same cosines, and its
temporary memory as a share of the cosines. The same table has the losses of
pytorch-metric-learning, if it is installed (the extra ``peers`` of setup.cfg).
"""

from collections.abc import Callable
import functools
import importlib.util
import statistics
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console

from benchmarks import runner
from benchmarks.retrieval import torch_value_and_gradient, value_and_gradient
from squentropy_jax import heads, losses, retrieval

SHAPES = {"512 rows": (512, 512), "4096 rows": (4096, 4096)}
WIDTH = 64
REPEATS = 7
BASE = "optax, softmax of the cosines"
SCALE = 64.0
PEER = "pytorch_metric_learning"
Function = Callable[..., Any]


def of_cosines(
  loss: Function, labels: jax.Array, features: jax.Array, kernel: jax.Array
) -> jax.Array:
  """The loss of the cosines of features and class vectors."""
  return loss(heads.cosine_logits(features, kernel), labels)


def softmax(cosines: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross-entropy without a margin, as a user of optax would write it."""
  optax = importlib.import_module("optax")
  return optax.losses.softmax_cross_entropy_with_integer_labels(
    SCALE * cosines, labels
  )


def triplets(features: jax.Array, kernel: jax.Array) -> jax.Array:
  """Each row with its class vector and the next one as the negative."""
  vectors = kernel.T
  negatives = jnp.roll(vectors, 1, axis=0)[:, None]
  return retrieval.triplet_margin(features, vectors, negatives)


LOSSES: dict[str, Function] = {
  BASE: softmax,
  "normalized_softmax": functools.partial(
    losses.normalized_softmax, scale=SCALE
  ),
  "cosface": losses.cosface,
  "arcface": losses.arcface,
  "sphereface": losses.sphereface,
}


def peers(size: int, labels: Any) -> dict[str, Function]:
  """The losses of pytorch-metric-learning, of features and class vectors."""
  if not importlib.util.find_spec(PEER):
    return {}
  torch = importlib.import_module("torch")
  theirs = importlib.import_module(f"{PEER}.losses")
  ids = torch.as_tensor(labels.tolist())
  found: dict[str, Function] = {}
  for name in ("CosFaceLoss", "ArcFaceLoss", "SphereFaceLoss"):
    loss = getattr(theirs, name)(num_classes=size, embedding_size=WIDTH)

    def of_vectors(features: Any, kernel: Any, loss: Any = loss) -> Any:
      # Their class vectors are a parameter: another one takes its place.
      return torch.func.functional_call(loss, {"W": kernel}, (features, ids))

    found[f"pytorch-metric-learning, {name}"] = torch_value_and_gradient(
      of_vectors, 0, 1
    )
  triplet = theirs.TripletMarginLoss(margin=0.1)
  rows = torch.arange(size)

  def of_triplets(features: Any, kernel: Any) -> Any:
    # The class vectors are the references of the rows.
    indices = rows, rows, torch.roll(rows, 1)
    return triplet(features, ids, indices, ref_emb=kernel.T, ref_labels=rows)

  found["pytorch-metric-learning, triplets"] = torch_value_and_gradient(
    of_triplets, 0, 1
  )
  return found


def measure(shape: tuple[int, int]) -> list[dict[str, Any]]:
  """Returns a row of the table for each loss."""
  keys = jax.random.split(jax.random.key(0), 3)
  features = jax.random.normal(keys[0], (shape[0], WIDTH))
  kernel = jax.random.normal(keys[1], (WIDTH, shape[1]))
  labels = jax.random.randint(keys[2], shape[:1], 0, shape[1])
  arrays = (features, kernel)
  functions = {
    name: value_and_gradient(functools.partial(of_cosines, loss, labels), 0, 1)
    for name, loss in LOSSES.items()
  }
  functions["triplet_margin"] = value_and_gradient(triplets, 0, 1)
  compiled = runner.compile_all(functions, arrays)
  every = compiled | peers(shape[1], labels)
  seconds = runner.interleaved(every, arrays, REPEATS)
  rows = []
  for name, values in seconds.items():
    memory = ""
    if name in compiled:
      share = runner.temporary_bytes(compiled[name]) / (4 * shape[0] * shape[1])
      memory = f"{share:.4f}"
    rows.append(
      {
        "rows": shape[0],
        "classes": shape[1],
        "function": name,
        "milliseconds": f"{1e3 * statistics.median(values):.3f}",
        "ratio_to_softmax": f"{runner.ratio(values, seconds[BASE]):.3f}",
        "temporary_share_of_cosines": memory,
      }
    )
  return rows


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  if not importlib.util.find_spec(PEER):
    Console().print(f"{PEER} is not installed: its losses are left out.")
  columns = {
    "function": "function",
    "milliseconds": "ms",
    "ratio_to_softmax": "ratio to softmax",
    "temporary_share_of_cosines": "temporary/cosines",
  }
  for title, shape in SHAPES.items():
    title = f"{title}: value and gradient, float32"
    runner.report("angular", title, measure(shape), columns)
