# SPDX-License-Identifier: Apache-2.0
"""Made-up predictions of test rows, without any training."""

import numpy as np
from scipy import special

SHARES = (0.4, 0.35, 0.25)
ROWS = 240


def predictions(
  signal, shares=SHARES, *, rows=ROWS, folds=1, seeds=3, seed=0, own=0.3
):
  """Predictions whose logit of the label is higher by a signal.

  The difficulty of a row is the same for all predictions of a seed; ``own`` is
  noise of each training run.
  """
  from squentropy_study._test_rows import Predictions

  counts = np.round(np.array(shares) * rows).astype(int)
  labels = np.stack([np.repeat(np.arange(len(shares)), counts)] * folds)
  shared = np.random.default_rng(seed)
  noise = shared.standard_normal((folds, 1, labels.shape[1], len(shares)))
  generator = np.random.default_rng([seed, int(1000 * signal)])
  runs = own * generator.standard_normal(
    (folds, seeds, labels.shape[1], len(shares))
  )
  truth = np.eye(len(shares))[labels][:, None]
  log_probs = special.log_softmax(signal * truth + noise + runs, axis=-1)
  return Predictions(log_probs, labels, np.ones(labels.shape, bool))


def entries(shares=SHARES, *, epoch=5.0, options=None, **signals):
  """An entry for each loss with its signal."""
  from squentropy_study._ranking import Entry
  from squentropy_study._result_rows import Method

  return [
    Entry(
      loss,
      predictions(signal, shares, **(options or {})),
      loss,
      Method(loss, "softmax"),
      epoch,
    )
    for loss, signal in signals.items()
  ]


def baseline(name, signal, shares=SHARES, **options):
  """A baseline with its signal."""
  from squentropy_study._ranking import Entry

  return Entry(name, predictions(signal, shares, seeds=1, **options))
