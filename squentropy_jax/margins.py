# SPDX-License-Identifier: Apache-2.0
"""Margins, scales and temperatures that are chosen from the data."""

import jax

from squentropy_jax.losses._ldr import _aldr_kl_temperature


def aldr_kl_temperature(
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  base_temperature: jax.typing.ArrayLike = 1.0,
  alpha: jax.typing.ArrayLike = 2.0,
  margin: jax.typing.ArrayLike = 0.0,
  num_iters: int = 30,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
) -> jax.Array:
  r"""Computes the temperature of each example in the ALDR-KL loss.

  Use it to see which examples :func:`squentropy_jax.losses.aldr_kl` treats as
  ambiguous.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  it is the :math:`\lambda` that solves

  .. math::
    \lambda = \text{base\_temperature} \, \Bigl(1 -
      \frac{\mathrm{KL}(q(\lambda) \Vert u)}{\text{alpha} \log C}\Bigr),
    \qquad q_k(\lambda) \propto
      \exp \frac{z_k + \text{margin} \, [k \ne y]}{\lambda} ,

  where :math:`u` is the uniform distribution. It lies between
  :math:`\text{base\_temperature} \, (1 - 1 / \text{alpha})`, for a confident
  prediction, and ``base_temperature``, for a uniform one. Soft labels give the
  expected temperature. Masked classes do not count in :math:`C`.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Class ids, integers of shape ``[...]``, or target distributions,
      floats of shape ``[..., num_classes]``.
    base_temperature: Temperature of an example without any preference,
      positive: a scalar or one value for each example, shape ``[...]``.
    alpha: Weight of the penalty on the temperature, in units of
      :math:`\log(C) / \text{base\_temperature}`, above 1: a scalar or one value
      for each example, shape ``[...]``. From 1.5 on, the default number of
      steps is enough. Close to 1 the solution need not be unique.
    margin: The lead that the labelled class should have, 0 or more: a scalar
      or one value for each example, shape ``[...]``.
    num_iters: Steps of the fixed-point iteration, a static int. One Newton step
      follows.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of the logits' shape.

  Returns:
    The temperature of each example, shape ``[...]``, float32 or wider; 0 for
    dropped ones.

  Raises:
    TypeError: If the dtype of an argument does not fit.
    ValueError: If a shape does not fit, or if a concrete class id or
      hyper-parameter is out of range.

  Examples:
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(margins.aldr_kl_temperature(logits, jnp.array([0, 2])))
    [0.5763 0.9616]

  References:
    Zhu, Ying and Yang, `Label Distributionally Robust Losses for Multi-class
    Classification: Consistency, Robustness and Adaptivity
    <https://arxiv.org/abs/2112.14869>`_, ICML 2023.

  .. seealso:: :func:`squentropy_jax.losses.aldr_kl`
  """
  return _aldr_kl_temperature(
    logits,
    labels,
    base_temperature=base_temperature,
    alpha=alpha,
    margin=margin,
    num_iters=num_iters,
    axis=axis,
    where=where,
  )
