# SPDX-License-Identifier: Apache-2.0
"""A case for each loss of similarities: what its contract tests need to know.

A further loss is one more entry of `CASES`.
"""

from collections.abc import Callable, Mapping
import functools
import types
from typing import Any, NamedTuple

import numpy as np

from squentropy_jax import retrieval


class RetrievalCase(NamedTuple):
  """One loss ``loss(similarities, second, *, where, **hyperparameters)``.

  Attributes:
    name: Its name in ``squentropy_jax.retrieval``.
    loss: The function. Static settings are bound.
    reference: Float64 NumPy losses ``[Q]``, ``reference(similarities, second,
      keep, **hyperparameters)`` with arrays ``[Q, D]``.
    numbers: Values other than the defaults, to test with.
    outside: A value of each number that is outside its domain.
    has_positives: Whether ``second`` are positives; else it is scores.
    of_batch: Whether the loss of a query depends on other queries.
  """

  name: str
  loss: Callable[..., Any]
  reference: Callable[..., np.ndarray]
  numbers: Mapping[str, float]
  outside: Mapping[str, float] = types.MappingProxyType({})
  has_positives: bool = True
  of_batch: bool = False

  def __repr__(self) -> str:
    return self.name


def by_query(reference):
  """A reference of one query's kept documents, over all queries.

  A query without a positive has loss 0, and so has one without a document.
  """

  @functools.wraps(reference)
  def every(s, second, keep, **numbers):
    values = []
    for i, kept in enumerate(keep):
      some = (second[i] & kept).any() if second.dtype == bool else kept.any()
      own = {n: x[i] if np.ndim(x) else x for n, x in numbers.items()}
      row = (s[i, kept], second[i, kept])
      values.append(reference(*row, **own) if some else 0.0)
    return np.array(values)

  return every


def log_sum_exp(z):
  top = z.max(initial=-1e300)
  return top + np.log(np.exp(z - top).sum()) if z.size else -np.inf


def log_softmax(z):
  return z - log_sum_exp(z)


@by_query
def info_nce(s, positives, temperature):
  return -log_softmax(s / temperature)[positives].mean()


@by_query
def decoupled_softmax(s, positives, temperature):
  z = s / temperature
  negatives = log_sum_exp(z[~positives])
  return np.mean([np.logaddexp(0.0, negatives - x) for x in z[positives]])


@by_query
def soft_top_k_loss(s, positives, k, alpha):
  if s.size <= k:
    return 0.0
  low, high = (np.log(k / (s.size - k)) / alpha - x for x in (s.max(), s.min()))
  for _ in range(200):
    t = (low + high) / 2
    q = 1 / (1 + np.exp(-alpha * (s + t)))
    low, high = (low, t) if q.sum() > k else (t, high)
  return np.logaddexp(0.0, -alpha * (s + t))[positives].mean()


@by_query
def soft_contrastive(s, teacher, temperature, teacher_temperature):
  targets = np.exp(log_softmax(teacher / teacher_temperature))
  return -(targets * log_softmax(s / temperature)).sum()


@by_query
def symmetric_kl(s, judge, temperature):
  log_p, log_q = log_softmax(s / temperature), log_softmax(judge / temperature)
  p, q = np.exp(log_p), np.exp(log_q)
  return ((p * (log_p - log_q)).sum() + (q * (log_q - log_p)).sum()) / 2


CASES = (
  RetrievalCase(
    "info_nce",
    retrieval.info_nce,
    info_nce,
    {"temperature": 0.3},
    {"temperature": 0.0},
  ),
  RetrievalCase(
    "decoupled_softmax",
    retrieval.decoupled_softmax,
    decoupled_softmax,
    {"temperature": 0.3},
    {"temperature": 0.0},
  ),
  RetrievalCase(
    "soft_top_k_loss",
    retrieval.soft_top_k_loss,
    soft_top_k_loss,
    {"k": 2.5, "alpha": 3.0},
    {"k": 7.0, "alpha": 0.0},
  ),
  RetrievalCase(
    "soft_contrastive",
    retrieval.soft_contrastive,
    soft_contrastive,
    {"temperature": 0.3, "teacher_temperature": 0.5},
    {"temperature": 0.0, "teacher_temperature": -1.0},
    has_positives=False,
  ),
  RetrievalCase(
    "symmetric_kl",
    retrieval.symmetric_kl,
    symmetric_kl,
    {"temperature": 0.3},
    {"temperature": 0.0},
    has_positives=False,
  ),
)
