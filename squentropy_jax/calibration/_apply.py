# SPDX-License-Identifier: Apache-2.0
"""The one function that applies what any ``fit_*`` function returned."""

import functools
from typing import Any

import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import ArrayLike

from squentropy_jax.calibration import _inputs


def read_params(params: Any, dtype: Any, *shapes: tuple) -> list[Array]:
  """The fields of ``params`` in a type; each must have its shape.

  An entry of None in a shape stands for any length.
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
        f"{x.shape}; nothing is broadcast: map stacked parameters with "
        "jax.vmap."
      )
    fields.append(x.astype(dtype))
  return fields


@functools.singledispatch
def recalibrated(params: Any, logits: Array) -> Array:
  """`apply` to logits of float32 or wider; each type registers its map."""
  del logits
  raise TypeError(
    "params must be what a calibration.fit_* function returned, got "
    f"{type(params).__name__}."
  )


def apply(params: Any, logits: ArrayLike) -> Array:
  r"""Recalibrates logits with what a ``fit_*`` function returned.

  .. math:: z \mapsto g_\theta(z)

  with :math:`\theta` the ``params`` and :math:`g` the map of their type:
  :class:`TemperatureScaling`, :class:`VectorScaling`, :class:`MatrixScaling`,
  :class:`HistogramBinning`, :class:`IsotonicRegression` or
  :class:`BetaCalibration`. It is pure and may be compiled, batched and
  differentiated.

  Args:
    params: What a ``fit_*`` function returned. Its type chooses the map.
    logits: Logits (log-probabilities are logits), shape ``[..., C]``.

  Returns:
    Recalibrated logits, shape ``[..., C]``, float32 or wider. Their softmax
    has the new probabilities.

  Raises:
    TypeError: If ``params`` is of no such type.
    ValueError: If its arrays do not have the shape of one fit, for as many
      classes as the logits have; map stacked ones with ``jax.vmap``.

  Examples:
    >>> params = calibration.TemperatureScaling(jnp.float32(0.5))
    >>> calibration.apply(params, jnp.array([2.0, 0.0])).tolist()
    [1.0, 0.0]

  References:
    Guo et al., `On Calibration of Modern Neural Networks
    <https://arxiv.org/abs/1706.04599>`_, 2017.
  """
  logits = _inputs.widen(_inputs.as_scores("logits", logits))
  spec = jax.typeof(logits).sharding.spec
  return _inputs.without_explicit_axes(
    recalibrated, logits, spec, params, logits
  )
