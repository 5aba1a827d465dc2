"""What a wrong setting looks like under ``flask`` and gunicorn."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import click
import pytest
from flask import Flask
from websites import PATIENCE

from flask_mysqlpool import ConfigError, MySQLPool, PoolConfig

AT_IMPORT = """
from flask import Flask
from flask_mysqlpool import MySQLPool

app = Flask("shop")
app.config.update({settings!r})
db = MySQLPool(app)
"""
IN_FACTORY = """
from flask import Flask
from flask_mysqlpool import MySQLPool

db = MySQLPool()

def create_app():
    app = Flask("shop")
    app.config.update({settings!r})
    db.init_app(app)
    return app
"""

TWO_FAULTS = {"MYSQLPOOL_HOST": "db", "MYSQLPOOL_PORT": "x", "MYSQLPOOL_MAX_SIZ": 5}
AS_LINES = """\
Error: 2 settings are wrong:
  MYSQLPOOL_MAX_SIZ is not a setting: write MYSQLPOOL_MAX_SIZE
  MYSQLPOOL_PORT must be a whole number, 1 to 65535 (got 'x')
"""


@pytest.mark.parametrize("source", [AT_IMPORT, IN_FACTORY])
@pytest.mark.parametrize(
    "arguments", [["mysqlpool", "--help"], ["run"], ["routes"]], ids="-".join
)
def test_under_flask_all_faults_are_told_and_nothing_else(
    tmp_path: Path, source: str, arguments: list[str]
) -> None:
    site = tmp_path / "shop.py"
    site.write_text(source.format(settings=TWO_FAULTS))
    command = [sys.executable, "-m", "flask", "--app", str(site), *arguments]

    done = subprocess.run(command, text=True, capture_output=True)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", AS_LINES)


def test_a_single_fault_is_one_line() -> None:
    with pytest.raises(ConfigError) as raised:
        MySQLPool(Flask("shop"))

    assert raised.value.format_message() == str(raised.value) == raised.value.faults[0]


def test_under_gunicorn_the_message_is_at_the_end_of_the_log(tmp_path: Path) -> None:
    pytest.importorskip("gunicorn")
    (tmp_path / "shop.py").write_text(AT_IMPORT.format(settings=TWO_FAULTS))
    command = [sys.executable, "-m", "gunicorn", "shop:app", "--preload"]

    done = subprocess.run(
        [*command, "--bind=127.0.0.1:0"],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=PATIENCE,
    )

    [*_, last] = done.stderr.strip().splitlines()
    assert last.startswith("flask_mysqlpool.errors.ConfigError: MYSQLPOOL_MAX_SIZ is")
    assert done.stderr.count("MYSQLPOOL_PORT must be") == 1


def test_the_error_is_still_a_value_error_that_can_be_copied() -> None:
    with pytest.raises(ConfigError) as raised:
        PoolConfig.from_mapping({"PORT": "x", "MAX_SIZ": 5})
    error = raised.value

    assert isinstance(error, ValueError) and isinstance(error, click.ClickException)
    for same in copy.copy(error), pickle.loads(pickle.dumps(error)):
        assert (str(same), same.faults) == (str(error), error.faults)
        assert same.format_message() == error.format_message()


def test_the_shell_of_flask_knows_the_first_pool_unless_the_app_has_other_names() -> (
    None
):
    app = Flask("shop")
    app.config["MYSQLPOOL_URL"] = "mysql://shop@127.0.0.1/shop"
    first = MySQLPool(app)
    MySQLPool(app)

    names = app.make_shell_context()
    assert names["db"] is first and names["get_db"] == first.get_db

    app.shell_context_processor(lambda: {"db": "mine"})
    assert app.make_shell_context()["db"] == "mine"

    other = Flask("other")
    other.config["MYSQLPOOL_URL"] = "mysql://shop@127.0.0.1/shop"
    other.shell_context_processor(lambda: {"db": "mine"})
    MySQLPool(other)
    assert other.make_shell_context()["db"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("status", 3), ("reset", 3), ("reset --yes", 3), ("pause", 0), ("check", 1)],
)
def test_commands_work_without_standard_streams(
    tmp_path: Path, arguments: str, code: int
) -> None:
    settings = {"MYSQLPOOL_PORT": 1, "MYSQLPOOL_STATUS_DIR": str(tmp_path / "status")}
    site = tmp_path / "shop.py"
    site.write_text(AT_IMPORT.format(settings=settings))
    flask = f"{sys.executable} -m flask --app {site} mysqlpool {arguments}"

    done = subprocess.run(["sh", "-c", f"{flask} <&- >&-"], capture_output=True)

    assert b"Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
