"""``flask mysqlpool status`` and ``reset``, as typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import MakeApp
from flask import Flask
from flask.testing import FlaskCliRunner

from flask_mysqlpool import MySQLPool, PooledConnection
from flask_mysqlpool.testing import LocalServer

Sql = Callable[..., tuple[tuple[Any, ...], ...]]


def connected(app: Flask) -> PooledConnection:
    """A worker's connection, as far as the server can see."""
    [db] = app.extensions["mysqlpool"]
    with app.app_context():
        connection: PooledConnection = db.connection()
        return connection


def run(app: Flask, *arguments: str) -> tuple[int, str]:
    result = FlaskCliRunner(app).invoke(args=["mysqlpool", *arguments])
    return result.exit_code, result.output


def test_status_shows_settings_server_and_threads(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app(MAX_SIZE=7)
    with connected(app) as connection:
        code, output = run(app, "status")

    assert code == 0
    assert "Seen from the server" in output
    assert f"server {server.version}" in output or "MariaDB" in output
    assert "MYSQLPOOL_MAX_SIZE = 7" in output or "MAX_SIZE = 7" in output
    assert f"{connection._pool.name}" == "shop"
    assert server.password not in output


def test_status_as_json_can_be_read_by_a_program(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app(MAX_SIZE=7)
    with connected(app) as connection:
        code, output = run(app, "status", "--json")
        thread = connection.thread_id()

    seen = json.loads(output)
    pool = seen["pools"]["default"]
    assert code == 0
    assert seen["app"] == "shop"
    assert seen["host"]
    assert pool["max_size"] == 7
    assert pool["server"].startswith("127.0.0.1:")
    assert pool["max_connections"] >= pool["connected"] >= 1
    assert [t["state"] for t in pool["threads"] if t["thread_id"] == thread] == ["idle"]
    assert server.password not in output


def test_status_with_nobody_connected_says_so(make_app: MakeApp) -> None:
    code, output = run(make_app(DATABASE="mysql"), "status")

    assert code == 2
    assert "No worker is connected" in output
    assert "own pool is empty" in output


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"PORT": 1}, "2003"), ({"PASSWORD": "wrong"}, "1045: Access denied")],
)
def test_status_without_a_server_gives_its_reason(
    make_app: MakeApp, settings: dict[str, Any], words: str
) -> None:
    code, output = run(make_app(**settings), "status")

    assert code == 1
    assert words in output
    assert "Traceback" not in output


def test_reset_ends_idle_connections_and_workers_survive(make_app: MakeApp) -> None:
    app = make_app()
    with connected(app) as connection:
        before = connection.thread_id()

    code, output = run(app, "reset", "--yes")

    assert code == 0
    assert "ended 1 idle connection on" in output
    with connected(app) as connection:
        assert connection.thread_id() != before
        connection.ping()


def test_reset_with_nobody_connected_ends_nothing(make_app: MakeApp) -> None:
    code, output = run(make_app(DATABASE="mysql"), "reset", "--yes")

    assert code == 0
    assert "ended 0 idle connections on 127.0.0.1:" in output


def test_reset_without_a_server_gives_its_reason(make_app: MakeApp) -> None:
    code, output = run(make_app(PORT=1), "reset", "--yes")

    assert code == 1
    assert "cannot connect to 127.0.0.1:1/test: 2003" in output
    assert "2003" in output


def test_the_group_can_have_another_name_or_none(make_app: MakeApp) -> None:
    assert "db" in make_app(CLI="db").cli.commands
    assert "mysqlpool" not in make_app(CLI=False).cli.commands


def test_the_second_extension_object_adds_no_second_group(make_app: MakeApp) -> None:
    app = make_app()
    MySQLPool(app)

    code, output = run(app, "--help")

    assert code == 0
    assert "status" in output
