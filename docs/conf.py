"""Sphinx configuration."""

from __future__ import annotations

import sys
from importlib.metadata import metadata
from pathlib import Path

import flask
from pallets_sphinx_themes import get_version

project = "flask_mysqlpool"
copyright = "2026 The flask_mysqlpool developers"
author = "The flask_mysqlpool developers"
release, version = get_version("flask-pymysqlpool")
urls = metadata("flask-pymysqlpool").get_all("Project-URL") or []
html_baseurl = dict(url.split(", ") for url in urls).get("Documentation", "")

sys.path.append(str(Path(__file__).parent / "_ext"))
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
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

# The inventories have just the names that these pages refer to; nothing is downloaded.
intersphinx_mapping = {
    "flask": ("https://flask.palletsprojects.com/en/stable", "_inventories/flask.inv"),
    "pymysql": ("https://pymysql.readthedocs.io/en/latest", "_inventories/pymysql.inv"),
    "python": ("https://docs.python.org/3", "_inventories/python.inv"),
}
# Documented under this name.
flask.Blueprint.__module__ = "flask"

html_theme = "flask"
html_theme_options = {"index_sidebar_logo": False}
html_sidebars = {
    "index": ["searchbox.html"],
    "**": ["localtoc.html", "relations.html", "searchbox.html"],
}
html_show_sourcelink = False
html_title = f"{project} ({version})"
