# SPDX-License-Identifier: Apache-2.0
"""Every public function has a complete docstring, and its examples run."""

import ast
import doctest
import importlib
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import source

import squentropy_jax
from squentropy_jax import (
  attention,
  calibration,
  confusion,
  fused,
  heads,
  losses,
  margins,
  masking,
  probes,
  regression,
  retrieval,
  reweighting,
  special,
  transforms,
)

PUBLIC = source.public()
FUNCTIONS = [n for n, value in PUBLIC.items() if not inspect.isclass(value)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_has_its_sections(name):
  text = inspect.getdoc(PUBLIC[name]) or ""
  parameters = inspect.signature(PUBLIC[name]).parameters
  sections = ["Returns:", "Examples:", "References:"]
  if parameters:
    sections.insert(0, "Args:")
  if "labels" in parameters:  # Invalid labels raise.
    sections.insert(2, "Raises:")
  at = [text.find(f"\n{section}\n") for section in sections]
  missing = [s for s, i in zip(sections, at, strict=True) if i < 0]
  assert not missing, f"{name} has no {' and no '.join(missing)}"
  assert at == sorted(at), f"{name}: the order is {' '.join(sections)}"
  assert ".. math::" in text, f"{name} has no formula."
  assert ">>> " in text[at[-2] :], f"{name} has no example that runs."
  arguments = text[at[0] : at[1]]
  for parameter in parameters:
    assert re.search(rf"^ +\**{parameter}\b.*:", arguments, re.M), (
      f"{name}: Args does not describe {parameter}."
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_has_its_types(name):
  signature = inspect.signature(PUBLIC[name])
  annotations = [p.annotation for p in signature.parameters.values()]
  assert inspect.Signature.empty not in [
    *annotations,
    signature.return_annotation,
  ]


@pytest.mark.parametrize(
  "path", source.files(source.LIBRARY), ids=source.dotted
)
def test_examples_in_docstrings(path):
  """Reads the source, because doctest does not find decorated functions."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  module = importlib.import_module(source.dotted(path))
  names = vars(module) | {
    "attention": attention,
    "calibration": calibration,
    "confusion": confusion,
    "fused": fused,
    "heads": heads,
    "jax": jax,
    "jnp": jnp,
    "losses": losses,
    "margins": margins,
    "masking": masking,
    "np": np,
    "probes": probes,
    "regression": regression,
    "retrieval": retrieval,
    "reweighting": reweighting,
    "special": special,
    "squentropy_jax": squentropy_jax,
    "transforms": transforms,
  }
  documented = ast.Module | ast.ClassDef | ast.FunctionDef
  runner = doctest.DocTestRunner(
    optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
  )
  for node in ast.walk(tree):
    text = isinstance(node, documented) and ast.get_docstring(node)
    if not text or ">>>" not in text:
      continue
    test = doctest.DocTestParser().get_doctest(
      text, dict(names), getattr(node, "name", path.stem), str(path), 0
    )
    with np.printoptions(precision=4):
      runner.run(test)
  assert runner.summarize(verbose=False).failed == 0
