"""How the site is built: ``make docs``. Nothing here needs a network."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "platform")]

import cellray  # noqa: E402 - found by the line above

project = "cellray"
author = "the cellray authors"
copyright = author
version = release = cellray.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "reference",
]
exclude_patterns = ["README.md"]  # what GitHub shows of the folder
myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # benchmark pages begin tables at any level

smartquotes = False  # -- is no dash where options are spoken of
highlight_language = "text"
default_role = "py:obj"  # a name in single backticks becomes a link where it has a page
autodoc_typehints = "none"  # signatures are long enough; docstrings say what things are
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"cellray {version}"
html_copy_source = False
html_show_sphinx = False
