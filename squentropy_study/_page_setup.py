# SPDX-License-Identifier: Apache-2.0
"""The end of a report: the rows, the definitions, the setup."""

from collections.abc import Iterator

from squentropy_study import (
  _evaluation,
  _models,
  _page_parts,
  _predictions,
  _program,
  _stopping,
)
from squentropy_study._results import Results

_STOPPING = {
  "refinement": "the least validation NLL after a fitted temperature",
  "nll": "the least validation NLL",
  "accuracy": "the highest validation accuracy",
}


def definitions(results: Results) -> Iterator[str]:
  """Yields the terms that the page uses."""
  settings = results.settings
  low, high = _evaluation.TEMPERATURES
  yield (
    "NLL is the mean negative logarithm of the predicted probability of the "
    "label. It rewards accuracy and calibration together, so the losses are "
    "ranked by it."
  )
  yield (
    "ECE, the expected calibration error, is the mean difference between "
    f"confidence and accuracy over {_evaluation.NUM_BINS} bins of equal width."
  )
  yield (
    "Temperature scaling divides the logits by a number that is fitted on the "
    f"validation rows, between {low:g} and {high:g}. Above 1 means that the "
    "classifier was over-confident, below 1 under-confident. One row more "
    "counts as misclassified, because rows that are all correct would give a "
    "temperature of 0. It is the row of median margin, and its label the "
    "second most probable class."
  )
  yield (
    "stopped: each run is evaluated at its best epoch, that of "
    f"{_STOPPING[settings.stopping]}. A run ends when its best epoch lies in "
    "the first half of its training so far and at least "
    f"{_stopping.FEWEST_EPOCHS} epochs and {_stopping.FEWEST_STEPS} steps have "
    "passed, or after "
    f"{settings.max_epochs} epochs. The other lengths are fixed points of the "
    "same training."
  )
  yield (
    "± test rows is the standard error from the choice of the test rows, ± "
    "seeds that from weights and order of the rows. Intervals add their "
    "squares (Student's t, Welch and Satterthwaite). Differences are paired by "
    "row and by seed. With one or two seeds, an interval covers the test rows "
    "alone. The error of the ECE is that of a paired bootstrap of the rows."
  )
  yield (
    "A seed decides the initial weights and the order of the rows. All losses "
    "use the same seeds and the same rows."
  )
  if settings.folds > 1:
    yield (
      "Each fold tests on one part of the rows, validates on the next part and "
      "trains on the others. Folds share training rows, which the intervals "
      "do not cover."
    )
  if results.baselines:
    yield (
      "The baselines are classifiers of scikit-learn, fitted on the training "
      "rows of each fold. The majority class predicts the shares of the "
      "classes. The validation rows choose the number of boosting rounds and "
      "fit a temperature."
    )
  several = {m.loss for m in results.methods if m.probability_map != "softmax"}
  if several:
    yield (
      "log_probs means the probabilities that the loss itself defines, and "
      "softmax the softmax of the logits. Both are shown for "
      f"{', '.join(sorted(several))}; for all other losses they are the same."
    )


def files(results: Results) -> str:
  """Lists the files of the folder."""
  settings = results.settings
  name, seeds = _predictions.file(results)
  of_seeds = f" Seeds: the first {seeds}." if seeds < settings.seeds else ""
  has_ids = results.data_rows is not None and results.data_rows.ids is not None
  ids = f"id the value of {settings.id_column}, " if has_ids else ""
  predictions = (
    "log-probabilities of every class after stopped training and temperature "
    "scaling, a line for each test row, fold, seed, and loss or baseline. row "
    f"is the number of the row in the data, from 0, {ids}and label its "
    f"class.{of_seeds}"
  )
  facts = {"results.csv": "all metrics of each loss, fold and seed."}
  if name is not None:
    facts[name] = predictions
  else:
    facts["Predictions"] = (
      "too many for a file. In Python, squentropy_study.load(folder)"
      ".predictions() returns them."
    )
  facts["preprocessing.json"] = (
    "how rows become features, for squentropy-study predict."
  )
  facts["runs"] = "the stopped models, and what the report is computed from."
  return _page_parts.definitions(facts)


def setup(results: Results, config: dict) -> str:
  settings = results.settings
  notes = {"Data": "; ".join(config["notes"])} if config["notes"] else {}
  return _page_parts.definitions(
    {
      **notes,
      "Split": f"stratified by class, data seed {settings.data_seed}",
      "Model": _models.MODELS[settings.model].description
      + f"; standardised features, clipped to ±{_program.MOST_DEVIATIONS}",
      "Optimizer": f"{_models.OPTIMIZER_NOTES[settings.optimizer]}, constant "
      f"learning rate {settings.learning_rate:g}, batches of "
      f"{min(settings.batch_size, config['rows']['train'])} rows",
      "Runs per loss": settings.repeats,
      "Versions": ", ".join(
        f"{name} {version}" for name, version in config["versions"].items()
      ),
    }
  )


def rows(results: Results, config: dict) -> str:
  """Draws what the rows are for."""
  roles = {
    "training": "fit the weights",
    "validation": "choose the epoch and fit the temperature",
    "test": "are reported",
  }
  counts = config["rows"]
  parts = dict(zip(roles, counts.values(), strict=True))
  of_fold = (
    '<p class="quiet">In each fold; together, the folds test on all rows.</p>'
    if results.settings.folds > 1
    else ""
  )
  return _page_parts.rows_bar(parts, roles) + of_fold
