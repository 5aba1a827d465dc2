"""What pages take from elsewhere in the repository, so that it is as it is there.

``.. rooms::`` is the table of the package's rooms and modules, each with the first
sentence of its documentation, and with what ``tests/test_house.py`` lets it import.
``:measured:`table.row.column``` is a figure of ``_static/benchmarks/results.json``.
``.. matrix::`` is what ran: ``_static/matrix.json``, which ``tests/matrix.py`` writes.
``.. bill:: EXTRA`` is what an extra brings, or the package by itself if none is named,
as the metadata of what is installed has it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageMetadata, metadata, requires
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from packaging.requirements import Requirement
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "flask_mysqlpool"
HOUSE = ROOT / "tests" / "test_house.py"
RESULTS = ROOT / "docs" / "_static" / "benchmarks" / "results.json"
MATRIX = ROOT / "docs" / "_static" / "matrix.json"
US = "flask-pymysqlpool"


def _table(
    page: SphinxDirective, widths: str, rows: Iterable[Sequence[str]]
) -> list[nodes.Node]:
    """A table, the first row of which is its head."""
    lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {widths}", ""]
    for row in rows:
        lines += [f"   {'*' if c == 0 else ' '} - {t}" for c, t in enumerate(row)]
    container = nodes.container()
    page.state.nested_parse(StringList(lines, page.name), 0, container)
    table: list[nodes.Node] = container.children
    return table


def rooms() -> dict[str, set[str]]:
    """The rooms of the package, and what each may import."""
    for node in ast.parse(HOUSE.read_text("utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "MAY_IMPORT":
            assert node.value is not None
            return dict(ast.literal_eval(node.value))
    raise ValueError(f"{HOUSE} has no table of rooms")


def modules_of(room: str) -> list[Path]:
    """The modules of a room, its package's own first."""
    place = PACKAGE.joinpath(*room.split("."))
    if not place.is_dir():
        return [place.with_suffix(".py")]
    return sorted(place.glob("*.py"), key=lambda path: (path.stem != "__init__", path))


def sentence(path: Path) -> str:
    """The first one of the module's documentation, without roles of Sphinx's."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8")))
    first = re.match(r"(.+?[.?])(?:\s|$)", " ".join((text or "").split()))
    return re.sub(r":\w+:`[~.]*(\S+?)`", r"``\1``", first[1] if first else "")


class Rooms(SphinxDirective):
    """``.. rooms::``"""

    def run(self) -> list[nodes.Node]:
        rows = [("Module", "What it is", "May import")]
        for room, others in rooms().items():
            allowed = ", ".join(map("``{}``".format, sorted(others)))
            for index, path in enumerate(modules_of(room)):
                inside = path.relative_to(PACKAGE).with_suffix("").as_posix()
                name = f"**{room}**" if index == 0 else f"``{inside}``"
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
    """Such as ``statement.ours.idle_us``, with as many digits as in the table."""
    table, row, column = path.split(".")
    [digits] = [c["digits"] for c in _tables()[table]["columns"] if c["key"] == column]
    return f"{_tables()[table]['rows'][row][column]:,.{digits}f}"


class Measured(SphinxRole):
    """``:measured:`table.row.column```"""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        self.env.note_dependency(str(RESULTS))
        return [nodes.inline("", figure(self.text), classes=["measured"])], []


def what_ran() -> dict[str, dict[str, Any]]:
    """By environment."""
    rows: dict[str, dict[str, Any]] = {}
    if MATRIX.exists():
        rows = json.loads(MATRIX.read_text("utf-8"))
    return rows


class Matrix(SphinxDirective):
    """``.. matrix::`` and the columns, as they are called in the file."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        self.env.note_dependency(str(MATRIX))
        if not what_ran():
            return [nodes.paragraph("", "Nothing has been written down yet.")]
        keys = " ".join(self.content).split()
        heads = "Environment", *(key[0].upper() + key[1:] for key in keys)
        rows = [
            (f"``{name}``", *(str(row.get(key, "–")) for key in keys))
            for name, row in what_ran().items()
        ]
        return _table(self, "auto", [heads, *rows])


def licence(about: PackageMetadata) -> str:
    """In the words of the package itself; some have only a classifier."""
    classifiers = about.get_all("Classifier") or []
    named = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License ::")]
    text = about.get("License-Expression") or ", ".join(named) or about.get("License")
    return text if text and "\n" not in text else "–"


def needed(distribution: str, extra: str = "") -> Iterator[Requirement]:
    """What a distribution needs here: for an extra, beside what it needs anyway."""
    for text in requires(distribution) or []:
        wanted = Requirement(text)
        always = wanted.marker is None or wanted.marker.evaluate({"extra": ""})
        if not extra and always:
            yield wanted
        elif extra and not always and wanted.marker.evaluate({"extra": extra}):
            yield wanted


def bill(extra: str = "") -> dict[str, tuple[str, list[str]]]:
    """By distribution: the licence, and what needs it, with versions that will do."""
    found: dict[str, tuple[str, list[str]]] = {}
    left = [(US, wanted) for wanted in needed(US, extra)]
    while left:
        parent, wanted = left.pop(0)
        about = metadata(wanted.name)
        name = about["Name"]
        if name not in found:
            found[name] = (licence(about), [])
            left += [(name, further) for further in needed(name)]
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
    app.add_directive("rooms", Rooms)
    app.add_directive("matrix", Matrix)
    app.add_directive("bill", Bill)
    app.add_role("measured", Measured())
    return {"parallel_read_safe": True, "parallel_write_safe": True}
