"""Sphinx configuration. The tables of settings are made from the code itself."""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from pallets_sphinx_themes import get_version
from sphinx.application import Sphinx

from flask_mysqlpool.config import PoolConfig
from flask_mysqlpool.config.settings import BINDS, URL, AppConfig

project = "flask_mysqlpool"
copyright = "2026 The flask_mysqlpool developers"
author = "The flask_mysqlpool developers"
release, version = get_version("flask-pymysqlpool")

sys.path.append(str(Path(__file__).parent / "_ext"))
extensions = [
    "sphinx.ext.autodoc",
    "pallets_sphinx_themes",
    "myst_parser",
    "sketch",
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


def _settings() -> dict[str, Field[Any]]:
    own = [*fields(PoolConfig), *fields(AppConfig)]
    return {"URL": URL, "BINDS": BINDS} | {f.name.upper(): f for f in own if f.metadata}


def _default(setting: Field[Any]) -> str:
    value = setting.default
    if value is MISSING and setting.default_factory is not MISSING:
        value = setting.default_factory()
    if value is None:
        return "–"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value == ():
        value = []
    return f"``{value}``"


class Settings(Directive):
    """``.. settings:: URL HOST``: a table of these; every one must be in some table."""

    required_arguments = 1
    final_argument_whitespace = True

    shown: set[str] = set()

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 34 16 50", ""]
        rows = [("Setting", "Default", "Meaning")]
        known = _settings()
        for name in self.arguments[0].split():
            setting = known[name]
            # The app's name takes the place of what a pool without Flask is called.
            default = "the app's name" if name == "NAME" else _default(setting)
            unit = " Seconds." if setting.metadata.get("unit") == "seconds" else ""
            meaning = setting.metadata["doc"] + unit
            rows.append((f"``MYSQLPOOL_{name}``", default, meaning))
            self.shown.add(name)
        for row in rows:
            lines += [f"   {'*' if c == 0 else ' '} - {t}" for c, t in enumerate(row)]
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "settings"), 0, container)
        return container.children


def _check_settings(app: Sphinx, _: object) -> None:
    missing = _settings().keys() - Settings.shown
    if missing:
        raise ValueError(f"docs/settings.rst says nothing of {sorted(missing)}")


def setup(app: Sphinx) -> None:
    app.add_directive("settings", Settings)
    app.connect("env-updated", lambda app, env: _check_settings(app, env))
