"""Sphinx configuration."""

from __future__ import annotations

import sys
from pathlib import Path

from pallets_sphinx_themes import get_version

project = "flask_mysqlpool"
copyright = "2026 The flask_mysqlpool developers"
author = "The flask_mysqlpool developers"
release, version = get_version("flask-pymysqlpool")

sys.path.append(str(Path(__file__).parent / "_ext"))
extensions = [
    "sphinx.ext.autodoc",
    "pallets_sphinx_themes",
    "myst_parser",
    "sources",
    "tested",
]
default_role = "code"
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True

html_theme = "flask"
html_theme_options = {"index_sidebar_logo": False}
html_sidebars = {
    "index": ["searchbox.html"],
    "**": ["localtoc.html", "relations.html", "searchbox.html"],
}
html_show_sourcelink = False
html_title = f"{project} ({version})"
