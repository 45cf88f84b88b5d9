# SPDX-License-Identifier: Apache-2.0
"""Two towers learn which description belongs to which summary.

The text is that of the functions of NumPy and SciPy: the query is the first
paragraph of a docstring, and the document is the second one. Each tower is a
bag of words and of their parts. The other documents of a batch are the
negatives. The metric is recall@1 on functions that are not trained on: how
often the most similar description is the right one.

Needs optax and SciPy. Run: python examples/contrastive.py
"""

import functools
import importlib
import inspect
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from squentropy_jax import retrieval

MODULES = {
  "numpy": ("fft", "linalg", "random"),
  "scipy": (
    "fft",
    "integrate",
    "interpolate",
    "linalg",
    "ndimage",
    "optimize",
    "signal",
    "sparse",
    "spatial",
    "special",
    "stats",
  ),
}
BUCKETS, LENGTH, WIDTH = 2**13, 160, 64
BATCH, EPOCHS, TEMPERATURE = 128, 12, 0.05


def read():
  """Pairs of a summary and a description, each once, in a fixed order."""
  found = {}
  parts = [f"{top}.{part}" for top in MODULES for part in MODULES[top]]
  for name in ("numpy", *parts):
    module = importlib.import_module(name)
    for key, value in sorted(vars(module).items()):
      if key[0] == "_" or not callable(value):
        continue
      paragraphs = re.split(r"\n\s*\n", inspect.getdoc(value) or "")
      # A built-in function has its signature first.
      paragraphs = [p for p in paragraphs if not re.match(r"\w+\(", p)]
      if len(paragraphs) > 1 and "\n---" not in paragraphs[1]:
        found.setdefault(paragraphs[1], paragraphs[0])
  return [(query, document) for document, query in found.items()]


def features(text):
  """Ids of words and of parts of four letters, padded with -1."""
  parts = []
  for word in re.findall(r"[a-z]+", text.lower()):
    parts.append(word)
    padded = f"<{word}>"
    parts += [padded[i : i + 4] for i in range(len(padded) - 3)]
  ids = [zlib.crc32(part.encode()) % BUCKETS for part in parts[:LENGTH]]
  return np.array(ids + [-1] * (LENGTH - len(ids)), np.int32)


def tower(params, ids):
  """The normalised weighted sum of embeddings."""
  weight = jnp.exp(params["weight"][ids]) * (ids >= 0)
  total = jnp.einsum("nl,nlw->nw", weight, params["embedding"][ids])
  # The norm of a text without words has no derivative at 0.
  square = jnp.square(total).sum(-1, keepdims=True)
  return total * jax.lax.rsqrt(square + 1e-12)


def similarities(params, queries, documents):
  """Cosines of every query and every document."""
  towers = tower(params["query"], queries), tower(params["document"], documents)
  return towers[0] @ towers[1].T


def loss(params, queries, documents):
  """InfoNCE in both directions; the positives are the diagonal."""
  s = similarities(params, queries, documents)
  each = functools.partial(retrieval.info_nce, temperature=TEMPERATURE)
  return (each(s) + each(s.T)).mean() / 2


@jax.jit
def recall(params, queries, documents):
  """How often the most similar document is the right one."""
  best = similarities(params, queries, documents).argmax(-1)
  return (best == jnp.arange(len(queries))).mean()


def main():
  """Trains on four fifths of the functions, and tests on the others."""
  pairs = read()
  order = np.random.default_rng(0).permutation(len(pairs))
  ids = np.stack([[features(text) for text in pairs[i]] for i in order])
  held_out, train = np.split(ids, [len(ids) // 5])
  embedding = jax.random.normal(jax.random.key(0), (BUCKETS, WIDTH))
  one = {"embedding": embedding, "weight": jnp.zeros(BUCKETS)}
  # Both start from the same random words, and then go their own ways.
  params = {"query": one, "document": jax.tree.map(jnp.copy, one)}
  optimizer = optax.adam(3e-2)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, queries, documents):
    value, gradient = jax.value_and_grad(loss)(params, queries, documents)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, value

  test = held_out[:, 0], held_out[:, 1]
  print(f"{len(train)} pairs to train on, {len(held_out)} held out")
  print(f"before training: recall@1 {recall(params, *test):.3f}")
  rng = np.random.default_rng(1)
  for epoch in range(EPOCHS):
    total = 0.0
    batches = rng.permutation(len(train))[: len(train) // BATCH * BATCH]
    for rows in batches.reshape(-1, BATCH):
      batch = train[rows]
      params, state, value = step(params, state, batch[:, 0], batch[:, 1])
      total += float(value)
    if epoch % 4 == 3:
      print(
        f"epoch {epoch + 1}: loss {total / (len(train) // BATCH):.3f}, "
        f"held-out recall {recall(params, *test):.3f}"
      )
  print(f"after training: recall@1 {recall(params, *test):.3f}")


if __name__ == "__main__":
  main()
