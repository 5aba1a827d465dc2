"""``flask mysqlpool run``: scripts in, one line for each out."""

from __future__ import annotations

import os
import pty
import sys
from pathlib import Path

import pytest
from conftest import MakeApp, Sql
from flask import Flask
from flask.cli import ScriptInfo
from flask.testing import FlaskCliRunner

pytestmark = pytest.mark.one_engine


def run(app: Flask, *arguments: str, typed: bytes = b"") -> tuple[int, str]:
    runner = FlaskCliRunner(app)
    result = runner.invoke(args=["mysqlpool", "run", *arguments], input=typed)
    assert isinstance(result.exception, (SystemExit, type(None)))
    return result.exit_code, result.output


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> Path:
    """A file ``schema.sql`` in the current folder, which fills the table ``t``."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "schema.sql"
    path.write_bytes(
        b"-- It's the schema.\nINSERT INTO t (a) VALUES (1);\n"
        b"DELIMITER //\nBEGIN; INSERT INTO t (a) VALUES (2)//\n".replace(b"; I", b"//I")
    )
    return path


def test_each_statement_commits_unless_a_script_begins_a_transaction(
    make_app: MakeApp, script: Path, sql: Sql
) -> None:
    code, output = run(make_app(), script.name)

    assert (code, output) == (0, "schema.sql: 3 statements\n")
    assert sql("SELECT a FROM t") == ((1,),)


def test_all_files_share_one_connection_which_is_not_the_pools(
    make_app: MakeApp, script: Path, sql: Sql
) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=5, READ_TIMEOUT=0.2)
    Path("more.sql").write_text("SET @a = 7; SELECT SLEEP(0.3)")
    [db] = app.extensions["mysqlpool"]
    with app.app_context():
        db.get_db().ping()
        code, output = run(
            *(app, "more.sql", "-"), typed=b"INSERT INTO t (a) VALUES (@a)"
        )
        opened = db.stats().opened

    lines = ["more.sql: 2 statements", "-: 1 statement"]
    assert (code, output.splitlines()) == (0, lines)
    assert sql("SELECT a FROM t") == ((7,),)
    assert opened == 1


@pytest.mark.parametrize(
    ("text", "error"),
    {
        "SELECT 1;\n\nSELECT * FROM nowhere;\nINSERT INTO t (a) VALUES (1)": (
            "3: 1146: Table 'test.nowhere' doesn't exist"
        ),
        "INSERT INTO t (a) VALUES (1);\nSELECT 'a;\n": "2: a string in ' is not closed",
    }.items(),
)
def test_an_error_is_one_line_with_file_and_line(
    make_app: MakeApp, script: Path, sql: Sql, text: str, error: str
) -> None:
    script.write_text(text)

    code, output = run(make_app(), script.name, script.name)

    assert (code, output) == (1, f"Error: schema.sql, line {error}\n")
    assert sql("SELECT a FROM t") == ()


def test_a_missing_file_is_told_before_anything_is_executed(
    make_app: MakeApp, script: Path, sql: Sql
) -> None:
    code, output = run(make_app(), script.name, "missing.sql")

    assert code == 2
    assert "File 'missing.sql' does not exist" in output
    assert sql("SELECT a FROM t") == ()


def test_without_a_server_it_says_so(make_app: MakeApp, script: Path) -> None:
    code, output = run(make_app(URL="mysql://a@127.0.0.1:1/shop"), script.name)

    assert code == 1
    assert output.startswith("Error: cannot connect to 127.0.0.1:1/shop: 2003: Can't")
    assert len(output.splitlines()) == 1


def test_a_bind_is_named_or_the_default(
    make_app: MakeApp, script: Path, sql: Sql
) -> None:
    binds = {"BINDS": {"one": {"DATABASE": "test"}, "two": {"DATABASE": "mysql"}}}
    script.write_text("INSERT INTO t (a) VALUES (DATABASE() = 'test')")
    app = make_app(DATABASE="mysql", **binds)

    assert run(app, script.name)[0] == 1
    assert run(app, "--bind", "one", script.name)[0] == 0
    code, output = run(app, "--bind", "three", script.name)

    assert code == 2 and "no bind is called 'three'" in output
    assert sql("SELECT a FROM t") == ((1,),)


def test_at_a_terminal_a_line_shows_the_progress(
    make_app: MakeApp, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master, slave = pty.openpty()
    app = make_app()
    with open(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with pytest.raises(SystemExit) as ended:
            info = ScriptInfo(create_app=lambda: app)
            app.cli.main(["mysqlpool", "run", script.name], "flask", obj=info)
        terminal.write("\0")
        terminal.flush()
        shown = b""
        while not shown.endswith(b"\0"):
            shown += os.read(master, 1 << 16)
    os.close(master)

    assert ended.value.code == 0
    assert shown.count(b"\n") == 1 and shown.count(b"\r") > 2
    assert b"schema.sql" in shown and b"100%" in shown


def test_the_name_of_a_file_is_shown_without_control_characters(
    make_app: MakeApp, script: Path
) -> None:
    name = "\x1b]0;owned\x07.sql"
    Path(name).write_text("SELECT * FROM nowhere")

    code, output = run(make_app(), name)

    assert code == 1 and "owned" in output
    assert "\x1b" not in output and "\x07" not in output
