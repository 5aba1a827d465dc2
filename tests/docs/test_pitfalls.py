"""What scripts/pitfalls measures: it shows it, and README.md says the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

#: How often the obvious wiring goes wrong in each line.
FAULTS = {
    "kill": 5,
    "deadlock": 5,
    "lost-answer": 5,
    "hung-connect": 6,
    "exhausted": 3,
    "session": 8,
    # Five transfers, and a connection that is not there.
    "fork": 6,
    "status": 3,
}


class Report(NamedTuple):
    code: int
    text: str
    lines: dict[str, Any]


def measured(folder: Path, *options: str) -> Report:
    """As ``scripts/pitfalls`` does it, in this environment."""
    found = folder / "pitfalls.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pitfalls", "--json", found, *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
    )
    lines = json.loads(found.read_text())["lines"] if found.exists() else []
    return Report(done.returncode, done.stdout, {line["name"]: line for line in lines})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return measured(tmp_path_factory.mktemp("pitfalls"))


def table(text: str) -> list[list[str]]:
    """The cells of the first table in there, without their padding."""
    start = text.index("| what happens")
    rows = re.match(r"(\|.*\|\n)+", text[start:])
    assert rows
    return [
        [cell.strip() for cell in row.strip("|").split(" | ")]
        for row in rows[0].splitlines()
    ]


@pytest.mark.parametrize("name", FAULTS)
def test_the_obvious_wiring_goes_wrong_each_time(report: Report, name: str) -> None:
    assert report.lines[name]["obvious"]["faults"] == FAULTS[name]


@pytest.mark.parametrize("name", FAULTS)
def test_ours_never_does(report: Report, name: str) -> None:
    assert report.lines[name]["ours"]["faults"] == 0


def test_all_lines_are_known_and_the_exit_code_is_that_of_ours(report: Report) -> None:
    assert list(report.lines) == list(FAULTS)
    assert report.code == 0


def test_the_readme_says_what_is_printed_of_the_obvious_wiring(report: Report) -> None:
    printed = table(report.text)
    told = [f"- {what}: **{obvious}**" for what, obvious, _ in printed[2:]]
    text = (ROOT / "README.md").read_text("utf-8")
    shown = re.findall(r"^- .+: \*\*.+\*\*$", text, re.MULTILINE)

    assert len(printed) == 2 + len(FAULTS)
    assert shown == told


def test_a_reader_can_judge_what_is_compared(report: Report) -> None:
    head, _, _ = report.text.partition("| what happens")

    for name in ("MariaDB", "Python", "Flask", "PyMySQL", "DBUtils"):
        assert re.search(rf"\b{name} \d+\.\d+", head)
    assert "pool = PooledDB(" in head
    assert "db = MySQLPool(app)" in head


def test_an_explicit_begin_prevents_what_the_readme_says(tmp_path: Path) -> None:
    report = measured(tmp_path, "--begin", "--only", "kill", "deadlock")

    faults = {name: line["obvious"]["faults"] for name, line in report.lines.items()}
    assert faults == {"kill": 0, "deadlock": 0}


def test_it_fails_if_ours_does_what_is_counted() -> None:
    program = (
        "import sys; from benchmarks.pitfalls import __main__ as pitfalls; "
        "pitfalls.WIRINGS[pitfalls.OURS] = pitfalls.WIRINGS[pitfalls.OBVIOUS]; "
        "sys.argv[1:] = ['--only', 'session']; sys.exit(pitfalls.main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60
    )

    assert done.returncode == 1
    assert done.stdout.decode().count("8 of 8 still there") == 2
