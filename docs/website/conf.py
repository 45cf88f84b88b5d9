# SPDX-License-Identifier: Apache-2.0
"""Settings of Sphinx for the site that ``make docs`` builds."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import squentropy_jax

project = "squentropy_jax"
author = "The squentropy_jax authors"
copyright = author
version = release = squentropy_jax.__version__
language = "en"

extensions = [
  "myst_nb",
  "sphinx.ext.autodoc",
  "sphinx.ext.napoleon",
  "mathml",
  "notebook_times",
  "symbol_links",
]
root_doc = "index"
# Files to download.
exclude_patterns = ["files/**"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
# Docstrings write names of arguments in single backquotes.
default_role = "code"
# Code without a language, such as a command, is shown as it is.
highlight_language = "none"

nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
# A busy machine may need much longer than the minute that a notebook takes.
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_merge_streams = True
# A warning of a notebook is one of the build.
nb_output_stderr = "remove-warn"
# A notebook does not need the files of the site.
nb_execution_in_temp = True

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# Docstrings say types and shapes in words.
napoleon_attr_annotations = False
napoleon_use_rtype = False

html_theme = "furo"
# The default underlines imports, as if they were links.
pygments_dark_style = "monokai"
html_title = f"squentropy_jax {version}"
html_static_path = ["static"]
html_css_files = ["style.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
