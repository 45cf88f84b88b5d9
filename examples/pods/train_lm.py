# SPDX-License-Identifier: Apache-2.0
"""Trains a small language model in Flax NNX, on one device or on a pod.

Run on one machine: python examples/pods/train_lm.py --steps 200
docs/pods.md explains the options.
"""

from typing import Any

from decoder import Decoder, Sizes
from flax import nnx
import jax
import lm_step
import lm_training


def nnx_model(sizes: Sizes, dtype: jax.typing.DTypeLike) -> lm_step.Model:
  """Returns the functions of the NNX decoder."""
  graph = nnx.graphdef(
    nnx.eval_shape(lambda: Decoder(sizes, dtype, nnx.Rngs(0)))
  )

  def init(key: jax.Array) -> Any:
    model = Decoder(sizes, dtype, nnx.Rngs(key))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))

  def features(params: Any, tokens: jax.Array, segments: jax.Array):
    return nnx.merge(graph, params)(tokens, segments)

  return lm_step.Model(init, features, lambda params: params["embedding"])


if __name__ == "__main__":
  lm_training.main(nnx_model)
