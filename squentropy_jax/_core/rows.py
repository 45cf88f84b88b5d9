# SPDX-License-Identifier: Apache-2.0
"""Row statistics, and the evaluation of a loss that is a formula over them."""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from squentropy_jax._core import checks as _checks
from squentropy_jax._core import class_sums as _moments


class RowStats(NamedTuple):
  r"""What a row loss may know of one row: the target and the rest.

  The rest are the classes :math:`k \ne y` that are possible, that is neither
  masked nor of logit ``-inf``. All fields have one shape and one dtype. With an
  empty rest the sums are 0 and the logarithms and the maximum ``-inf``.

  Attributes:
    target: The labelled logit :math:`z_y`.
    log_odds: :math:`\log \sum_{k \ne y} e^{z_k} - z_y`, the log-odds of the
      rest, :math:`\log \frac{1 - p_y}{p_y}`. Prefer it to
      ``rest_lse - target``, which loses the digits of a large common shift.
    rest_lse: :math:`\log \sum_{k \ne y} e^{z_k}`.
    rest_sum: :math:`\sum_{k \ne y} z_k`.
    rest_sq: :math:`\sum_{k \ne y} z_k^2`.
    rest_max: :math:`\max_{k \ne y} z_k`.
    num_classes: The target and the possible others, counted.
  """

  target: jax.Array
  log_odds: jax.Array
  rest_lse: jax.Array
  rest_sum: jax.Array
  rest_sq: jax.Array
  rest_max: jax.Array
  num_classes: jax.Array


class RowForm(Protocol):
  """A formula over `RowStats`, element by element."""

  def __call__(
    self, stats: RowStats, /, **hyperparameters: Any
  ) -> jax.Array: ...


_F = TypeVar("_F", bound=Callable[..., Any])


def with_row(
  row: Callable[..., jax.Array],
  logit_scale: Callable[..., jax.typing.ArrayLike] | None = None,
) -> Callable[[_F], _F]:
  """Gives a loss its row form, as the attribute ``row``.

  With ``logit_scale`` the statistics are those of the logits times
  ``logit_scale(**hyperparameters)``; it becomes an attribute too, else None.
  """

  def attach(loss: _F) -> _F:
    loss.row = row  # type: ignore[attr-defined]
    loss.logit_scale = logit_scale  # type: ignore[attr-defined]
    return loss

  return attach


def with_link(link: Callable[..., jax.Array]) -> Callable[[_F], _F]:
  """Gives a loss its link, as the attribute ``link``.

  ``link(logits, **hyperparameters)`` maps logits, the class axis last, to
  scores whose softmax is the forecast; impossible classes stay so. A loss
  without one has the softmax of the logits themselves.
  """

  @functools.wraps(link)
  def widened(
    logits: jax.typing.ArrayLike, **hyperparameters: Any
  ) -> jax.Array:
    array = _checks.as_logits(logits)
    array = array.astype(_checks.compute_dtype(array.dtype))
    scores = link(array, **hyperparameters)
    return jnp.where(array == -jnp.inf, array, scores)

  def attach(loss: _F) -> _F:
    loss.link = widened  # type: ignore[attr-defined]
    return loss

  return attach


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
  """The logistic function; its derivative keeps its digits on both sides."""
  return jax.lax.logistic(x)


sigmoid.defjvps(lambda dx, _, x: dx * sigmoid(x) * sigmoid(-x))


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
  """``log(1 + exp(x))``, with gradient ``sigmoid(x)`` at infinities too."""
  return jnp.maximum(x, 0.0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus.defjvps(lambda dx, _, x: dx * sigmoid(x))


def _log(x: jax.Array) -> jax.Array:
  """``log(x)``; at 0 it is ``-inf`` with gradient 0."""
  positive = x != 0
  return jnp.where(
    positive, jnp.log(jnp.where(positive, x, jnp.ones_like(x))), -jnp.inf
  )


def _rounding(a: jax.Array, b: jax.Array) -> jax.Array:
  """What ``a - b`` loses to rounding, exactly; 0 where it is not finite."""
  difference = a - b
  other = difference - a
  lost = (a - (difference - other)) - (b + other)
  lost = jnp.where(jnp.isfinite(difference), lost, jnp.zeros_like(lost))
  return jax.lax.stop_gradient(lost)


def stats_of(m: _moments.Moments) -> RowStats:
  """Row statistics from moments; NaN where a row has no defined loss."""
  log_mass = _log(m.mass)
  # +inf has no softmax; neither has a row without a possible class.
  undefined = (
    (m.target == jnp.inf)
    | (m.rest_max == jnp.inf)
    | ((m.target == -jnp.inf) & (m.rest_count == 0))
  )
  stats = RowStats(
    target=m.target,
    # A loss near exp(log_odds) turns each rounding of it into many ulps, so
    # there is one rounding only.
    log_odds=(m.shift - m.target) + (log_mass + _rounding(m.shift, m.target)),
    rest_lse=m.shift + log_mass,
    rest_sum=m.rest_sum,
    rest_sq=m.rest_sq,
    # A maximum need not carry a NaN; the mass does.
    rest_max=m.rest_max + 0.0 * jnp.where(jnp.isnan(m.mass), m.mass, 0.0),
    num_classes=m.rest_count + 1.0,
  )
  return poison(stats, undefined)


def centre(z: jax.Array, **_: Any) -> jax.Array:
  """The logits less their mean, for a loss that does not depend on it."""
  possible = z != -jnp.inf
  count = jnp.maximum(possible.sum(-1, keepdims=True, dtype=jnp.int32), 1)
  total = jnp.where(possible, z, jnp.zeros_like(z)).sum(-1, keepdims=True)
  return z - jax.lax.stop_gradient(total / count.astype(z.dtype))


def divided(z: jax.Array, scale: jax.typing.ArrayLike) -> jax.Array:
  """The logits less the largest, over ``scale``, for a loss of differences.

  So no digit of a common shift is lost to the division.
  """
  possible = z != -jnp.inf
  top = jax.lax.stop_gradient(z.max(-1, keepdims=True))
  # An infinity would make the slope in the scale NaN.
  below = jnp.where(possible, z - top, jnp.zeros_like(z))
  return jnp.where(possible, below / scale, z)


def poison(stats: RowStats, bad: jax.Array) -> RowStats:
  """Makes the value and the gradient of bad rows NaN."""
  factor = jnp.where(bad, jnp.nan, 1.0).astype(stats.target.dtype)
  out = RowStats(*(field * factor for field in stats))
  # The slope of a maximum reaches one logit; that of a sum reaches them all.
  return out._replace(rest_max=jnp.where(bad, out.rest_sum, out.rest_max))


class _Form(NamedTuple):
  """How a loss comes from a row, without its arrays.

  Attributes:
    formula: The row form; with ``apply`` a formula of more than statistics.
    prepare: What is done to the logits before their statistics, given the
      hyper-parameters; impossible classes hold ``-inf``.
    apply: ``apply(formula, stats, z, targets, hyperparameters)``, the losses of
      ``targets`` ``[..., n]`` in the rows ``z`` ``[..., C]``.
  """

  formula: Callable[..., jax.Array]
  prepare: Callable[..., jax.Array] | None = None
  apply: Callable[..., jax.Array] | None = None


def _hard(
  form: _Form,
  z: jax.Array,
  labels: jax.Array,
  keep: jax.Array | None,
  mask: jax.Array | None,
  hyperparameters: dict[str, jax.Array],
) -> jax.Array:
  """Loss of rows with class ids; a masked class holds ``-inf``."""
  last = min(z.shape[-1] - 1, jnp.iinfo(labels.dtype).max)
  bad = (labels < 0) | (labels > last)
  ids = jnp.clip(labels, 0, last).astype(jnp.int32)
  if mask is not None:
    own = _moments.class_ids(z) == ids[..., None]
    bad |= ~jnp.any(mask & own, axis=-1)
  stats = poison(stats_of(_moments.moments(z, ids, keep)), bad)
  if form.apply is None:
    return form.formula(stats, **hyperparameters)
  stats = RowStats(*(field[..., None] for field in stats))
  loss = form.apply(form.formula, stats, z, ids[..., None], hyperparameters)
  return loss[..., 0]


def leave_one_out(x: jax.Array, is_largest: jax.Array) -> jax.Array:
  """For every entry the sum of the others; never subtracts the largest."""
  zero = jnp.zeros_like(x)
  others = jnp.where(is_largest, zero, x).sum(-1, keepdims=True)
  return jnp.where(is_largest, others, x.sum(-1, keepdims=True) - x)


def all_class_stats(z: jax.Array) -> RowStats:
  """Statistics of every class taken as the target, in one pass over the row."""
  ids = _moments.class_ids(z)
  zero = jnp.zeros_like(z)
  possible = z != -jnp.inf
  size = jnp.where(possible, z, zero)

  def first_argmax(x: jax.Array) -> jax.Array:
    return ids == jnp.argmax(x, axis=-1).astype(ids.dtype)[..., None]

  is_top = first_argmax(z)
  top = jnp.where(is_top & possible, z, zero).sum(-1, keepdims=True)
  others = jnp.where(is_top, -jnp.inf, z)
  is_second = first_argmax(others)
  second = jnp.where(is_second & possible & ~is_top, z, zero)
  second = second.sum(-1, keepdims=True)
  count = possible.sum(-1, keepdims=True, dtype=jnp.int32).astype(z.dtype)
  # Shifted by the largest of the rest: the top class needs its own sum, the
  # other classes share one that holds the top and is therefore at least 1.
  shift = jax.lax.stop_gradient(jnp.where(is_top, second, top))
  shared = jnp.exp(z - jax.lax.stop_gradient(top))
  own = jnp.exp(others - jax.lax.stop_gradient(second)).sum(-1, keepdims=True)
  mass = jnp.where(is_top, own, leave_one_out(shared, is_top))
  is_widest = first_argmax(jnp.abs(size))
  rest_count = count - possible.astype(z.dtype)
  rest_max = jnp.where(is_top, second, jnp.broadcast_to(top, z.shape))
  return stats_of(
    _moments.Moments(
      target=z,
      shift=shift,
      mass=mass,
      rest_sum=leave_one_out(size, is_widest),
      rest_sq=leave_one_out(jnp.square(size), is_widest),
      rest_max=jnp.where(rest_count > 0, rest_max, -jnp.inf),
      rest_count=rest_count,
    )
  )


def _expected(
  form: _Form,
  z: jax.Array,
  labels: jax.Array,
  mask: jax.Array | None,
  hyperparameters: dict[str, jax.Array],
) -> jax.Array:
  """Expected loss under target distributions, ``sum_k p_k loss(z, k)``."""
  p = labels.astype(z.dtype)
  impossible = z == -jnp.inf
  stats = all_class_stats(z)

  def each(stats: RowStats) -> jax.Array:
    if form.apply is None:
      return form.formula(stats, **hyperparameters)
    ids = _moments.class_ids(z)
    return form.apply(form.formula, stats, z, ids, hyperparameters)

  # Mass 0 adds exactly 0 where the class is impossible or its loss infinite:
  # it is evaluated on harmless numbers there, or 0 * inf would be NaN.
  infinite = jnp.isinf(jax.lax.stop_gradient(each(stats)))
  skip = (p == 0) & (impossible | infinite)
  harmless = RowStats(*(jnp.zeros_like(z),) * 6, stats.num_classes)
  stats = RowStats(
    *(jnp.where(skip, h, s) for h, s in zip(harmless, stats, strict=True))
  )
  loss = jnp.where(skip, jnp.zeros_like(z), p * each(stats))
  bad = impossible.all(-1)
  if mask is not None:
    bad |= jnp.any((p != 0) & ~mask, axis=-1)
  return loss.sum(-1) * jnp.where(bad, jnp.nan, 1.0).astype(z.dtype)


# Compiled here, so that a call outside jit is one dispatch; inlined in a trace.
@functools.partial(jax.jit, static_argnums=(0, 1), inline=True)
def _evaluate(
  form: _Form,
  axis: int,
  logits: jax.Array,
  targets: jax.Array,
  where: jax.Array | None,
  hyperparameters: dict[str, jax.Array],
) -> jax.Array:
  """`evaluate` on checked arguments."""
  z = jnp.moveaxis(logits, axis, -1)
  z = z.astype(_checks.compute_dtype(z.dtype))
  hard = jnp.issubdtype(targets.dtype, jnp.integer)
  if not hard:
    targets = jnp.moveaxis(targets, axis, -1)
  keep, mask = where, None
  if where is not None and where.ndim == z.ndim:
    mask = jnp.moveaxis(where, axis, -1)
    keep = mask.any(-1)
    z = jnp.where(mask, z, -jnp.inf)
    mask |= ~keep[..., None]
  # Harmless inputs before any arithmetic, so that no NaN reaches a gradient.
  # The sums of a row form with class ids take `keep` and need no such pass.
  if keep is not None:
    if not hard or form.prepare is not None or form.apply is not None:
      z = jnp.where(keep[..., None], z, jnp.zeros_like(z))
    kept = keep if hard else keep[..., None]
    targets = jnp.where(kept, targets, jnp.zeros_like(targets))
  if form.prepare is not None:
    z = form.prepare(z, **hyperparameters)
  if hard:
    loss = _hard(form, z, targets, keep, mask, hyperparameters)
  else:
    loss = _expected(form, z, targets, mask, hyperparameters)
  return loss if keep is None else jnp.where(keep, loss, jnp.zeros_like(loss))


def evaluate(
  row: Callable[..., jax.Array],
  logits: jax.typing.ArrayLike,
  labels: jax.typing.ArrayLike,
  *,
  axis: int = -1,
  where: jax.typing.ArrayLike | None = None,
  prepare: Callable[..., jax.Array] | None = None,
  apply: Callable[..., jax.Array] | None = None,
  **hyperparameters: tuple[Any, str],
) -> jax.Array:
  """The per-example loss whose row form is ``row``: every law in one place.

  `_Form` tells what ``prepare`` and ``apply`` are. A hyper-parameter comes with
  the interval that it must be in.
  """
  array, targets, axis, where = _checks.as_examples(logits, labels, axis, where)
  dtype = _checks.compute_dtype(array.dtype)
  scalars = _checks.as_scalars(hyperparameters, dtype)
  form = _Form(row, prepare, apply)
  return _evaluate(form, axis, array, jnp.asarray(targets), where, scalars)


def hyperparameter_names(row: Callable[..., Any]) -> tuple[str, ...]:
  """The keyword-only arguments of a row form."""
  parameters = inspect.signature(row).parameters.values()
  return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
