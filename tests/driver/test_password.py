"""A PASSWORD that is a callable: what it may return, where it runs, how it fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pymysql.err
import pytest
from conftest import MakeApp, MakePool, until
from flask import current_app, g, request

from flask_mysqlpool import get_db
from flask_mysqlpool.testing import LocalServer

pytestmark = pytest.mark.one_engine

SECRET = "hunter2-geheim"


def url(server: LocalServer) -> str:
    return f"mysql://app@{server.host}:{server.port}/test"


@pytest.mark.parametrize("kind", [str, str.encode])
def test_it_returns_text_or_bytes(
    make_pool: MakePool, server: LocalServer, kind: Callable[[str], Any]
) -> None:
    pool = make_pool(URL=url(server), PASSWORD=lambda: kind(server.password))
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def coroutine() -> str:
    return SECRET


class Wrapped:
    """Hides a password."""

    def __repr__(self) -> str:
        return SECRET


def fail() -> str:
    token = SECRET
    raise KeyError(token)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (coroutine, "PASSWORD is coroutine"),
        (lambda: None, "PASSWORD returned None"),
        (lambda: 5, "PASSWORD is int"),
        (lambda: True, "PASSWORD is bool"),
        (lambda: 1.5, "PASSWORD is float"),
        (lambda: [SECRET], "PASSWORD is list"),
        (Wrapped, "PASSWORD is Wrapped"),
        (fail, "PASSWORD cannot be asked for: it raised KeyError"),
        (lambda secret: secret, "PASSWORD cannot be asked for: it raised TypeError"),
        (lambda: current_app.name, "PASSWORD cannot be asked for: it raised Runtime"),
    ],
)
def test_what_goes_wrong_in_it_names_the_setting(
    make_pool: MakePool, server: LocalServer, source: Any, said: str
) -> None:
    pool = make_pool(URL=url(server), PASSWORD=source)

    with pytest.raises(pymysql.err.OperationalError) as info:
        pool.connection()

    assert said in info.value.args[1]
    assert SECRET not in str(info.value)
    assert SECRET not in str(pool.stats().connect_error)
    chain = traceback.TracebackException.from_exception(info.value, capture_locals=True)
    chain.__cause__ = None  # the user's own
    assert SECRET not in "".join(chain.format())


def test_it_sees_the_app_and_the_request_that_need_the_connection(
    make_app: MakeApp, server: LocalServer
) -> None:
    seen = []

    def ask() -> str:
        seen.append((request.path, g.user))
        found: str = current_app.config["TOKEN"]
        return found

    app = make_app(URL=url(server), PASSWORD=ask)
    app.config["TOKEN"] = server.password

    @app.get("/page")
    def page() -> str:
        g.user = "ann"
        get_db()
        return ""

    assert app.test_client().get("/page").status_code == 200
    assert seen == [("/page", "ann")]


def test_in_the_background_it_needs_no_app(
    make_pool: MakePool, server: LocalServer
) -> None:
    pool = make_pool(URL=url(server), PASSWORD=lambda: server.password, MIN_SIZE=2)
    pool.connection().close()

    until(lambda: pool.stats().idle == 2)
