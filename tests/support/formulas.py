# SPDX-License-Identifier: Apache-2.0
"""The losses of one row in float64, written from the papers' formulas."""

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np

OTHERS = np.array([0.5, -1.0, 2.0])


EXP_SUM = np.exp(OTHERS).sum()


def log_odds(logits: np.ndarray, label: int) -> float:
  """``log((1 - p) / p)`` of the labelled class."""
  rest = np.delete(logits, label) - logits[label]
  if not rest.size:
    return -np.inf
  top = rest.max()
  return top + np.log(np.exp(rest - top).sum())


def cross_entropy(logits: np.ndarray, label: int) -> float:
  return np.logaddexp(0.0, log_odds(logits, label))


def squentropy(logits: np.ndarray, label: int, scale: float = 1.0) -> float:
  rest = np.delete(logits, label)
  square = np.square(rest).mean() if rest.size else 0.0
  return cross_entropy(logits, label) + scale * square


def rescaled_square(
  logits: np.ndarray,
  label: int,
  target_weight: float = 1.0,
  target_value: float = 1.0,
) -> float:
  weights = np.where(np.arange(logits.size) == label, target_weight, 1.0)
  targets = np.where(np.arange(logits.size) == label, target_value, 0.0)
  return (weights * np.square(logits - targets)).mean()


def comp_sum(logits: np.ndarray, label: int, tau: float = 1.0) -> float:
  loss = cross_entropy(logits, label)
  return loss if tau == 1 else np.expm1((1 - tau) * loss) / (1 - tau)


def generalized_cross_entropy(
  logits: np.ndarray, label: int, q: float = 0.7
) -> float:
  return -np.expm1(-q * cross_entropy(logits, label)) / q


def mean_absolute_error(logits: np.ndarray, label: int) -> float:
  return -np.expm1(-cross_entropy(logits, label))


def smooth_adversarial_comp_sum(
  logits: np.ndarray,
  label: int,
  tau: float = 1.0,
  rho: float = 1.0,
  nu: float = 1.0,
) -> float:
  margins = logits[label] - np.delete(logits, label)
  return comp_sum(logits / rho, label, tau) + nu * np.linalg.norm(margins / 2)


def softmax(logits: np.ndarray) -> list[mpmath.mpf]:
  """In digits enough for one minus a probability, as the papers write it."""
  exps = [mpmath.exp(mpmath.mpf(float(z))) for z in logits]
  return [e / mpmath.fsum(exps) for e in exps]


def of_probabilities(formula: Callable[..., Any]) -> Callable[..., float]:
  """The reference ``formula(p, label, **hyperparameters)`` makes, on logits."""

  def reference(logits: np.ndarray, label: int, **hyper: float) -> float:
    with mpmath.workdps(120):
      return float(formula(softmax(logits), label, **hyper))

  return reference


@of_probabilities
def focal(p: list, label: int, gamma: float = 2.0) -> Any:
  return -((1 - p[label]) ** gamma) * mpmath.log(p[label])


@of_probabilities
def dual_focal(p: list, label: int, gamma: float = 2.0) -> Any:
  nearest = max((q for q in p if q < p[label]), default=0)
  return -((1 - p[label] + nearest) ** gamma) * mpmath.log(p[label])


@of_probabilities
def poly1(p: list, label: int, epsilon: float = 1.0) -> Any:
  return -mpmath.log(p[label]) + epsilon * (1 - p[label])


@of_probabilities
def symmetric_cross_entropy(
  p: list,
  label: int,
  alpha: float = 0.1,
  beta: float = 1.0,
  log_clip: float = -4.0,
) -> Any:
  reverse = sum(-q * log_clip for k, q in enumerate(p) if k != label)
  return -alpha * mpmath.log(p[label]) + beta * reverse


@of_probabilities
def normalized_cross_entropy(p: list, label: int) -> Any:
  total = mpmath.fsum(mpmath.log(q) for q in p)
  return mpmath.log(p[label]) / total if total else 0


@of_probabilities
def asymmetric_generalized_cross_entropy(
  p: list, label: int, a: float = 1.0, q: float = 2.0
) -> Any:
  a = mpmath.mpf(a)
  return ((a + 1) ** q - (a + p[label]) ** q) / q


@of_probabilities
def asymmetric_unhinged(
  p: list, label: int, a: float = 1.5, q: float = 0.9
) -> Any:
  a = mpmath.mpf(a)
  return ((a - p[label]) ** q - (a - 1) ** q) / q


@of_probabilities
def jensen_shannon(p: list, label: int, pi: float = 0.5) -> Any:
  pi = mpmath.mpf(pi)
  one_hot = [mpmath.mpf(int(k == label)) for k in range(len(p))]
  mixed = [pi * e + (1 - pi) * q for e, q in zip(one_hot, p, strict=True)]

  def kl(a: list) -> Any:
    pairs = zip(a, mixed, strict=True)
    return mpmath.fsum(x * mpmath.log(x / m) for x, m in pairs if x)

  scale = -(1 - pi) * mpmath.log(1 - pi)
  return (pi * kl(one_hot) + (1 - pi) * kl(p)) / scale


def tempered_softmax(logits: np.ndarray, t: float) -> np.ndarray:
  """By bisection; probabilities of at least 1e-300 have all their digits."""
  below = logits - logits.max()

  def exp_t(x: np.ndarray) -> np.ndarray:
    if t == 1:
      return np.exp(x)
    return np.maximum(1 + (1 - t) * x, 0) ** (1 / (1 - t))

  # By how much the normaliser exceeds the top logit; it may be tiny.
  low, high = 0.0, 1.0
  while exp_t(below - high).sum() > 1:
    high *= 2
  for _ in range(200):
    middle = (low + high) / 2
    rest = exp_t(np.sort(below)[:-1] - middle).sum()
    own = (
      np.expm1(np.log1p((t - 1) * middle) / (1 - t))
      if t != 1
      else (np.expm1(-middle))
    )
    low, high = (middle, high) if rest + own > 0 else (low, middle)
  return exp_t(below - (low + high) / 2)


def bi_tempered_logistic(
  logits: np.ndarray, label: int, t1: float = 0.8, t2: float = 1.2
) -> float:
  p = [mpmath.mpf(x) for x in tempered_softmax(logits, t2)]
  top = int(np.argmax(logits))
  p[top] = 1 - mpmath.fsum(p[:top] + p[top + 1 :])
  power, t1 = 2 - mpmath.mpf(t1), mpmath.mpf(t1)
  log = (p[label] ** (1 - t1) - 1) / (1 - t1)
  return float(-log - (1 - mpmath.fsum(x**power for x in p)) / power)


def unhinged(logits: np.ndarray, label: int) -> float:
  return logits.mean() - logits[label]


def logit_norm_cross_entropy(
  logits: np.ndarray, label: int, temperature: float = 1.0
) -> float:
  norm = np.linalg.norm(logits)
  return cross_entropy(logits / (temperature * norm), label)


def entropy(logits: np.ndarray) -> float:
  with mpmath.workdps(120):
    return float(-mpmath.fsum(p * mpmath.log(p) for p in softmax(logits)))


def confidence_penalty(
  logits: np.ndarray, label: int, beta: float = 0.1
) -> float:
  return cross_entropy(logits, label) - beta * entropy(logits)


def one_vs_rest_hinge(
  logits: np.ndarray, label: int, margin: float = 1.0
) -> float:
  signs = np.where(np.arange(logits.size) == label, 1.0, -1.0)
  return np.square(np.maximum(0.0, margin - signs * logits)).sum()


def crammer_singer(
  logits: np.ndarray, label: int, margin: float = 1.0
) -> float:
  gaps = np.delete(logits, label) - logits[label]
  return max(0.0, margin + gaps.max(initial=-np.inf))


def weston_watkins(
  logits: np.ndarray, label: int, margin: float = 1.0
) -> float:
  gaps = np.delete(logits, label) - logits[label]
  return np.maximum(0.0, margin + gaps).sum()


def ldr_kl(
  logits: np.ndarray,
  label: int,
  temperature: float = 1.0,
  margin: float = 0.0,
) -> float:
  gaps = logits - logits[label] + margin * (np.arange(logits.size) != label)
  lse = np.logaddexp.reduce(gaps / temperature)
  return temperature * (lse - np.log(logits.size))


def aldr_kl(
  logits: np.ndarray,
  label: int,
  base_temperature: float = 1.0,
  alpha: float = 2.0,
  margin: float = 0.0,
) -> float:
  gaps = logits - logits[label] + margin * (np.arange(logits.size) != label)
  weight = alpha * np.log(logits.size) / base_temperature
  temperature = base_temperature
  for _ in range(300):
    q = np.exp(gaps / temperature - np.logaddexp.reduce(gaps / temperature))
    divergence = (q * np.log(np.maximum(q * logits.size, 1e-300))).sum()
    temperature = base_temperature - divergence / weight
  penalty = weight / 2 * (temperature - base_temperature) ** 2
  return ldr_kl(logits, label, temperature, margin) - penalty


def zscore(
  logits: np.ndarray,
  label: int,
  sharpness: float = 1.0,
  location: float = 0.0,
) -> float:
  score = (logits[label] - logits.mean()) / logits.std()
  return np.logaddexp(0.0, sharpness * (location - score)) / sharpness


def taylor_softmax(logits: np.ndarray, label: int) -> float:
  powers = 1 + logits + logits**2 / 2
  return np.log1p(np.delete(powers, label).sum() / powers[label])


def spherical_softmax(
  logits: np.ndarray, label: int, epsilon: float = 1e-2
) -> float:
  squares = logits**2 + epsilon
  return np.log1p(np.delete(squares, label).sum() / squares[label])


def continuous_categorical(logits: np.ndarray, label: int) -> float:
  """The integral as a sum over nodes, in digits enough for its cancellation."""
  with mpmath.workdps(80):
    nodes = [mpmath.mpf(float(z)) for z in logits]
    integral = mpmath.fsum(
      mpmath.exp(a - nodes[label])
      / mpmath.fprod(a - b for b in nodes if b is not a)
      for a in nodes
    )
    return float(mpmath.log(integral))


def brier(logits: np.ndarray, label: int) -> float:
  p = np.exp(logits - logits.max())
  p /= p.sum()
  miss = -np.expm1(-cross_entropy(logits, label))
  return miss**2 + np.square(np.delete(p, label)).sum()


def binary_cross_entropy(
  logits: np.ndarray,
  labels: np.ndarray,
  gamma: float = 0.0,
  positive_weight: float = 1.0,
) -> np.ndarray:
  p, q = sigmoid(logits), sigmoid(-logits)
  positive = -(q**gamma) * np.log(p) * positive_weight
  return labels * positive - (1 - labels) * p**gamma * np.log(q)


def binary_squentropy(
  logits: np.ndarray,
  labels: np.ndarray,
  scale: float = 1.0,
  positive_weight: float = 1.0,
) -> np.ndarray:
  weighted = binary_cross_entropy(logits, labels, 0.0, positive_weight)
  return weighted + (1 - labels) * scale * logits**2


def continuous_bernoulli(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  size = np.where(logits == 0, 1.0, logits)
  return np.where(
    logits == 0, 0.0, np.log(np.expm1(size) / size) - logits * labels
  )


def of_sets(miss: np.ndarray, mass: np.ndarray) -> np.ndarray:
  """One less (mass - miss + 1) over (mass + 1), the smoothing being 1."""
  return 1.0 - (mass - miss + 1.0) / (mass + 1.0)


def sigmoid(logits: np.ndarray) -> np.ndarray:
  return 1.0 / (1.0 + np.exp(-logits))


def dice(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  p = sigmoid(logits)
  return of_sets(p + labels - 2 * p * labels, p + labels)


def tversky(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  p = sigmoid(logits)
  miss = (p * (1 - labels) + (1 - p) * labels) / 2
  return of_sets(miss, p * labels + miss)


def self_adjusting_dice(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  p = sigmoid(logits)
  q = (1 - p) * p
  return of_sets(q + labels - 2 * q * labels, q + labels)


def soft_f1(logits: np.ndarray, labels: np.ndarray) -> float:
  predicted = sigmoid(73 * (sigmoid(logits) - 0.5))
  return 1.0 - 2 * (labels * predicted).sum() / (labels.sum() + predicted.sum())


def distillation(student: np.ndarray, teacher: np.ndarray) -> float:
  log_p = teacher - np.logaddexp.reduce(teacher)
  log_q = student - np.logaddexp.reduce(student)
  return (np.exp(log_p) * (log_p - log_q)).sum()


def discriminator(student: np.ndarray, teacher: np.ndarray) -> float:
  sign = np.array([-1.0, 1.0])
  return (
    np.logaddexp(0.0, sign * student) + np.logaddexp(0.0, -sign * teacher)
  ).sum() / 4.0


def _angular(
  cosines: np.ndarray, label: int, scale: float, moved: float, *more: float
) -> float:
  """Cross-entropy of scaled cosines, of which the labelled one was moved."""
  rest = np.append(np.delete(cosines, label), more)
  if not rest.size:
    return 0.0
  return np.logaddexp(0.0, np.logaddexp.reduce(scale * (rest - moved)))


def normalized_softmax(
  cosines: np.ndarray, label: int, scale: float = 10.0
) -> float:
  return _angular(cosines, label, scale, cosines[label])


def cosface(
  cosines: np.ndarray, label: int, margin: float = 0.35, scale: float = 64.0
) -> float:
  return _angular(cosines, label, scale, cosines[label] - margin)


def arcface(
  cosines: np.ndarray,
  label: int,
  margin: float = 0.5,
  scale: float = 64.0,
  monotonic: bool = True,
) -> float:
  angle = np.arccos(cosines[label])
  moved = np.cos(angle + margin)
  if monotonic and angle >= np.pi - margin:
    moved = cosines[label] - margin * np.sin(margin)
  return _angular(cosines, label, scale, moved)


def continued_cosine(angle: float) -> float:
  """SphereFace's psi."""
  half_turns = np.floor(angle / np.pi)
  return (-1) ** half_turns * np.cos(angle) - 2 * half_turns


def sphereface(
  cosines: np.ndarray, label: int, margin: float = 1.7, scale: float = 30.0
) -> float:
  moved = continued_cosine(margin * np.arccos(cosines[label]))
  return _angular(cosines, label, scale, moved)


def combined_margin(
  cosines: np.ndarray,
  label: int,
  multiplicative: float = 1.0,
  additive: float = 0.0,
  cosine: float = 0.0,
  scale: float = 64.0,
) -> float:
  angle = np.arccos(cosines[label])
  if multiplicative == 1:
    moved = np.cos(angle + additive)
    if angle >= np.pi - additive:
      moved = cosines[label] - additive * np.sin(additive)
  else:
    moved = continued_cosine(multiplicative * angle + additive)
  return _angular(cosines, label, scale, moved - cosine)


NEGATIVES = (
  np.array([0.3, -0.5, 0.9, 0.1], np.float32),
  np.array([True, True, False, True]),
)


def unpg(
  cosines: np.ndarray, label: int, margin: float = 0.5, scale: float = 64.0
) -> float:
  kept = np.float64(NEGATIVES[0])[NEGATIVES[1]]
  return _angular(cosines, label, scale, cosines[label] - margin, *kept)
