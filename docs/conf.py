"""Settings of Sphinx: `sphinx-build -W --keep-going -b html docs docs/_build`."""

import os
from pathlib import Path

# Importing the modules for their docstrings must not search for accelerators or print TensorFlow's greetings.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import bcss_jax

project = "bcss_jax"
author = "the bcss_jax authors"
release = "0.1.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples"]
source_suffix = {".md": "myst-nb", ".rst": "restructuredtext"}

nb_execution_mode = "off"  # the code of the pages is run by tests/docs
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

apidoc_modules = [{"path": str(Path(bcss_jax.__file__).parent), "destination": "api", "max_depth": 2}]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
default_role = "code"  # the docstrings write names as `name`
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "bcss_jax"
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
html_copy_source = False
