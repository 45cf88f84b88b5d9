# SPDX-License-Identifier: Apache-2.0
"""From the sums of a row to its loss: row form, sparse targets, smoothing."""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp

from squentropy_jax import losses
from squentropy_jax._core import class_sums as _moments
from squentropy_jax._core import rows as _rows
from squentropy_jax.fused._tiles import Sums, shift_of, shrink_of


class Targets(NamedTuple):
  """What the rows ``[...]`` aim at, by `hard_targets` or `sparse_targets`.

  Attributes:
    ids: Class ids ``[..., K]``, different within a row; -1 for an unused one.
    probabilities: Their weights ``[..., K]``, or None for class ids.
    bad: Which are out of range, ``[..., K]``.
    keep: Which rows count, ``[...]``, or None for all.
  """

  ids: jax.Array
  probabilities: jax.Array | None
  bad: jax.Array
  keep: jax.Array | None


def _clipped(ids: jax.Array, num_classes: int) -> tuple[jax.Array, jax.Array]:
  # Compared in their own type: a narrower one would turn bad ids into good.
  last = min(num_classes - 1, jnp.iinfo(ids.dtype).max)
  bad = (ids < 0) | (ids > last)
  return jnp.clip(ids, 0, last).astype(jnp.int32), bad


def hard_targets(
  labels: jax.Array, num_classes: int, keep: jax.Array | None
) -> Targets:
  """Targets for one class id per row."""
  ids, bad = _clipped(labels[..., None], num_classes)
  if keep is not None:
    ids = jnp.where(keep[..., None], ids, -1)
    bad &= keep[..., None]
  return Targets(ids, None, bad, keep)


def sparse_targets(
  ids: jax.Array,
  probabilities: jax.Array,
  num_classes: int,
  keep: jax.Array | None,
) -> Targets:
  """Targets for some class ids per row: equal ones are put together."""
  ids, bad = _clipped(ids, num_classes)
  used = probabilities != 0
  if keep is not None:
    used &= keep[..., None]
  spoilt = bad & used
  probabilities = jnp.where(used, probabilities, jnp.zeros_like(probabilities))
  # Sorted, equal ids stand together and give what they have to their first.
  ids = jnp.where(used, ids, -1)
  order = jnp.argsort(ids, axis=-1)
  ids, probabilities = (
    jnp.take_along_axis(x, order, axis=-1) for x in (ids, probabilities)
  )
  before = jnp.concatenate([ids[..., :1] - 1, ids[..., :-1]], axis=-1)
  first = ids != before
  starts = jax.lax.cummax(
    jnp.where(
      first, jax.lax.broadcasted_iota(jnp.int32, ids.shape, ids.ndim - 1), 0
    ),
    axis=ids.ndim - 1,
  )

  @functools.partial(jnp.vectorize, signature="(k),(k)->(k)")
  def merged(starts: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.zeros_like(values).at[starts].add(values)

  return Targets(
    ids=jnp.where(first, ids, -1),
    probabilities=merged(starts, probabilities),
    # A bad id spoils its row, whichever it was put together with.
    bad=jnp.any(spoilt, axis=-1, keepdims=True),
    keep=keep,
  )


class _Part(NamedTuple):
  """Sums as in `Sums`, over some of the targets of a row."""

  top: jax.Array
  mass: jax.Array
  total: jax.Array
  square: jax.Array


def _joined(a: _Part, b: _Part) -> _Part:
  """The sums over both."""
  top = jnp.maximum(a.top, b.top)
  shift = shift_of(top)
  mass = a.mass * shrink_of(a.top, shift) + b.mass * shrink_of(b.top, shift)
  return _Part(top, mass, a.total + b.total, a.square + b.square)


def _of_others(each: _Part) -> _Part:
  """For every target ``[..., K]`` the sums over the others of its row."""
  axis = each.top.ndim - 1
  none = (-jnp.inf, 0.0, 0.0, 0.0)

  def shifted(x: jax.Array, empty: float, reverse: bool) -> jax.Array:
    end = jnp.full_like(x[..., :1], empty)
    parts = [x[..., 1:], end] if reverse else [end, x[..., :-1]]
    return jnp.concatenate(parts, axis=-1)

  before, after = (
    jax.lax.associative_scan(
      _joined,
      _Part(*(shifted(x, e, r) for x, e in zip(each, none, strict=True))),
      reverse=r,
      axis=axis,
    )
    for r in (False, True)
  )
  return _joined(before, after)


def row_stats(
  sums: Sums, num_classes: jax.Array | int, targets: Targets
) -> _rows.RowStats:
  """Statistics ``[..., K]`` of each target; those of unused ones are finite.

  ``num_classes`` counts the possible ones. The other targets of a row belong to
  the rest of each.
  """
  own = sums.own
  used = targets.ids >= 0
  possible = used & (own != -jnp.inf)
  z = jnp.where(possible, own, jnp.zeros_like(own))
  top = jnp.where(possible, own, -jnp.inf)
  each = _Part(top, jnp.exp(top - shift_of(top)), z, jnp.square(z))
  rest = _Part(sums.top, sums.mass, sums.total, sums.square)
  rest = jax.tree.map(lambda x: x[..., None], rest)
  rest = _joined(rest, _of_others(each))
  rest_count = num_classes - possible.astype(jnp.int32)
  moments = _moments.Moments(
    target=own,
    shift=shift_of(rest.top),
    mass=rest.mass,
    rest_sum=rest.total,
    rest_sq=rest.square,
    rest_max=rest.top,
    rest_count=rest_count.astype(own.dtype),
  )
  moments = _moments.Moments(
    *(jnp.where(used, field, jnp.ones_like(field)) for field in moments)
  )
  # An infinite logit, which only a largest one or an exponential would tell.
  lost = jnp.isnan(sums.total) | jnp.isnan(sums.square)
  return _rows.poison(_rows.stats_of(moments), targets.bad | lost[..., None])


class RowLoss(NamedTuple):
  """A row loss, without its hyper-parameters.

  Attributes:
    row: The row form.
    logit_scale: What the logits are multiplied by, given the hyper-parameters,
      or None.
    uniform: The row form of the mean loss over all possible classes as targets,
      or None if labels are not smoothed.
  """

  row: Callable[..., jax.Array]
  logit_scale: Callable[..., jax.Array] | None
  uniform: Callable[..., jax.Array] | None


class Hyper(NamedTuple):
  """The traced numbers of a `RowLoss`."""

  row: dict[str, jax.Array]
  smoothing: jax.Array | None


def _each(loss: RowLoss, hyper: Hyper, stats: _rows.RowStats) -> jax.Array:
  value = loss.row(stats, **hyper.row)
  if loss.uniform is None or hyper.smoothing is None:
    return value
  # A target that is impossible has the limit of the loss, not inf - inf.
  possible = stats.target != -jnp.inf
  zero = jnp.zeros_like(value)
  target = jnp.where(possible, stats.target, zero)
  mean = loss.uniform(stats._replace(target=target), **hyper.row)
  more = jnp.where(possible, mean, zero) - jnp.where(possible, value, zero)
  return value + hyper.smoothing * more


def row_losses(
  loss: RowLoss,
  hyper: Hyper,
  sums: Sums,
  num_classes: jax.Array | int,
  targets: Targets,
) -> jax.Array:
  """The loss of each row; 0 for a dropped one."""
  each = _each(loss, hyper, row_stats(sums, num_classes, targets))
  if targets.probabilities is not None:
    each *= targets.probabilities
  return jnp.where(targets.ids >= 0, each, jnp.zeros_like(each)).sum(-1)


@functools.cache
def fields_read(loss: RowLoss, names: tuple[str, ...]) -> frozenset[str]:
  """The fields of `RowStats` that a loss depends on."""
  number = jax.ShapeDtypeStruct((), jnp.float32)
  stats = _rows.RowStats._make([number] * len(_rows.RowStats._fields))
  hyper = Hyper._make((dict.fromkeys(names, number), number))
  jaxpr = jax.make_jaxpr(lambda s, h: _each(loss, h, s))(stats, hyper).jaxpr
  live = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
  for eqn in reversed(jaxpr.eqns):
    if live.intersection(eqn.outvars):
      live.update(v for v in eqn.invars if isinstance(v, core.Var))
  return frozenset(
    field
    for field, v in zip(_rows.RowStats._fields, jaxpr.invars, strict=False)
    if v in live
  )


# The mean over all possible classes of the loss with each as the target. These
# are exact because the loss depends on the target by its logit and its square.


def _uniform_cross_entropy(stats: _rows.RowStats) -> jax.Array:
  mean = (stats.target + stats.rest_sum) / stats.num_classes
  return _rows.softplus(stats.log_odds) + (stats.target - mean)


def _uniform_squentropy(
  stats: _rows.RowStats, *, scale: jax.Array
) -> jax.Array:
  square = stats.rest_sq + jnp.square(stats.target)
  square *= jnp.minimum(stats.num_classes - 1.0, 1.0) / stats.num_classes
  return _uniform_cross_entropy(stats) + scale * square


def _uniform_rescaled_square(
  stats: _rows.RowStats, *, target_weight: jax.Array, target_value: jax.Array
) -> jax.Array:
  n = stats.num_classes
  square = stats.rest_sq + jnp.square(stats.target)
  total = stats.rest_sum + stats.target
  on_target = square - 2.0 * target_value * total + n * target_value**2
  return (target_weight * on_target + (n - 1.0) * square) / (n * n)


def _row_of(loss: Any) -> Callable[..., jax.Array] | None:
  return getattr(loss, "row", None)


_UNIFORM: dict[Any, Callable[..., jax.Array]] = {
  _row_of(losses.cross_entropy): _uniform_cross_entropy,
  _row_of(losses.squentropy): _uniform_squentropy,
  _row_of(losses.rescaled_square): _uniform_rescaled_square,
}


def as_row_loss(
  loss: Callable[..., jax.Array],
  hyperparameters: dict[str, Any],
  smooth: bool,
  dtype: jnp.dtype,
) -> tuple[RowLoss, dict[str, Any]]:
  """The row loss a function stands for, and all its hyper-parameters."""
  given: dict[str, Any] = {}
  inner: Any = loss
  while isinstance(inner, functools.partial):
    if inner.args:
      raise TypeError(
        f"loss must be partial in keyword arguments only, got {loss!r}."
      )
    given = inner.keywords | given
    inner = inner.func
  name = getattr(inner, "__name__", repr(inner))
  row = _row_of(inner)
  if row is None:
    raise TypeError(
      f"loss must have a row form, such as losses.squentropy.row, which {name} "
      "has not; write your own formula over fused.linear_row_stats."
    )
  given |= hyperparameters
  known = _rows.hyperparameter_names(row)
  unknown = sorted(set(given) - set(known))
  if unknown:
    raise TypeError(
      f"{name} has no hyper-parameter {', '.join(unknown)}; it has "
      f"{', '.join(known) or 'none'}."
    )
  if given:
    # The loss itself knows the domains of its hyper-parameters.
    logits = jax.ShapeDtypeStruct((2,), dtype)
    label = jax.ShapeDtypeStruct((), jnp.int32)
    jax.eval_shape(functools.partial(inner, **given), logits, label)
  uniform = None
  if smooth:
    uniform = _UNIFORM.get(row)
    if uniform is None:
      raise ValueError(
        f"label_smoothing is known for cross_entropy, squentropy and "
        f"rescaled_square, not for {name}; give labels as a pair (ids, "
        "probabilities) or leave it out."
      )
    signature = inspect.signature(row).parameters
    given = {n: given.get(n, signature[n].default) for n in known}
  return RowLoss(row, getattr(inner, "logit_scale", None), uniform), given
