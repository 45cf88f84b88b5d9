# SPDX-License-Identifier: Apache-2.0
"""The function that applies the parameters of every recalibrator."""

import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax._core.varying import without_explicit_axes
from squentropy_jax.calibration._row_functions import class_index
from squentropy_jax.calibration._scored_rows import (
  ScoredRows,
  as_scores,
  widen,
)


def read_params(params: Any, dtype: Any, *shapes: tuple) -> list[Array]:
  """The fields of ``params``, converted to ``dtype``.

  Raises unless each has its shape. None in a shape allows any length.
  """
  fields = []
  for name, value, shape in zip(params._fields, params, shapes, strict=True):
    x = jnp.asarray(value)
    if x.ndim != len(shape) or any(
      want not in (None, got) for want, got in zip(shape, x.shape, strict=True)
    ):
      lengths = ", ".join("n" if want is None else str(want) for want in shape)
      raise ValueError(
        f"params.{name} must have shape ({lengths}) for these logits, got "
        f"{x.shape}. Nothing is broadcast. Use jax.vmap for stacked "
        "parameters."
      )
    fields.append(x.astype(dtype))
  return fields


@functools.singledispatch
def apply_params(params: Any, logits: Array) -> Array:
  """`apply` for logits of float32 or wider; each type registers its map."""
  del logits
  raise TypeError(
    "params must be the result of a calibration.fit_* function, got "
    f"{type(params).__name__}."
  )


def finite_logits(x: Array) -> tuple[Array, Array]:
  """``x`` with 0 for ``-inf``, and which classes were so (impossible)."""
  impossible = x == -jnp.inf
  return jnp.where(impossible, 0, x), impossible


def scaled_log_probabilities(z: Array, beta: Array) -> Array:
  """``log softmax(beta z)`` of finite or ``-inf`` logits, without overflow."""
  # The largest is subtracted first: a product may be -inf, but not inf.
  return jax.nn.log_softmax(beta * (z - z.max(-1, keepdims=True)), axis=-1)


def bounded_logits(rows: ScoredRows) -> Array:
  """Logits ``[n, C]`` of products that do not overflow; 0 in dropped rows."""
  logits = widen(rows.fill_dropped(rows.scores))
  # Logits beyond this limit saturate.
  limit = float(jnp.finfo(logits.dtype).max) ** 0.5
  bounded = jnp.clip(logits, -limit, limit)
  return jnp.where(logits == -jnp.inf, logits, bounded)


def mean_cross_entropy(logits: Array, rows: ScoredRows) -> Array:
  """Mean cross-entropy of recalibrated logits over the kept rows."""
  # The plain formula compiles several times faster than losses.cross_entropy.
  is_label = class_index(logits) == rows.labels[:, None]
  target = jnp.sum(jnp.where(is_label, logits, 0), axis=-1)
  loss = jax.nn.logsumexp(logits, axis=-1) - target
  count = jnp.sum(rows.keep, dtype=loss.dtype)
  return jnp.sum(jnp.where(rows.keep, loss, 0)) / count


def apply(params: Any, logits: ArrayLike) -> Array:
  r"""Computes recalibrated logits from the parameters of a recalibrator.

  Use it on test and production logits, after one of the ``fit_*`` functions.

  .. math:: z \mapsto g_\theta(z)

  with :math:`\theta` the ``params`` and :math:`g` the map of their type:
  :class:`TemperatureScaling`, :class:`EnsembleTemperatureScaling`,
  :class:`VectorScaling`, :class:`MatrixScaling`,
  :class:`StructuredVectorScaling`, :class:`StructuredMatrixScaling`,
  :class:`HistogramBinning`, :class:`IsotonicRegression`,
  :class:`BetaCalibration`, :class:`QuadraticScaling` or
  :class:`SplineScaling`. It works under ``jit``, ``vmap`` and ``grad``.

  Args:
    params: The result of a ``fit_*`` function. Its type selects the map.
    logits: Logits (log-probabilities are logits), shape ``[..., C]``.

  Returns:
    Recalibrated logits, shape ``[..., C]``, float32 or wider. Their softmax is
    the recalibrated probabilities.

  Raises:
    TypeError: If ``params`` has none of these types.
    ValueError: If its arrays do not have the shapes of one fit for ``C``
      classes. Use ``jax.vmap`` for stacked parameters.

  Examples:
    >>> params = calibration.TemperatureScaling(jnp.float32(0.5))
    >>> calibration.apply(params, jnp.array([2.0, 0.0])).tolist()
    [1.0, 0.0]

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  logits = widen(as_scores("logits", logits))
  spec = jax.typeof(logits).sharding.spec
  return without_explicit_axes(apply_params, spec, params, logits)
