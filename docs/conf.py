"""The documentation's settings. `make docs` builds it, without a network."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS / "_extensions"))
sys.path.insert(0, str(DOCS.parent / "src"))  # this tree, whatever is installed

import p4torch  # noqa: E402

project = "p4torch"
author = "The p4torch developers"
copyright = author
version = release = p4torch.__version__

extensions = ["plain_docstrings", "sphinx.ext.napoleon", "sphinx.ext.autodoc", "myst_parser", "repository_links"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
default_role = "py:obj"  # a link where there is such a name, else code
smartquotes = False
highlight_language = "none"
myst_heading_anchors = 3

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
add_module_names = False
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"p4torch {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
