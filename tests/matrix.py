"""What ran in which environment, as the run itself writes it down.

Each environment of tox leaves a report of pytest's, in which :func:`surroundings` says
on what it ran. As a program it takes those of whole runs into the table of
``docs/compatibility.rst``, in place of earlier ones of the same environments::

    python tests/matrix.py
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from flask_mysqlpool.testing import ServerNotFound
from flask_mysqlpool.testing.server_binaries import find_engine

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "_static" / "matrix.json"

PACKAGES = ("Flask", "Werkzeug", "PyMySQL", "DBUtils")
SERVERS = ("MariaDB", "MySQL")

#: What serves the apps of the tests; some are not there for each Python.
WSGI = {
    "gunicorn": "gunicorn",
    "gevent": "gevent",
    "uWSGI": "pyuwsgi",
    "waitress": "waitress",
    "granian": "granian",
    "mod_wsgi": "mod_wsgi",
}

NOTED = ("Python", *PACKAGES, *SERVERS, *WSGI, "commit")


def surroundings(
    mysql_root: str | None, mariadb_root: str | None = None
) -> dict[str, str]:
    """On what the tests run; of what is not there, nothing."""
    about = {"Python": python()} | {name: version(name) for name in PACKAGES}
    for name, root in zip(SERVERS, (mariadb_root, mysql_root), strict=True):
        try:
            found = find_engine(name.lower(), root)
        except ServerNotFound:
            continue
        about[name] = found.version
    for name, distribution in WSGI.items():
        with suppress(PackageNotFoundError):
            about[name] = version(distribution)
    return about | commit()


def python() -> str:
    """Its version, with a ``t`` if it can do without a GIL, and whether it does."""
    text = platform.python_version()
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        has_gil = getattr(sys, "_is_gil_enabled", lambda: True)()
        text += "t, with its GIL on" if has_gil else "t"
    return text


def commit() -> dict[str, str]:
    """The day of the commit, in a clone."""
    if shutil.which("git") is None:
        return {}
    asked = subprocess.run(
        ["git", "log", "-1", "--format=%cs"],
        cwd=ROOT,
        # Not that of a clone around the folder.
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)},
        capture_output=True,
        text=True,
    )
    return {"commit": asked.stdout.strip()} if asked.returncode == 0 else {}


def read(report: Path) -> dict[str, Any]:
    """One row of the table."""
    suite = ElementTree.parse(report).find("testsuite")
    assert suite is not None
    skipped = int(suite.attrib["skipped"])
    failed = int(suite.attrib["failures"]) + int(suite.attrib["errors"])
    noted = {p.attrib["name"]: p.attrib["value"] for p in suite.iter("property")}
    return {
        # Others note what they like there.
        **{name: noted[name] for name in NOTED if name in noted},
        "passed": int(suite.attrib["tests"]) - skipped - failed,
        "skipped": skipped,
        "failed": failed,
        "seconds": round(float(suite.attrib["time"])),
    }


def take(folder: Path, results: Path) -> list[str]:
    """Take all reports below the folder into the table; their environments."""
    rows = json.loads(results.read_text("utf-8")) if results.exists() else {}
    found = {path.parent.name: read(path) for path in folder.glob("*/junit.xml")}
    if found:
        text = json.dumps(rows | found, indent=1, sort_keys=True)
        results.write_text(f"{text}\n", "utf-8")
    return sorted(found)


if __name__ == "__main__":
    print(*take(ROOT / ".tox", RESULTS), sep=", ")
