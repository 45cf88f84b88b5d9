# SPDX-License-Identifier: Apache-2.0
"""The recipes of docs/recipes.md give what dense logits give.

Recipes for frameworks that are not installed run with stand-ins of the names
that they use. An installed framework is used instead of its stand-in.
"""

import dataclasses
import importlib
import re
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import source

from squentropy_jax import losses

PAGE = (source.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
BLOCK = r"^```(?:py|python)\n(.*?)^```"


def blocks(text):
  return re.findall(BLOCK, text, re.M | re.S)


def run(code, names, monkeypatch, stand_ins=()):
  """Runs a block as a user does, with the modules that it imports."""
  for name, value in dict(stand_ins).items():
    try:
      # Frameworks give warnings of their own.
      with warnings.catch_warnings(action="ignore"):
        importlib.import_module(name)
    except ImportError:
      monkeypatch.setitem(importlib.sys.modules, name, value)
  exec(compile(code, "docs/recipes.md", "exec"), names)


@pytest.fixture(autouse=True)
def default_settings():
  """The settings of jax that a user has, instead of those of the tests."""
  with (
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    yield


@pytest.fixture(scope="module")
def page():
  """The names of the page after its code for Flax and optax."""
  names = {}
  with (
    jax.numpy_rank_promotion("allow"),
    jax.numpy_dtype_promotion("standard"),
  ):
    head = PAGE.partition("\n## ")[0]
    for text in (head, SECTIONS["Flax TrainState"]):
      exec("\n".join(blocks(text)), names)
    # The gradients are compared far from the minimum.
    names["state"] = names["TrainState"].create(
      apply_fn=names["model"].apply,
      params=names["model"].init(names["keys"][2], names["tokens"])["params"],
      tx=optax.sgd(0.1),
    )
    exec("\n".join(blocks(SECTIONS["Gradient accumulation"])), names)
  return names


def dense(features, kernel, labels, where, cap=None):
  """Cross-entropy, square term and log-normaliser of dense float64 logits.

  Rows that are dropped have cross-entropy and square term 0.
  """
  z = np.asarray(features, np.float64) @ np.asarray(kernel, np.float64)
  z = z if cap is None else cap * np.tanh(z / cap)
  ids = np.where(where, labels, 0)
  target = np.take_along_axis(z, ids[..., None], -1)[..., 0]
  log_z = np.log(np.exp(z).sum(-1))
  others = (np.square(z).sum(-1) - target**2) / (z.shape[-1] - 1)
  return np.where(where, log_z - target, 0), np.where(where, others, 0), log_z


def close(ours, theirs, rtol=2e-5):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


def mean_and_gradient(page, params):
  def mean(params):
    features = page["model"].apply({"params": params}, page["tokens"])
    kept = page["targets"] >= 0
    logits = features @ params["kernel"]
    each = losses.cross_entropy(logits, page["targets"], where=kept)
    z_loss = jnp.square(jax.nn.logsumexp(logits, axis=-1)).sum(where=kept)
    return (each.sum() + 1e-4 * z_loss) / kept.sum().astype(each.dtype)

  return jax.jit(jax.value_and_grad(mean))(params)


def test_accumulated_gradient_is_that_of_the_batch(page):
  loss, gradient = mean_and_gradient(page, page["state"].params)
  close(page["loss"], loss)
  close(page["gradient"], gradient)


def test_train_state_takes_a_step_along_that_gradient(page):
  _, gradient = mean_and_gradient(page, page["state"].params)
  state, loss, accuracy = page["train_step"](
    page["state"], page["tokens"], page["targets"]
  )
  close(loss, page["loss"])
  assert 0 <= accuracy < 1
  moved = jax.tree.map(
    lambda x, y: (x - y) / 0.1, page["state"].params, state.params
  )
  # A difference of nearly equal numbers.
  close(moved, gradient, rtol=1e-3)


def test_multi_steps_with_shares_takes_the_same_step(page):
  moved = jax.tree.map(
    lambda x, y: (x - y) / 0.1, page["state"].params, page["params"]
  )
  close(moved, page["gradient"], rtol=1e-3)


@jax.jit
def multi_steps(gradients):
  """The gradient that optax.MultiSteps averages of those of micro-batches."""
  optimizer = optax.MultiSteps(optax.sgd(1.0), every_k_schedule=len(gradients))
  params = jnp.zeros(1)
  state = optimizer.init(params)
  for gradient in jnp.split(gradients, len(gradients)):
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
  return -params[0]


def test_multi_steps_of_means_is_right_for_equal_masks_only():
  each = jnp.arange(12.0).reshape(2, 6)

  def mean_of_means(kept):
    sums = jnp.where(kept, each, 0).sum(axis=1)
    return float(multi_steps(sums / kept.sum(axis=1)))

  equal = jnp.arange(6)[None] < jnp.array([[4], [4]])
  unequal = jnp.arange(6)[None] < jnp.array([[5], [1]])
  assert mean_of_means(equal) == pytest.approx(float(each[equal].mean()))
  # Five tokens of mean 2 and one token of 6: the page says how it is weighted.
  assert float(each[unequal].mean()) == pytest.approx(16 / 6)
  assert mean_of_means(unequal) == pytest.approx(4.0)


def test_page_counts_its_tokens(page):
  counts = [int((part >= 0).sum()) for part in page["micro"][1]]
  assert counts == [15, 3]
  assert f"has {counts[0]} tokens and\nthe second one {counts[1]}" in PAGE
  assert f"{counts[0] // counts[1]} times the weight" in PAGE


def arrays(seed=0):
  draw = np.random.default_rng(seed)
  features = draw.normal(size=(2, 5, 4)).astype(np.float32)
  kernel = draw.normal(size=(4, 9)).astype(np.float32)
  labels = draw.integers(0, 9, (2, 5))
  return jnp.asarray(features), jnp.asarray(kernel), labels


def test_maxtext_sums_are_those_of_its_formulas(page):
  features, kernel, labels = arrays()
  segments = np.array([[1, 1, 1, 2, 2], [1, 1, 0, 0, 0]])
  data = {"targets": labels, "targets_segmentation": segments}
  with jax.numpy_dtype_promotion("standard"):
    exec("\n".join(blocks(SECTIONS["MaxText"])), page)
    found = jax.jit(page["maxtext_sums"])(features, kernel, data, 0.01, 0.5)
  kept = segments != 0
  cross, square, log_z = dense(features, kernel, labels, kept)
  # MaxText adds the z-loss to the cross-entropy of each token.
  z_loss = np.where(kept, 0.01 * log_z**2, 0)
  xent = (cross + 0.5 * square + z_loss).sum()
  close(found, (xent, z_loss.sum(), 7.0))


@dataclasses.dataclass(eq=True, frozen=True, kw_only=True)
class _Loss:
  """What kauldron's Loss does with the values of a subclass."""

  mask: str | None = None
  weight: float = 1.0

  def __call__(self, *, mask=None, **arguments):
    values = self.get_values(**arguments)
    mask = jnp.ones(values.shape) if mask is None else mask
    mask = jnp.broadcast_to(mask, values.shape)
    return self.weight * (values * mask).sum() / mask.sum()


def test_kauldron_loss_is_the_mean_over_the_mask(monkeypatch):
  kd = types.SimpleNamespace(
    losses=types.SimpleNamespace(Loss=_Loss),
    kontext=types.SimpleNamespace(Key=str),
  )
  module = types.ModuleType("kauldron")
  module.kd = kd
  names = {}
  run(
    "\n".join(blocks(SECTIONS["kauldron"])),
    names,
    monkeypatch,
    {"kauldron": module},
  )
  features, kernel, labels = arrays()
  labels[0, 3:] = -1
  kept = labels >= 0
  cross, square, _ = dense(features, kernel, labels, kept)
  expected = (cross + square).sum() / kept.sum()
  arguments = {"features": features, "kernel": kernel, "labels": labels}
  found = names["loss"](**arguments, mask=jnp.asarray(kept, jnp.float32))
  close(found, expected)
  keys = {f.name: f.default for f in dataclasses.fields(names["loss"])}
  assert keys["kernel"] == "params.head.kernel"


@dataclasses.dataclass(frozen=True)
class _Axis:
  name: str
  size: int


class _Named:
  """The part of haliax's named arrays that the recipe for levanter uses."""

  def __init__(self, array, axes):
    self.array = array
    self.axes = (axes,) if isinstance(axes, _Axis) else tuple(axes)

  def resolve_axis(self, name):
    return next(axis for axis in self.axes if axis.name == name)

  def rearrange(self, axes):
    order = [self.axes.index(axis) for axis in axes]
    return _Named(jnp.transpose(self.array, order), axes)

  def __mul__(self, other):
    return _Named(
      _broadcast_to(self, other.axes).array * other.array, other.axes
    )


def _broadcast_to(named, axes):
  kept = named.rearrange([axis for axis in axes if axis in named.axes])
  shape = [axis.size if axis in named.axes else 1 for axis in axes]
  sizes = [axis.size for axis in axes]
  return _Named(jnp.broadcast_to(kept.array.reshape(shape), sizes), axes)


def _roll(named, shift, axis):
  return _Named(
    jnp.roll(named.array, shift, named.axes.index(axis)), named.axes
  )


def _mean(named):
  raise AssertionError("weights are part of a mean")


def _reduce_loss(named, reduction, reduction_axis, *, weight):
  """As in haliax, with the reductions that are tested."""
  assert reduction_axis is None
  weighted = named * weight
  if reduction is None:
    return weighted
  assert reduction is _mean
  return weighted.array.sum() / weight.array.sum()


@pytest.fixture
def levanter(monkeypatch):
  """The names of the recipe."""
  modules = {
    name: types.ModuleType(name)
    for name in (
      "haliax",
      "haliax.partitioning",
      "levanter",
      "levanter.models",
      "levanter.models.lm_model",
    )
  }
  haliax = modules["haliax"]
  haliax.named, haliax.mean, haliax.Axis = _Named, _mean, _Axis
  haliax.broadcast_to, haliax.roll = _broadcast_to, _roll
  haliax.nn = types.SimpleNamespace(
    loss=types.SimpleNamespace(reduce_loss=_reduce_loss)
  )
  modules["haliax.partitioning"].pspec_for_axis = lambda axes: jax.P(
    *(None for _ in axes)
  )
  modules["levanter.models"].lm_model = modules["levanter.models.lm_model"]
  names = {}
  code = "\n".join(blocks(SECTIONS["levanter"]))
  run(code, names, monkeypatch, modules)
  return names


@pytest.mark.parametrize(
  ("z_weight", "cap"), [(None, None), (0.01, None), (0.01, 1.5)]
)
def test_levanter_loss_predicts_the_next_token(levanter, z_weight, cap):
  hax = levanter["hax"]
  batch, pos = hax.Axis("batch", 2), hax.Axis("position", 5)
  embed, vocab = hax.Axis("embed", 4), hax.Axis("vocab", 9)
  features, kernel, ids = arrays()
  weight = np.array([[1, 0.25, 0, 1, 1], [1, 1, 2, 1, 1]], np.float32)
  arguments = (
    # The model's longest sequence, of which an example has a part.
    hax.Axis("position", 64),
    embed,
    vocab,
    # In another order of the axes than the recipe needs.
    hax.named(jnp.transpose(features, (1, 2, 0)), (pos, embed, batch)),
    hax.named(kernel.T, (vocab, embed)),
    hax.named(jnp.asarray(ids), (batch, pos)),
  )
  # The arguments that LmHeadModel.compute_next_token_loss passes.
  options = {
    "loss_weight": hax.named(jnp.asarray(weight), (batch, pos)),
    "reduction_axis": None,
    "logsumexp_weight": z_weight,
    "dtype": jnp.float32,
    "logit_soft_cap": cap,
  }
  weight = weight * (np.arange(5) < 4)
  labels = np.roll(ids, -1, axis=1)
  cross, _, log_z = dense(features, kernel, labels, weight > 0, cap)
  expected = weight * (cross + (z_weight or 0) * log_z**2)
  ours = levanter["lm_model"].maybe_fused_next_token_loss
  with jax.set_mesh(jax.make_mesh((1,), ("data",))):
    mean = ours(*arguments, **options, reduction=hax.mean)
    each = ours(*arguments, **options, reduction=None)
    options["loss_weight"] = None
    unweighted = ours(*arguments, **options, reduction=None)
  close(getattr(mean, "array", mean), expected.sum() / weight.sum())
  close(each.rearrange((batch, pos)).array, expected)
  kept = np.broadcast_to(np.arange(5) < 4, ids.shape)
  cross, _, log_z = dense(features, kernel, labels, kept, cap)
  expected = np.where(kept, cross + (z_weight or 0) * log_z**2, 0)
  close(unweighted.rearrange((batch, pos)).array, expected)


class _Embedder:
  def __init__(self, table):
    self.input_embedding = table


class _Model:
  def __init__(self, table):
    self.embedder = _Embedder(table)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tunix_log_probs_and_entropies(temperature, monkeypatch):
  tunix, rl, common = map(types.ModuleType, ("tunix", "tunix.rl", "common"))
  rl.common = common
  tunix.rl = rl
  names = {}
  modules = {"tunix": tunix, "tunix.rl": rl}
  run("\n".join(blocks(SECTIONS["tunix"])), names, monkeypatch, modules)
  ours = names["common"].compute_chunked_logps
  assert ours is names["compute_chunked_logps"]
  features, kernel, ids = arrays()
  model = _Model(kernel.T)
  log_prob, entropy = ours(model, features, ids, temperature, 2, True)
  logits = np.asarray(features @ kernel, np.float64) / (temperature or 1.0)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  expected = np.take_along_axis(log_probs, ids[..., None], -1)[..., 0]
  close(log_prob, expected)
  close(entropy, -(np.exp(log_probs) * log_probs).sum(-1))
  close(ours(model, features, ids, temperature, 0, False), expected)
