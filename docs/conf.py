"""How the documentation is built: `scripts/docs`."""

from importlib.metadata import version as _version

project = "autoconv"
author = "the authors of autoconv"
copyright = f"2026, {author}"
release = version = _version("autoconv")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_click"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"autoconv {release}"
html_static_path: list[str] = []
html_show_copyright = False
html_copy_source = False

# Every name that is written as code links nowhere by itself, and every link must lead somewhere.
nitpicky = False
default_role = "code"
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
