# SPDX-License-Identifier: Apache-2.0
"""Activations of infinitely deep networks, by their Hermite coefficients."""

from collections.abc import Callable
import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import checks

# A coefficient of at most this absolute value is 0.
_ZERO = 1e-12
# The same in types narrower than float64. A sum of squares that differs from 1
# by at most this is 1.
_TOLERANCE = 1e-6

Limit = Literal["nearest_neighbor", "majority_vote", "singular_kernel"]


def _as_coefficients(hermite_coefficients: ArrayLike) -> np.ndarray:
  name = "hermite_coefficients"
  array = checks.as_array(hermite_coefficients, name)
  if not checks.is_concrete(array):
    raise TypeError(
      f"{name} must be concrete numbers, got {array}. Compute them outside "
      "jax.jit."
    )
  checks.check_real(name, array)
  found = np.asarray(array, np.float64)
  if found.ndim != 1 or found.size == 0:
    raise ValueError(
      f"{name} must be numbers a_0, a_1, ... in one axis, got shape "
      f"{found.shape}."
    )
  checks.check_interval(name, found, "(-inf, inf)")
  return found


def _as_float(x: ArrayLike, name: str) -> jax.Array:
  array = checks.as_floats(x, name)
  return array.astype(checks.compute_dtype(array.dtype))


@dataclasses.dataclass(frozen=True)
class _HermiteSeries:
  """A sum of normalised Hermite polynomials, a function of an array."""

  hermite_coefficients: tuple[float, ...]

  def __call__(self, x: ArrayLike) -> jax.Array:
    z = checks.as_floats(x, "x")
    wide = z.astype(checks.compute_dtype(z.dtype))
    before, now = jnp.zeros_like(wide), jnp.ones_like(wide)
    total = self.hermite_coefficients[0] * now
    for k, coefficient in enumerate(self.hermite_coefficients[1:]):
      following = (wide * now - math.sqrt(k) * before) / math.sqrt(k + 1)
      before, now = now, following
      if coefficient:
        total = total + coefficient * now
    return total.astype(z.dtype)


def dual_activation(
  hermite_coefficients: ArrayLike,
) -> Callable[[ArrayLike], jax.Array]:
  r"""Computes how a layer of infinite width maps cosine similarities.

  Use it to follow the similarity of two inputs through the layers of a network
  with random weights.

  .. math::
    D(\xi) = \operatorname{E}[\phi(u) \phi(v)] = \sum_i a_i^2 \xi^i, \qquad
    \phi = \sum_i a_i h_i

  for standard normal :math:`u, v` of correlation :math:`\xi`. The :math:`h_i`
  are the probabilists' Hermite polynomials, normalised to
  :math:`\operatorname{E}[h_i(u)^2] = 1`.

  Args:
    hermite_coefficients: The numbers :math:`a_0, a_1, \ldots`, concrete, of
      shape ``[k]``.

  Returns:
    A differentiable function of similarities in [-1, 1], of any shape. It
    returns an array of that shape, float32 or wider.

  Raises:
    TypeError: If the coefficients are traced or not numbers.
    ValueError: If they are not finite numbers in one axis.

  Examples:
    >>> dual = probes.dual_activation([0.0, 0.6, 0.8])
    >>> print(dual(jnp.array([0.0, 0.5, 1.0])))
    [0.   0.34 1.  ]

  References:
    Radhakrishnan, Belkin and Uhler, `Wide and Deep Neural Networks Achieve
    Optimality for Classification <https://arxiv.org/abs/2204.14126>`_, 2022.
  """
  squares = np.square(_as_coefficients(hermite_coefficients))

  def dual(similarity: ArrayLike) -> jax.Array:
    xi = _as_float(similarity, "similarity")
    total = jnp.zeros_like(xi)
    for square in squares[::-1]:
      total = total * xi + float(square)
    return total

  return dual


def optimal_activation(dim: int) -> Callable[[ArrayLike], jax.Array]:
  r"""Makes the activation whose infinitely deep network is consistent.

  Use it for a network that approximates the classifier of
  :func:`singular_kernel_log_probs`. The kernel of the network tends to
  :math:`\lVert x - x' \rVert^{-d}` for inputs on a sphere of :math:`d`
  dimensions. As the number of examples grows, the error of that classifier
  tends to the least possible one.

  .. math::
    \phi = 2^{-d/4} h_1 + \sqrt{1 - 2^{1 - d/2}}\, h_2 + 2^{-d/4} h_3
    \quad (d \ge 2), \qquad
    \phi = (h_1 + h_7) / \sqrt 2 \quad (d = 1)

  with the polynomials :math:`h_i` of :func:`dual_activation`. The dual
  activation :math:`D` has :math:`A = D'(0) = 2^{-d/2}` and
  :math:`B = D'(1) = 2`. For :math:`d = 1` they are 1/2 and 4.

  Args:
    dim: The dimension :math:`d` of the sphere, a static int, 1 or more.

  Returns:
    A function of an array, to be used as the activation of a network. Its
    attribute ``hermite_coefficients`` holds the numbers :math:`a_i`. The result
    has the dtype of its argument.

  Raises:
    TypeError: If ``dim`` is not an int.
    ValueError: If ``dim`` is below 1.

  Examples:
    >>> activation = probes.optimal_activation(2)
    >>> print(activation(jnp.array([-1.0, 0.0, 1.0])))
    [-0.1298  0.      0.1298]
    >>> print(probes.infinite_depth_limit(activation.hermite_coefficients))
    singular_kernel

  References:
    Radhakrishnan, Belkin and Uhler, `Wide and Deep Neural Networks Achieve
    Optimality for Classification <https://arxiv.org/abs/2204.14126>`_, 2022.
  """
  d = checks.as_count("dim", dim)
  if d == 1:
    half = math.sqrt(0.5)
    return _HermiteSeries((0.0, half, 0.0, 0.0, 0.0, 0.0, 0.0, half))
  odd = 2.0 ** (-d / 4)
  even = math.sqrt(1.0 - 2.0 ** (1 - d / 2))
  return _HermiteSeries((0.0, odd, even, odd))


def infinite_depth_limit(hermite_coefficients: ArrayLike) -> Limit:
  r"""Computes which classifier a network of infinite width and depth becomes.

  Use it to choose an activation: most common ones lead to a majority vote or to
  the nearest neighbour.

  With the dual activation :math:`D`, :math:`A = D'(0)` and :math:`B = D'(1)`,

  .. math::
    \begin{cases}
      \text{majority vote} & D(0) > 0 \\
      \text{nearest neighbour} & D(0) = 0,\; A = 0 \\
      \text{singular kernel } \lVert x - x' \rVert^{-\alpha},\;
      \alpha = 2 \log(1/A) / \log B & D(0) = 0,\; 0 < A < 1 < B .
    \end{cases}

  Args:
    hermite_coefficients: The numbers :math:`a_0, a_1, \ldots` of
      :func:`dual_activation`, concrete, of shape ``[k]``. Their squares sum to
      1 within 1e-6. A coefficient counts as 0 up to an absolute value of 1e-12
      in Python floats and float64 arrays, and of 1e-6 in arrays of narrower
      types.

  Returns:
    ``"nearest_neighbor"``, ``"majority_vote"`` or ``"singular_kernel"``.

  Raises:
    TypeError: If the coefficients are traced or not numbers.
    ValueError: If their squares do not sum to 1, or if the activation is linear
      (:math:`A = B = 1`), where the theory has no answer.

  Examples:
    >>> for coefficients in ([0.6, 0.8], [0.0, 0.0, 1.0], [0.0, 0.6, 0.8]):
    ...   print(probes.infinite_depth_limit(coefficients))
    majority_vote
    nearest_neighbor
    singular_kernel

  References:
    Radhakrishnan, Belkin and Uhler, `Wide and Deep Neural Networks Achieve
    Optimality for Classification <https://arxiv.org/abs/2204.14126>`_, 2022.
  """
  a = _as_coefficients(hermite_coefficients)
  given = checks.as_array(hermite_coefficients, "hermite_coefficients").dtype
  # Integers are exact.
  narrow = jnp.issubdtype(given, jnp.floating) and given.itemsize < 8
  zero = _TOLERANCE if narrow else _ZERO
  total = float(np.sum(np.square(a)))
  if abs(total - 1.0) > _TOLERANCE:
    raise ValueError(
      "hermite_coefficients must have squares that sum to 1, got a sum of "
      f"{total:.7g}. Divide them by its square root."
    )
  if abs(a[0]) > zero:
    return "majority_vote"
  first = abs(a[1]) if a.size > 1 else 0.0
  if first <= zero:
    return "nearest_neighbor"
  # The squares sum to 1, so the other coefficients are 0 and B is 1 as well.
  if first**2 >= 1.0 - _TOLERANCE:
    raise ValueError(
      "hermite_coefficients must not be those of a linear activation (A = B = "
      f"1 within {_TOLERANCE}), got a_1 = {a[1]:.7g}. Its infinitely deep "
      "network has no limit in the theory. Add a term of a higher degree."
    )
  return "singular_kernel"
