# SPDX-License-Identifier: Apache-2.0
"""From the sums of a row to its loss: row form, sparse targets, smoothing."""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
from jax.extend import core
import jax.numpy as jnp

from squentropy_jax import _moments, _rows, losses
from squentropy_jax.fused._tiles import Sums, shift_of


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


def _pairs(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
  """Both places of every pair within the last axis, ``[*shape, K]``."""
  full, rank = (*shape, shape[-1]), len(shape)
  one = jax.lax.broadcasted_iota(jnp.int32, full, rank - 1)
  return one, jax.lax.broadcasted_iota(jnp.int32, full, rank)


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
  same = (ids[..., :, None] == ids[..., None, :]) & used[..., None, :]
  one, other = _pairs(ids.shape)
  first = used & ~jnp.any(same & (other < one), axis=-1)
  zero = jnp.zeros_like(probabilities)
  merged = jnp.where(same, probabilities[..., None, :], zero[..., None, :])
  return Targets(
    ids=jnp.where(first, ids, -1),
    probabilities=jnp.where(first, merged.sum(-1), zero),
    bad=bad & used,
    keep=keep,
  )


def row_stats(
  sums: Sums, num_classes: jax.Array | int, targets: Targets
) -> _rows.RowStats:
  """Statistics ``[..., K]`` of each target; those of unused ones are finite.

  ``num_classes`` counts the possible ones. The other targets of a row belong to
  the rest of each.
  """
  own = sums.own
  zero = jnp.zeros_like(own)
  used = targets.ids >= 0
  possible = used & (own != -jnp.inf)
  one, other = _pairs(own.shape)
  others = possible[..., None, :] & (one != other)
  z = jnp.where(possible, own, zero)[..., None, :]

  def with_others(rest: jax.Array, values: jax.Array) -> jax.Array:
    chosen = jnp.where(others, values, zero[..., None, :])
    return rest[..., None] + chosen.sum(-1)

  top = sums.top[..., None]
  top = jnp.maximum(top, jnp.where(others, z, -jnp.inf).max(-1))
  shift = shift_of(top)
  exps = jnp.exp(jnp.where(others, z - shift[..., None], -jnp.inf))
  shrink = jnp.exp(jax.lax.stop_gradient(sums.top)[..., None] - shift)
  own_count = possible.sum(-1, keepdims=True, dtype=jnp.int32)
  rest_count = num_classes - own_count + others.sum(-1, dtype=jnp.int32)
  moments = _moments.Moments(
    target=own,
    shift=shift,
    mass=sums.mass[..., None] * shrink + exps.sum(-1),
    rest_sum=with_others(sums.total, z),
    rest_sq=with_others(sums.square, jnp.square(z)),
    rest_max=top,
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
