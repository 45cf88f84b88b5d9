# SPDX-License-Identifier: Apache-2.0
"""Unified negative pair generation: pairs of the batch as negatives.

The loss adds the similarities between features of different classes to an
angular loss, as additional logits.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from squentropy_jax._core import angles, checks, class_sums, elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform


@jax.jit
def _negatives_lse(
  similarities: jax.Array, mask: jax.Array, scale: jax.Array
) -> jax.Array:
  """The log-sum-exp of ``scale * similarities``, of the shape of ``scale``."""
  kept = jnp.where(mask, similarities, jnp.zeros_like(similarities)).ravel()

  @jax.checkpoint
  def at(scale: jax.Array) -> jax.Array:
    z = scale * kept
    shift = class_sums.shift_of(jnp.where(mask.ravel(), z, -jnp.inf).max())
    exps = jnp.where(mask.ravel(), jnp.exp(z - shift), jnp.zeros_like(z))
    return shift + elementwise.log(exps.sum())

  if not scale.ndim:
    return at(scale)
  # That of a dropped row may be NaN, and its gradient must not be.
  scale = jnp.where(scale > 0, scale, jnp.ones_like(scale))
  # One scale at a time: there may be as many pairs as rows, squared.
  return jax.lax.map(at, scale.ravel()).reshape(scale.shape)


def _reduced(values: dict[str, Any]) -> dict[str, Any]:
  """Replaces the pairs in ``negatives`` by their log-sum-exp."""
  if "negatives" not in values:
    if "negatives_lse" in values:
      return values
    raise TypeError(
      "unpg needs negatives=, the pair (similarities, mask) that "
      "retrieval.batch_negatives(features, labels) returns."
    )
  values = dict(values)
  similarities, mask = _checked_negatives(values.pop("negatives"))
  checks.check_real("scale", values["scale"])
  dtypes = (getattr(values["scale"], "dtype", None), similarities.dtype)
  dtype = checks.compute_dtype(*(d for d in dtypes if d is not None))
  values["negatives_lse"] = _negatives_lse(
    similarities.astype(dtype), mask, checks.as_jax(values["scale"], dtype)
  )
  return values


def _checked_negatives(negatives: Any) -> tuple[jax.Array, jax.Array]:
  if not isinstance(negatives, tuple | list) or len(negatives) != 2:
    raise TypeError(
      "negatives must be a pair (similarities, mask), as "
      "retrieval.batch_negatives(features, labels) returns, got "
      f"{type(negatives).__name__}."
    )
  similarities = checks.as_floats(negatives[0], "the similarities of negatives")
  mask = checks.as_array(negatives[1], "the mask of negatives")
  if mask.dtype != jnp.bool_:
    raise TypeError(
      f"the mask of negatives must be boolean, got {mask.dtype}. Pass mask != "
      "0."
    )
  if mask.shape != similarities.shape:
    raise ValueError(
      "the mask of negatives must have the shape of the similarities "
      f"{similarities.shape}, got {mask.shape}. Nothing is broadcast."
    )
  if checks.is_concrete(similarities, mask):
    finite = np.isfinite(np.asarray(similarities, np.float64))
    if not np.all(finite | ~np.asarray(mask)):
      raise ValueError(
        "the similarities of negatives must be finite where the mask is True. "
        "Mask the others out."
      )
  return similarities, checks.as_jax(mask)


@row_loss(
  domains={
    "scale": "(0, inf)",
    "base": ("cosface", "arcface"),
    "negatives_lse": "[-inf, inf)",
  },
  transform=Transform(multiply_by="scale"),
)
def _unpg(
  stats: RowStats,
  *,
  margin: jax.Array,
  scale: jax.Array,
  base: str,
  negatives_lse: jax.Array,
) -> jax.Array:
  alone = stats.rest_lse == -jnp.inf
  rest_lse = jnp.where(alone, jnp.zeros_like(stats.rest_lse), stats.rest_lse)
  # The log-odds are more accurate than the difference of two logarithms.
  log_odds = jnp.where(
    alone,
    negatives_lse - stats.target,
    stats.log_odds + elementwise.softplus(negatives_lse - rest_lse),
  )
  if base == "cosface":
    lowered = angles.lowered(stats, scale, subtracted=margin)
  else:
    lowered = angles.lowered(stats, scale, added=margin)
  return elementwise.softplus(log_odds + lowered)


_unpg.hyperparameters = _unpg.hyperparameters._replace(prepare=_reduced)


@_unpg.public
def unpg(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  negatives: tuple[jax.typing.ArrayLike, jax.typing.ArrayLike],
  *,
  margin: jax.typing.ArrayLike = 0.5,
  scale: jax.typing.ArrayLike = 64.0,
  base: str = "cosface",
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes a margin loss with pairs of the batch as additional negatives.

  Use when an angular loss should also push apart the features of different
  classes, and not only features and class vectors.

  Avoid when the batch has few classes, because it then has few pairs.

  For one example with cosines :math:`c \in [-1, 1]^C`, class :math:`y`, scale
  :math:`s` and the similarities :math:`v` of pairs of different classes,

  .. math::
    \ell(c, y) = \log \Bigl(1 + \sum_{k \ne y} e^{s (c_k - \psi(c_y))}
      + \sum_j e^{s (v_j - \psi(c_y))} \Bigr) ,

  where :math:`\psi` lowers the labelled cosine as in
  :func:`squentropy_jax.losses.cosface` or
  :func:`squentropy_jax.losses.arcface`. All examples have the same pairs.
  ``retrieval.batch_negatives`` computes the pairs and leaves out outliers, as
  in the paper. Gradients flow to the similarities, and so to both features of a
  pair. Without pairs the loss is that of ``base``. Soft labels give the
  expected loss. In a fused head, bind the pairs as
  ``functools.partial(losses.unpg, negatives=negatives)``.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    negatives: The tuple ``(similarities, mask)``: floats of any shape, and
      booleans of the same shape that are True for the similarities to use.
    margin: The margin of ``base``: a scalar or one value for each example,
      shape ``[...]``.
    scale: Multiplies the cosines, above 0: a scalar or one value for each
      example, shape ``[...]``.
    base: ``"cosface"`` or ``"arcface"``, a static choice.
    axis: The class axis of ``cosines``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider. It is NaN if
    the labelled cosine is traced and outside [-1, 1] by more than 1/64.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, if a concrete label, cosine or
      hyper-parameter is out of range, or if a concrete similarity that counts
      is not finite.

  Examples:
    >>> cosines = jnp.array([[0.6, 0.2, -0.1], [0.8, 0.3, 0.7]])
    >>> negatives = jnp.array([0.3, 0.9]), jnp.array([True, False])
    >>> print(losses.unpg(cosines, jnp.array([0, 2]), negatives, scale=10.0))
    [2.4197 6.0158]

  References:
    Jung et al., `Unified Negative Pair Generation toward Well-discriminative
    Feature Space for Face Recognition <https://arxiv.org/abs/2203.11593>`_,
    BMVC 2022.

  .. seealso:: :func:`squentropy_jax.losses.cosface`,
    :func:`squentropy_jax.losses.arcface`
  """
  return _unpg(
    cosines,
    labels,
    negatives=negatives,
    margin=margin,
    scale=scale,
    base=base,
    axis=axis,
    where=where,
  )
