"""Sphinx's configuration of the site; `build_site.py` writes the pages that it reads, and calls it."""

import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROJECT = tomllib.loads((HERE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]

project = "Faísca MLX"
release = PROJECT["version"]
html_title = project
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns: list[str] = []
language = "en"

myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
suppress_warnings = ["myst.header"]  # some documents begin their sections a level deeper
default_role = "code"
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_static_path = [str(HERE / "static")]
html_css_files = ["book.css"]
html_show_sphinx = True
html_show_copyright = False
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which a browser refuses for files
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def portuguese(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Pages of docs/pt/ say that they are in Portuguese."""
    if pagename.startswith("docs/pt/"):
        context["language"] = "pt"


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("html-page-context", portuguese)
