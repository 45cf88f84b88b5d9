# SPDX-License-Identifier: Apache-2.0
"""The report: one page with everything in it."""

import base64
from collections.abc import Callable
import functools
from html import escape
from string import Template

from squentropy_study import (
  _evaluate,
  _figures,
  _models,
  _page,
  _results,
  _verdict,
)
from squentropy_study._results import Results

_BODY = Template("""<section class="verdict" aria-label="Verdict">
$verdict
</section>
$notes
<h2>Test rows, by training length</h2>
$table
<p class="quiet">$table_note</p>
$differences
<h2>Reliability</h2>
<p class="quiet">$reliability_note</p>
<div class="grid pairs">
$reliability
</div>
<h2>Training</h2>
<p class="quiet">$training_note</p>
<div class="grid pairs">
$training
</div>
<h2>How to read this</h2>
$reading
<h2>How it was made</h2>
<pre>$command</pre>
$made
""")


def _picture(draw: Callable[[str], bytes], alt: str, caption: str = "") -> str:
  """A figure drawn for both themes; the browser picks one."""
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


def _name(results: Results, method: _results.Method) -> str:
  """The label of a method, with places where a phone may break it."""
  name = escape(results.label(method))
  return name.replace(":", ":<wbr>").replace(",", ",<wbr>")


def _number(text: str, *, strong: bool = False) -> str:
  """A mean and what follows it, which goes below the mean on a phone."""
  mean, _, rest = text.partition(" ")
  if strong:
    mean = f"<strong>{mean}</strong>"
  return f'{mean} <span class="rest">{escape(rest)}</span>' if rest else mean


def _grouped(
  results: Results,
  columns: tuple[_results.Column, ...],
  methods: tuple[_results.Method, ...],
  cell: Callable[[_results.Method, str, _results.Column], str],
) -> str:
  """The main numbers in a table; the others fold away below it."""
  main = tuple(column for column in columns if column.main)
  others = tuple(column for column in columns if not column.main)
  return (
    _one_table(results, main, methods, cell)
    + "\n<details><summary>Further measures</summary>\n"
    + _one_table(results, others, methods, cell)
    + "\n</details>"
  )


def _one_table(
  results: Results,
  columns: tuple[_results.Column, ...],
  methods: tuple[_results.Method, ...],
  cell: Callable[[_results.Method, str, _results.Column], str],
) -> str:
  """A table with a group of rows per number and a column per regime."""
  regimes = results.settings.regimes
  head = "".join(
    f'<th scope="col">{regime}: {epochs} epochs</th>'
    for regime, epochs in regimes.items()
  )
  lines = [f'<tr><th scope="col"><span hidden>Loss</span></th>{head}</tr>']
  for column in columns:
    lines.append(
      f'<tr><th scope="rowgroup" colspan="{len(regimes) + 1}">'
      f"{escape(column.title)}</th></tr>"
    )
    for method in methods:
      cells = "".join(
        f"<td>{cell(method, regime, column)}</td>" for regime in regimes
      )
      name = _name(results, method)
      lines.append(f'<tr><th scope="row">{name}</th>{cells}</tr>')
  body = "\n".join(lines)
  return f'<div class="wide"><table>\n{body}\n</table></div>'


def _numbers(results: Results) -> str:
  def cell(
    method: _results.Method, regime: str, column: _results.Column
  ) -> str:
    values = results.per_seed(method, regime, column.name)
    return _number(_results.mean_and_spread(values, column.decimals))

  return _grouped(results, _results.COLUMNS, results.methods, cell)


def _differences(results: Results) -> str:
  """Every other method against the baseline, where there is one."""
  old = _verdict.baseline(results)
  others = tuple(method for method in results.methods if method != old)
  if not others:
    return ""

  def cell(
    method: _results.Method, regime: str, column: _results.Column
  ) -> str:
    difference = results.difference(method, old, regime, column.name)
    text = _verdict.interval(difference, 3)
    return _number(text, strong=difference.sign != 0)

  columns = tuple(c for c in _results.COLUMNS if c.name != "temperature")
  name = escape(results.label(old))
  reach = (
    ""
    if results.settings.folds > 1
    else "; without --folds it does not cover the choice of the test rows"
  )
  return (
    f"<h2>Difference from {name}, {results.unit} by {results.unit}</h2>\n"
    + _grouped(results, columns, others, cell)
    + '\n<p class="quiet">Mean and 95 % interval over '
    f"{results.unit}s (paired, Student){reach}. "
    "Bold where the interval leaves out 0. For accuracy more is better, for "
    "the others less.</p>"
  )


def _reading(results: Results) -> str:
  """What the words mean, only of what was run."""
  settings = results.settings
  items = [
    "ECE is the mean gap between confidence and accuracy over "
    f"{_evaluate.NUM_BINS} bins of equal width. NLL is the mean "
    "negative logarithm of the probability given to the label.",
    "The temperature is fitted on the calibration rows, never on test rows. "
    "Above 1 means that the classifier was over-confident, below 1 "
    "under-confident. It is held between "
    "{:g} and {:g}.".format(*_evaluate.TEMPERATURES),
    "A seed decides the initial weights and the order of the rows, alike for "
    "every loss; so are the rows of each part. In cross-validation each fold "
    "tests on a part of its own and fits the temperature on the next one.",
  ]
  if len(settings.epochs) > 1:
    items.append(
      "The shorter training is the same run read sooner. That is exact, as the "
      "learning rate is constant and nothing else looks at the length."
    )
  names = {method.loss.partition(":")[0] for method in results.methods}
  if "squentropy" in names:
    items.append(
      "Squentropy pulls the logits of the wrong classes to 0, so its softmax "
      "is less confident. While cross-entropy is still well calibrated this "
      "makes squentropy under-confident; once long training has made "
      "cross-entropy over-confident it helps."
    )
  own = {m.loss for m in results.methods if m.readout != "softmax"}
  own -= {m.loss for m in results.methods if m.readout == "softmax"}
  if own:
    items.append(
      "Not read through a softmax of the logits but through the loss's own "
      f"link, as its documentation defines it: {', '.join(sorted(own))}."
    )
  if any(method.readout == "linear" for method in results.methods):
    items.append(
      "The square loss is read in two ways: through a softmax, as is usual, "
      "and linearly, by inverting the minimiser of the loss (logits divided by "
      "target_value, clipped to 0 .. 1, normalised). The clip ends at 1e-6, as "
      "a probability of 0 can make the NLL infinite."
    )
  body = "\n".join(f"<li>{escape(item)}</li>" for item in items)
  return f"<ul>\n{body}\n</ul>"


def _made(results: Results, config: dict) -> str:
  settings = results.settings
  rows = config["rows"]
  notes = {"Data": "; ".join(config["notes"])} if config["notes"] else {}
  facts = {
    **notes,
    "Rows": f"{rows['train']} to train on, {rows['calibration']} for "
    f"the temperature, {rows['test']} to test on; stratified, "
    f"data seed {settings.data_seed}",
    "Network": _models.MODELS[settings.model].description
    + "; features standardised and held to 10 deviations",
    "Optimiser": f"{_models.OPTIMIZER_NOTES[settings.optimizer]}, constant "
    f"learning rate {settings.learning_rate:g}, batches of "
    f"{min(settings.batch_size, rows['train'])} rows",
    "Repeats": settings.repeats,
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
    draw = functools.partial(_figures.reliability, results, method=method)
    pictures.append(_picture(draw, f"Reliability diagram of {name}", name))
  return "\n".join(pictures)


def _training(results: Results) -> str:
  return "\n".join(
    _picture(functools.partial(_figures.training, results, column=column), alt)
    for column, alt in _figures.CURVES.items()
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
  cell = results.cells[settings.losses[0]]
  classes = cell.test_logits.shape[-1]
  chance = [results.chance_ece(*key) for key in results.evaluations]
  lengths = " and ".join(map(str, settings.epochs))
  shorter = "Dotted: where the shorter training is read."
  runs = "folds and seeds" if settings.folds > 1 else "seeds"
  body = _BODY.substitute(
    verdict=_statements(_verdict.verdict(results)),
    notes=_statements(_verdict.notes(results)),
    table=_numbers(results),
    table_note=escape(
      "Mean ± standard deviation over seeds"
      + (", each the mean of its folds" if settings.folds > 1 else "")
      + ". By chance alone, perfectly "
      "calibrated forecasts of the same confidence would show an ECE of about "
      f"{min(chance):.3f} to {max(chance):.3f} on this many rows."
    ),
    differences=_differences(results),
    reliability_note=escape(
      "Before temperature scaling. Bars: accuracy in each bin of confidence, "
      f"all {runs} together; hatched: the gap to the mean confidence; grey: "
      f"the share of the rows. The ECE in the title is the mean over {runs}."
    ),
    reliability=_reliability(results),
    training_note=escape(
      f"Lines: mean over {runs}; bands: lowest to highest of them. "
      + (shorter if len(settings.epochs) > 1 else "")
    ),
    training=_training(results),
    reading=_reading(results),
    command=escape(config["command"]),
    made=_made(results, config),
  )
  page = _page.PAGE.substitute(
    title=escape(f"Which loss for {settings.data}?"),
    subtitle=escape(
      f"{len(settings.losses)} losses, {settings.repeats}, read after "
      f"{lengths} epochs, on {config['rows']['test']} test rows of {classes} "
      "classes"
    ),
    body=body,
  )
  return page.encode()
