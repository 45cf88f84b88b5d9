# SPDX-License-Identifier: Apache-2.0
"""Writes the report of one study as a single HTML page."""

import base64
from collections.abc import Callable
import functools
from html import escape
from string import Template

from squentropy_study import (
  _charts,
  _evaluation,
  _models,
  _page_template,
  _program,
  _results,
  _stopping,
  _verdict,
)
from squentropy_study._results import Measure, Method, Results

_BODY = Template("""<section class="verdict" aria-label="Verdict">
$verdict
</section>
$notes
<h2>Results on the test rows</h2>
$table
<p class="quiet">$table_note</p>
$differences
<h2>Reliability diagrams</h2>
<p class="quiet">$reliability_note</p>
<div class="grid pairs">
$reliability
</div>
<h2>Training curves</h2>
<p class="quiet">$training_note</p>
<div class="grid pairs">
$training
</div>
<h2>Definitions</h2>
$definitions
<h2>Setup</h2>
<pre>$command</pre>
$setup
""")

# Writes the content of one table cell.
_Cell = Callable[[Method, str, Measure], str]


def picture(draw: Callable[[str], bytes], alt: str, caption: str = "") -> str:
  """Returns a figure in both themes, of which the browser shows one."""
  light, dark = (
    "data:image/png;base64," + base64.b64encode(draw(theme)).decode()
    for theme in ("light", "dark")
  )
  above = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
  return (
    f"<figure>\n{above}<picture>\n"
    f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">\n'
    f'<img src="{light}" alt="{escape(alt)}">\n</picture>\n</figure>'
  )


def _name(results: Results, method: Method) -> str:
  """Returns the label of a method, with places where a line may break."""
  name = escape(results.label(method))
  return name.replace(":", ":<wbr>").replace(",", ",<wbr>")


def _number(text: str, *, strong: bool = False) -> str:
  """Formats a mean and its spread, which a phone shows below the mean."""
  mean, _, spread = text.partition(" ")
  if strong:
    mean = f"<strong>{mean}</strong>"
  if not spread:
    return mean
  return f'{mean} <span class="spread">{escape(spread)}</span>'


def _tables(
  results: Results,
  measures: tuple[Measure, ...],
  methods: tuple[Method, ...],
  cell: _Cell,
) -> str:
  """Returns a table of the main measures, and a folded one of the others."""
  main = tuple(measure for measure in measures if measure.main)
  others = tuple(measure for measure in measures if not measure.main)
  return (
    _one_table(results, main, methods, cell)
    + "\n<details><summary>More metrics</summary>\n"
    + _one_table(results, others, methods, cell)
    + "\n</details>"
  )


def _one_table(
  results: Results,
  measures: tuple[Measure, ...],
  methods: tuple[Method, ...],
  cell: _Cell,
) -> str:
  """Returns a group of rows per measure and a column per training length."""
  lengths = results.settings.training_lengths
  head = "".join(
    f'<th scope="col">{_results.length_title(results.settings, length)}</th>'
    for length in lengths
  )
  lines = [f'<tr><th scope="col"><span hidden>Loss</span></th>{head}</tr>']
  for measure in measures:
    lines.append(
      f'<tr><th scope="rowgroup" colspan="{len(lengths) + 1}">'
      f"{escape(measure.title)}</th></tr>"
    )
    for method in methods:
      cells = "".join(
        f"<td>{cell(method, length, measure)}</td>" for length in lengths
      )
      name = _name(results, method)
      lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
  body = "\n".join(lines)
  return f'<div class="wide"><table>\n{body}\n</table></div>'


def _metrics(results: Results) -> str:
  def cell(method: Method, length: str, measure: Measure) -> str:
    values = results.per_seed(method, length, measure.name)
    return _number(_results.mean_and_spread(values, measure.decimals))

  return _tables(results, _results.MEASURES, results.methods, cell)


def _differences(results: Results) -> str:
  """Returns the differences from the baseline; empty without another loss."""
  old = _verdict.baseline(results)
  others = tuple(method for method in results.methods if method != old)
  if not others:
    return ""

  def cell(method: Method, length: str, measure: Measure) -> str:
    difference = results.difference(method, old, length, measure.name)
    text = _verdict.interval(difference, 3)
    return _number(text, strong=difference.sign != 0)

  measures = tuple(m for m in _results.MEASURES if m.name != "temperature")
  limitation = (
    ""
    if results.settings.folds > 1
    else " The interval does not cover the choice of the test rows; use "
    "--folds for that."
  )
  return (
    f"<h2>Difference from {escape(results.label(old))}</h2>\n"
    + _tables(results, measures, others, cell)
    + '\n<p class="quiet">Mean difference with its 95 % confidence interval '
    f"(Student's t, paired by {results.unit}).{limitation} Bold: the interval "
    "excludes 0. Higher is better for accuracy, lower for all other "
    "metrics.</p>"
  )


def _definitions(results: Results) -> str:
  """Returns the terms that the page uses."""
  settings = results.settings
  low, high = _evaluation.TEMPERATURES
  items = [
    "ECE, the expected calibration error, is the mean difference between "
    f"confidence and accuracy over {_evaluation.NUM_BINS} bins of equal width. "
    "NLL is the mean negative logarithm of the predicted probability of the "
    "label.",
    "Temperature scaling divides the logits by a number that is fitted on the "
    f"validation rows, between {low:g} and {high:g}. Above 1 means that the "
    "classifier was over-confident, below 1 under-confident.",
    "A seed decides the initial weights and the order of the rows. All losses "
    "use the same seeds and the same training, validation and test rows.",
    "Stopped training ends each run at the epoch that is best on the "
    f"validation rows ({settings.stopping}). A run is finished when its best "
    "epoch lies in the first half of its training so far and at least "
    f"{_stopping.FEWEST_EPOCHS} epochs and {_stopping.FEWEST_STEPS} steps have "
    "passed, or after "
    f"{settings.max_epochs} epochs.",
  ]
  if settings.folds > 1:
    items.append(
      "Each fold tests on one part of the rows, validates on the next part and "
      "trains on the others."
    )
  if settings.epochs:
    items.append(
      "All training lengths are points of the same training. "
      "That is exact, because the learning rate is constant and nothing else "
      "depends on the length."
    )
  several = {m.loss for m in results.methods if m.probability_map != "softmax"}
  if several:
    items.append(
      "log_probs means the probabilities that the loss itself defines, and "
      "softmax the softmax of the logits. Both are shown for "
      f"{', '.join(sorted(several))}; for all other losses they are the same."
    )
  body = "\n".join(f"<li>{escape(item)}</li>" for item in items)
  return f"<ul>\n{body}\n</ul>"


def _setup(results: Results, config: dict) -> str:
  settings = results.settings
  rows = config["rows"]
  notes = {"Data": "; ".join(config["notes"])} if config["notes"] else {}
  facts = {
    **notes,
    "Rows": f"{rows['train']} training, {rows['validation']} validation and "
    f"{rows['test']} test rows, stratified by class, data seed "
    f"{settings.data_seed}",
    "Model": _models.MODELS[settings.model].description
    + f"; standardised features, clipped to ±{_program.MOST_DEVIATIONS}",
    "Optimizer": f"{_models.OPTIMIZER_NOTES[settings.optimizer]}, constant "
    f"learning rate {settings.learning_rate:g}, batches of "
    f"{min(settings.batch_size, rows['train'])} rows",
    "Runs per loss": settings.repeats,
    "Versions": ", ".join(
      f"{name} {version}" for name, version in config["versions"].items()
    ),
  }
  items = "\n".join(
    f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>"
    for key, value in facts.items()
  )
  return f"<dl>\n{items}\n</dl>"


def _statements(statements: list[_verdict.Statement]) -> str:
  return "\n".join(
    f"<p><strong>{escape(title)}.</strong> {escape(text)}</p>"
    for title, text in statements
  )


def _reliability(results: Results) -> str:
  pictures = []
  for method in results.methods:
    name = results.label(method)
    draw = functools.partial(_charts.reliability, results, method=method)
    pictures.append(picture(draw, f"Reliability diagram of {name}", name))
  return "\n".join(pictures)


def _training(results: Results) -> str:
  return "\n".join(
    picture(functools.partial(_charts.training, results, name=name), alt)
    for name, alt in _charts.CURVES.items()
  )


def html(results: Results, config: dict) -> bytes:
  """Writes the page.

  Args:
    results: The numbers.
    config: The content of ``config.json``.

  Returns:
    The bytes of ``report.html``.
  """
  settings = results.settings
  result = results.run_results[settings.losses[0]]
  classes = result.test_scores.shape[-1]
  chance = [results.chance_ece(*key) for key in results.evaluations]
  lengths = ", ".join(
    _results.length_title(settings, length)
    for length in settings.training_lengths
  )
  fixed = " Dotted line: a fixed training length."
  runs = "folds and seeds" if settings.folds > 1 else "seeds"
  body = _BODY.substitute(
    verdict=_statements(_verdict.verdict(results)),
    notes=_statements(_verdict.notes(results)),
    table=_metrics(results),
    table_note=escape(
      "Mean ± standard deviation over seeds"
      + (", each averaged over folds" if settings.folds > 1 else "")
      + ". On this many rows, the ECE of a perfectly calibrated classifier "
      "with the same confidence is about "
      f"{min(chance):.3f} to {max(chance):.3f}."
    ),
    differences=_differences(results),
    reliability_note=escape(
      "Before temperature scaling, with the test rows of all "
      f"{runs} together. Bars: accuracy of each bin of confidence. Hatched: "
      "difference from the mean confidence. Grey: share of the rows. The ECE "
      f"in the title is the mean over {runs}."
    ),
    reliability=_reliability(results),
    training_note=escape(
      f"Line: mean over {runs}. Band: range over {runs}."
      + (fixed if settings.epochs else "")
    ),
    training=_training(results),
    definitions=_definitions(results),
    command=escape(config["command"]),
    setup=_setup(results, config),
  )
  page = _page_template.PAGE.substitute(
    title=escape(f"Losses compared on {settings.data}"),
    subtitle=escape(
      f"{len(settings.losses)} losses, {settings.repeats}, evaluated "
      f"({lengths}) on {config['rows']['test']} test rows of "
      f"{classes} classes"
    ),
    body=body,
  )
  return page.encode()
