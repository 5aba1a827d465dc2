"""What others say and raise: shown without what a terminal obeys, told by its kind."""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask import Flask
from flask.testing import FlaskCliRunner
from prometheus_client import CollectorRegistry, generate_latest
from pymysql.connections import Connection
from pymysql.err import OperationalError
from test_cli import board_of, heard_from
from test_fleet import complete, identity_of
from test_monitor import OURS, csrf, monitored

from flask_mysqlpool.foreign import is_exit, kind, plain
from flask_mysqlpool.logs import log
from flask_mysqlpool.metrics.prometheus import PoolCollector
from flask_mysqlpool.server import Server
from flask_mysqlpool.testing import LocalServer

pytestmark = [pytest.mark.one_engine, pytest.mark.one_engine(False)]

SECRET = "hvs.SECRET"
COMMANDS = (
    ["status"],
    ["status", "--json"],
    ["status", "--server"],
    ["status", "--server", "--json"],
    ["check"],
    ["reset", "--server", "--yes"],
)

#: C0, DEL, C1, bidirectional, line ends: all that is to be seen nowhere.
HOSTILE = "\x1b]0;owned\x07\x1b[2Jx\r\n\b\x7f\x9b31m\x85\u202e\u2066\u2028\x00"
RAW = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f]"
)


class Silent(Exception):
    """One of which nothing can be asked."""

    def __str__(self) -> str:
        raise ValueError(SECRET)

    __repr__ = __str__

    @property
    def args(self) -> Any:  # type: ignore[override]
        raise KeyError(SECRET)


class Odd(BaseException):
    """No Exception, and no exit either."""


class Meta(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise ValueError(SECRET)


class Nameless(Exception, metaclass=Meta):
    pass


ERRORS: list[Callable[[], BaseException]] = [
    *(lambda cls=cls: cls(SECRET) for cls in (RuntimeError, OSError, ValueError)),
    *(lambda cls=cls: cls(SECRET) for cls in (KeyError, RecursionError, Odd)),
    *(lambda cls=cls: cls(SECRET) for cls in (StopIteration, MemoryError, Nameless)),
    lambda: OperationalError(1045, SECRET),
    lambda: OperationalError(),
    lambda: Silent(),
    lambda: type("a\x1b[2Jb", (Exception,), {})(SECRET),
]


def texts(app: Flask, *commands: list[str]) -> Iterator[str]:
    for command in commands or COMMANDS:
        result = FlaskCliRunner(app).invoke(args=["mysqlpool", *command], color=True)
        assert isinstance(result.exception, (SystemExit, type(None))), result.exception
        yield re.sub(r"\x1b\[(0|3[1-3])m", "", result.output)  # ours


def pages(app: Flask, **options: Any) -> Iterator[str]:
    client = monitored(app, **options)
    for path in "/mysqlpool/", "/mysqlpool/status.json":
        response = client.get(path)
        assert response.status_code in (200, 403)
        yield response.text


def raising(make: Callable[[], BaseException]) -> Callable[[], Any]:
    def call() -> Any:
        raise make()

    return call


@pytest.mark.parametrize("make", ERRORS)
def test_whatever_password_raises_is_told_by_its_kind(
    make_app: MakeApp, make: Callable[[], BaseException]
) -> None:
    app = make_app(PASSWORD=raising(make))

    told = [*texts(app), *pages(app)]

    for text in told:
        assert SECRET not in text and not RAW.search(text)
    assert f"it raised {kind(make())}" in told[2]


@pytest.mark.parametrize("make", ERRORS)
def test_whatever_authorize_raises_refuses_and_is_told_by_its_kind(
    make_app: MakeApp, make: Callable[[], BaseException], caplog: Any
) -> None:
    app = make_app(STATUS_DIR=False)

    told = [*pages(app, authorize=raising(make)), caplog.text]

    for text in told:
        assert f"authorize raised {kind(make())}".replace("\\", "") in text.replace(
            "\\", ""
        )
        assert SECRET not in text and not RAW.search(text)


@pytest.mark.parametrize("make", ERRORS)
def test_whatever_is_raised_while_a_server_is_asked_is_no_traceback(
    make_app: MakeApp, make: Callable[[], BaseException], monkeypatch: Any
) -> None:
    def fail(server: Server, statement: str) -> Any:
        raise make()

    monkeypatch.setattr(Server, "_rows", fail)
    app = make_app()

    for text in [*texts(app), *pages(app)]:
        assert not RAW.search(text)


def test_an_exit_is_no_error() -> None:
    timeout = type("Timeout", (BaseException,), {"__module__": "gevent.timeout"})

    exits = KeyboardInterrupt(), SystemExit(1), GeneratorExit(), timeout()
    assert all(map(is_exit, exits)) and not any(is_exit(make()) for make in ERRORS)


VALUES: list[Any] = [
    *(None, "text", HOSTILE, [], {}, True, -1, 10**400, 1e400, float("nan")),
    *([None], [HOSTILE], {"a": HOSTILE}, {"a": 10**400}, [[[]]]),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:12])
def test_whatever_a_worker_says_of_itself_is_read_or_is_a_problem(
    make_app: MakeApp, value: Any
) -> None:
    app = make_app()
    registry = CollectorRegistry()
    registry.register(PoolCollector(app))
    client = monitored(app)
    right = {
        **complete(pid=1),
        **identity_of(app),
        "discarded_by_reason": {},
        "last_connect_failure": 1.0,
    }
    right |= {"connect_error": "", "waited": 0.0, "thread_ids": [], "site": ""}
    right |= {"wait": [], "more": 1}
    sheet = heard_from(app, 0)
    for key in right:
        if key in ("app", "bind", "user", "server"):
            continue
        sheet.write({**right, key: value})
        for text in texts(app, ["status"], ["status", "--json"]):
            assert not RAW.search(text), key
        for path in "/mysqlpool/", "/mysqlpool/status.json?server=0":
            response = client.get(path)
            assert response.status_code == 200 and not RAW.search(response.text), key
        assert not RAW.search(generate_latest(registry).decode()), key


HEADERS = (
    *("Host", "Origin", "Cookie", "Authorization", "X-CSRF-Token", "Sec-Fetch-Site"),
    *("Content-Type", "X-Forwarded-For", "Accept"),
)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("authorize", [None, lambda: True])
def test_no_header_is_a_500(
    make_app: MakeApp, header: str, authorize: Callable[[], bool] | None
) -> None:
    app = make_app(STATUS_DIR=False)
    app.debug = authorize is None
    client = monitored(app, authorize=authorize, control=True)
    token = csrf(client) if authorize else ""
    values = "http://[", "[", "\xff\xfe", "a" * 5000, "", ":", "Bearer", "x=y; ="
    for value in values:
        headers = {**OURS, "X-CSRF-Token": token, header: value}
        for method, path in [("GET", ""), ("GET", "status.json"), ("POST", "control")]:
            url = f"/mysqlpool/{path}"
            response = client.open(
                url, method=method, headers=headers, data="[" * 99999
            )
            assert response.status_code < 500, value


def test_an_order_that_is_nested_without_end_is_refused(make_app: MakeApp) -> None:
    client = monitored(make_app(), control=True)
    headers = {**OURS, "X-CSRF-Token": csrf(client), "Content-Type": "application/json"}

    response = client.post("/mysqlpool/control", headers=headers, data="[" * 99999)

    assert response.status_code == 400


@contextmanager
def connected_as(app: Flask, endpoint: str) -> Iterator[None]:
    """A connection whose holder, a thread, has this name."""
    taken, done = threading.Event(), threading.Event()

    def hold() -> None:
        with app.app_context(), extension(app).connection() as connection:
            connection.ping()
            taken.set()
            done.wait(30)

    thread = threading.Thread(target=hold, name=endpoint)
    thread.start()
    try:
        assert taken.wait(30)
        yield
    finally:
        done.set()
        thread.join()


def test_hostile_text_of_every_source_is_shown_nowhere_raw(
    make_app: MakeApp, server: LocalServer, monkeypatch: Any, caplog: Any
) -> None:
    app = make_app()
    monkeypatch.setattr(Connection, "get_server_info", lambda _: HOSTILE)
    rows = Server._rows

    def hostile(server: Server, statement: str) -> Any:
        # As a rogue server, or a man in the middle, may answer.
        found = rows(server, statement)
        return (
            tuple(
                tuple(
                    HOSTILE + cell if isinstance(cell, str) and i in kept else cell
                    for i, cell in enumerate(row)
                )
                for row in found
            )
            if (kept := {2, 4, 6, 7} if "PROCESSLIST" in statement else {0, 1})
            else found
        )

    with connected_as(app, "thread" + HOSTILE):
        Path(board_of(app).path, "file" + HOSTILE.replace("\x00", "")).touch()
        until(lambda: any("thread" in text for text in texts(app, ["status"])))
        before = [*texts(app), *pages(app)]
        monkeypatch.setattr(Server, "_rows", hostile)
        registry = CollectorRegistry()
        registry.register(PoolCollector(app))
        after = [*texts(app), generate_latest(registry).decode()]
        paused = [*texts(app, ["pause"], ["resume"])]

    log("test", logging.ERROR, "%s %r %d", HOSTILE, HOSTILE, 3)
    for text in (*before, *after, *paused, *(r.getMessage() for r in caplog.records)):
        assert not RAW.search(text), RAW.search(text)
    assert r"\x1b[2J" in before[0] and "\\x1b[2J" in json.dumps(before)


def test_a_text_is_cut_and_what_cannot_be_shown_is_its_kind() -> None:
    assert plain("x" * 2000) == "x" * 1000 + "…"
    assert plain(Silent()) == "ValueError"
    assert plain("\x1b\u202e\udc80") == r"\x1b\u202e\udc80"


@pytest.mark.parametrize("name", ["NO_COLOR", "OTHER"])
def test_no_color_is_obeyed(
    make_app: MakeApp, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    result = FlaskCliRunner(make_app()).invoke(args=["mysqlpool", "check"], color=True)

    assert ("\x1b" in result.output) == (name == "OTHER")
