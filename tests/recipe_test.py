# SPDX-License-Identifier: Apache-2.0
"""The recipe for conda-forge says what setup.cfg says."""

import re

from support import source

import squentropy_jax

# Distributions that conda-forge names differently.
CONDA = {"matplotlib": "matplotlib-base"}


def items(text, key):
  """The items of the list below a key, with any comments between left out."""
  block = re.search(rf"^( *){key}:\n((?:\1  .*\n)+)", text, re.M).group(2)
  return re.findall(r"^ *- (.*)$", block, re.M)


def requirements(text):
  found = set()
  for line in text.split():
    name, _, bound = line.partition(">=")
    found.add(f"{CONDA.get(name, name)} >={bound}")
  return found


def test_recipe_equals_setup():
  recipe = (source.ROOT / "packaging" / "recipe.yaml").read_text("utf-8")
  config = source.setup()
  options = config["options"]
  assert f'  version: "{squentropy_jax.__version__}"\n' in recipe
  minimum = options["python_requires"].removeprefix(">=")
  assert f'  python_min: "{minimum}"\n' in recipe
  run = set(items(recipe, "run")) - {"python >=${{ python_min }}"}
  assert run == requirements(options["install_requires"])
  extra = config["options.extras_require"]["study"]
  assert set(items(recipe, "run_constraints")) == requirements(extra)
  scripts = config["options.entry_points"]["console_scripts"].strip()
  assert items(recipe, "entry_points") == scripts.splitlines()
  assert f"license: {config['metadata']['license_expression']}" in recipe
