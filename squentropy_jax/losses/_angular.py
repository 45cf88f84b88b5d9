# SPDX-License-Identifier: Apache-2.0
"""Angular losses: softmax losses of cosines, with a margin between angles.

They take the cosines between features and one vector per class. Use them when
classes are added after training, as in face recognition and retrieval.
``docs/angular_heads.md`` shows heads, margins that change, and new classes.
"""

import jax

from squentropy_jax._core import angles, class_sums, elementwise
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.rows import row_loss
from squentropy_jax._core.transform import Transform

_BY_SCALE = Transform(multiply_by="scale")


def _uniform(stats: RowStats, *, scale: jax.Array) -> jax.Array:
  del scale
  return class_sums.uniform_cross_entropy(stats)


@row_loss(domains={"scale": "(0, inf)"}, transform=_BY_SCALE, uniform=_uniform)
def _normalized_softmax(stats: RowStats, *, scale: jax.Array) -> jax.Array:
  return elementwise.softplus(stats.log_odds + angles.lowered(stats, scale))


@_normalized_softmax.public
def normalized_softmax(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  scale: jax.typing.ArrayLike = 10.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of scaled cosines.

  Use when classes should be added later without training, or as the baseline
  of the losses with a margin.

  Avoid when the scale is small and classes are many: the loss then cannot
  become small. With scale 1 and 1000 classes it stays above 5.9.

  For one example with cosines :math:`c \in [-1, 1]^C`, class :math:`y` and
  scale :math:`s`,

  .. math::
    \ell(c, y) = \log \sum_k e^{s c_k} - s c_y .

  Soft labels give the expected loss. With :math:`C` evenly spread class
  vectors, which need features of width :math:`C - 1` or more, the smallest loss
  is :math:`\log(1 + (C - 1) e^{-s C / (C - 1)})`.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    scale: Multiplies the cosines, above 0: a scalar or one value for each
      example, shape ``[...]``.
    axis: The class axis of ``cosines``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider. It is NaN if
    the labelled cosine is traced and outside [-1, 1] by more than 1/64.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label, cosine or
      hyper-parameter is out of range.

  Examples:
    >>> cosines = jnp.array([[0.6, 0.2, -0.1], [0.8, 0.3, 0.7]])
    >>> print(losses.normalized_softmax(cosines, jnp.array([0, 2])))
    [0.019  1.3182]

  References:
    Pereira et al., `Hyperspherical embedding for novel class classification
    <https://arxiv.org/abs/2102.03243>`_, 2021.

  .. seealso:: :func:`squentropy_jax.losses.cosface`
  """
  return _normalized_softmax(
    cosines, labels, scale=scale, axis=axis, where=where
  )


@row_loss(domains={"scale": "(0, inf)"}, transform=_BY_SCALE)
def _cosface(
  stats: RowStats, *, margin: jax.Array, scale: jax.Array
) -> jax.Array:
  lowered = angles.lowered(stats, scale, subtracted=margin)
  return elementwise.softplus(stats.log_odds + lowered)


@_cosface.public
def cosface(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 0.35,
  scale: jax.typing.ArrayLike = 64.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of scaled cosines with a margin on the cosine.

  Use when features of one class should be close together and far from those of
  other classes, as in face recognition. Its gradient is bounded at every angle.

  Avoid when calibrated probabilities are needed. If the loss does not decrease
  at the start of training, use a smaller scale or margin.

  For one example with cosines :math:`c \in [-1, 1]^C`, class :math:`y`, margin
  :math:`m` and scale :math:`s`,

  .. math::
    \ell(c, y) = \log \Bigl(1 + \sum_{k \ne y} e^{s (c_k - c_y + m)} \Bigr) .

  Soft labels give the expected loss. Predictions use the cosines without the
  margin.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    margin: Subtracted from the labelled cosine: a scalar or one value for each
      example, shape ``[...]``.
    scale: Multiplies the cosines, above 0: a scalar or one value for each
      example, shape ``[...]``.
    axis: The class axis of ``cosines``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider. It is NaN if
    the labelled cosine is traced and outside [-1, 1] by more than 1/64.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label, cosine or
      hyper-parameter is out of range.

  Examples:
    >>> cosines = jnp.array([[0.6, 0.2, -0.1], [0.8, 0.3, 0.7]])
    >>> print(losses.cosface(cosines, jnp.array([0, 2])))
    [ 0.04 28.8 ]

  References:
    Wang et al., `CosFace: Large Margin Cosine Loss for Deep Face Recognition
    <https://arxiv.org/abs/1801.09414>`_, CVPR 2018.

  .. seealso:: :func:`squentropy_jax.losses.arcface`,
    :func:`squentropy_jax.margins.elastic`,
    :func:`squentropy_jax.margins.adaptive`
  """
  return _cosface(
    cosines, labels, margin=margin, scale=scale, axis=axis, where=where
  )


@row_loss(domains={"scale": "(0, inf)", "monotonic": bool}, transform=_BY_SCALE)
def _arcface(
  stats: RowStats, *, margin: jax.Array, scale: jax.Array, monotonic: bool
) -> jax.Array:
  lowered = angles.lowered(stats, scale, added=margin, monotonic=monotonic)
  return elementwise.softplus(stats.log_odds + lowered)


@_arcface.public
def arcface(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 0.5,
  scale: jax.typing.ArrayLike = 64.0,
  monotonic: bool = True,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of scaled cosines with a margin on the angle.

  Use when features of one class should be close together and far from those of
  other classes, as in face recognition. The margin is the same at every angle.

  Avoid when calibrated probabilities are needed. If the loss does not decrease
  at the start of training, use a smaller scale or margin.

  For one example with cosines :math:`c \in [-1, 1]^C`, class :math:`y`, margin
  :math:`m`, scale :math:`s` and :math:`\theta = \arccos c_y`,

  .. math::
    \ell(c, y) = \log \Bigl(1 + \sum_{k \ne y} e^{s (c_k - \psi(\theta))}
      \Bigr), \qquad
    \psi(\theta) = \begin{cases}
      \cos(\theta + m) & \theta < \pi - m , \\
      \cos \theta - m \sin m & \text{otherwise.}
    \end{cases}

  The second case is in the authors' code and not in the paper. Without it the
  labelled logit would increase again at large angles. At :math:`\pi - m`,
  :math:`\psi` falls by :math:`\cos m + m \sin m - 1`, which is not negative for
  :math:`0 \le m \le 2.33`. If the margin is negative or ``monotonic=False``,
  only the first case applies. Soft labels give the expected loss. Predictions
  use the cosines without the margin. The derivative of :math:`\psi` with
  respect to :math:`c_y` is :math:`\cos m + c_y \sin m / \sin \theta`, which
  grows without bound at small angles. Where :math:`\sin \theta` is 0, the
  second term of the derivative is left out.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    margin: The angle in radians that is added to the labelled angle: a scalar
      or one value for each example, shape ``[...]``.
    scale: Multiplies the cosines, above 0: a scalar or one value for each
      example, shape ``[...]``.
    monotonic: Whether the labelled logit goes on decreasing at large angles, a
      static bool.
    axis: The class axis of ``cosines``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider. It is NaN if
    the labelled cosine is traced and outside [-1, 1] by more than 1/64.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label, cosine or
      hyper-parameter is out of range.

  Examples:
    >>> cosines = jnp.array([[0.6, 0.2, -0.1], [0.8, 0.3, 0.7]])
    >>> print(losses.arcface(cosines, jnp.array([0, 2])))
    [ 3.6731 33.7965]

  References:
    Deng et al., `ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition <https://arxiv.org/abs/1801.07698>`_, CVPR 2019.

  .. seealso:: :func:`squentropy_jax.losses.cosface`,
    :func:`squentropy_jax.margins.elastic`
  """
  return _arcface(
    cosines,
    labels,
    margin=margin,
    scale=scale,
    monotonic=monotonic,
    axis=axis,
    where=where,
  )


@row_loss(
  domains={"margin": "[1, inf)", "scale": "(0, inf)"}, transform=_BY_SCALE
)
def _sphereface(
  stats: RowStats, *, margin: jax.Array, scale: jax.Array
) -> jax.Array:
  lowered = angles.lowered(stats, scale, factor=margin)
  return elementwise.softplus(stats.log_odds + lowered)


@_sphereface.public
def sphereface(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  margin: jax.typing.ArrayLike = 1.7,
  scale: jax.typing.ArrayLike = 30.0,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of scaled cosines with a multiplied angle.

  Use when examples far from their class vector should have a larger margin than
  close ones.

  Avoid when calibrated probabilities are needed. If the margin should be the
  same at every angle, use :func:`squentropy_jax.losses.arcface`.

  For one example with cosines :math:`c \in [-1, 1]^C`, class :math:`y`, margin
  :math:`m`, scale :math:`s` and :math:`t = m \arccos c_y`,

  .. math::
    \ell(c, y) = \log \Bigl(1 + \sum_{k \ne y} e^{s (c_k - \psi)} \Bigr), \qquad
    \psi = (-1)^j \cos t - 2 j, \quad j = \lfloor t / \pi \rfloor .

  Up to :math:`t = \pi`, :math:`\psi` is the cosine of the multiplied angle.
  Beyond, it continues to decrease, and its derivative is continuous. The margin
  need not be an integer. The paper does not normalise the features. To do the
  same, pass their norms as ``scale``, one value for each example. Soft labels
  give the expected loss. Predictions use the cosines without the margin.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    margin: The factor of the labelled angle, 1 or more: a scalar or one value
      for each example, shape ``[...]``.
    scale: Multiplies the cosines, above 0: a scalar or one value for each
      example, shape ``[...]``.
    axis: The class axis of ``cosines``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider. It is NaN if
    the labelled cosine is traced and outside [-1, 1] by more than 1/64.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label, cosine or
      hyper-parameter is out of range.

  Examples:
    >>> cosines = jnp.array([[0.6, 0.2, -0.1], [0.8, 0.3, 0.7]])
    >>> print(losses.sphereface(cosines, jnp.array([0, 2])))
    [ 6.1704 17.4936]

  References:
    Liu et al., `SphereFace: Deep Hypersphere Embedding for Face Recognition
    <https://arxiv.org/abs/1704.08063>`_, CVPR 2017.

  .. seealso:: :func:`squentropy_jax.losses.combined_margin`
  """
  return _sphereface(
    cosines, labels, margin=margin, scale=scale, axis=axis, where=where
  )


@row_loss(
  domains={
    "multiplicative": "(0, inf)",
    "scale": "(0, inf)",
    "monotonic": bool,
  },
  transform=_BY_SCALE,
)
def _combined_margin(
  stats: RowStats,
  *,
  multiplicative: jax.Array,
  additive: jax.Array,
  cosine: jax.Array,
  scale: jax.Array,
  monotonic: bool,
) -> jax.Array:
  lowered = angles.lowered(
    stats,
    scale,
    factor=multiplicative,
    added=additive,
    subtracted=cosine,
    monotonic=monotonic,
  )
  return elementwise.softplus(stats.log_odds + lowered)


@_combined_margin.public
def combined_margin(
  cosines: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  multiplicative: jax.typing.ArrayLike = 1.0,
  additive: jax.typing.ArrayLike = 0.0,
  cosine: jax.typing.ArrayLike = 0.0,
  scale: jax.typing.ArrayLike = 64.0,
  monotonic: bool = True,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the cross-entropy of scaled cosines with three kinds of margin.

  Use when margins of different kinds should be combined. The ArcFace paper
  reports good results for ``multiplicative=1``, ``additive=0.3`` and
  ``cosine=0.2``.

  Avoid when one kind of margin is enough. By default there is no margin, and
  the loss is that of :func:`squentropy_jax.losses.normalized_softmax`.

  For one example with cosines :math:`c \in [-1, 1]^C`, class :math:`y`, margins
  :math:`m_1, m_2, m_3`, scale :math:`s` and :math:`t = m_1 \arccos c_y + m_2`,

  .. math::
    \ell(c, y) = \log \Bigl(1 + \sum_{k \ne y} e^{s (c_k - \psi + m_3)}
      \Bigr), \qquad \psi = \cos t \;\text{ for }\; 0 \le t \le \pi .

  With ``monotonic``, :math:`\psi` goes on decreasing for :math:`t > \pi`: as in
  :func:`squentropy_jax.losses.arcface` for :math:`m_1 = 1`, and otherwise as
  :math:`(-1)^j \cos t - 2 j` with :math:`j = \lfloor t / \pi \rfloor`, as in
  :func:`squentropy_jax.losses.sphereface`. Soft labels give the expected loss.
  Predictions use the cosines without the margins.

  Args:
    cosines: Cosines, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    multiplicative: The factor of the labelled angle, above 0: a scalar or one
      value for each example, shape ``[...]``.
    additive: The angle in radians that is added to the multiplied angle: a
      scalar or one value for each example, shape ``[...]``.
    cosine: Subtracted from the cosine of the changed angle: a scalar or one
      value for each example, shape ``[...]``.
    scale: Multiplies the cosines, above 0: a scalar or one value for each
      example, shape ``[...]``.
    monotonic: Whether the labelled logit goes on decreasing at large angles, a
      static bool.
    axis: The class axis of ``cosines``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the cosines' shape.

  Returns:
    The loss of each example, shape ``[...]``, float32 or wider. It is NaN if
    the labelled cosine is traced and outside [-1, 1] by more than 1/64.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete label, cosine or
      hyper-parameter is out of range.

  Examples:
    >>> cosines = jnp.array([[0.6, 0.2, -0.1], [0.8, 0.3, 0.7]])
    >>> labels = jnp.array([0, 2])
    >>> print(losses.combined_margin(cosines, labels, additive=0.3, cosine=0.2))
    [ 4.0631 34.7077]

  References:
    Deng et al., `ArcFace: Additive Angular Margin Loss for Deep Face
    Recognition <https://arxiv.org/abs/1801.07698>`_, CVPR 2019.

  .. seealso:: :func:`squentropy_jax.losses.arcface`
  """
  return _combined_margin(
    cosines,
    labels,
    multiplicative=multiplicative,
    additive=additive,
    cosine=cosine,
    scale=scale,
    monotonic=monotonic,
    axis=axis,
    where=where,
  )
