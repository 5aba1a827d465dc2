"""What a release says of itself is so: its version, its bounds, and what it ran on."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from configparser import ConfigParser
from importlib.metadata import metadata, requires, version
from pathlib import Path
from typing import Any

import matrix
import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
US = "flask-pymysqlpool"
EXTRAS = metadata(US).get_all("Provides-Extra") or []
PYPROJECT = ROOT / "pyproject.toml"

pytestmark = pytest.mark.skipif(not PYPROJECT.exists(), reason="needs a clone")


def project(pattern: str) -> list[str]:
    return re.findall(pattern, PYPROJECT.read_text("utf-8"), re.MULTILINE)


def tox() -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini")
    return parser


# The version


def test_the_version_is_in_one_place_and_the_changes_begin_with_it() -> None:
    [ours] = project(r'^version = "(.+)"$')
    changes = (ROOT / "CHANGES.md").read_text("utf-8")
    head = re.findall(r"^## (.+)$", changes, re.MULTILINE)[0]

    assert version(US) == ours
    if "dev" in ours:
        assert head == "Unreleased"
    else:
        assert re.fullmatch(rf"{re.escape(ours)}, \d{{4}}-\d\d-\d\d", head)


def test_no_module_has_a_version_of_its_own() -> None:
    package = Path(importlib.import_module("flask_mysqlpool").__file__ or "").parent

    assert [p for p in package.rglob("*.py") if "__version__" in p.read_text()] == []


# The addresses


def urls() -> dict[str, str]:
    found = metadata(US).get_all("Project-URL") or []
    return dict(tuple(url.split(", ")) for url in found)


def test_the_package_index_shows_where_everything_is() -> None:
    names = "Homepage", "Documentation", "Source", "Issues", "Changelog"

    assert tuple(urls()) == names
    assert all(url.startswith("https://") for url in urls().values())


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs a clone")
def test_the_addresses_are_in_one_place() -> None:
    command = ["git", "grep", "-lF", urls()["Homepage"]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.stdout.split() == ["pyproject.toml"]


# Lower bounds


def test_the_lowest_environment_has_exactly_the_lower_bounds() -> None:
    pins = tox()["testenv:lowest"]["deps"].split()
    lowest = {Requirement(p).name.lower(): p.partition("==")[2] for p in pins}
    ours = [Requirement(text) for text in requires(US) or []]

    assert len(ours) == 3 + len(EXTRAS)
    for wanted in ours:
        [bound] = [s.version for s in wanted.specifier if s.operator == ">="]
        assert lowest[wanted.name.lower()].startswith(f"{bound}."), wanted
        assert not any("<" in s.operator for s in wanted.specifier)


# The table of what ran

REPORT = """
<testsuites><testsuite name="pytest" tests="9" failures="1" errors="1" skipped="3"
    time="12.6"><properties><property name="Python" value="3.13.0t" />
    <property name="MariaDB" value="10.11" />
    <property name="hypothesis-statistics" value="much" /></properties>
    <testcase name="test_it"><properties /></testcase></testsuite></testsuites>
"""


def test_a_report_becomes_a_row_and_other_rows_stay(tmp_path: Path) -> None:
    (tmp_path / "py313t").mkdir()
    (tmp_path / "py313t" / "junit.xml").write_text(REPORT)
    results = tmp_path / "matrix.json"
    results.write_text('{"lowest": {"passed": 7}, "py313t": {"passed": 1, "MySQL": 2}}')

    assert matrix.take(tmp_path, results) == ["py313t"]
    assert json.loads(results.read_text()) == {
        "lowest": {"passed": 7},
        "py313t": {
            **{"Python": "3.13.0t", "MariaDB": "10.11"},
            **{"passed": 4, "skipped": 3, "failed": 2, "seconds": 13},
        },
    }


def test_a_run_says_on_what_it_ran() -> None:
    about = matrix.surroundings(None)

    assert about.keys() >= {"Python", "Flask", "Werkzeug", "PyMySQL", "DBUtils"}
    assert about["MariaDB"][0].isdigit()
    assert not any("/" in value for value in about.values())


@pytest.fixture
def rows() -> dict[str, Any]:
    if not matrix.RESULTS.exists():
        pytest.skip("'scripts/test --matrix' has not been run yet")
    if "TOX_ENV_NAME" in os.environ:
        pytest.skip("it is this run that will be in the table")
    rows: dict[str, Any] = json.loads(matrix.RESULTS.read_text("utf-8"))
    return rows


def test_what_is_supported_ran_and_nothing_failed(rows: dict[str, Any]) -> None:
    supported = [
        f"py{python.replace('.', '')}"
        for python in project(r'"Programming Language :: Python :: (3\.\d+)"')
    ]

    ran = [name for name in rows if re.fullmatch(r"py3\d+", name)]
    assert sorted(supported) == sorted(ran)
    assert {*supported, "flask30", "flask-dev", "lowest"} <= rows.keys()
    assert {name: row["failed"] for name, row in rows.items() if row["failed"]} == {}
    for name, row in rows.items():
        assert row["passed"] > 2000 and {"MariaDB", "MySQL"} <= row.keys(), name
    for name in supported:
        assert name == "py{}{}".format(*rows[name]["Python"].split("."))


def test_the_page_names_the_environments_of_tox() -> None:
    text = (ROOT / "tox.ini").read_text("utf-8")
    page = (ROOT / "docs" / "compatibility.rst").read_text("utf-8")

    with_gil, without = re.findall(r"^    py3\{([\d,]+)\}(?=t?$)", text, re.MULTILINE)

    newest, *_, oldest = with_gil.split(",")
    assert f"``py3{oldest}`` to ``py3{newest}``" in page
    assert oldest == project(r'requires-python = ">=3\.(\d+)"')[0]
    names = ", ".join(f"``py3{minor}t``" for minor in sorted(without.split(",")))
    assert f"\n{names}\n" in page


def test_a_python_without_a_gil_ran_without_one(rows: dict[str, Any]) -> None:
    free = [
        row["Python"] for name, row in rows.items() if re.fullmatch(r"py\d+t", name)
    ]

    assert all(python.endswith("t") for python in free)


def test_a_classifier_is_what_the_tests_ran_on() -> None:
    classifiers = metadata(US).get_all("Classifier") or []
    ran_on = [c for c in classifiers if c.startswith(("Framework", "Operating System"))]

    assert ran_on == ["Framework :: Flask", "Operating System :: POSIX :: Linux"]
    assert "Programming Language :: Python :: Implementation :: CPython" in classifiers


# The extras


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_extra_is_documented_and_in_the_bill_of_a_release(extra: str) -> None:
    page = (ROOT / "docs" / "compatibility.rst").read_text("utf-8")
    security = (ROOT / "docs" / "security.rst").read_text("utf-8")
    release = (ROOT / "scripts" / "release").read_text("utf-8")

    assert re.search(rf"^``{extra}``  +\w", page, re.MULTILINE)
    assert f".. bill:: {extra}\n" in security
    assert f'"${{wheel}}[{",".join(EXTRAS)}]"' in release


#: By an extra of PyMySQL, and what is imported; some Pythons without a GIL lack them.
BROUGHT = {"rsa": {"cryptography": "cryptography"}, "ed25519": {"PyNaCl": "nacl"}}


@pytest.mark.parametrize("extra", ["", *EXTRAS])
def test_the_bill_has_a_licence_for_whatever_is_brought(
    extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sphinx")
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    bill = importlib.import_module("sources").bill(extra)
    named = {
        wanted.name.lower()
        for wanted in map(Requirement, requires(US) or [])
        if (str(wanted.marker) == f'extra == "{extra}"' if extra else not wanted.marker)
    }

    assert named and named <= {name.lower().replace("_", "-") for name in bill}
    assert [name for name, (licence, _) in bill.items() if licence == "–"] == []
    for name, module in BROUGHT.get(extra, {}).items():
        pytest.importorskip(module)
        assert name in bill


# The files that a place for repositories looks for


def test_the_template_for_bugs_asks_for_what_check_prints() -> None:
    template = (ROOT / ".github/ISSUE_TEMPLATE/bug.md").read_text("utf-8")

    assert re.match(r"---\nname: .+\nabout: .+\n---\n", template)
    assert "$ flask mysqlpool check\n" in template
    assert "$ flask mysqlpool status\n" in template


def test_read_the_docs_builds_the_pages_as_the_tests_do() -> None:
    read = pytest.importorskip("yaml").safe_load
    about = read((ROOT / ".readthedocs.yaml").read_text("utf-8"))
    [python] = about["build"]["tools"].values()

    assert about["version"] == 2 and about["build"]["os"].startswith("ubuntu-")
    assert project(rf'"Programming Language :: Python :: ({python})"')
    assert (ROOT / about["sphinx"]["configuration"]).exists()
    assert about["sphinx"]["fail_on_warning"]
    assert "pip install . --group docs" in about["build"]["jobs"]["install"]
    assert project(r"^docs = \[$")
