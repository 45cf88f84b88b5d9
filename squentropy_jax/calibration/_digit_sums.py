# SPDX-License-Identifier: Apache-2.0
"""Sums of numbers in [0, 1] without rounding, in int32 digits.

A number is written in base 1024 with one digit before the point and four after
it, so that each digit of 2^20 rows adds in int32. Integer addition is
associative: the sum has the same bits in any order of rows, batches and
devices. Every float32 above 2^-16 is represented exactly, every other number
to 2^-40.
"""

from jax import Array
import jax.numpy as jnp
import numpy as np

_BITS = 10
NUM_DIGITS = 5
_MAX_ROWS = 2**20


def to_digits(x: Array) -> Array:
  """Writes ``x`` of shape ``[n]`` in [0, 1] as digits ``[n, NUM_DIGITS]``."""
  digits = []
  for _ in range(NUM_DIGITS):
    digit = jnp.floor(x)
    digits.append(digit.astype(jnp.int32))
    x = (x - digit) * 2.0**_BITS  # Exact: it removes leading bits only.
  return jnp.stack(digits, axis=-1)


def carry(digits: Array) -> Array:
  """Brings all digits after the point into [0, 1024).

  Digits ``[..., NUM_DIGITS, m]`` may be negative: the shift rounds down.
  """
  rows = [digits[..., i, :] for i in range(NUM_DIGITS)]
  for i in range(NUM_DIGITS - 1, 0, -1):
    rows[i - 1] = rows[i - 1] + (rows[i] >> _BITS)
    rows[i] = rows[i] & (2**_BITS - 1)
  return jnp.stack(rows, axis=-2)


def segment_sum(integers: Array, segments: Array, num_segments: int) -> Array:
  """Sums integers ``[n, k]`` by segment, to ``[chunks, k, num_segments]``.

  A chunk has at most 2^20 rows. Rows of segment ``num_segments`` are
  ignored.
  """
  n, k = integers.shape
  chunks = max(1, -(-n // _MAX_ROWS))
  index = jnp.arange(n, dtype=jnp.int32) // _MAX_ROWS
  zeros = jnp.zeros((chunks, num_segments, k), jnp.int32)
  sums = zeros.at[index, segments].add(integers, mode="drop")
  return jnp.swapaxes(sums, -1, -2)


def sum_digits(digits: Array, segments: Array, num_segments: int) -> Array:
  """Sums digits ``[n, NUM_DIGITS]`` to ``[NUM_DIGITS, num_segments]``."""
  chunks = segment_sum(digits, segments, num_segments)
  # Each chunk is brought below 1024 before the chunks are added.
  return carry(carry(chunks).sum(0))


# Counts have 16 bits in the low digit: 2^15 devices may add theirs by a psum.
_COUNT_BITS = 16


def count_digits(count: Array) -> Array:
  """Writes an int32 count ``[...]`` as two digits ``[..., 2]``, low first."""
  low = count & (2**_COUNT_BITS - 1)
  return jnp.stack([low, count >> _COUNT_BITS], axis=-1)


def carry_count(digits: Array) -> Array:
  """Brings the low digit of sums of `count_digits` below 2^16."""
  low = count_digits(digits[..., 0])
  return low.at[..., 1].add(digits[..., 1])


def count_overflows(digits: Array) -> Array:
  """Whether a sum of `count_digits` ``[..., 2]`` is 2^31 or more, ``[...]``."""
  return carry_count(digits)[..., 1] >= 2 ** (31 - _COUNT_BITS)


def to_float(digits: Array, dtype: np.dtype) -> Array:
  """The value ``[..., m]`` of carried digits ``[..., NUM_DIGITS, m]``."""
  value = digits[..., NUM_DIGITS - 1, :].astype(dtype)
  for i in range(NUM_DIGITS - 2, -1, -1):
    value = digits[..., i, :].astype(dtype) + value * 2.0**-_BITS
  return value
