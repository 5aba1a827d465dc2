"""What pages take from elsewhere in the repository, so that it is as it is there.

``.. rooms::`` is the table of the package's modules, each with the first sentence of
its documentation, and with what ``tests/test_house.py`` lets it import.
``:measured:`table.row.column``` is a figure of ``_static/benchmarks/results.json``.
"""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flask_mysqlpool"
HOUSE = ROOT / "tests" / "test_house.py"
RESULTS = ROOT / "docs" / "_static" / "benchmarks" / "results.json"


def rooms() -> dict[str, set[str]]:
    """The modules of the package, and what each may import."""
    for node in ast.parse(HOUSE.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MAY_IMPORT":
            assert node.value is not None
            return dict(ast.literal_eval(node.value))
    raise ValueError(f"{HOUSE} has no table of rooms")


def sentence(module: str) -> str:
    """The first one of the module's documentation, without roles of Sphinx's."""
    text = ast.get_docstring(ast.parse((PACKAGE / f"{module}.py").read_text("utf-8")))
    first = re.match(r"(.+?[.?])(?:\s|$)", " ".join((text or "").split()))
    return re.sub(r":\w+:`[~.]*(\S+?)`", r"``\1``", first[1] if first else "")


class Rooms(SphinxDirective):
    """``.. rooms::``"""

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", "   :widths: 14 46 40", ""]
        rows = [("Module", "What it is", "May import")]
        for module, others in rooms().items():
            allowed = ", ".join(map("``{}``".format, sorted(others)))
            rows.append((f"``{module}``", sentence(module), allowed or "nothing"))
        for row in rows:
            lines += [f"   {'*' if c == 0 else ' '} - {t}" for c, t in enumerate(row)]
        for module in rooms():
            self.env.note_dependency(str(PACKAGE / f"{module}.py"))
        self.env.note_dependency(str(HOUSE))
        container = nodes.container()
        self.state.nested_parse(StringList(lines, "rooms"), 0, container)
        table: list[nodes.Node] = container.children
        return table


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))["tables"]
    return tables


def figure(path: str) -> str:
    """Such as ``statement.ours.idle_us``, with as many digits as in the table."""
    table, row, column = path.split(".")
    [digits] = [c["digits"] for c in _tables()[table]["columns"] if c["key"] == column]
    return f"{_tables()[table]['rows'][row][column]:,.{digits}f}"


class Measured(SphinxRole):
    """``:measured:`table.row.column```"""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(str(RESULTS))
        return [nodes.inline("", figure(self.text), classes=["measured"])], []


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("rooms", Rooms)
    app.add_role("measured", Measured())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
