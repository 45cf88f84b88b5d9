# SPDX-License-Identifier: Apache-2.0
"""The pages of docs/losses are those that the docstrings make."""

import importlib.util
import pathlib
import re

import pytest

from squentropy_jax import losses, retrieval

FOLDER = pathlib.Path(__file__).parents[1] / "docs" / "losses"
_SPEC = importlib.util.spec_from_file_location(
  "loss_pages", FOLDER.parent / "loss_pages.py"
)
loss_pages = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(loss_pages)
FAMILIES = loss_pages.families()


def test_every_loss_is_in_a_family():
  public = {
    name
    for package in (losses, retrieval)
    for name, value in vars(package).items()
    if not name.startswith("_") and callable(value)
  }
  assert public == {name for names in FAMILIES.values() for name in names}
  written = {path.stem for path in FOLDER.glob("*.md")} - {"README", "table"}
  assert written == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_page_is_up_to_date(family):
  text = (FOLDER / f"{family}.md").read_text("utf-8")
  assert text == loss_pages.page(family), (
    f"Run `python docs/loss_pages.py {family}`."
  )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_docstring_says_when_to_use_a_loss(family):
  for name in FAMILIES[family]:
    doc = loss_pages.parse(getattr(loss_pages.home(name), name).__doc__)
    assert doc.use, f'{name} has no paragraph "Use when".'
    assert doc.avoid, f'{name} has no paragraph "Avoid when".'
    assert any(".. math::" in paragraph for paragraph in doc.body), name


def test_no_markup_of_the_source_is_left():
  for family in FAMILIES:
    text = loss_pages.page(family)
    assert not re.search(
      r":(math|func|class):|(?<!`)``(?!`)|\.\. \w+::|`_", text
    ), family


def test_markup_becomes_markdown():
  doc = loss_pages.parse(
    """Computes it.

    Use when it
    helps.

    For :math:`z \\in
    A`,

    .. math::
      a = b

        + c .

    Facts of ``x`` and :func:`squentropy_jax.losses.focal`.

    Args:
      logits: Scores.
      tau: Order, at
        most 2.

    Examples:
      >>> print(
      ...   1
      ... )
      1

    References:
      Hui, `A Title
      <https://a.b>`_, 2023.

    .. seealso:: :func:`squentropy_jax.row_loss`
    """
  )
  assert doc.use == "Use when it\nhelps."
  assert not doc.avoid
  first, second = (loss_pages.markdown(p) for p in doc.body)
  assert first == "For $z \\in A$,\n\n$$\na = b\n\n  + c .\n$$"
  assert second == "Facts of `x` and [`focal`](focal.md#focal)."
  tau = loss_pages.entries(doc.sections["Args"])["tau"]
  assert tau == "Order, at most 2."
  code = loss_pages.example(doc.sections["Examples"])
  assert code == "print(\n  1\n)\n# 1"
  reference = loss_pages.markdown(doc.sections["References"])
  assert reference == "Hui, [A Title](https://a.b), 2023."
  assert loss_pages.markdown(doc.see_also) == "`squentropy_jax.row_loss`"
