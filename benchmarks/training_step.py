# SPDX-License-Identifier: Apache-2.0
"""Times a training step of examples/pods with the fused head and with logits.

``python -m benchmarks training_step`` trains the decoder of the example on
random tokens, once with the fused head and once with stored logits
(``--full-logits``), from which it computes one log-normaliser, and everything
else from these two. Both steps compute the same loss and the same metrics. The
memory is the temporary memory of the compiled step.
"""

import importlib
import pathlib
import statistics
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import runner

EXAMPLE = pathlib.Path(__file__).parents[1] / "examples" / "pods"
HEADS = {"fused head": False, "full logits": True}
REPEATS = 7


class Shape(NamedTuple):
  """The sizes of the model and of a step."""

  vocab: int
  width: int = 128
  layers: int = 2
  heads: int = 4
  batch: int = 16
  length: int = 256


SHAPES = (Shape(8192), Shape(49_152))


def _program(shape: Shape, full_logits: bool) -> Any:
  """Returns the programs of the example on all devices, in float32."""
  if str(EXAMPLE) not in sys.path:
    sys.path.insert(0, str(EXAMPLE))
  lm_step, lm_training, train_lm, decoder = map(
    importlib.import_module, ("lm_step", "lm_training", "train_lm", "decoder")
  )
  sizes = decoder.Sizes(shape.vocab, shape.width, shape.layers, shape.heads)
  return lm_step.Program(
    train_lm.nnx_model(sizes, jnp.dtype("float32")),
    optax.adamw(1e-3),
    lm_training.make_mesh(f"data={jax.device_count()}"),
    start=0,
    scales=lm_step.LossScales(z=1e-4),
    full_logits=full_logits,
  )


def _check_equal(fused: Any, full: Any, tokens: int) -> None:
  """Raises if a step's loss, metrics or gradient norm differ between heads."""
  for name, value in full.items():
    # Rounding may decide between two equally large logits of a token.
    atol = 1 / tokens if name == "accuracy" else 0
    np.testing.assert_allclose(
      fused[name], value, rtol=1e-5, atol=atol, err_msg=name
    )


def measure(shape: Shape, repeats: int = REPEATS) -> list[dict[str, Any]]:
  """Returns a row for each head; both train the same number of steps."""
  tokens = np.random.default_rng(0).integers(
    0, shape.vocab, (1, shape.batch, shape.length + 1), np.int32
  )
  batch = {
    "inputs": jnp.asarray(tokens[..., :-1]),
    "targets": jnp.asarray(tokens[..., 1:]),
  }
  programs = {name: _program(shape, full) for name, full in HEADS.items()}
  compiled, states, first, last = {}, {}, {}, {}
  for name, program in programs.items():
    states[name] = program.initial(jax.random.key(0))
    compiled[name] = program.step.lower(states[name], batch).compile()

  def step_of(name: str) -> Any:
    def step() -> jax.Array:
      states[name], found = compiled[name](states[name], batch)
      first.setdefault(name, found)
      last[name] = found["loss"]
      return found

    return step

  seconds = runner.interleaved(
    {name: step_of(name) for name in HEADS}, (), repeats
  )
  count = shape.batch * shape.length
  _check_equal(*first.values(), count)
  # The same loss after the same steps: nothing was left out of either.
  np.testing.assert_allclose(*last.values(), rtol=1e-4)
  return [
    {
      "classes": shape.vocab,
      "width": shape.width,
      "layers": shape.layers,
      "tokens": count,
      "head": name,
      "tokens_per_second": f"{count / statistics.median(values):.0f}",
      "ratio_to_full_logits": (
        f"{runner.ratio(values, seconds['full logits']):.3f}"
      ),
      "temporary_mib": (
        f"{runner.temporary_bytes(compiled[name]) / 2**20:.0f}"
      ),
    }
    for name, values in seconds.items()
  ]


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  for shape in SHAPES:
    runner.report(
      "training_step",
      f"a step of {shape.batch * shape.length} tokens, {shape.vocab} classes",
      measure(shape),
      {
        "head": "head",
        "tokens_per_second": "tokens/s",
        "ratio_to_full_logits": "time / full logits",
        "temporary_mib": "temporary MiB",
      },
    )


if __name__ == "__main__":
  main()
