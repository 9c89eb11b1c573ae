"""Sphinx's configuration of the site; `build.py` writes the pages that it reads, and calls it."""

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
html_theme_options = {"top_of_page_buttons": []}
pygments_style = "a11y-high-contrast-light"
pygments_dark_style = "a11y-high-contrast-dark"


def for_everybody(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """What the theme leaves out: the level of the captions, tables that the keyboard can scroll, and the language."""
    tree = context.get("furo_navigation_tree", "")
    context["furo_navigation_tree"] = tree.replace('role="heading"', 'role="heading" aria-level="2"')
    wrapper = '<div class="table-wrapper'
    body = context.get("body") or ""
    context["body"] = body.replace(
        wrapper, wrapper.replace("<div", '<div tabindex="0" role="group" aria-label="table"')
    )
    if pagename.startswith("docs/pt/"):
        context["language"] = "pt"


def setup(app: Any) -> None:
    """What Sphinx calls."""
    app.connect("html-page-context", for_everybody, priority=900)  # after the theme
