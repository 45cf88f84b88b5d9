# SPDX-License-Identifier: Apache-2.0
"""Row losses: formulas over `RowStats`, declared once by `row_loss`."""

from collections.abc import Callable, Mapping
import functools
import inspect
from typing import Any, Generic, ParamSpec, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from squentropy_jax._core import angles, class_sums, dense_sums, spherical_form
from squentropy_jax._core import labels as prelude
from squentropy_jax._core.class_sums import RowStats
from squentropy_jax._core.declared import LogScores, Loss, P
from squentropy_jax._core.distributions import Target, row_unit
from squentropy_jax._core.hyperparameters import (
  Domain,
  Hyperparameters,
  Static,
  declared,
  expanded,
  with_defaults_of,
)
from squentropy_jax._core.transform import Transform

Q = ParamSpec("Q")
# ``formula(stats, **hyperparameters)`` works element by element. If the
# transform rescales, the unit of the row is a second positional argument.
RowFormula = Callable[..., jax.Array]


class RowLoss(Loss[P], Generic[P]):
  """A loss that is a formula over `RowStats`; made by `row_loss`.

  Attributes:
    formula: The formula.
    transform: The transform of the logits, or None.
    uniform: The formula of the mean loss over all possible classes as the
      target, or None.
    scores_name: What error messages call the scores. Scores with the name
      ``cosines`` must be in [-1, 1].
  """

  def __init__(
    self,
    function: Callable[P, jax.Array],
    formula: RowFormula,
    hyperparameters: Hyperparameters,
    transform: Transform | None,
    log_scores: LogScores | None,
    uniform: RowFormula | None,
  ) -> None:
    super().__init__(function, hyperparameters, log_scores)
    self.formula = formula
    self.transform = transform
    self.uniform = uniform
    self.scores_name = "logits"

  def public(self, function: Callable[Q, jax.Array]) -> "RowLoss[Q]":
    """Returns the loss with the signature and docstring of ``function``.

    The hyper-parameters get the defaults in that signature, and the scores the
    name of its first argument.
    """
    # It is this loss that the function calls, and that raises the errors.
    self.scores_name = next(iter(inspect.signature(function).parameters))
    loss: RowLoss[Q] = RowLoss(
      function,
      self.formula,
      with_defaults_of(self.hyperparameters, function),
      self.transform,
      self._log_scores,
      self.uniform,
    )
    loss.scores_name = self.scores_name
    return loss

  def row(self, stats: RowStats, /, **hyperparameters: Any) -> jax.Array:
    """Computes the loss from row statistics, without checks.

    Args:
      stats: Row statistics. If the loss has a transform, they must be those of
        the transformed logits.
      **hyperparameters: The hyper-parameters of the loss, scalars or arrays of
        the statistics' shape.

    Returns:
      The loss of each row.
    """
    values = self.hyperparameters.complete(hyperparameters, self.__name__)
    return self.formula(stats, **values)

  @property
  def spherical(self) -> Callable[..., jax.Array]:
    """The loss as a function of three sums, for a factored output layer.

    ``spherical(target, total, total_sq, num_classes, **hyperparameters)`` takes
    the output of the labelled class, and the sum and the sum of squares of the
    outputs of all classes: floats of one shape, which the result has too. The
    hyper-parameters are checked as in the loss. Losses that read other
    statistics do not have this attribute.
    """
    more = self._beyond_sums(self.hyperparameters.default_settings())
    if more:
      raise AttributeError(
        f"{self.__name__} has no attribute 'spherical': {more}"
      )
    return functools.partial(spherical_form.of_sums, self, self._beyond_sums)

  def _beyond_sums(self, static: Static) -> str:
    """Why the loss has no spherical form; an empty string if it has one."""
    settings = {name for name, _ in static}
    names = (x for x in self.hyperparameters.domains if x not in settings)
    return spherical_form.beyond_sums(
      fields_read(self.formula, tuple(names), static)
    )

  def evaluate(
    self,
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
    **values: Any,
  ) -> jax.Array:
    """Checks and prepares the arguments, and computes the loss."""
    arguments, axis, static = prelude.checked(
      logits,
      labels,
      axis=axis,
      where=where,
      hyperparameters=self.hyperparameters,
      values=self.hyperparameters.complete(values, self.__name__),
      name=self.scores_name,
    )
    if self.scores_name == "cosines":
      angles.check_cosines(arguments, axis, self.scores_name)
    return _evaluate(self, axis, static, arguments)


# Compiled, so that a call outside jit is one dispatch. Inlined inside a trace.
@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _evaluate(
  loss: RowLoss[Any], axis: int, static: Static, arguments: prelude.Arguments
) -> jax.Array:
  assert arguments.labels is not None
  formula = functools.partial(loss.formula, **dict(static))
  is_hard = jnp.issubdtype(arguments.labels.dtype, jnp.integer)
  in_place = is_hard and loss.transform is None
  ready = prelude.prepare(
    arguments, axis, loss.hyperparameters, in_place=in_place
  )
  z, numbers = ready.logits, ready.numbers
  units: tuple[jax.Array, ...] = ()
  if loss.transform is not None:
    if loss.transform.rescale:
      units = (row_unit(z),)
    z = loss.transform(z, expanded(numbers))
  if is_hard:
    assert ready.ids is not None
    fields = fields_read(loss.formula, tuple(numbers), static)
    sums = dense_sums.class_sums(
      z,
      ready.ids,
      axis=axis if in_place else z.ndim - 1,
      keep=ready.keep,
      reads=class_sums.sums_for(fields),
    )
    stats = class_sums.set_nan(class_sums.row_stats(sums), ready.invalid)
    value = formula(stats, *(u[..., 0] for u in units), **numbers)
  else:
    target = Target(None, ready.probabilities)
    one_axis_more = expanded(numbers)
    value = target.expected(
      z, lambda stats: formula(stats, *units, **one_axis_more)
    )
    value *= prelude.nan_factor(ready.invalid, z.dtype)
  return prelude.drop(value, ready.keep)


@functools.lru_cache(maxsize=1024)
def fields_read(
  formula: RowFormula, numbers: tuple[str, ...], static: Static = ()
) -> frozenset[str]:
  """Returns the fields of `RowStats` on which a formula depends."""
  row = jax.ShapeDtypeStruct((3,), np.float32)
  number = jax.ShapeDtypeStruct((), np.float32)
  stats = RowStats._make([row] * len(RowStats._fields))
  jaxpr, out = jax.make_jaxpr(
    lambda s, h: formula(s, **h, **dict(static)), return_shape=True
  )(stats, dict.fromkeys(numbers, number))
  if getattr(out, "shape", None) != row.shape:
    raise TypeError(
      "the formula of a row loss must return one number for each row, computed "
      "from the statistics element by element. Of statistics of shape (3,) it "
      f"returns {out}."
    )
  jaxpr = jaxpr.jaxpr
  from jax.extend import core  # Slow to import.

  live = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
  for eqn in reversed(jaxpr.eqns):
    if live.intersection(eqn.outvars):
      live.update(v for v in eqn.invars if isinstance(v, core.Var))
  return frozenset(
    field
    for field, v in zip(RowStats._fields, jaxpr.invars, strict=False)
    if v in live
  )


def _signature(
  formula: RowFormula, hyperparameters: Hyperparameters
) -> inspect.Signature:
  """Returns the signature of a loss that is made from a formula alone."""
  kind = inspect.Parameter
  known = inspect.signature(formula).parameters
  return inspect.Signature(
    [
      kind("logits", kind.POSITIONAL_OR_KEYWORD, annotation=ArrayLike),
      kind("labels", kind.POSITIONAL_OR_KEYWORD, annotation=ArrayLike),
      *(known[name] for name in hyperparameters.domains),
      kind("axis", kind.KEYWORD_ONLY, default=-1, annotation=int),
      kind("where", kind.KEYWORD_ONLY, default=None),
    ],
    return_annotation=jax.Array,
  )


@overload
def row_loss(
  formula: RowFormula,
  *,
  domains: Mapping[str, Domain] | None = None,
  transform: Transform | None = None,
  log_probs: LogScores | None = None,
  uniform: RowFormula | None = None,
) -> RowLoss[Any]: ...


@overload
def row_loss(
  formula: None = None,
  *,
  domains: Mapping[str, Domain] | None = None,
  transform: Transform | None = None,
  log_probs: LogScores | None = None,
  uniform: RowFormula | None = None,
) -> Callable[[RowFormula], RowLoss[Any]]: ...


def row_loss(
  formula: RowFormula | None = None,
  *,
  domains: Mapping[str, Domain] | None = None,
  transform: Transform | None = None,
  log_probs: LogScores | None = None,
  uniform: RowFormula | None = None,
) -> RowLoss[Any] | Callable[[RowFormula], RowLoss[Any]]:
  r"""Makes a loss from a formula over the statistics of a row.

  Use it to add a loss that the library does not have. The loss is called as
  ``loss(logits, labels, *, hyperparameters, axis=-1, where=None)``, like the
  losses of the library. It takes class ids, soft labels, masks, and
  hyper-parameters for each example. It works in `fused.linear_loss`, also with
  the classes sharded over devices. For a formula :math:`f` and a row with class
  :math:`y`,

  .. math::
    \ell(z, y) = f(z_y, \; \{z_k\}_{k \ne y}), \qquad
    \ell(z, p) = \sum_k p_k \, \ell(z, k) .

  Declare a loss once, at the top of a module: what is compiled is kept for each
  declaration. A number that is traced or learned must be a hyper-parameter. A
  loss declared by the decorator can be pickled, one of a lambda cannot.

  Args:
    formula: A function ``formula(stats, *, hyperparameters)`` that computes the
      loss from `RowStats`, element by element, with jax.numpy operations. Its
      keyword-only arguments are the hyper-parameters of the loss, with the same
      defaults. Without ``formula``, ``row_loss`` returns a decorator.
    domains: The interval of each hyper-parameter, such as ``{"scale":
      "[0, inf)"}``, or ``bool`` for a static choice, ``int`` for a static count
      of 1 or more and a tuple for one of some names. By default every real
      number is allowed.
    transform: What is done to the logits before their statistics, such as
      ``rows.Transform(divide_by="temperature")``.
    log_probs: ``log_probs(logits, **hyperparameters)`` gives scores whose
      softmax is what a model trained with the loss predicts; the class axis is
      the last one. By default that is the softmax of the logits, divided as
      ``transform`` says.
    uniform: The formula of the mean loss over all possible classes as the
      target, for label smoothing in fused heads.

  Returns:
    The loss, or a decorator that makes it.

  Raises:
    TypeError: If ``domains`` names an argument that the formula does not have;
      if the formula has an argument ``axis`` or ``where``, or positional ones
      in addition to ``stats``; or, when the loss is called, if the formula
      does not return an array of the statistics' shape.
    ValueError: If an interval cannot be read, or if ``transform`` divides or
      multiplies by an argument that the formula does not have, or that may be
      0.

  Examples:
    >>> my_loss = squentropy_jax.row_loss(
    ...   lambda stats, *, scale=1.0: stats.log_z + scale * stats.rest_sq
    ... )
    >>> logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 1.0, 0.0]])
    >>> print(my_loss(logits, jnp.array([0, 2]), scale=0.1))
    [2.2698 1.8053]

  References:
    The reduction of a loss to sums over classes is that of Wijmans et al., `Cut
    Your Losses in Large-Vocabulary Language Models
    <https://arxiv.org/abs/2411.09009>`_, ICLR 2025.

  .. seealso:: :class:`squentropy_jax.RowStats`,
    :func:`squentropy_jax.fused.linear_loss`
  """
  if formula is None:
    return functools.partial(
      row_loss,
      domains=domains,
      transform=transform,
      log_probs=log_probs,
      uniform=uniform,
    )
  transform = Transform() if transform is None else transform
  hyperparameters = declared(formula, domains, 1 + _rescales(transform))
  _check_scaling(transform, hyperparameters)
  if log_probs is None and transform.scaled_by is not None:
    # What is trained is the softmax of the divided or multiplied logits.
    log_probs = functools.partial(_scaled, transform)

  def call(logits: ArrayLike, labels: ArrayLike, **keywords: Any) -> jax.Array:
    return loss.evaluate(logits, labels, **keywords)

  functools.update_wrapper(call, formula)
  call.__signature__ = _signature(  # type: ignore[attr-defined]
    formula, hyperparameters
  )
  loss: RowLoss[Any] = RowLoss(
    call,
    formula,
    hyperparameters,
    None if transform == Transform() else transform,
    log_probs,
    uniform,
  )
  return loss


def _rescales(transform: Any) -> bool:
  """Whether the formula has a second positional argument."""
  if not isinstance(transform, Transform):
    raise TypeError(
      "transform must be a rows.Transform, such as "
      f'rows.Transform(divide_by="temperature"), got {transform!r}.'
    )
  if transform.subtract not in (None, "max", "mean"):
    raise ValueError(
      "transform.subtract must be 'max', 'mean' or None, got "
      f"{transform.subtract!r}."
    )
  return transform.rescale


def _check_scaling(
  transform: Transform, hyperparameters: Hyperparameters
) -> None:
  name = transform.scaled_by
  if name is None:
    return
  if None not in (transform.divide_by, transform.multiply_by):
    raise ValueError(
      "transform must either divide or multiply the logits, got divide_by="
      f"{transform.divide_by!r} and multiply_by={transform.multiply_by!r}."
    )
  does = "multiplies" if transform.divide_by is None else "divides"
  if name not in hyperparameters.domains:
    known = ", ".join(hyperparameters.domains) or "none"
    raise ValueError(
      f"transform {does} by {name!r}, which is no keyword-only argument of the "
      f"formula. It has {known}."
    )
  if hyperparameters.allows_zero(name):
    raise ValueError(
      f"transform {does} by {name!r}, whose domain "
      f"{hyperparameters.domains[name]!r} contains 0. Declare a domain without "
      f"it, such as domains={{{name!r}: '(0, inf)'}}."
    )


def _scaled(
  transform: Transform, z: jax.Array, **numbers: jax.Array
) -> jax.Array:
  return transform._replace(subtract="max")(z, numbers)
