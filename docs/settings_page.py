"""Write the tables of ``settings.rst``: ``python docs/settings_page.py``.

The page says which settings a table lists; default and meaning come from the package.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

from flask_mysqlpool.config import settings as module
from flask_mysqlpool.config.settings import BINDS, URL, AppConfig, PoolConfig

PAGE = Path(__file__).with_name("settings.rst")
ROW = re.compile(
    r"^   \* - ``MYSQLPOOL_(\w+)``\n(?:     .*\n)+(?=   \* - |\n)", re.MULTILINE
)
#: A field, or a variable, and its docstring.
SETTING = re.compile(
    r'^ *(\w+)(?:: .+)? = _setting\((?:.|\n)*?\)\n *"""((?:.|\n)*?)"""$', re.MULTILINE
)


def settings() -> dict[str, Field[Any]]:
    own = [*fields(PoolConfig), *fields(AppConfig)]
    return {"URL": URL, "BINDS": BINDS} | {f.name.upper(): f for f in own if f.metadata}


def docs() -> dict[str, str]:
    """Return the docstrings of all settings, which Python itself does not keep."""
    found = SETTING.findall(inspect.getsource(module))
    return {name.upper(): " ".join(doc.split()) for name, doc in found}


def row(name: str) -> str:
    setting = settings()[name]
    unit = " Seconds." if "float" in str(setting.type) else ""
    doc = f"     - {docs()[name]}{unit}"
    meaning = textwrap.fill(doc, 88, subsequent_indent=" " * 7)
    # The extension passes the app's name, instead of the default of a single pool.
    default = "the app's name" if name == "NAME" else shown_default(setting)
    return f"   * - ``MYSQLPOOL_{name}``\n     - {default}\n{meaning}\n"


def shown_default(setting: Field[Any]) -> str:
    value = setting.default
    if value is MISSING and setting.default_factory is not MISSING:
        value = setting.default_factory()
    if value is None:
        return "–"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, type):
        value = value.__name__
    return f"``{[] if value == () else value}``"


def written(page: str) -> str:
    """Return the page with its rows made anew."""
    return ROW.sub(lambda found: row(found[1]), page)


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text("utf-8")), "utf-8")
