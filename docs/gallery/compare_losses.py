# SPDX-License-Identifier: Apache-2.0
# %% [markdown]
# # Compare losses on your data
#
# `squentropy_study.compare` trains a small network with each loss, on several
# seeds, and ranks the losses with confidence intervals. The settings here are
# small, so that the page builds fast. Take five seeds or more, and `folds=4`,
# for a decision.

# %%
import html
import pathlib
import tempfile
import textwrap

from IPython.display import HTML
from sklearn.datasets import load_breast_cancer

import squentropy_study as study

x, y = load_breast_cancer(return_X_y=True, as_frame=True)
folder = tempfile.mkdtemp()
results = study.compare(
  x,
  y,
  losses=["cross_entropy", "squentropy", "focal:gamma=3"],
  seeds=3,
  epochs=(),
  max_epochs=12,
  out=folder,
  quiet=True,
)

# %% [markdown]
# ## The ranking
#
# The losses are ranked by the negative log-likelihood (NLL) after temperature
# scaling. `nll_low` and `nll_high` are the 95 % interval of the difference from
# cross-entropy. Below the losses are classifiers that are no neural networks.

# %%
print(textwrap.fill(str(study.headline(results)), 79))

# %%
columns = ["nll", "nll_difference", "nll_low", "nll_high", "accuracy", "ece"]
results.table().set_index("loss")[columns].round(3)

# %%
results.plot()

# %% [markdown]
# ## The report
#
# With `out=`, the study also writes a report of one HTML file. This is the one
# of the run above.

# %%
report = pathlib.Path(folder, "report.html").read_text(encoding="utf-8")
HTML(
  '<div><iframe class="report" title="Report of the study" loading="lazy" '
  f'srcdoc="{html.escape(report)}"></iframe></div>'
)

# %% [markdown]
# The command `squentropy-study run` does the same for files:
# [Comparing losses on your own data](../study.md).
