# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of guides in docs: ``python docs/page_figures.py``.

Each stands next to its page, such as docs/weights.svg next to docs/weights.md.
"""

from collections.abc import Callable, Mapping
import csv
import pathlib
from typing import Any

import attention_figure
from figures import COLOURS, DASHES, SETTINGS, save
import jax
import jax.numpy as jnp
import matplotlib as mpl
from matplotlib import pyplot as plt
import numerics_figure
import numpy as np
import transforms_figure
import two_pass_figure

from squentropy_jax import heads, masking, probes, retrieval, reweighting

FOLDER = pathlib.Path(__file__).parent
STRATEGIES = ("linupper", "quadratic", "extremes", "upper")


def draw_weights(panels: Any) -> None:
  """Weights of losses, and how often a patch is hidden."""
  left, right = panels
  each = jnp.linspace(0.5, 3.5, 61)
  for style, strategy in enumerate(STRATEGIES):
    weights = reweighting.loss_based_weights(
      each, strategy=strategy, temperature=0.4
    )
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    left.plot(each, weights * each.size, label=strategy, **line)
  left.set_title("weight, times the size of the batch", fontsize=9)
  left.set_xlabel("loss", fontsize=8)
  left.legend(fontsize=7, frameon=False)
  predicted = jnp.arange(24.0)
  keys = jax.random.split(jax.random.key(0), 4000)
  masks = jax.jit(
    jax.vmap(
      lambda key, fraction: masking.hard_patch_mask(
        key, predicted, hard_fraction=fraction
      ),
      (0, None),
    )
  )
  for style, fraction in enumerate((0.0, 0.25, 0.5)):
    mask = masks(keys, fraction)
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    label = f"hard_fraction {fraction:g}"
    right.plot(predicted + 1, mask.mean(axis=0), label=label, **line)
  right.set_ylim(0.0, 1.05)
  right.set_title("share of masks that hide the patch", fontsize=9)
  right.set_xlabel("rank of the predicted loss, of 24", fontsize=8)
  right.legend(fontsize=7, frameon=False)


def draw_mining(panels: Any) -> None:
  """Eight clusters of points, and the batches of one epoch."""
  left, right = panels
  rng = np.random.default_rng(0)
  centres = rng.uniform(-2.0, 2.0, (5, 2))
  points = centres[rng.integers(0, 5, 160)] + rng.normal(0.0, 0.4, (160, 2))
  clusters = retrieval.mining.balanced_clusters(
    jax.random.key(0), np.float32(points), 8
  )
  batches = retrieval.mining.cluster_batches(jax.random.key(1), clusters, 40)
  groups = [np.flatnonzero(clusters == c) for c in range(8)]
  for panel, parts in ((left, groups), (right, batches)):
    for style, part in enumerate(parts):
      marker = "os"[style // 4]
      colour = COLOURS[style % 4]
      # Clipped markers stand in groups, which `smaller` takes away.
      look = {"ms": 3, "mew": 0, "color": colour, "clip_on": False}
      panel.plot(*points[np.asarray(part)].T, marker, **look)
    panel.set_aspect("equal")
  left.set_title("8 clusters of 20", fontsize=9)
  right.set_title("the 4 batches of an epoch", fontsize=9)


def draw_output_layers(panels: Any) -> None:
  """Bins of random Fourier heads, and the time of a step of many classes."""
  left, right = panels
  rng = np.random.default_rng(2)
  for style, number in enumerate((1, 3, 9)):
    a = rng.normal(size=(2, number + 1)).astype(np.float32)
    c = heads.fourier_coefficients(jax.lax.complex(a[0], a[1]))
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    bins = jnp.exp(heads.fourier_logits(c, 50))
    left.plot(np.arange(50), bins, label=f"frequencies: {number}", **line)
  left.set_title("probability", fontsize=9)
  left.set_xlabel("bin, of 50", fontsize=8)
  left.legend(fontsize=7, frameon=False)
  table = pathlib.Path(__file__).parents[1] / "benchmarks/results/factored.csv"
  with table.open(encoding="utf-8") as file:
    rows = list(csv.DictReader(file))
  labels = {"dense": "SGD on the whole kernel", "factored": "factored layer"}
  for style, (step, label) in enumerate(labels.items()):
    found = [row for row in rows if row["step"] == step]
    line = {"color": COLOURS[style], "linestyle": DASHES[style], "lw": 1.6}
    right.loglog(
      [int(row["classes"]) for row in found],
      [float(row["milliseconds"]) for row in found],
      label=label,
      marker="o",
      **line,
    )
  right.set_title("milliseconds of a step, two CPU cores", fontsize=9)
  right.set_xlabel("classes", fontsize=8)
  right.legend(fontsize=7, frameon=False)


def draw_probes(panels: Any) -> None:
  """Probabilities of class 1 by classifiers of eight points on a line."""
  x = jnp.array([[-2.0], [-1.2], [-0.5], [0.4], [0.1], [0.9], [1.5], [3.0]])
  labels = jnp.array([0, 0, 0, 0, 1, 1, 1, 1])
  line = jnp.linspace(-3.0, 4.0, 141)[:, None]
  gaussian = probes.fit_gaussian(x, labels, 2)
  logits = {
    "fit_gaussian": probes.gaussian_logits(gaussian, line),
    "fit_logistic": probes.linear_logits(
      probes.fit_logistic(x, labels, 2), line
    ),
  }
  kernels = {
    f"exponent {exponent:g}": probes.singular_kernel_log_probs(
      line, x, labels, 2, exponent=exponent
    )
    for exponent in (0.3, 1.0, 4.0)
  }
  titles = ("linear classifiers", "singular_kernel_log_probs")
  for panel, title, curves in zip(
    panels, titles, (logits, kernels), strict=True
  ):
    for style, (name, scores) in enumerate(curves.items()):
      probability = jax.nn.softmax(scores, axis=-1)[:, 1]
      panel.plot(
        line[:, 0],
        probability,
        label=name,
        color=COLOURS[style],
        linestyle=DASHES[style],
        lw=1.6,
      )
    panel.plot(x[:, 0], labels, "o", color="0.4", ms=4, zorder=3)
    panel.legend(fontsize=7, frameon=False)
    panel.set_xlabel("feature", fontsize=8)
    panel.set_title(title, fontsize=9)
  panels[0].set_ylabel("probability of class 1", fontsize=8)


FIGURES: Mapping[str, Callable[[Any], None]] = {
  "attention": attention_figure.draw,
  "mining": draw_mining,
  "numerics": numerics_figure.draw,
  "output_layers": draw_output_layers,
  "probes": draw_probes,
  "transforms": transforms_figure.draw,
  "two_pass": two_pass_figure.draw,
  "weights": draw_weights,
}


def main(folder: pathlib.Path = FOLDER) -> None:
  """Every picture, with nothing in it that changes from run to run."""
  with mpl.rc_context(SETTINGS):
    for name, draw in FIGURES.items():
      figure, panels = plt.subplots(
        1, 2, figsize=(7.2, 2.7), layout="constrained"
      )
      draw(panels)
      for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
      save(figure, folder / f"{name}.svg")


if __name__ == "__main__":
  main()
