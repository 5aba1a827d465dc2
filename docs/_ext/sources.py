"""Directives and a role that copy facts from the repository into pages.

``.. subpackages::`` lists subpackages and modules, each with the first sentence of its
docstring, and with the imports that ``tests/project/test_house.py`` allows.
``:measured:`table.row.column``` inserts a figure of the benchmarks' ``results.json``.
``.. matrix::`` lists the test runs of ``_static/matrix.json``, by ``tests/matrix.py``.
``.. bill:: EXTRA`` lists the dependencies of an extra, or without an argument those of
the package, from the metadata of the installed distributions.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import (
    PackageMetadata,
    PackageNotFoundError,
    metadata,
    requires,
)
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from packaging.requirements import Requirement
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flask_mysqlpool"
HOUSE = ROOT / "tests" / "project" / "test_house.py"
RESULTS = ROOT / "docs" / "_static" / "benchmarks" / "results.json"
MATRIX = ROOT / "docs" / "_static" / "matrix.json"
US = "flask-pymysqlpool"


def _table(
    page: SphinxDirective, widths: str, rows: Iterable[Sequence[str]]
) -> list[nodes.Node]:
    """Return a table whose first row is its head."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        lines += [f"   {'*' if c == 0 else ' '} - {t}" for c, t in enumerate(row)]
    container = nodes.container()
    page.state.nested_parse(StringList(lines, page.name), 0, container)
    table: list[nodes.Node] = container.children
    return table


def subpackages() -> dict[str, set[str]]:
    """Return the subpackages and top-level modules, and what each may import."""
    for node in ast.parse(HOUSE.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MAY_IMPORT":
            assert node.value is not None
            return dict(ast.literal_eval(node.value))
    raise ValueError(f"{HOUSE} has no table MAY_IMPORT")


def modules_of(subpackage: str) -> list[Path]:
    """Return the modules of a subpackage, its ``__init__`` first."""
    place = PACKAGE.joinpath(*subpackage.split("."))
    if not place.is_dir():
        return [place.with_suffix(".py")]
    return sorted(place.glob("*.py"), key=lambda path: (path.stem != "__init__", path))


def sentence(path: Path) -> str:
    """Return the first sentence of the module's docstring, without Sphinx's roles."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    first = re.match(r"(.+?[.?])(?:\s|$)", " ".join((text or "").split()))
    return re.sub(r":\w+:`[~.]*(\S+?)`", r"``\1``", first[1] if first else "")


class Subpackages(SphinxDirective):
    """``.. subpackages::``"""

    def run(self) -> list[nodes.Node]:
        rows = [("Module", "What it is", "May import")]
        for subpackage, others in subpackages().items():
            allowed = ", ".join(map("``{}``".format, sorted(others)))
            for index, path in enumerate(modules_of(subpackage)):
                inside = path.relative_to(PACKAGE).with_suffix("").as_posix()
                name = f"**{subpackage}**" if index == 0 else f"``{inside}``"
                may = "" if index else allowed or "nothing"
                rows.append((name, sentence(path), may))
                self.env.note_dependency(str(path))
        self.env.note_dependency(str(HOUSE))
        return _table(self, "24 50 26", rows)


@cache
def _tables() -> dict[str, Any]:
    tables: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))["tables"]
    return tables


def figure(path: str) -> str:
    """Return a figure, such as ``statement.ours.idle_us``, with the table's digits."""
    table, row, column = path.split(".")
    [digits] = [c["digits"] for c in _tables()[table]["columns"] if c["key"] == column]
    return f"{_tables()[table]['rows'][row][column]:,.{digits}f}"


class Measured(SphinxRole):
    """``:measured:`table.row.column```"""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(str(RESULTS))
        return [nodes.inline("", figure(self.text), classes=["measured"])], []


def runs() -> dict[str, dict[str, Any]]:
    """Return the recorded test runs by environment."""
    rows: dict[str, dict[str, Any]] = {}
    if MATRIX.exists():
        rows = json.loads(MATRIX.read_text("utf-8"))
    return rows


class Matrix(SphinxDirective):
    """``.. matrix::`` and the names of the columns in the file."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(MATRIX))
        if not runs():
            return [nodes.paragraph("", "No run has been recorded yet.")]
        keys = " ".join(self.content).split()
        heads = "Environment", *(key[0].upper() + key[1:] for key in keys)
        rows = [
            (f"``{name}``", *(str(row.get(key, "–")) for key in keys))
            for name, row in runs().items()
        ]
        return _table(self, "auto", [heads, *rows])


def licence(about: PackageMetadata) -> str:
    """Return the licence that a package declares; some have only a classifier."""
    classifiers = about.get_all("Classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
    text = about.get("License-Expression") or ", ".join(named) or about.get("License")
    return text if text and "\n" not in text else "–"


def needed(distribution: str, extra: str = "") -> Iterator[Requirement]:
    """Yield a distribution's requirements here, or those that an extra adds."""
    for text in requires(distribution) or []:
        wanted = Requirement(text)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if not extra and always:
            yield wanted
        elif extra and not always and wanted.marker.evaluate({"extra": extra}):
            yield wanted


def bill(extra: str = "") -> dict[str, tuple[str, list[str]]]:
    """Return licence and parents, with required versions, of each dependency."""
    found: dict[str, tuple[str, list[str]]] = {}
    left = [(US, wanted) for wanted in needed(US, extra)]
    while left:
        parent, wanted = left.pop(0)
        try:
            about = metadata(wanted.name)
        except PackageNotFoundError:  # what may not exist for a Python without a GIL
            continue
        name = about["Name"]
        if name not in found:
            found[name] = (licence(about), [])
            for each in ("", *wanted.extras):
                left += [(name, further) for further in needed(name, each)]
        found[name][1].append(f"{parent} (``{wanted.specifier or 'any'}``)")
    return found


class Bill(SphinxDirective):
    """``.. bill::``"""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        rows = [("Distribution", "Licence", "Needed by")]
        for name, (terms, parents) in bill(*self.arguments).items():
            rows.append((name, terms, ", ".join(parents)))
        return _table(self, "26 24 50", rows)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("subpackages", Subpackages)
    app.add_directive("matrix", Matrix)
    app.add_directive("bill", Bill)
    app.add_role("measured", Measured())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
