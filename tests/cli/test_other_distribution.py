"""``flask-mysqlpool``, an unrelated distribution, has a file of this package's name.

It is stood in for by a wheel that has its layout, its name, and its first line that
fails on Flask 3.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import flask_mysqlpool
from flask_mysqlpool.cli.check import examine_installation

PACKAGE = Path(flask_mysqlpool.__file__).parent
TROUBLES = Path(__file__).parents[2] / "docs" / "troubleshooting.rst"

ABOUT = "flask_mysqlpool-1.0.5.dist-info"
WHEEL = {
    "flask_mysqlpool/__init__.py": "from flask import current_app, _app_ctx_stack\n",
    f"{ABOUT}/METADATA": "Name: flask-mysqlpool\nVersion: 1.0.5\n",
    f"{ABOUT}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    f"{ABOUT}/RECORD": f"flask_mysqlpool/__init__.py,,\n{ABOUT}/RECORD,,\n",
}
APP = """
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("shop")
app.config["MYSQLPOOL_URL"] = "mysql://shop@127.0.0.1:1/shop"
MySQLPool(app)
"""
#: From this folder alone: without ``__init__.py``, others on the path come first.
IMPORT = """
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

spec = PathFinder.find_spec("flask_mysqlpool", ["{site}"])
sys.modules[spec.name] = module_from_spec(spec)
if spec.loader:
    spec.loader.exec_module(sys.modules[spec.name])
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where both are installed: an installer unpacks such a wheel."""
    folder = tmp_path / "site-packages"
    with zipfile.ZipFile(tmp_path / f"{ABOUT[:-10]}-py3-none-any.whl", "w") as wheel:
        for name, text in WHEEL.items():
            wheel.writestr(name, text)
        wheel.extractall(folder)
    return folder


def test_what_is_left_of_the_other_alone_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ABOUT).mkdir()
    (tmp_path / ABOUT / "METADATA").write_text(WHEEL[f"{ABOUT}/METADATA"])
    monkeypatch.syspath_prepend(tmp_path)
    assert not [*examine_installation()]


def install_ours(site: Path) -> None:
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, site / PACKAGE.name, ignore=without, dirs_exist_ok=True)


def run(site: Path, *arguments: str) -> str:
    (site.parent / "shop.py").write_text(APP)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=site.parent,
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_check_says_that_the_other_one_is_installed(site: Path) -> None:
    install_ours(site)

    output = run(site, "-m", "flask", "--app", "shop", "mysqlpool", "check")

    assert output.startswith("warning  installation: flask-mysqlpool 1.0.5, an unrel")
    assert "-> pip uninstall flask-mysqlpool, then pip install" in output
    assert "\nfailure  connection: 2003" in output


def test_check_says_nothing_of_one_in_another_folder(
    site: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    install_ours(ours)
    ask = "from flask_mysqlpool.cli import check; print(*check.examine_installation())"
    code = f"import sys; sys.path.insert(0, {str(ours)!r}); {ask}"

    assert run(site, "-c", code) == "\n"


@pytest.mark.parametrize("last", ["installed", "uninstalled"])
def test_the_error_of_the_import_is_among_the_troubles(site: Path, last: str) -> None:
    if last == "uninstalled":
        install_ours(site)
        (site / PACKAGE.name / "__init__.py").unlink()

    error = run(site, "-c", IMPORT.format(site=site) + APP).splitlines()[-1]

    quoted = re.sub(r" \(.*", "", error)
    assert quoted.startswith("ImportError: cannot import name ")
    if TROUBLES.exists():
        assert quoted in TROUBLES.read_text("utf-8")
