# SPDX-License-Identifier: Apache-2.0
"""True losses to 200 digits, from the papers' formulas; writes the table.

``python tests/support/references.py`` writes tests/data/references.json,
which `accuracy_test` compares with. Inputs and outputs are hexadecimal floats,
so that they are exact. Long rows are given by the recipe in `row_of`.
"""

import json
import pathlib

import mpmath
import numpy as np

TABLE = pathlib.Path(__file__).parents[1] / "data" / "references.json"
mpmath.mp.dps = 200


def cross_entropy(logits: list[mpmath.mpf], y: int) -> mpmath.mpf:
  return -mpmath.log(
    mpmath.exp(logits[y]) / mpmath.fsum(mpmath.exp(z) for z in logits)
  )


def squentropy(logits: list[mpmath.mpf], y: int) -> mpmath.mpf:
  incorrect = [z for i, z in enumerate(logits) if i != y]
  square = mpmath.fsum(z**2 for z in incorrect) / max(len(incorrect), 1)
  return cross_entropy(logits, y) + square


def rescaled_square(
  logits: list[mpmath.mpf], y: int, k: int = 1, m: int = 1
) -> mpmath.mpf:
  sum_sq = mpmath.fsum(z**2 for i, z in enumerate(logits) if i != y)
  return (k * (logits[y] - m) ** 2 + sum_sq) / len(logits)


def softmax_gradient(logits: list[mpmath.mpf], y: int) -> list[mpmath.mpf]:
  total = mpmath.fsum(mpmath.exp(z) for z in logits)
  return [mpmath.exp(z) / total - (i == y) for i, z in enumerate(logits)]


def squentropy_gradient(logits: list[mpmath.mpf], y: int) -> list[mpmath.mpf]:
  factor = mpmath.mpf(2) / max(len(logits) - 1, 1)
  return [
    g + (0 if i == y else factor * z)
    for i, (g, z) in enumerate(
      zip(softmax_gradient(logits, y), logits, strict=True)
    )
  ]


def rescaled_square_gradient(
  logits: list[mpmath.mpf], y: int
) -> list[mpmath.mpf]:
  return [2 * (z - (i == y)) / len(logits) for i, z in enumerate(logits)]


DEFINITIONS = {
  "cross_entropy": (cross_entropy, softmax_gradient),
  "squentropy": (squentropy, squentropy_gradient),
  "rescaled_square": (rescaled_square, rescaled_square_gradient),
}


def row_of(recipe: dict) -> tuple[np.ndarray, int]:
  """The float32 logits and the label of a table entry."""
  if "logits" in recipe:
    row = np.array([float.fromhex(h) for h in recipe["logits"]], np.float32)
  else:
    # Exact in float32: small multiples of a power of two, in a fixed disorder.
    steps = (np.arange(recipe["size"]) * 7919 + recipe["offset"]) % 4093
    row = (steps.astype(np.float32) - 2046) * np.float32(recipe["step"])
    row[recipe["label"]] = recipe["target"]
  return row, recipe["label"]


def recipes() -> list[dict]:
  """Rows on which a careless loss is inaccurate, about 200."""
  rng = np.random.default_rng(2302)
  rows = []

  def add(regime: str, logits: np.ndarray, label: int) -> None:
    values = [float(z).hex() for z in np.asarray(logits, np.float32)]
    rows.append({"regime": regime, "logits": values, "label": label})

  for size in (1, 2, 3, 10, 100):
    for _ in range(4):
      z = rng.normal(size=size)
      y = int(rng.integers(size))
      one = np.arange(size) == y
      add("normal", z, y)
      add("wide", 30 * z, y)
      add("narrow", 0.01 * z, y)
      add("shifted", z + 1e4, y)
      for gap in (20, 60, 200, -200):
        add(f"target {gap:+}", np.where(one, z + gap, z), y)
  for size in (2, 3, 10):
    z = rng.normal(size=size)
    one = np.arange(size) == 0
    add("dominant", np.where(one, 1e4, 1e-2), 0)
    add("dominated", np.where(one, 1e-2, 1e4), 0)
    add("extreme", np.where(one, -1e4, 1e4), 0)
    add("equal", np.full(size, 3.25), 0)
    add("zero", np.zeros(size), size - 1)
    add("tie", np.where(np.arange(size) < 2, 5.0, z), 0)
    add("denormal", z * 1e-40, 0)
    add("overflow edge of float16", np.full(size, 2**7.99), 0)
    add("large", np.where(one, 2.0**62, 2.0**60), 0)
  for size in (1000, 32768, 2**20):
    for step in (2**-12, 2**-9):
      for target in (0.0, 40.0):
        rows.append(
          {
            "regime": "long",
            "size": size,
            "offset": int(rng.integers(4093)),
            "step": step,
            "target": target,
            "label": int(rng.integers(size)),
          }
        )
  # Losses take no logits of one class.
  return [row for row in rows if len(row.get("logits", "xx")) > 1]


def truth(name: str, recipe: dict) -> dict:
  """The loss, the largest gap, and for short rows the gradient."""
  row, label = row_of(recipe)
  value_of, gradient_of = DEFINITIONS[name]
  if "logits" in recipe:
    exact = [mpmath.mpf(float(z)) for z in row]
    value = value_of(exact, label)
    gradient = [float(g).hex() for g in gradient_of(exact, label)]
    return {"value": float(value).hex(), "gradient": gradient}
  # A long row has few distinct logits: each is worked out once and counted.
  rest = np.delete(row, label)
  logits, counts = np.unique(rest, return_counts=True)
  pairs = [
    (mpmath.mpf(float(z)), int(n)) for z, n in zip(logits, counts, strict=True)
  ]
  target = mpmath.mpf(float(row[label]))
  odds = mpmath.fsum(n * mpmath.exp(z - target) for z, n in pairs)
  square = mpmath.fsum(n * z**2 for z, n in pairs)
  value = {
    "cross_entropy": mpmath.log1p(odds),
    "squentropy": mpmath.log1p(odds) + square / rest.size,
    "rescaled_square": ((target - 1) ** 2 + square) / row.size,
  }[name]
  return {"value": float(value).hex()}


def main() -> None:
  table = []
  for recipe in recipes():
    truths = {name: truth(name, recipe) for name in DEFINITIONS}
    table.append(recipe | {"truth": truths})
  TABLE.parent.mkdir(exist_ok=True)
  lines = ",\n".join(json.dumps(entry) for entry in table)
  TABLE.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
  print(f"{len(table)} rows in {TABLE.name}")


if __name__ == "__main__":
  main()
