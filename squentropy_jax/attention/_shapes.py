# SPDX-License-Identifier: Apache-2.0
"""Checks of the shapes of queries, keys and values."""

import jax
import jax.numpy as jnp
import numpy as np


def check_rank(name: str, array: jax.Array, axes: str) -> None:
  if array.ndim < 3:
    raise ValueError(
      f"{name} must have the shape [..., {axes}], got {array.shape}. Split "
      "the features into heads; one head is an axis of length 1."
    )


def check_shape(
  name: str, array: jax.Array, shape: tuple[int | str, ...], like: str
) -> None:
  """Raises unless a shape is as expected; a str stands for any length."""
  found = array.shape
  if len(found) != len(shape) or any(
    isinstance(want, int) and have != want
    for have, want in zip(found, shape, strict=True)
  ):
    expected = ", ".join(map(str, shape))
    raise ValueError(
      f"{name} must have the shape [{expected}] to fit {like}, got {found}."
    )


def result_dtype(*arrays: jax.Array) -> np.dtype:
  with jax.numpy_dtype_promotion("standard"):
    return jnp.result_type(*arrays)
