# SPDX-License-Identifier: Apache-2.0
"""The base class of losses of logits and labels, which also predict."""

from collections.abc import Callable
import functools
from typing import Any, Generic, ParamSpec

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks
from squentropy_jax._core.hyperparameters import Hyperparameters, expanded

P = ParamSpec("P")
# ``log_scores(logits, **hyperparameters)`` returns scores whose softmax is the
# predicted distribution. The class axis is the last one.
LogScores = Callable[..., jax.Array]


class Loss(Generic[P]):
  """A loss of logits and labels, with the probabilities that it predicts.

  The object is called like the function from which it is made, and has the
  signature of that function.

  Attributes:
    hyperparameters: The names, domains and defaults of the hyper-parameters.
    predicts_softmax: Whether the predicted probabilities are the softmax of
      the logits.
  """

  __name__: str
  __qualname__: str

  def __init__(
    self,
    function: Callable[P, jax.Array],
    hyperparameters: Hyperparameters,
    log_scores: LogScores | None = None,
  ) -> None:
    functools.update_wrapper(self, function)
    self._function = function
    self._log_scores = log_scores
    self.hyperparameters = hyperparameters

  def __call__(self, *args: P.args, **kwargs: P.kwargs) -> jax.Array:
    return self._function(*args, **kwargs)

  def __repr__(self) -> str:
    return f"<loss {self.__name__}>"

  def __reduce__(self) -> str:
    # Pickle stores the name only, as it does for functions.
    return self.__qualname__

  @property
  def predicts_softmax(self) -> bool:
    """Whether the predicted probabilities are the softmax of the logits."""
    return self._log_scores is None

  def log_probs(
    self,
    logits: jax.typing.ArrayLike,
    *,
    axis: int = -1,
    **hyperparameters: Any,
  ) -> jax.Array:
    """Computes the log-probabilities that a model trained with it predicts.

    Args:
      logits: Scores, shape ``[..., num_classes]``, any floating dtype.
      axis: The class axis of ``logits``.
      **hyperparameters: The hyper-parameters of the loss, scalars or arrays of
        the batch shape.

    Returns:
      The logarithms of the probabilities of the classes, in the logits' shape,
      float32 or wider. They are ``-inf`` where a logit is ``-inf``, and NaN in
      a row with a NaN or ``+inf``.
    """
    if "where" in hyperparameters:
      raise TypeError(
        "log_probs has no argument where. Set the logits of masked classes to "
        "-inf."
      )
    array = checks.as_logits(logits)
    axis = checks.as_axis(axis, array)
    checks.check_num_classes(array.shape[axis])
    dtype = checks.compute_dtype(array.dtype)
    z = jnp.moveaxis(array.astype(dtype), axis, -1)
    values = self.hyperparameters.complete(hyperparameters, self.__name__)
    numbers, static = self.hyperparameters.split(values)
    numbers = self.hyperparameters.as_arrays(numbers, dtype, z.shape[:-1])
    return jnp.moveaxis(
      _log_probs(self._log_scores, static, z, numbers), -1, axis
    )


@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _log_probs(
  log_scores: LogScores | None,
  static: tuple[tuple[str, Any], ...],
  z: jax.Array,
  numbers: dict[str, jax.Array],
) -> jax.Array:
  scores = z
  if log_scores is not None:
    scores = log_scores(z, **expanded(numbers), **dict(static))
    # A class that is impossible stays impossible, whatever score it gets.
    scores = jnp.where(z == -jnp.inf, z, scores)
    # A formula may clip a NaN or an infinity to a finite score.
    invalid = jnp.isnan(z) | (z == jnp.inf)
    scores = jnp.where(invalid, jnp.full_like(scores, jnp.nan), scores)
  return jax.nn.log_softmax(scores, axis=-1)
