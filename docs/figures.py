# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of the documentation: ``python docs/figures.py``.

Each figure of docs/losses shows losses of one family and their derivatives, as
a rule against the margin: the logit of the labelled class, where the other
logits are 0, -1, -2.
"""

from collections.abc import Callable, Mapping
import functools
import io
import pathlib
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
from matplotlib import pyplot as plt
import small_svg

from squentropy_jax import confusion, losses, retrieval, reweighting

FOLDER = pathlib.Path(__file__).parent / "losses"
OTHERS = jnp.array([0.0, -1.0, -2.0])
SETTINGS = {
  "svg.hashsalt": "squentropy_jax",
  "svg.fonttype": "none",
  "font.sans-serif": ["DejaVu Sans"],
}
# None of them is an integer, where two logits are equal and some losses jump.
POINTS = jnp.linspace(-5.0, 5.0, 80)
ANGLES = jnp.linspace(0.5, 179.5, 80)  # In degrees.
# Distinct for colour-blind readers, and by their dashes in print.
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))


def of_incorrect(loss: Callable[..., jax.Array], **hyper: float) -> Callable:
  """A loss of class 0, as a function of the logit of class 1."""

  def of_logit(logit: jax.Array) -> jax.Array:
    return loss(jnp.stack([2.0, logit, 0.0, -1.0]), 0, **hyper)

  return of_logit


def of_row(loss: Callable[..., jax.Array], **hyper: float) -> Callable:
  """A loss of class 0, as a function of the margin."""

  def of_margin(margin: jax.Array) -> jax.Array:
    return loss(jnp.append(margin, OTHERS), 0, **hyper)

  return of_margin


def of_angle(loss: Callable[..., jax.Array], **hyper: float) -> Callable:
  """A loss of class 0 at scale 10, as a function of the angle in degrees."""

  def of_degrees(angle: jax.Array) -> jax.Array:
    cosines = jnp.append(jnp.cos(jnp.deg2rad(angle)), jnp.array([0.2, -0.1]))
    return loss(cosines, 0, scale=10.0, **hyper)

  return of_degrees


def with_pairs(count: int) -> Callable:
  """UNPG with so many pairs of similarity 0.3."""
  negatives = jnp.full(6, 0.3), jnp.arange(6) < count
  return of_angle(
    functools.partial(losses.unpg, negatives=negatives), margin=0.35
  )


def of_score(loss: Callable[..., jax.Array], **hyper: float) -> Callable:
  """A binary loss of a positive, as a function of its score."""
  return lambda score: loss(score, jnp.ones_like(score), **hyper)


def of_negative(loss: Callable[..., jax.Array], **hyper: float) -> Callable:
  """A binary loss of a negative, as a function of its score."""
  return lambda score: loss(score, jnp.zeros_like(score), **hyper)


def in_set(metric: Callable[..., jax.Array]) -> Callable:
  """A loss of a small batch, as a function of the score of one positive."""
  fixed, labels = jnp.array([1.0, 0.2, -0.3, -2.0]), [1, 1, 0, 0, 0]

  def of_margin(score: jax.Array) -> jax.Array:
    scores = jnp.append(score, fixed)
    # With the default the derivative is one narrow peak.
    return losses.anyloss(
      scores, jnp.array(labels), metric=metric, amplification=10.0
    )

  return of_margin


def drawn(seed: int) -> Callable:
  """The integral of one draw of derivatives, over a batch of 41 margins."""
  at = jnp.linspace(-5.0, 5.0, 41)
  derivatives = reweighting.calibrated_loss_derivatives(
    jax.random.key(seed), at
  )

  def of_margin(margin: jax.Array) -> jax.Array:
    steps = (derivatives[1:] + derivatives[:-1]) / 2 * (at[1] - at[0])
    area = jnp.append(0.0, jnp.cumsum(steps))
    return jnp.interp(margin, at, area - area[-1])

  return of_margin


def attacked(margin: jax.Array) -> jax.Array:
  """A loss where the attack lowers the labelled logit by 0.5."""
  clean = jnp.append(margin, OTHERS)
  moved = clean - 0.5 * (jnp.arange(4) == 0)
  return losses.smooth_adversarial_comp_sum(clean, moved, 0)


def distilled(temperature: float) -> Callable:
  """Distillation from two teachers, one more confident than the other."""
  teachers = jnp.array([[2.0, 0.0, -1.0, -2.0], [0.5, 0.0, -1.0, -2.0]])

  def of_margin(margin: jax.Array) -> jax.Array:
    student = jnp.append(margin, OTHERS)
    return losses.ensemble_distillation(
      student, teachers, temperature=temperature
    )

  return of_margin


def of_positive(loss: Callable[..., jax.Array], **settings: float) -> Callable:
  """A retrieval loss, as a function of the similarity of one positive."""
  positives = jnp.array([[True, True, False, False, False]])

  def of_similarity(similarity: jax.Array) -> jax.Array:
    similarities = jnp.concatenate([jnp.stack([similarity, 1.0]), OTHERS])
    return loss(similarities[None], positives, **settings)[0]

  return of_similarity


CROSS_ENTROPY = of_row(losses.cross_entropy)
FIGURES: Mapping[str, Mapping[str, Callable]] = {
  "squentropy": {
    "cross_entropy": of_incorrect(losses.cross_entropy),
    "squentropy": of_incorrect(losses.squentropy),
    "squentropy, scale 0.3": of_incorrect(losses.squentropy, scale=0.3),
    "rescaled_square": of_incorrect(losses.rescaled_square),
  },
  "square": {
    "rescaled_square": of_row(losses.rescaled_square),
    "target_value 3": of_row(losses.rescaled_square, target_value=3.0),
  },
  "comp_sum": {
    "cross_entropy (tau 1)": CROSS_ENTROPY,
    "comp_sum, tau 0.7": of_row(losses.comp_sum, tau=0.7),
    "generalized, q 0.7": of_row(losses.generalized_cross_entropy),
    "mean_absolute_error": of_row(losses.mean_absolute_error),
    "smooth adversarial": attacked,
  },
  "focal": {
    "cross_entropy": CROSS_ENTROPY,
    "focal": of_row(losses.focal),
    "dual_focal": of_row(losses.dual_focal),
    "poly1": of_row(losses.poly1),
  },
  "symmetric": {
    "cross_entropy": CROSS_ENTROPY,
    "symmetric": of_row(losses.symmetric_cross_entropy),
    "normalized": of_row(losses.normalized_cross_entropy),
    "unhinged": of_row(losses.unhinged),
  },
  "asymmetric": {
    "asymmetric generalized": of_row(
      losses.asymmetric_generalized_cross_entropy
    ),
    "asymmetric_unhinged": of_row(losses.asymmetric_unhinged),
    "jensen_shannon, pi 0.5": of_row(losses.jensen_shannon),
    "jensen_shannon, pi 0.1": of_row(losses.jensen_shannon, pi=0.1),
  },
  "tempered": {
    "cross_entropy (1, 1)": CROSS_ENTROPY,
    "t1 0.5, t2 1": of_row(losses.bi_tempered_logistic, t1=0.5, t2=1.0),
    "t1 1, t2 2": of_row(losses.bi_tempered_logistic, t1=1.0, t2=2.0),
    "t1 0.5, t2 2": of_row(losses.bi_tempered_logistic, t1=0.5, t2=2.0),
  },
  "confidence": {
    "cross_entropy": CROSS_ENTROPY,
    "logit norm, 1": of_row(losses.logit_norm_cross_entropy),
    "logit norm, 0.3": of_row(losses.logit_norm_cross_entropy, temperature=0.3),
    "penalty, beta 0.5": of_row(losses.confidence_penalty, beta=0.5),
  },
  "margin": {
    "one_vs_rest_hinge": of_row(losses.one_vs_rest_hinge),
    "one_vs_rest_hinge, not squared": of_row(
      functools.partial(losses.one_vs_rest_hinge, squared=False)
    ),
    "crammer_singer": of_row(losses.crammer_singer),
    "weston_watkins": of_row(losses.weston_watkins),
  },
  "ldr": {
    "temperature 0.1": of_row(losses.ldr_kl, temperature=0.1, margin=1.0),
    "temperature 1": of_row(losses.ldr_kl, margin=1.0),
    "temperature 10": of_row(losses.ldr_kl, temperature=10.0, margin=1.0),
    "aldr_kl": of_row(losses.aldr_kl, margin=1.0),
  },
  "spherical": {
    "cross_entropy": CROSS_ENTROPY,
    "zscore": of_row(losses.zscore),
    "taylor_softmax": of_row(losses.taylor_softmax),
    "spherical_softmax": of_row(losses.spherical_softmax, epsilon=0.1),
  },
  "simplex": {
    "brier": of_row(losses.brier),
    "softmax_regression, distance": of_row(
      functools.partial(losses.softmax_regression, squared=False)
    ),
    "continuous_categorical": of_row(losses.continuous_categorical),
    "continuous_bernoulli": of_score(losses.continuous_bernoulli),
  },
  "sigmoid": {
    "binary_cross_entropy": of_score(losses.binary_cross_entropy),
    "positive_weight 3": of_score(
      losses.binary_cross_entropy, positive_weight=3.0
    ),
    "gamma 2": of_score(losses.binary_cross_entropy, gamma=2.0),
    "binary_squentropy, scale 0.3, label 0": of_negative(
      losses.binary_squentropy, scale=0.3
    ),
  },
  "overlap": {
    "dice": of_score(losses.dice),
    "tversky, beta 0.9": of_score(losses.tversky, alpha=0.1, beta=0.9),
    "self-adjusting": of_score(losses.self_adjusting_dice),
  },
  "anyloss": {
    "accuracy": in_set(confusion.accuracy),
    "f_beta": in_set(confusion.f_beta),
    "balanced_accuracy": in_set(confusion.balanced_accuracy),
    "geometric_mean": in_set(confusion.geometric_mean),
  },
  "retrieval": {
    "info_nce": of_positive(retrieval.info_nce, temperature=1.0),
    "decoupled_softmax": of_positive(
      retrieval.decoupled_softmax, temperature=1.0
    ),
    "soft_top_k_loss, k 2": of_positive(retrieval.soft_top_k_loss, k=2),
    "soft_top_k_loss, k 1": of_positive(retrieval.soft_top_k_loss, k=1),
    "top_k_margin, k 3": of_positive(
      retrieval.top_k_margin, margin=1.0, num_negatives=3
    ),
  },
  "ensemble": {f"draw {k}": drawn(k) for k in range(3)},
  "angular": {
    "normalized_softmax": of_angle(losses.normalized_softmax),
    "cosface": of_angle(losses.cosface),
    "arcface": of_angle(losses.arcface),
    "arcface, not monotonic": of_angle(
      functools.partial(losses.arcface, monotonic=False)
    ),
    "sphereface": of_angle(losses.sphereface),
  },
  "unpg": {f"pairs of 0.3: {k}": with_pairs(k) for k in (0, 1, 6)},
  "distillation": {
    "temperature 1": distilled(1.0),
    "temperature 4": distilled(4.0),
  },
}


# What is on the horizontal axis; the margin if the family is not named here.
LABELS = {
  "squentropy": "logit of an incorrect class",
  "overlap": "score of a positive",
  "sigmoid": "score",
  "retrieval": "similarity of a positive",
  "anyloss": "score of a positive",
  "angular": "angle to the labelled class, degrees",
  "unpg": "angle to the labelled class, degrees",
}
# Where the losses are drawn; POINTS if the family is not named here.
RANGES = {"angular": ANGLES, "unpg": ANGLES}


def broken_at_jumps(
  points: jax.Array, values: jax.Array, derivatives: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Both lines without the point before each jump of the values."""
  mean = (derivatives[1:] + derivatives[:-1]) / 2.0
  unexplained = jnp.abs(jnp.diff(values) - mean * jnp.diff(points))
  gaps = jnp.where(jnp.append(unexplained > 0.1, False), jnp.nan, 0.0)
  return values + gaps, derivatives + gaps


def smaller(svg: str) -> str:
  """An SVG with coordinates in tenths of a point, and with less markup."""

  def rounded(match: re.Match) -> str:
    return f"{float(match.group()):.1f}".removesuffix(".0")

  def attribute(match: re.Match) -> str:
    # After "M", points without a letter are the ends of lines.
    text = re.sub(r"-?\d+\.\d+(e-?\d+)?", rounded, match.group())
    return text.replace("\nL ", " ").replace("\n", " ").replace(' "', '"')

  font = "; font-family: 'DejaVu Sans', sans-serif"
  for old, new in (
    (r"<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", ""),
    (r'( d| x| y|transform)="[^"]*"', attribute),
    # Rotations are by 0 degrees.
    (r' transform="rotate\(-0 [^"]*"', ""),
    (font, ""),
    (r"(?<=butt)}", f"{font}}}"),
  ):
    svg = re.sub(old, new, svg, flags=re.S)
  is_kept: list[bool] = []

  def group(match: re.Match) -> str:
    # Most groups do nothing but bear names.
    tag = match.group()
    if tag != "</g>":
      is_kept.append(not re.fullmatch(r'<g( id="[^"]*")?>', tag))
      return tag if is_kept[-1] else ""
    return tag if is_kept.pop() else ""

  svg = re.sub(r"<g\b[^>]*>|</g>", group, svg)
  lines = [line.strip() for line in svg.splitlines()]
  return small_svg.compact("\n".join(line for line in lines if line) + "\n")


def save(figure: Any, path: pathlib.Path) -> None:
  """Writes a figure as a small SVG, or as pixels for another suffix."""
  if path.suffix == ".svg":
    text = io.StringIO()
    figure.savefig(text, format="svg", facecolor="white")
    path.write_text(smaller(text.getvalue()), encoding="utf-8")
  else:
    figure.savefig(path, dpi=110, facecolor="white")
  plt.close(figure)


def draw(family: str, path: pathlib.Path) -> None:
  """One picture: losses on the left, derivatives on the right."""
  points = RANGES.get(family, POINTS)
  figure, panels = plt.subplots(1, 2, figsize=(7.2, 2.7), layout="constrained")
  for style, (name, loss) in enumerate(FIGURES[family].items()):
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    values, derivatives = jax.jit(jax.vmap(jax.value_and_grad(loss)))(points)
    lines = broken_at_jumps(points, values, derivatives)
    panels[0].plot(points, lines[0], label=name, **line)
    panels[1].plot(points, lines[1], **line)
  panels[0].legend(fontsize=7, frameon=False)
  for panel, title in zip(panels, ("loss", "derivative"), strict=True):
    panel.set_xlabel(LABELS.get(family, "margin"), fontsize=8)
    panel.set_title(title, fontsize=9)
    panel.axvline(0.0, color="0.8", lw=0.8, zorder=0)
    panel.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)
  save(figure, path)


def main(folder: pathlib.Path = FOLDER, suffix: str = ".svg") -> None:
  """Every picture, with nothing in it that changes from run to run."""
  with mpl.rc_context(SETTINGS):
    for family in FIGURES:
      draw(family, folder / f"{family}{suffix}")


if __name__ == "__main__":
  main(*map(pathlib.Path, sys.argv[1:2]))
