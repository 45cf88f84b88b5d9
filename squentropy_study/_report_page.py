# SPDX-License-Identifier: Apache-2.0
"""Writes the report of one study as a single HTML page."""

import functools
from html import escape

from squentropy_study import (
  _charts,
  _class_metrics,
  _data,
  _headline,
  _metric_samples,
  _model_average,
  _number_text,
  _page_parts,
  _page_setup,
  _page_tables,
  _page_template,
  _ranking,
  _reliability,
  _result_rows,
  _terminal_table,
)
from squentropy_study._ranking import Ranking
from squentropy_study._result_rows import REFERENCE
from squentropy_study._results import Results
from squentropy_study._settings import STOPPED
from squentropy_study._study_error import StudyError


def _answer(headline: _headline.Headline) -> str:
  return (
    '<section class="verdict" aria-label="Answer">\n'
    f'<p class="first">{escape(headline.sentence)}</p>\n'
    f"{_page_parts.paragraphs(headline.further)}\n</section>"
  )


def _imbalance(ranking: Ranking, names: list[str]) -> list[str]:
  """Says why a table with a dominant class is not ranked by accuracy."""
  counts = ranking.class_counts
  share = counts.max() / counts.sum()
  if share < _metric_samples.DOMINANT:
    return []
  text = (
    f"{_page_tables.share_text(share)} of the test rows are of the class "
    f"{names[counts.argmax()]}, which is the accuracy of always predicting it. "
    "The page shows balanced accuracy, average precision and AUROC instead."
  )
  fewest = int(counts.min())
  if fewest < 10:
    text += (
      f" The rarest class has {_number_text.counted(fewest, 'test row')}, so "
      "the errors of its recall and average precision are large."
    )
  return [text]


def _reference_note(results: Results, ranking: Ranking) -> str:
  """Says how the reference was chosen, if no loss was named."""
  settings = results.settings
  if (settings.reference or REFERENCE) in settings.losses:
    return ""
  return f" {ranking.reference} has the lowest validation NLL."


def _untested(ranking: Ranking) -> str:
  """Returns the metrics without a test, and a verb."""
  names = [m.short for m in ranking.metrics if not m.is_tested]
  return f"{_number_text.listed(names)} {'is' if len(names) == 1 else 'are'}"


def _rank_note(results: Results, ranking: Ranking) -> str:
  """Explains the ranking."""
  texts = ["Numbers are means over seeds. The best loss of a column is bold."]
  if len(ranking.losses) > 1:
    texts.append(
      f"Below each number is its difference from {ranking.reference}, with a "
      "95 % confidence interval. The interval includes the error from the "
      "choice of the test rows"
      + (
        " and from the seeds."
        if ranking.seeds > 2
        else ", but not the error from the seeds."
      )
      + _reference_note(results, ranking)
      + " A star (*) marks a difference that is significant after Holm's "
      f"correction for {ranking.num_tests} tests. {_untested(ranking)} not "
      "tested."
    )
    if len({method.loss for method in results.methods}) < len(results.methods):
      texts.append(
        "A loss whose probabilities are not the softmax of the logits is "
        "listed with both: its own (log_probs) and the softmax. Only the first "
        "is tested."
      )
  if results.settings.folds == 1:
    texts.append(
      "All networks are trained on the same rows. The intervals do not include "
      "the error from the choice of the training rows; --folds 4 averages over "
      "four choices."
    )
  if ranking.baselines:
    texts.append("Each baseline is fitted once in each fold, without seeds.")
  # Each of them begins with the name of a baseline.
  texts += [f"{note[0].upper()}{note[1:]}." for note in results.baseline_notes]
  return " ".join(texts)


def _average(results: Results) -> str:
  """Says what the mean of the best models, which predicts new rows, reaches."""
  try:
    method = _model_average.best_method(results, None)
  except StudyError:
    return ""
  average = _model_average.fit(results, method)
  reached = [
    f"{metric.short} {_terminal_table.value_text(value, metric)}"
    + (" %" if metric.unit else "")
    for metric, value in _model_average.measure(results, average).items()
  ]
  settings = results.settings
  models = _number_text.counted(settings.seeds, "model")
  if settings.folds > 1:
    models += " of each fold"
  text = (
    "New rows are predicted by the loss with the lowest validation NLL, which "
    f"is {results.label(method)}. On the test rows, the mean prediction of its "
    f"{models} has {_number_text.listed(reached, len(reached))}."
  )
  if settings.folds > 1:
    text += " New rows are predicted by the mean over all folds."
  return f'<p class="quiet">{escape(text)}</p>'


def _past(results: Results) -> str:
  """Lists the fixed lengths that are past the best epoch."""
  found = _headline.past_best(results)
  if not found:
    return ""
  return (
    "<h3>Fixed lengths past the best epoch</h3>\n"
    + _page_tables.past(found)
    + '\n<p class="quiet">Numbers are the NLL of the test rows before '
    "temperature scaling, as means over the runs. A cell is empty if the NLL "
    "is not clearly higher than at the best epoch.</p>"
  )


def _metrics(results: Results, ranking: Ranking) -> str:
  """Returns all metrics at all training lengths, the main ones first."""
  folds = ", each averaged over folds" if results.settings.folds > 1 else ""
  chance = [results.chance_ece(method, STOPPED) for method in results.methods]
  note = (
    f"Numbers are the mean ± standard deviation over seeds{folds}. On this "
    "many rows, a perfectly calibrated classifier with the same confidence has "
    f"an ECE of about {min(chance):.3f} to {max(chance):.3f}."
  )
  shown = {measure.name for measure in _result_rows.MEASURES if measure.main}
  ranked = {metric.name for metric in ranking.metrics}
  if "accuracy" not in ranked:
    shown = shown - {"accuracy"} | ranked & set(_class_metrics.NAMES)
  main = [m for m in _result_rows.MEASURES if m.name in shown]
  others = [m for m in _result_rows.MEASURES if m.name not in shown]
  return (
    _page_tables.measures(results, main)
    + f'\n<p class="quiet">{escape(note)}</p>'
    + "\n<details><summary>More metrics</summary>\n"
    + _page_tables.measures(results, others)
    + "\n</details>"
  )


def _classes(results: Results, ranking: Ranking, names: list[str]) -> str:
  """Returns the metrics of each class and the confusions of the best loss."""
  best = next(iter(ranking.losses), None)
  if best is None or best.method is None:
    return ""
  predictions = results.test_predictions(best.method, ranking.length)
  listed = ""
  if len(names) > _page_tables.MOST_LISTED:
    listed = (
      f" The table has the {_page_tables.MOST_LISTED} classes with the lowest "
      "recall."
    )
  note = (
    f"Numbers are means over the seeds of {best.label} with {ranking.length} "
    "training, after temperature scaling. If a class is calibrated, its mean "
    "probability equals its share of the rows. The ECE is that of the "
    f"probability of the class.{listed}"
  )
  return (
    f"<h2>Classes, for {escape(best.label)}</h2>\n"
    + _page_tables.classes(predictions, names)
    + f'\n<p class="quiet">{escape(note)}</p>\n<h3>Confusions</h3>\n'
    + _page_tables.confusions(predictions, names)
    + '\n<p class="quiet">Numbers count the test rows of each class by '
    "predicted class, as means over seeds.</p>"
  )


def _figures(results: Results) -> str:
  """Returns reliability diagrams and training curves, with their legends."""
  diagrams = "\n".join(
    _page_parts.picture(
      functools.partial(_reliability.reliability, results, method=method),
      f"Reliability diagram of {results.label(method)}",
      results.label(method),
    )
    for method in results.methods
  )
  curves = "\n".join(
    _page_parts.picture(
      functools.partial(_charts.training, results, name=name), title
    )
    for name, title in _charts.CURVES.items()
  )
  lines = [
    (*_charts.line_style(results, method), results.label(method))
    for method in results.methods
  ]
  settings = results.settings
  runs = "folds and seeds" if settings.folds > 1 else "seeds"
  fixed = " Dotted lines are the fixed lengths." if settings.epochs else ""
  return f"""<h2>Reliability diagrams</h2>
<p class="quiet">A diagram shows the test rows of all {runs} together, after
{STOPPED} training. The lower part is the share of the rows in each bin, on the
same axis for every loss.</p>
{_page_parts.bar_legend(_reliability.LEGEND)}
<div class="grid pairs">
{diagrams}
</div>
<h2>Training curves</h2>
<p class="quiet">A line is the mean over {runs}, and a band is the range over
{runs}. A dot is the median epoch at which the runs are stopped.{fixed}</p>
{_page_parts.line_legend(lines)}
<div class="grid pairs">
{curves}
</div>"""


def html(results: Results, config: dict) -> bytes:
  """Writes the page.

  Args:
    results: The numbers.
    config: The content of ``config.json``.

  Returns:
    The bytes of ``report.html``.
  """
  settings = results.settings
  ranking = _ranking.rank(results)
  counts = config["classes"]
  names = list(counts)
  headline = _headline.headline(results)
  definitions = "\n".join(
    f"<li>{escape(item)}</li>" for item in _page_setup.definitions(results)
  )
  body = f"""{_answer(headline)}
<p><strong>Classes.</strong> {escape(_page_tables.class_summary(counts))}.</p>
{_page_parts.paragraphs(_imbalance(ranking, names))}
<h2>Which loss? ({escape(ranking.length)} training)</h2>
{_page_tables.ranked(ranking)}
<p class="quiet">{escape(_rank_note(results, ranking))}</p>
{_average(results)}
{_past(results)}
<h2>Standard errors</h2>
{_page_tables.errors(ranking)}
<p class="quiet">± is one standard error: over seeds, and over the choice of the
test rows. p is corrected for the number of tests (Holm).</p>
<h2>All metrics and training lengths</h2>
{_metrics(results, ranking)}
{_classes(results, ranking, names)}
{_figures(results)}
<h2>Rows</h2>
{_page_setup.rows(results, config)}
<h2>Definitions</h2>
<ul>
{definitions}
</ul>
<h2>Files</h2>
{_page_setup.files(results)}
<h2>Setup</h2>
<pre>{escape(config["command"])}</pre>
{_page_setup.setup(results, config)}
"""
  page = _page_template.PAGE.substitute(
    title=escape(f"Losses compared on {_data.short_name(settings.data)}"),
    subtitle=escape(
      f"{_number_text.counted(len(settings.losses), 'loss')}, "
      f"{settings.repeats}, {config['rows']['test']} test rows of "
      f"{_number_text.counted(len(names), 'class')}"
    ),
    body=body,
  )
  return page.encode()
