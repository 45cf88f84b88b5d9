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
  r"""The temperature of each example in :func:`squentropy_jax.losses.aldr_kl`.

  For one example with logits :math:`z \in \mathbb{R}^C` and class :math:`y`,
  the :math:`\lambda` that solves

  .. math::
    \lambda = \text{base\_temperature} \, \Bigl(1 -
      \frac{\mathrm{KL}(q(\lambda) \Vert u)}{\text{alpha} \log C}\Bigr),
    \qquad q_k(\lambda) \propto
      \exp \frac{z_k + \text{margin} \, [k \ne y]}{\lambda} .

  It lies between :math:`\text{base\_temperature} \, (1 - 1 / \text{alpha})`,
  for a sure model, and ``base_temperature``, for one without preference. Soft
  labels give the expected temperature.

  Args:
    logits: Scores, shape ``[..., num_classes]``, any floating dtype.
    labels: Either class ids, integers of shape ``[...]``, or target
      distributions, floats of shape ``[..., num_classes]``.
    base_temperature: Temperature of an example without any preference,
      positive.
    alpha: How strongly the temperature is held, in units of
      :math:`\log(C) / \text{base\_temperature}`; above 1. From 1.5 on the
      default number of steps is enough; close to 1 the solution may be one of
      several.
    margin: Lead that the labelled class is to have, not negative.
    num_iters: Steps of the fixed-point iteration, an int; one of Newton's
      method follows.
    axis: The class axis of ``logits``.
    where: Which examples to keep, booleans of shape ``[...]``, or which
      classes, booleans of ``logits.shape``. Dropped examples have loss and
      gradient 0; masked classes do not count in :math:`C`.

  Returns:
    The temperature of each example, shape ``[...]``, float32 or wider; 0 for
    dropped ones.

  Raises:
    TypeError: If ``logits`` is not floating, or if integer ``labels`` look like
      one-hot rows or float ``labels`` like class ids.
    ValueError: If the shapes of ``labels`` or ``where`` fit neither form above;
      if a concrete class id is out of range (a traced one gives NaN); if a
      hyper-parameter that can be read is outside its domain.

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
