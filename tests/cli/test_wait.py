"""``flask mysqlpool wait``: until the server accepts connections, and why not yet."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MakeApp, Sql
from flask import Flask
from flask.testing import FlaskCliRunner

import flask_mysqlpool.cli.wait
from flask_mysqlpool.testing import FaultProxy, LocalServer


def run(app: Flask, *arguments: str) -> tuple[int, list[str]]:
    result = FlaskCliRunner(app).invoke(args=["mysqlpool", "wait", *arguments])
    assert isinstance(result.exception, (SystemExit, type(None)))
    return result.exit_code, result.output.splitlines()


@pytest.fixture
def at_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[int, Callable[[], object]], None]:
    """Do something at the pause of this number, and let none last."""

    def at(number: int, do: Callable[[], object]) -> None:
        pauses = iter([*[lambda: None] * (number - 1), do])

        def sleep(seconds: float) -> None:
            assert 0 < seconds <= flask_mysqlpool.cli.wait.PAUSE
            next(pauses)()

        fake = SimpleNamespace(sleep=sleep, monotonic=time.monotonic)
        monkeypatch.setattr(flask_mysqlpool.cli.wait, "time", fake)

    return at


def test_a_server_that_accepts_connections_is_not_waited_for(make_app: MakeApp) -> None:
    app = make_app()
    server = app.config["MYSQLPOOL_URL"].partition("@")[2]

    assert run(app) == (0, [f"default: {server} accepts connections"])


def test_each_reason_is_told_once_until_it_works(
    make_app: MakeApp,
    sql: Sql,
    at_pause: Callable[[int, Callable[[], object]], None],
) -> None:
    sql("DROP DATABASE IF EXISTS later")
    at_pause(3, lambda: sql("CREATE DATABASE later"))

    code, [reason, done] = run(make_app(DATABASE="later"))
    sql("DROP DATABASE later")

    assert code == 0
    assert reason == (
        "default: not yet: 1049: Unknown database 'later'"
        " -> create the database, or correct DATABASE"
    )
    assert done.endswith("/later accepts connections")


@pytest.mark.one_engine
def test_all_pools_are_waited_for_or_one(
    make_app: MakeApp,
    server: LocalServer,
    proxy: FaultProxy,
    at_pause: Callable[[int, Callable[[], object]], None],
) -> None:
    url = server.url_at(proxy.port)
    app = make_app(BINDS={"reports": {"URL": url}, "old": {"URL": server.url}})
    proxy.refuse()

    assert run(app, "--bind", "old")[0] == 0
    at_pause(2, proxy.listen)
    code, lines = run(app)

    assert code == 0
    assert [line.split(": ")[0] for line in lines] == [
        *("default", "reports", "old", "reports")
    ]
    assert "2003" in lines[1] and "-> start the server, or correct HOST" in lines[1]


@pytest.mark.one_engine
def test_at_the_timeout_the_last_reason_is_told(make_app: MakeApp) -> None:
    code, lines = run(make_app(PASSWORD="wrong"), "--timeout", "0.1")

    assert code == 1
    assert "not yet: 1045: Access denied" in lines[0]
    assert lines[1].startswith("default: no connection within 0.1 s: 1045: Access")
    assert lines[1].endswith(
        "-> correct USER and PASSWORD, or the account at the server"
    )
    assert len(lines) == 2


@pytest.mark.one_engine
def test_a_server_that_does_not_answer_is_given_up_at_the_timeout(
    make_app: MakeApp, proxy: FaultProxy
) -> None:
    proxy.hang()
    begun = time.monotonic()

    code, lines = run(make_app(HOST=proxy.host, PORT=proxy.port), "--timeout", "0.3")

    assert code == 1 and "not yet: 20" in lines[0]
    assert time.monotonic() - begun < 5


def test_an_end_of_a_container_ends_the_command(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(
        "from flask import Flask\nfrom flask_mysqlpool import MySQLPool\n"
        "app = Flask('shop')\napp.config['MYSQLPOOL_URL'] = 'mysql://a@127.0.0.1:1/b'\n"
        "MySQLPool(app)\n"
    )
    command = [sys.executable, "-m", "flask", "--app", str(tmp_path / "shop.py")]
    pipe = subprocess.PIPE
    waiting = subprocess.Popen(
        [*command, "mysqlpool", "wait"], stdout=pipe, stderr=pipe
    )
    assert waiting.stdout and b"not yet: 2003" in waiting.stdout.readline()

    waiting.send_signal(signal.SIGTERM)
    printed = waiting.communicate(timeout=30)

    assert waiting.returncode == 128 + signal.SIGTERM
    assert printed == (b"", b"")
