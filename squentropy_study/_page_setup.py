# SPDX-License-Identifier: Apache-2.0
"""The end of a report: the rows, the definitions, the setup."""

from collections.abc import Iterator

from squentropy_study import (
  _evaluation,
  _models,
  _number_text,
  _page_parts,
  _predictions,
  _program,
  _stopping,
)
from squentropy_study._results import Results
from squentropy_study._settings import Settings

_STOPPING = {
  "refinement": "the lowest validation NLL after temperature scaling",
  "nll": "the lowest validation NLL",
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
    "Temperature scaling divides the logits by a temperature that is fitted on "
    f"the validation rows, between {low:g} and {high:g}. A temperature above 1 "
    "means that the classifier was over-confident, and one below 1 that it was "
    "under-confident. The fit adds one misclassified row, because the "
    "temperature of rows that are all correct would be 0. The added row is the "
    "row of median margin, and its label is the second most probable class."
  )
  yield (
    "Stopped training evaluates each run at its best epoch, which is the epoch "
    f"with {_STOPPING[settings.stopping]}. A run ends after "
    f"{settings.max_epochs} epochs, or earlier if its best epoch lies in the "
    "first half of the training so far. It does not end early before "
    f"{_stopping.FEWEST_EPOCHS} epochs and {_stopping.FEWEST_STEPS} steps. The "
    "other training lengths are fixed epochs of the same run."
  )
  yield (
    "± test rows is the standard error from the choice of the test rows. ± "
    "seeds is the standard error from the initial weights and the order of the "
    "rows. An interval combines both: it adds their squares, and uses "
    "Student's t distribution with the degrees of freedom of Welch and "
    "Satterthwaite. Differences are paired by row and by seed. With one or two "
    "seeds, an interval includes the error from the test rows only. The error "
    "of the ECE is that of a paired bootstrap of the rows."
  )
  yield (
    "A seed decides the initial weights and the order of the rows. All losses "
    "use the same seeds and the same rows."
  )
  if settings.folds > 1:
    yield (
      "Each fold tests on one part of the rows, validates on the next part and "
      "trains on the others. Folds share training rows. The intervals do not "
      "account for this."
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
      "softmax means the softmax of the logits. The report shows both for "
      f"{', '.join(sorted(several))}. For all other losses they are equal. A "
      "loss that can define a probability of 0 has the floor 2^-23, the "
      "precision of float32, because its NLL would be infinite."
    )


def files(results: Results) -> str:
  """Lists the files of the folder."""
  settings = results.settings
  name, seeds = _predictions.file(results)
  of_seeds = (
    f" The file has {_number_text.counted(seeds, 'seed')} only, from seed 0."
    if seeds < settings.seeds
    else ""
  )
  has_ids = results.data_rows is not None and results.data_rows.ids is not None
  ids = f", id is its value of {settings.id}," if has_ids else ""
  predictions = (
    "log-probabilities of every class after stopped training and temperature "
    "scaling, with a line for each test row, fold, seed, and loss or baseline. "
    f"In each line, row is the number of the row in the data (from 0){ids} and "
    f"label is its class.{of_seeds}"
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
    "how the command squentropy-study predict turns rows into features."
  )
  facts["runs"] = "the stopped models, and the data of this report."
  return _page_parts.definitions(facts)


def _split(settings: Settings) -> str:
  """Says how the rows are split."""
  if settings.time is not None:
    return f"in the order of the column {settings.time}"
  seed = f"data seed {settings.data_seed}"
  if settings.group is not None:
    return f"by the values of the column {settings.group}, {seed}"
  return f"stratified by class, {seed}"


def setup(results: Results, config: dict) -> str:
  """Lists the settings and the versions."""
  settings = results.settings
  notes = {"Data": "; ".join(config["notes"])} if config["notes"] else {}
  return _page_parts.definitions(
    {
      **notes,
      "Split": _split(settings),
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
  """Draws the numbers of training, validation and test rows."""
  roles = {
    "training": "fit the weights",
    "validation": "choose the epoch and fit the temperature",
    "test": "are reported",
  }
  counts = config["rows"]
  parts = dict(zip(roles, counts.values(), strict=True))
  of_fold = (
    '<p class="quiet">The numbers are those of each fold. Together, the folds '
    "test on all rows.</p>"
    if results.settings.folds > 1
    else ""
  )
  return _page_parts.rows_bar(parts, roles) + of_fold
