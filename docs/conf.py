"""Configuration of the documentation. It builds without a network."""

from __future__ import annotations

import os
import sys
from importlib.metadata import metadata
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))

info = metadata("spahgc")
project = info["Name"]
author = "spahgc developers"
copyright = f"2026, {author}"  # noqa: A001
version = release = info["Version"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "generated_pages",
    "prose_returns",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
html_static_path = ["_static"]
# The first one is what autosummary writes its pages as; all other pages are Markdown.
source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}

# Links to other projects need their inventories from the network: only where that is asked for (Read the Docs does).
if os.environ.get("SPAHGC_DOCS_INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "anndata": ("https://anndata.readthedocs.io/en/stable/", None),
    "numpy": ("https://numpy.org/doc/stable/", None),
    "pandas": ("https://pandas.pydata.org/docs/", None),
    "python": ("https://docs.python.org/3", None),
    "scanpy": ("https://scanpy.readthedocs.io/en/stable/", None),
    "spatialdata": ("https://spatialdata.scverse.org/en/stable/", None),
    "squidpy": ("https://squidpy.readthedocs.io/en/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}

# Notebooks are shown with the outputs they were committed with.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_member_order = "bysource"
# Types stand in the signature of the source; the page shows them with the parameters.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = True
napoleon_use_param = True

html_theme = "sphinx_book_theme"
html_title = "spahgc"
html_theme_options = {
    "navbar_persistent": [],  # the sidebar has a search field already
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
}
pygments_style = "default"
