# SPDX-License-Identifier: Apache-2.0
"""Linear heads against the matrix products that they cannot do without.

``python -m benchmarks fused`` prints, for every mode, loss and memory budget,
the time as a ratio to the products alone, measured in the same run, and the
temporary memory. The products get a cotangent, and write all logits. Peers are
measured where they are installed: optax on full logits, tokamax, jax-cce, and
on a CPU PyTorch, with its own products.
"""

from collections.abc import Callable
import functools
import importlib
import importlib.metadata
import statistics
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from benchmarks import runner
import squentropy_jax
from squentropy_jax import fused, losses, rows

REPEATS = 9


@squentropy_jax.row_loss
def with_z_loss(stats: squentropy_jax.RowStats) -> jax.Array:
  """Cross-entropy and a z-loss, as one loss."""
  return losses.cross_entropy.row(stats) + 1e-4 * rows.z_loss(stats)


class Objective(NamedTuple):
  """A loss, and the metrics that are summed with it.

  Attributes:
    loss: The row loss.
    metrics: Row formulas by name.
    modes: The modes that it is measured in, or None for all.
    goal: The largest ratio to cross-entropy in the same mode.
  """

  loss: Any
  metrics: dict[str, Any] | None = None
  modes: tuple[str, ...] | None = None
  goal: float | None = None


OBJECTIVES = {
  "cross_entropy": Objective(losses.cross_entropy),
  "squentropy": Objective(losses.squentropy, goal=1.03),
  "rescaled_square": Objective(losses.rescaled_square),
  "cross_entropy with z-loss": Objective(
    with_z_loss, modes=("grad_in_forward",), goal=1.02
  ),
  "cross_entropy, z-loss and accuracy as metrics": Objective(
    losses.cross_entropy,
    {"z_loss": rows.z_loss, "accuracy": rows.correct},
    modes=("grad_in_forward",),
    goal=1.02,
  ),
}
PRODUCTS = {
  1: "one product",
  2: "two products",
  3: "three products",
}


class Setting(NamedTuple):
  """A mode of the heads and a memory budget.

  Attributes:
    mode: The mode.
    budget: MiB, or None for the default.
    goal: The largest ratios allowed, for cross-entropy and for squentropy.
    memory: The most MiB allowed.
  """

  mode: str
  budget: int | None = None
  goal: tuple[float, float] | None = None
  memory: int | None = None

  def __str__(self) -> str:
    return self.mode + (f", {self.budget} MiB" if self.budget else "")


class Shape(NamedTuple):
  """A problem, and the settings to try on it."""

  rows: int
  width: int
  classes: int
  dtype: Any
  settings: tuple[Setting, ...]


CPU_SHAPES = {
  "A": Shape(
    2048,
    512,
    32768,
    jnp.float32,
    (
      Setting("grad_in_forward", None, (1.05, 1.08), 100),
      Setting("grad_in_forward", 45, (1.15, 1.15), 45),
      Setting("recompute", 16, (1.25, 1.25), 16),
      Setting("frozen_kernel", 36, (0.97, 1.05), 36),
      Setting("forward", None, (1.0, 1.0)),
    ),
  ),
  "B": Shape(
    512,
    256,
    131072,
    jnp.float32,
    (
      Setting("grad_in_forward", None, (1.20, 1.20), 260),
      Setting("grad_in_forward", 140, (1.40, 1.40), 140),
      Setting("recompute", 13, (1.20, 1.20), 13),
      Setting("frozen_kernel", 20, (0.90, 1.05), 20),
      Setting("forward", None, (1.0, 1.0)),
    ),
  ),
  # The proportions of the heads that other libraries compare.
  "C": Shape(
    1024,
    640,
    32064,
    jnp.float32,
    (Setting("grad_in_forward"), Setting("recompute")),
  ),
}
OTHER_SHAPES = {
  "language model": Shape(
    4096,
    4096,
    128256,
    jnp.bfloat16,
    (
      Setting("grad_in_forward", None, (1.20, 1.20), 1300),
      Setting("recompute", 300, (1.55, 1.55), 300),
      Setting("frozen_kernel"),
      Setting("forward"),
    ),
  ),
}


def arrays_of(shape: Shape) -> tuple[jax.Array, ...]:
  """Features, kernel, the kernel as ``[V, d]``, labels and a cotangent."""
  keys = jax.random.split(jax.random.key(0), 4)
  count, width, classes = shape.rows, shape.width, shape.classes
  kernel = jax.random.normal(keys[1], (width, classes)) / width**0.5
  return (
    jax.random.normal(keys[0], (count, width), shape.dtype),
    kernel.astype(shape.dtype),
    kernel.T.astype(shape.dtype),
    jax.random.randint(keys[2], (count,), 0, classes),
    jax.random.normal(keys[3], (count, classes), shape.dtype),
  )


def product(count: int) -> Callable[..., Any]:
  """The logits; then the features' and the kernel's gradient."""

  def run(h: Any, w: Any, _: Any, labels: Any, g: Any) -> Any:
    dot = functools.partial(lax.dot_general, preferred_element_type=jnp.float32)
    out = [
      dot(h, w, (((1,), (0,)), ((), ()))),
      dot(g, w, (((1,), (1,)), ((), ()))),
      dot(h, g, (((0,), (0,)), ((), ()))),
    ]
    return out[:1] + [x.astype(h.dtype) for x in out[1:count]]

  return run


def head(name: str, setting: Setting) -> Callable[..., Any]:
  """The mean of a loss, with the gradients of the mode."""
  loss, metrics, *_ = OBJECTIVES[name]
  budget = None if setting.budget is None else setting.budget * 2**20

  def mean(h: Any, w: Any, _: Any, labels: Any, g: Any) -> jax.Array:
    settings = {"plan": fused.Plan(setting.mode, budget)}
    if setting.mode == "grad_in_forward":
      found = fused.linear_loss_sum(
        loss, h, w, labels, metrics=metrics, **settings
      )
      # The metrics are read, so that the compiler keeps them.
      return (found.loss + 0.0 * sum(found.metrics.values())) / found.weight
    return fused.linear_loss(loss, h, w, labels, **settings).mean()

  if setting.mode == "forward":
    return mean
  frozen = setting.mode == "frozen_kernel"
  return jax.value_and_grad(mean, 0 if frozen else (0, 1))


def on_full_logits(loss: Callable[..., jax.Array]) -> Callable[..., Any]:
  """Value and both gradients of a loss of logits."""

  def mean(h: Any, w: Any, _: Any, labels: Any, g: Any) -> jax.Array:
    logits = jnp.matmul(h, w, preferred_element_type=jnp.float32)
    return loss(logits, labels).mean()

  return jax.value_and_grad(mean, (0, 1))


def imported(name: str) -> Any:
  """A module, or None where it is not installed."""
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError:
    return None


def jax_peers() -> dict[str, Callable[..., Any]]:
  """The heads of peers by name and version: value and both gradients."""
  optax_loss = optax.softmax_cross_entropy_with_integer_labels
  peers = {
    "optax, full logits": on_full_logits(optax_loss),
    "ours, full logits": on_full_logits(losses.squentropy),
  }
  if (cce := imported("jax_cce")) is not None:
    version = importlib.metadata.version("jax-cce")
    peers[f"jax-cce {version}"] = jax.value_and_grad(
      lambda h, w, t, labels, g: cce.linear_cross_entropy(h, t, labels), (0, 2)
    )
  if (tokamax := imported("tokamax")) is not None:
    version = importlib.metadata.version("tokamax")
    peers[f"tokamax {version}"] = jax.value_and_grad(
      lambda h, w, t, labels, g: tokamax.linear_softmax_cross_entropy_loss(
        h, labels, w, reduction="mean"
      ),
      (0, 1),
    )
  return peers


def torch_peers(arrays: tuple[jax.Array, ...]) -> dict[str, Any]:
  """PyTorch's products and its heads, on a CPU, in all its threads."""
  torch = imported("torch")
  if torch is None or not hasattr(torch.nn.functional, "linear_cross_entropy"):
    return {}
  h, _, t, labels, g = (torch.tensor(np.asarray(x)) for x in arrays)
  labels = labels.long()
  linear = torch.nn.functional.linear_cross_entropy

  def products(*_: Any) -> Any:
    return h @ t.T, g @ t, g.T @ h

  def of(options: Any) -> Callable[..., Any]:
    def run(*_: Any) -> Any:
      a, b = (x.detach().requires_grad_() for x in (h, t))
      loss = linear(a, b, labels, options=options)
      return torch.autograd.grad(loss, (a, b))

    return run

  name = f"torch {torch.__version__}"
  chunks = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=256)
  return {
    f"{name} {PRODUCTS[3]}": products,
    f"{name} eager": of(None),
    f"{name} chunks of 256": of(chunks),
  }


def error_of_bfloat16(shape: Shape) -> float:
  """Of the mean squentropy of bfloat16 inputs, against float64 on them."""
  arrays = arrays_of(shape._replace(dtype=jnp.bfloat16))
  h, w, labels = (np.asarray(arrays[i]) for i in (0, 1, 3))
  total, count, _ = fused.linear_loss_sum(losses.squentropy, h, w, labels)
  exact, wide = 0.0, w.astype(np.float64)
  for start in range(0, shape.rows, 64):
    z = h[start : start + 64].astype(np.float64) @ wide
    at = np.arange(len(z)), labels[start : start + 64]
    target = z[at]
    largest = z.max(-1)
    lse = largest + np.log(np.exp(z - largest[:, None]).sum(-1))
    z[at] = 0.0
    square = np.square(z).sum(-1) / (shape.classes - 1)
    exact += float((lse - target + square).sum())
  return abs(float(total) / float(count) / (exact / shape.rows) - 1)


def measure(
  title: str, shape: Shape, repeats: int = REPEATS
) -> list[dict[str, Any]]:
  """A row per loss and setting, and per peer."""
  arrays = arrays_of(shape)
  ours = {
    (name, setting): head(name, setting)
    for setting in shape.settings
    for name, objective in OBJECTIVES.items()
    if objective.modes is None or setting.mode in objective.modes
  }
  programs: dict[Any, Callable[..., Any]] = {
    floor: product(count) for count, floor in PRODUCTS.items()
  }
  compiled: dict[Any, Any] = runner.compile_all(
    programs | ours | jax_peers(), arrays
  )
  foreign = torch_peers(arrays) if jax.default_backend() == "cpu" else {}
  seconds = runner.interleaved(compiled | foreign, arrays, repeats)
  found = []
  for key, values in seconds.items():
    loss, setting = key if isinstance(key, tuple) else (key, None)
    count, goal, most = 3, None, None
    frozen = setting is not None and setting.mode == "frozen_kernel"
    over = limit = ""
    if setting is not None:
      # One pass sums up a product for exponentials and one for squares.
      in_one_pass = 3 if loss == "squentropy" else 2
      count = {"forward": 1, "frozen_kernel": in_one_pass}.get(setting.mode, 3)
      goal = setting.goal and setting.goal[loss == "squentropy"]
      most = setting.memory
      plain = seconds["cross_entropy", setting]
      over = f"{runner.ratio(values, plain):.3f}"
      if OBJECTIVES[loss].goal is not None and not frozen:
        limit = f"{OBJECTIVES[loss].goal:.2f}"
    memory = None
    if key in compiled:
      memory = runner.temporary_bytes(compiled[key]) / 2**20
    found.append(
      {
        "shape": title,
        "rows": shape.rows,
        "width": shape.width,
        "classes": shape.classes,
        "dtype": jnp.dtype(shape.dtype).name,
        "loss": loss,
        "mode": "" if setting is None else str(setting),
        "milliseconds": f"{1e3 * statistics.median(values):.2f}",
        "floor": PRODUCTS[count],
        "ratio_to_floor": (
          f"{runner.ratio(values, seconds[PRODUCTS[count]]):.3f}"
        ),
        "goal": "" if goal is None else f"{goal:.2f}",
        "ratio_to_cross_entropy": over,
        "goal_to_cross_entropy": limit,
        "temporary_mib": "" if memory is None else f"{memory:.1f}",
        "goal_mib": "" if most is None else str(most),
      }
    )
  return found


def main() -> None:
  """Measures every shape, prints a table for each and appends to the CSV."""
  console = Console(width=140)
  on_cpu = jax.default_backend() == "cpu"
  columns = {
    "loss": "loss",
    "mode": "mode",
    "milliseconds": "ms",
    "floor": "floor",
    "ratio_to_floor": "ratio",
    "goal": "goal",
    "ratio_to_cross_entropy": "to CE",
    "goal_to_cross_entropy": "goal",
    "temporary_mib": "MiB",
    "goal_mib": "goal",
  }
  for title, shape in (CPU_SHAPES if on_cpu else OTHER_SHAPES).items():
    found = measure(title, shape)
    sizes = f"{shape.rows} x {shape.width} x {shape.classes}"
    title = f"{title}: {sizes}, {found[0]['dtype']}"
    runner.report("fused", title, found, columns)
    if on_cpu:
      error = error_of_bfloat16(shape)
      console.print(
        f"Mean squentropy of bfloat16 inputs: relative error {error:.1e}"
      )
  absent = [m for m in ("jax_cce", "tokamax", "torch") if not imported(m)]
  if absent:
    console.print(f"Peers that are not installed: {', '.join(absent)}")
