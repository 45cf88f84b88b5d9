# SPDX-License-Identifier: Apache-2.0
"""A loss that the library does not have, made by `row_loss`.

It is a squared hinge on the log-odds of the incorrect classes. It must be used
exactly as the library's own losses: dense, with soft labels, masks,
hyper-parameters for each example, log_probs, fused and sharded.
"""

import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from squentropy_jax import RowStats, losses, row_loss, rows

RNG = np.random.default_rng(21)
LOGITS = (RNG.normal(size=(6, 5)) * 2).astype(np.float32)
LABELS = np.array([0, 4, 2, 3, 1, 2])
SOFT = RNG.dirichlet(np.ones(5), size=6).astype(np.float32)


@row_loss(domains={"margin": "[0, inf)"})
def hinge(stats, *, margin=1.0, power=2.0):
  """The hinge of the log-odds."""
  return jnp.maximum(stats.log_odds + margin, 0.0) ** power


@row_loss(
  domains={"temperature": "(0, inf)"},
  transform=rows.Transform(divide_by="temperature"),
  log_probs=lambda logits, *, temperature: logits / temperature,
)
def tempered_hinge(stats, *, temperature=2.0):
  return jnp.maximum(stats.log_odds + 1.0, 0.0) ** 2


def reference(row, label, margin=1.0, power=2.0):
  others = np.delete(np.float64(row), label)
  odds = np.logaddexp.reduce(others) - np.float64(row[label])
  return max(odds + margin, 0.0) ** power


def expected(logits=LOGITS, labels=LABELS, **values):
  each = zip(logits, labels, strict=True)
  return np.array([reference(row, y, **values) for row, y in each])


close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)


def test_class_ids():
  for call in (hinge, jax.jit(hinge)):
    close(call(LOGITS, LABELS), expected())
    close(call(LOGITS, LABELS, margin=0.3), expected(margin=0.3))
  close(hinge(LOGITS.T, LABELS, axis=0), expected())
  gradient = jax.grad(lambda z: hinge(z, LABELS).sum())(LOGITS)
  step = 1e-3 * np.random.default_rng(21).normal(size=LOGITS.shape)
  change = expected(LOGITS + step).sum() - expected(LOGITS - step).sum()
  np.testing.assert_allclose((gradient * step).sum(), change / 2, rtol=1e-3)


def test_soft_labels_are_the_expected_loss():
  each = [expected(labels=np.full(6, k)) for k in range(5)]
  close(hinge(LOGITS, SOFT), (SOFT * np.stack(each, -1)).sum(-1))
  one_hot = np.eye(5, dtype=np.float32)[LABELS]
  close(hinge(LOGITS, one_hot), expected())


def test_masks():
  keep = np.arange(6) != 2
  garbage = np.where(keep[:, None], LOGITS, np.float32(np.nan))
  labels = np.where(keep, LABELS, -100)
  value, gradient = jax.value_and_grad(
    lambda z: hinge(z, labels, where=keep).sum()
  )(garbage)
  close(value, expected()[keep].sum())
  assert np.isfinite(gradient).all()
  np.testing.assert_array_equal(gradient[2], 0)
  classes = np.ones(LOGITS.shape, bool)
  classes[:, 0] = LABELS == 0
  masked = np.where(classes, LOGITS, -np.inf)
  close(hinge(LOGITS, LABELS, where=classes), expected(masked))


def test_a_hyperparameter_has_a_value_for_each_example():
  margins = np.linspace(0.0, 2.0, 6, dtype=np.float32)
  each = [
    reference(*row)
    for row in zip(LOGITS, LABELS, margins.tolist(), strict=True)
  ]
  close(hinge(LOGITS, LABELS, margin=margins), each)
  grads = jax.grad(lambda m: hinge(LOGITS, LABELS, margin=m).sum())(margins)
  close(grads, 2 * np.sqrt(each))
  for wrong in (margins[:1], margins[:, None]):
    with pytest.raises(ValueError, match=r"margin must be a scalar or have"):
      hinge(LOGITS, LABELS, margin=wrong)


def test_domains():
  with pytest.raises(ValueError, match=r"margin must be in \[0, inf\)"):
    hinge(LOGITS, LABELS, margin=-1.0)
  # Without a domain every real number is allowed.
  values = {"margin": 20.0, "power": -1.0}
  close(hinge(LOGITS, LABELS, **values), expected(**values))
  with pytest.raises(TypeError, match="power must be a real number"):
    hinge(LOGITS, LABELS, power=True)
  with pytest.raises(TypeError, match="hinge has no hyper-parameter scale"):
    hinge(LOGITS, LABELS, scale=1.0)


def test_static_settings():
  @row_loss(domains={"squared": bool, "times": int})
  def loss(stats, *, squared=True, times=1):
    odds = jnp.maximum(stats.log_odds + 1.0, 0.0)
    for _ in range(times):
      odds = odds**2 if squared else odds
    return odds

  close(loss(LOGITS, LABELS), expected())
  close(loss(LOGITS, LABELS, times=2), expected() ** 2)
  close(loss(LOGITS, LABELS, squared=False), np.sqrt(expected()))
  with pytest.raises(TypeError, match="squared must be True or False"):
    loss(LOGITS, LABELS, squared=1)
  with pytest.raises(TypeError, match="times must be one int"):
    loss(LOGITS, LABELS, times=1.0)


def test_labels_out_of_range():
  wrong = np.where(np.arange(6) == 3, 5, LABELS)
  with pytest.raises(ValueError, match=r"labels\[3\] = 5 is outside \[0, 5\)"):
    hinge(LOGITS, wrong)
  np.testing.assert_array_equal(
    np.isnan(jax.jit(hinge)(LOGITS, wrong)), np.arange(6) == 3
  )


def test_log_probs():
  close(hinge.log_probs(LOGITS), jax.nn.log_softmax(LOGITS))
  assert hinge.predicts_softmax
  assert not tempered_hinge.predicts_softmax
  for values in ({}, {"temperature": 0.5}):
    t = values.get("temperature", 2.0)
    close(
      tempered_hinge.log_probs(LOGITS, **values),
      jax.nn.log_softmax(LOGITS / np.float32(t)),
    )


def test_a_transform_divides_the_logits():
  close(tempered_hinge(LOGITS, LABELS), expected(LOGITS / 2))
  close(tempered_hinge(LOGITS, SOFT, temperature=0.5), hinge(2 * LOGITS, SOFT))
  temperatures = np.linspace(0.5, 2.0, 6, dtype=np.float32)
  close(
    tempered_hinge(LOGITS, LABELS, temperature=temperatures),
    expected(LOGITS / temperatures[:, None]),
  )


def test_row():
  others = np.delete(LOGITS[0], 0)
  lse = np.logaddexp.reduce(others)
  stats = RowStats(
    target=jnp.array(LOGITS[0, 0]),
    log_odds=jnp.array(lse - LOGITS[0, 0]),
    rest_lse=jnp.array(lse),
    rest_sum=jnp.array(others.sum()),
    rest_sq=jnp.array(np.square(others).sum()),
    rest_max=jnp.array(others.max()),
    rest_expected=jnp.array((others * np.exp(others - lse)).sum()),
    num_classes=jnp.array(5.0, jnp.float32),
  )
  close(hinge.row(stats, margin=0.3), expected(margin=0.3)[0])


def field(name):
  return lambda stats: getattr(stats, name)


def test_every_statistic_is_what_its_name_says():
  """A formula may read any field, in value and gradient."""
  label, row = 1, LOGITS[0]
  others = np.delete(np.float64(row), label)
  p = np.exp(others - np.logaddexp.reduce(others))
  truth = {
    "target": row[label],
    "log_odds": np.logaddexp.reduce(others) - row[label],
    "rest_lse": np.logaddexp.reduce(others),
    "rest_sum": others.sum(),
    "rest_sq": np.square(others).sum(),
    "rest_max": others.max(),
    "rest_expected": (p * others).sum(),
    "num_classes": 5,
    "log_z": np.logaddexp.reduce(np.float64(row)),
  }
  assert truth.keys() == {*RowStats._fields, "log_z"}

  @jax.jit
  def read(row):
    return {name: row_loss(field(name))(row, label) for name in truth}

  for name, value in read(row).items():
    close(value, truth[name], err_msg=name)


def test_it_looks_like_a_function():
  assert hinge.__name__ == "hinge"
  assert hinge.__doc__ == "The hinge of the log-odds."
  assert list(inspect.signature(hinge).parameters) == [
    "logits",
    "labels",
    "margin",
    "power",
    "axis",
    "where",
  ]
  assert inspect.signature(hinge).parameters["margin"].default == 1.0
  assert repr(hinge) == "<loss hinge>"
  assert pickle.loads(pickle.dumps(hinge)) is hinge


def test_three_forms_of_the_declaration():
  def formula(stats, *, margin=1.0):
    return jnp.maximum(stats.log_odds + margin, 0.0) ** 2

  for loss in (
    row_loss(formula),
    row_loss()(formula),
    row_loss(domains={"margin": "[0, inf)"})(formula),
    row_loss(lambda stats: jnp.maximum(stats.log_odds + 1.0, 0.0) ** 2),
  ):
    close(loss(LOGITS, LABELS), expected())


def test_a_hyperparameter_without_a_default_must_be_given():
  loss = row_loss(lambda stats, *, margin: stats.log_odds + margin)
  with pytest.raises(TypeError, match=r"needs the hyper-parameter margin="):
    loss(LOGITS, LABELS)
  assert loss(LOGITS, LABELS, margin=1.0).shape == (6,)


@pytest.mark.parametrize(
  ("keywords", "error", "message"),
  [
    ({"domains": {"scale": "[0, 1]"}}, TypeError, "domains names 'scale'"),
    ({"domains": {"margin": "0, 1"}}, ValueError, "must be an interval such"),
    ({"domains": {"margin": "[1, 0]"}}, ValueError, "must be an interval such"),
    ({"domains": {"margin": float}}, ValueError, "must be an interval such"),
    (
      {"transform": rows.Transform(divide_by="scale")},
      ValueError,
      "transform divides by 'scale'",
    ),
    (
      {"transform": rows.Transform(divide_by="margin")},
      ValueError,
      "contains 0",
    ),
    (
      {"transform": rows.Transform(multiply_by="margin")},
      ValueError,
      "transform multiplies by 'margin', whose domain .* contains 0",
    ),
    (
      {"transform": rows.Transform("margin", multiply_by="margin")},
      ValueError,
      "must either divide or multiply",
    ),
    (
      {"transform": rows.Transform(subtract="median")},
      ValueError,
      "must be 'max', 'mean' or None",
    ),
    ({"transform": lambda z: z}, TypeError, "must be a rows.Transform"),
    (
      {"transform": rows.Transform(rescale=True)},
      TypeError,
      "positional arguments must be 2, got 1",
    ),
  ],
)
def test_errors_of_a_declaration(keywords, error, message):
  with pytest.raises(error, match=message):
    row_loss(lambda stats, *, margin: stats.log_odds + margin, **keywords)


def test_a_multiplied_loss_is_one_of_multiplied_logits():
  @row_loss(
    domains={"scale": "(0, inf)", "kind": ("plain", "squared")},
    transform=rows.Transform(multiply_by="scale"),
  )
  def loss(stats, *, scale=3.0, kind="plain"):
    del scale
    odds = jax.nn.softplus(stats.log_odds)
    return odds if kind == "plain" else odds**2

  plain = losses.cross_entropy(3 * LOGITS, LABELS)
  np.testing.assert_allclose(loss(LOGITS, LABELS), plain, rtol=1e-6)
  squared = loss(LOGITS, LABELS, kind="squared")
  np.testing.assert_allclose(squared, plain**2, rtol=1e-6)
  np.testing.assert_allclose(
    loss.log_probs(LOGITS), jax.nn.log_softmax(3 * LOGITS), rtol=1e-5, atol=1e-6
  )
  with pytest.raises(ValueError, match="kind must be 'plain' or 'squared'"):
    loss(LOGITS, LABELS, kind="cubed")


@pytest.mark.x64
def test_numbers_of_float32_are_widened_with_the_logits():
  numbers = np.float32([0.5] * 6), jnp.full(6, 0.5, jnp.float32)
  for gamma in numbers:
    value = losses.focal(np.float64(LOGITS), LABELS, gamma=gamma)
    expected = losses.focal(np.float64(LOGITS), LABELS, gamma=0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-14)


def test_hyperparameters_are_keyword_only():
  with pytest.raises(TypeError, match=r"put a \* before them"):
    row_loss(lambda stats, margin: stats.log_odds + margin)


@pytest.mark.parametrize(
  "formula", [lambda stats: stats.log_odds.mean(), lambda stats: 0.0]
)
def test_a_formula_returns_one_number_for_each_row(formula):
  with pytest.raises(TypeError, match="one number for each row"):
    row_loss(formula)(LOGITS, LABELS)


def test_a_divided_loss_predicts_the_softmax_of_divided_logits():
  loss = row_loss(
    lambda stats, *, temperature=2.0: jax.nn.softplus(stats.log_odds),
    domains={"temperature": "(0, inf)"},
    transform=rows.Transform(divide_by="temperature"),
  )
  assert not loss.predicts_softmax
  close(loss.log_probs(LOGITS), jax.nn.log_softmax(LOGITS / 2.0))


@pytest.mark.parametrize("name", ["axis", "where"])
def test_names_that_every_loss_has_are_reserved(name):
  scope = {}
  exec(f"def formula(stats, *, {name}=1.0): return stats.target", scope)
  with pytest.raises(TypeError, match=f"{name} must not be a hyper-parameter"):
    row_loss(scope["formula"])


def test_an_optax_step_learns():
  features = jnp.asarray(
    np.random.default_rng(21).normal(size=(64, 8)), jnp.float32
  )
  labels = jnp.argmax(features[:, :3], axis=-1)
  optimizer = optax.sgd(0.1)
  kernel = jnp.zeros((8, 3))

  @jax.jit
  def step(kernel, state):
    value, gradient = jax.value_and_grad(
      lambda k: hinge(features @ k, labels).mean()
    )(kernel)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(kernel, updates), state, value

  state = optimizer.init(kernel)
  values = []
  for _ in range(60):
    kernel, state, value = step(kernel, state)
    values.append(value)
  assert values[-1] < 0.1 * values[0]


# Fused and sharded: `fused` is imported in each test.

FEATURES = RNG.normal(size=(6, 8)).astype(np.float32)
KERNEL = RNG.normal(size=(8, 5)).astype(np.float32)


# A fused head takes the classes of a distribution and their probabilities.
PAIRS = (np.broadcast_to(np.arange(5), SOFT.shape), SOFT)


@pytest.mark.parametrize(
  ("labels", "of_dense"), [(LABELS, LABELS), (PAIRS, SOFT)], ids=["ids", "soft"]
)
def test_fused_with_the_last_layer(labels, of_dense):
  from squentropy_jax import fused

  loss = functools.partial(hinge, margin=0.3)

  def of_head(features, kernel):
    return fused.linear_loss(loss, features, kernel, labels).sum()

  def dense(features, kernel):
    return loss(features @ kernel, of_dense).sum()

  actual = jax.value_and_grad(of_head, (0, 1))(FEATURES, KERNEL)
  truth = jax.value_and_grad(dense, (0, 1))(FEATURES, KERNEL)
  jax.tree.map(functools.partial(close, rtol=1e-4, atol=1e-4), actual, truth)


def test_fused_with_a_transform():
  from squentropy_jax import fused

  loss = functools.partial(tempered_hinge, temperature=0.5)
  close(
    fused.linear_loss(loss, FEATURES, KERNEL, LABELS),
    loss(FEATURES @ KERNEL, LABELS),
    rtol=1e-4,
  )


def test_fused_with_a_value_for_each_example():
  from squentropy_jax import fused

  margins = np.linspace(0.0, 2.0, 6, dtype=np.float32)
  loss = functools.partial(hinge, margin=margins)
  close(
    fused.linear_loss(loss, FEATURES, KERNEL, LABELS),
    loss(FEATURES @ KERNEL, LABELS),
    rtol=1e-4,
  )


def test_sharded_over_classes():
  """Each device holds a part of the classes and never sees the others."""
  from squentropy_jax import fused

  mesh = jax.make_mesh((5,), ("classes",), devices=jax.devices()[:5])
  loss = functools.partial(hinge, margin=0.3)

  @jax.jit
  def of_head(features, kernel):
    return fused.linear_loss(
      loss,
      features,
      kernel,
      LABELS,
      mesh=mesh,
      features_spec=jax.P(),
      kernel_spec=jax.P(None, "classes"),
    )

  spec = jax.P(None, "classes")
  kernel = jax.device_put(KERNEL, jax.NamedSharding(mesh, spec))
  close(of_head(FEATURES, kernel), loss(FEATURES @ KERNEL, LABELS), rtol=1e-4)
