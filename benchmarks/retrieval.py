# SPDX-License-Identifier: Apache-2.0
"""Times retrieval losses, value and gradient, against a plain InfoNCE.

``python -m benchmarks retrieval`` prints the time of each loss of similarities
as a ratio to InfoNCE written with ``jax.nn.logsumexp``, and its temporary
memory as a share of the similarities. The same table has torch's InfoNCE, and
that of pytorch-metric-learning, if they are installed (the extra ``peers`` of
setup.cfg). The latter takes embeddings, and so it is to be compared with the
row "info_nce of embeddings".
"""

from collections.abc import Callable
import functools
import importlib.util
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks import runner
from squentropy_jax import retrieval

SHAPES = {"512 pairs": (512, 512), "4096 pairs": (4096, 4096)}
WIDTH = 64
TEMPERATURE = 0.05
REPEATS = 7
BASE = "plain InfoNCE"
# Peers that need not be installed, by the name to import.
OPTIONAL = {"torch": "its InfoNCE", "pytorch_metric_learning": "its NTXent"}
Function = Callable[..., Any]


def plain(s: jax.Array) -> jax.Array:
  """InfoNCE of the diagonal, as a user would write it."""
  z = s / TEMPERATURE
  return jax.nn.logsumexp(z, axis=-1) - jnp.diagonal(z)


def with_several(loss: Function) -> Function:
  """The loss with a positive and its successor for each query."""

  def of_similarities(s: jax.Array) -> jax.Array:
    distance = jnp.arange(s.shape[-1]) - jnp.arange(s.shape[-2])[:, None]
    return loss(s, (distance == 0) | (distance == 1))

  return of_similarities


# Each is a function of the similarities.
LOSSES: dict[str, Function] = {
  BASE: plain,
  "info_nce": retrieval.info_nce,
  "info_nce, two positives": with_several(retrieval.info_nce),
  "decoupled_softmax": retrieval.decoupled_softmax,
  "decoupled_softmax, two positives": with_several(retrieval.decoupled_softmax),
  "soft_top_k_loss": retrieval.soft_top_k_loss,
  "soft_contrastive": lambda s: retrieval.soft_contrastive(s, s[::-1]),
  "top_k_margin": retrieval.top_k_margin,
  "multi_positive_margin": with_several(
    functools.partial(retrieval.multi_positive_margin, num_positives=2)
  ),
  "symmetric_kl": lambda s: retrieval.symmetric_kl(s, s[::-1]),
}


def of_embeddings(
  loss: Function, queries: jax.Array, documents: jax.Array
) -> jax.Array:
  """The loss of the similarities of embeddings."""
  return loss(queries @ documents.T)


def value_and_gradient(loss: Function, *argnums: int) -> Function:
  """The mean loss and its gradients, of similarities or of embeddings."""

  def mean(*arrays: jax.Array) -> jax.Array:
    return loss(*(arrays[i] for i in argnums)).mean()

  return jax.value_and_grad(mean, argnums=argnums)


def torch_value_and_gradient(loss: Function, *argnums: int) -> Function:
  """The same of a torch loss, of NumPy arrays."""
  torch = importlib.import_module("torch")

  def run(*arrays: np.ndarray) -> list[Any]:
    # A copy, because an array of JAX cannot be written.
    tensors = [
      torch.from_numpy(np.array(arrays[i])).requires_grad_() for i in argnums
    ]
    value = loss(*tensors)
    value.backward()
    return [value.item(), *(tensor.grad for tensor in tensors)]

  return run


def peers(size: int) -> dict[str, Function]:
  """InfoNCE of the other libraries that are installed."""
  found: dict[str, Function] = {}
  if not importlib.util.find_spec("torch"):
    return found
  torch = importlib.import_module("torch")
  ids = torch.arange(size)

  def info_nce(s: Any) -> Any:
    return torch.nn.functional.cross_entropy(s / TEMPERATURE, ids)

  found["torch, InfoNCE"] = torch_value_and_gradient(info_nce, 0)
  if importlib.util.find_spec("pytorch_metric_learning"):
    losses = importlib.import_module("pytorch_metric_learning.losses")
    loss = losses.NTXentLoss(TEMPERATURE)

    def nt_xent(queries: Any, documents: Any) -> Any:
      return loss(queries, ids, ref_emb=documents, ref_labels=ids)

    found["pytorch-metric-learning, NTXent of embeddings"] = (
      torch_value_and_gradient(nt_xent, 1, 2)
    )
  return found


def measure(shape: tuple[int, int]) -> list[dict[str, Any]]:
  """Returns a row of the table for each loss."""
  embeddings = [
    jax.random.normal(key, (n, WIDTH))
    for key, n in zip(jax.random.split(jax.random.key(0)), shape, strict=True)
  ]
  queries, documents = (
    x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in embeddings
  )
  arrays = (queries @ documents.T, queries, documents)
  functions = {
    name: value_and_gradient(loss, 0) for name, loss in LOSSES.items()
  }
  functions["info_nce of embeddings"] = value_and_gradient(
    functools.partial(of_embeddings, retrieval.info_nce), 1, 2
  )
  compiled = runner.compile_all(functions, arrays)
  seconds = runner.interleaved(compiled | peers(shape[0]), arrays, REPEATS)
  rows = []
  for name, values in seconds.items():
    memory = ""
    if name in compiled:
      share = runner.temporary_bytes(compiled[name]) / arrays[0].nbytes
      memory = f"{share:.4f}"
    rows.append(
      {
        "queries": shape[0],
        "documents": shape[1],
        "function": name,
        "milliseconds": f"{1e3 * statistics.median(values):.3f}",
        "ratio_to_plain": f"{runner.ratio(values, seconds[BASE]):.3f}",
        "temporary_share_of_array": memory,
      }
    )
  return rows


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  console = Console(width=100)
  for name, what in OPTIONAL.items():
    if not importlib.util.find_spec(name):
      console.print(f"{name} is not installed: {what} is left out.")
  columns = {
    "function": "function",
    "milliseconds": "ms",
    "ratio_to_plain": "ratio to plain",
    "temporary_share_of_array": "temporary/array",
  }
  for title, shape in SHAPES.items():
    title = f"{title}: value and gradient, float32"
    runner.report("retrieval", title, measure(shape), columns)
