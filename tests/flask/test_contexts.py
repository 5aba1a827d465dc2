"""What ``get_db()`` does in every context, on every Flask that may be there.

Each version runs all rows of :mod:`contexts` in a program of its own; a table of what
came of it ends the test session.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import contexts
import pytest
from conftest import local_server

from flask_mysqlpool.testing import LocalServer

#: A folder of packages for each version, besides the one that is installed.
FOLDERS = Path(
    os.environ.get("FLASK_MYSQLPOOL_FLASKS")
    or Path(__file__).parents[2] / ".venv" / "flasks"
)
INSTALLED = version("flask")
#: Seconds until a version that does not end has failed.
PATIENCE = 60.0
EVERYTHING = "every row"


@dataclass
class Result:
    """What one version came to: for each row what went wrong, and what was printed."""

    flask: str
    rows: dict[str, str]
    output: str


class Table:
    """All results, each computed when it is first asked for; a plugin of pytest's."""

    def __init__(self, database: LocalServer) -> None:
        self._database = database
        self._results: dict[str, Result] = {}
        #: Rows as they were seen by the tests, by version.
        self.cells: dict[str, dict[str, str]] = defaultdict(dict)

    def result(self, name: str) -> Result:
        if name not in self._results:
            self._results[name] = run(name, self._database.url)
        return self._results[name]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if not self.cells:
            return
        width = max(map(len, contexts.ROWS))
        terminalreporter.section("get_db() in Flask's contexts")
        for title in ("", *contexts.ROWS):
            cells = [
                cells.get(title, "-") if title else name
                for name, cells in self.cells.items()
            ]
            line = "  ".join(f"{cell:8}" for cell in cells)
            terminalreporter.write_line(f"{title:{width}}  {line}".rstrip())


def run(name: str, url: str) -> Result:
    """Run the program with this version's packages before those that are installed."""
    inherited = os.environ.get("PYTHONPATH")
    folder = str(FOLDERS / name) if name != INSTALLED else None
    done = subprocess.run(
        [sys.executable, contexts.__file__, url],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [folder, inherited])),
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    return Result(printed["flask"], printed["rows"], done.stderr)


def cases() -> Iterator[Any]:
    """All rows of all versions; of a version that is not here, one that says so."""
    for name in dict.fromkeys([*contexts.VERSIONS, INSTALLED]):
        if name == INSTALLED or (FOLDERS / name).is_dir():
            for row in contexts.ROWS:
                yield pytest.param(name, row, id=f"{name}-{row.replace(' ', '_')}")
        else:
            reason = f"no Flask {name} in {FOLDERS.name}; scripts/test installs it"
            skip = pytest.mark.skip(reason=reason)
            yield pytest.param(name, EVERYTHING, id=name, marks=skip)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Table]:
    with local_server("mariadb") as database:
        table = Table(database)
        request.config.pluginmanager.register(table)
        yield table


@pytest.mark.parametrize(("name", "row"), list(cases()))
def test_connections_belong_to_their_contexts_and_are_returned(
    table: Table, name: str, row: str
) -> None:
    result = table.result(name)
    wrong = result.rows[row]
    table.cells[name][row] = "FAILED" if wrong else "ok"
    assert result.flask == name
    if wrong.startswith(contexts.NOT_RUN):
        table.cells[name][row] = "not run"
        pytest.skip(wrong)
    # All of this version; shown if the test has failed.
    print(result.output)
    assert wrong == ""


def test_the_versions_are_printed_for_the_script_that_installs_them() -> None:
    printed = subprocess.run(
        [sys.executable, contexts.__file__, "--versions"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    ).stdout

    assert "3.0.0 Flask==3.0.0 Werkzeug==3.0.0" in printed.splitlines()
    assert [line.split()[0] for line in printed.splitlines()] == [*contexts.VERSIONS]
