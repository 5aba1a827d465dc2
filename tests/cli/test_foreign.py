"""What others say and raise: shown without what a terminal obeys, told by its kind."""

from __future__ import annotations

import json
import logging
import re
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask import Flask
from flask.testing import FlaskCliRunner
from liars import OK, Liar, greeting, honest, refusal, switch
from prometheus_client import CollectorRegistry, generate_latest
from pymysql.connections import Connection
from pymysql.err import MySQLError, OperationalError, ProgrammingError
from records import complete, folder_of, heard_from, identity_of
from visits import OURS, csrf, monitored
from werkzeug.test import create_environ, run_wsgi_app

from flask_mysqlpool import MySQLPool, PoolConfig, PoolTimeout
from flask_mysqlpool.cli import render
from flask_mysqlpool.metrics.prometheus import PoolCollector
from flask_mysqlpool.pool.driver.connector import Connector
from flask_mysqlpool.pool.driver.logs import is_exit, kind, log, plain
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.testing.fake_driver import FakePool
from flask_mysqlpool.workers.fleet import Fleet
from flask_mysqlpool.workers.mysql_server import Server, Unanswered, connect_to
from flask_mysqlpool.workers.status import WorkerStatus

pytestmark = pytest.mark.one_engine

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


class Says:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __str__(self) -> str:
        raise self.error


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
        assert re.search(r" \(test_foreign\.py, line \d+\)\.", text)


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


@pytest.mark.parametrize("make", [*ERRORS[:9], ERRORS[12]])
def test_what_a_connect_raises_that_is_not_ours_is_told_by_its_kind(
    make: Callable[[], BaseException],
) -> None:
    pool = FakePool(on_connect=raising(make), TIMEOUT=0.1)
    with suppress(BaseException):
        pool.connection()

    assert pool.stats().connect_error == kind(make())


def test_an_exit_is_no_error() -> None:
    timeout = type("Timeout", (BaseException,), {"__module__": "gevent.timeout"})

    refused = type("Refused", (Exception,), {"__module__": "gevent.socket"})
    exits = KeyboardInterrupt(), SystemExit(1), GeneratorExit(), timeout()
    assert all(map(is_exit, exits)) and not any(is_exit(make()) for make in ERRORS)
    assert not is_exit(refused())


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exit_passes_every_border(
    make_app: MakeApp, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(STATUS_DIR=False, PASSWORD=raising(error))
    config = published(app)["default"]
    client = monitored(app, authorize=raising(error))
    with pytest.raises(error):
        Connector(config).connect(time.monotonic() + 5)
    with pytest.raises(error), connect_to(config):
        pass
    with pytest.raises(error):
        client.get("/mysqlpool/")
    with pytest.raises(error):
        plain(Says(error()))


@pytest.mark.parametrize(
    ("error", "number", "text"),
    [
        (OperationalError(1045, "no \x1b[2J"), 1045, r"1045: no \x1b[2J"),
        (OperationalError("no", 5), None, "no: 5"),
        (OperationalError(), None, "OperationalError"),
        (OSError(13, "denied"), 13, "13: denied"),
        (OperationalError(1045, "x" * 2000), 1045, f"1045: {'x' * 1000}…"),
        (ValueError(SECRET), None, "ValueError"),
        (Silent(), None, "Silent"),
    ],
)
def test_what_a_server_that_cannot_be_asked_says(
    error: Exception, number: int | None, text: str
) -> None:
    unanswered = Unanswered(error)

    assert (unanswered.number, unanswered.text, str(unanswered)) == (number, text, text)


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
            sent: dict[str, Any] = {"method": method, "headers": headers}
            sent["data"] = "[" * 99999
            if header == "Host":  # which clients of some versions cannot send
                _, status, _ = run_wsgi_app(app, create_environ(url, **sent))
            else:
                status = client.open(url, **sent).status
            assert int(status[:3]) < 500, value


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
        Path(folder_of(app).path, "file" + HOSTILE.replace("\x00", "")).touch()
        until(lambda: any("thread" in text for text in texts(app, ["status"])))
        before = [*texts(app), *pages(app)]
        monkeypatch.setattr(Server, "_rows", hostile)
        registry = CollectorRegistry()
        registry.register(PoolCollector(app))
        after = [*texts(app), generate_latest(registry).decode()]
        paused = [*texts(app, ["pause"], ["resume"])]

    log(logging.ERROR, "%s %r %d", HOSTILE, HOSTILE, 3, logger="test")
    for text in (*before, *after, *paused, *(r.getMessage() for r in caplog.records)):
        assert not RAW.search(text), RAW.search(text)
    assert r"\x1b[2J" in before[0] and "\\x1b[2J" in json.dumps(before)


def test_a_text_is_cut_and_what_cannot_be_shown_is_its_kind() -> None:
    assert plain("x" * 2000) == "x" * 1000 + "…"
    assert plain(Silent()) == "ValueError" and plain(Says(Odd())) == "Odd"
    assert kind(type("x" * 200, (), {})()) == "x" * 100 + "…"
    assert plain("\x1b\u202e\udc80") == r"\x1b\u202e\udc80"


@pytest.mark.parametrize("name", ["NO_COLOR", "OTHER"])
def test_no_color_is_obeyed(
    make_app: MakeApp, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    result = FlaskCliRunner(make_app()).invoke(args=["mysqlpool", "check"], color=True)

    assert ("\x1b" in result.output) == (name == "OTHER")


# A server that is somebody else's

RUDE = HOSTILE.replace("\x00", "").encode() + b"\xff\xfe\xc3" + b"y" * 60000
POLITE = HOSTILE.replace("\x00", "").encode()


def says(*steps: bytes | None, to_all: bytes | None = None) -> Callable[[Any], None]:
    """The script of a server that says this; None where it listens."""

    def script(talk: Any) -> None:
        for step in steps:
            if step is None:
                talk.hear()
            else:
                talk.say(step)
        while to_all is not None:
            talk.hear()
            talk.say(to_all)
        talk.serve()

    return script


ROGUES = {
    "at once": says(refusal(1129, RUDE)),
    "at the login": says(greeting(), None, refusal(1045, RUDE)),
    "its version": says(greeting().replace(b"8.0.36", b"8.0.36" + POLITE), None, OK),
    "no version": says(greeting().replace(b"8.0.36", RUDE), None, OK),
    "its plug-in": says(greeting(POLITE), None, OK),
    "another plug-in": says(greeting(), None, switch(POLITE), None, OK),
    "no protocol": says(RUDE),
    "to every statement": says(greeting(), None, OK, to_all=refusal(1064, RUDE)),
    "to the last host": honest,
}


@pytest.mark.parametrize("rogue", ROGUES)
def test_what_a_rogue_server_says_is_cut_and_shown_nowhere_raw(
    tmp_path: Path, rogue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "flask_mysqlpool")
    app = Flask("shop")
    with Liar(ROGUES[rogue]) as liar:
        app.config.update(
            MYSQLPOOL_URL=f"mysql://app@127.0.0.1:{liar.port}/test",
            MYSQLPOOL_STATUS_DIR=tmp_path / "board",
            MYSQLPOOL_CONNECT_TIMEOUT=0.3,
        )
        db = MySQLPool(app)
        with app.app_context():
            with suppress(MySQLError), db.connection() as connection:
                connection.cursor().execute("SELECT 1")
            found = [str(db.stats().connect_error)]
            until(lambda: workers(app))
            [worker] = workers(app)
            found.append(str(worker.connect_error))
            found += [*texts(app), *pages(app), *caplog.messages]
            db.close_pool()

    for text in found:
        assert not RAW.search(text) and "y" * 1001 not in text


def test_an_error_for_all_hosts_has_a_part_of_what_each_says() -> None:
    with Liar(ROGUES["at once"]) as one, Liar(ROGUES["at once"]) as other:
        hosts = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
        config = PoolConfig(host=hosts, user="app")
        with pytest.raises(OperationalError) as caught:
            Connector(config).connect(time.monotonic() + 5)

    text = caught.value.args[1]
    assert text.startswith("No host can be used (127.0.0.1:")
    assert not RAW.search(text) and len(text) < 2200


def workers(app: Flask) -> list[WorkerStatus]:
    found = Fleet(folder_of(app), "shop", published(app)).workers()
    return found.get("default", [])


def published(app: Flask) -> dict[str, PoolConfig]:
    [state] = app.extensions["mysqlpool"].values()
    found: dict[str, PoolConfig] = state.published()
    return found


def answers(app: Flask, cell: Any, number: Any = 5) -> Callable[[Server, str], Any]:
    """What a server says of itself and of a connection: this text, this number."""
    config = published(app)["default"]
    rows: dict[str, Any] = {
        "SELECT VERSION(), CURRENT_USER()": (cell, cell, 0, number, 5, 5),
        "SELECT VERSION(), @@max_connections": (cell, number),
        "SHOW SESSION STATUS": ("Ssl_cipher", cell),
        "SHOW GLOBAL STATUS": ("Threads_connected", 5),
        "SHOW PROCESSLIST": (7, config.account, cell, config.database),
        "SHOW FULL PROCESSLIST": (
            *(7, config.account, cell, config.database, cell, number, None, cell),
        ),
        "SELECT PROCESSLIST_ID": (7, cell),
    }

    def answer(server: Server, statement: str) -> Any:
        [row] = [row for begin, row in rows.items() if statement.startswith(begin)]
        server._raw._auth_plugin_name = cell
        return (row,)

    return answer


@pytest.mark.parametrize("cell", [HOSTILE, "y" * 60000, None, 5, b"\xff\x1b"])
def test_whatever_a_server_says_of_itself_is_short_text(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, cell: Any
) -> None:
    app = make_app()
    with connect_to(published(app)["default"]) as server:
        monkeypatch.setattr(Server, "_rows", answers(app, cell))
        facts, report = server.facts(), server.report()

    [thread] = report.threads or ()
    assert thread.statement is None or isinstance(thread.statement, str)
    found = [facts.version, facts.account, facts.plugin, facts.cipher or ""]
    for text in (*found, report.version, thread.client, thread.command, thread.program):
        assert isinstance(text, str) and text.isprintable() and len(text) <= 1001
    for text in (*texts(app), *pages(app)):
        assert not RAW.search(text)


def test_a_number_that_is_none_of_a_server_is_told_by_its_kind(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app()
    monkeypatch.setattr(Server, "_rows", answers(app, "", 10**400))

    for text in texts(app, ["status", "--server"], ["check"]):
        assert "ValueError" in text


# What is ours, with theirs in it


def test_a_traceback_in_a_log_is_escaped_and_cut(
    caplog: pytest.LogCaptureFixture,
) -> None:
    raised: list[BaseException] = []
    for text in "first" + HOSTILE, "y" * 2000:
        try:
            try:
                raise KeyError(text)
            except KeyError as cause:
                raise ValueError(text + "\nforged") from cause
        except ValueError as error:
            raised.append(error)
    for each in raised:
        log(logging.ERROR, "%s", 1, error=each, logger="test")

    for record, each in zip(caplog.records, raised, strict=True):
        shown = logging.Formatter().format(record)
        lines = shown.split("\n")
        assert not RAW.search(shown) and max(map(len, lines)) <= 1001
        assert "forged" not in lines and "raise KeyError(text)" in shown
        assert lines[-1].startswith("ValueError: ")
        direct = "The above exception was the direct cause of the following exception:"
        assert "\n".join(["", "", direct, "", "Traceback (most"]) in shown
        assert record.exc_info is not None and record.exc_info[1] is each
        assert (record.funcName, record.module) == (
            "test_a_traceback_in_a_log_is_escaped_and_cut",
            "test_foreign",
        )


def test_what_a_log_line_names_is_cut_and_cannot_raise(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log(logging.ERROR, "%r %r %d", "y" * 2000, Silent(), 3, logger="test")

    assert caplog.messages == [f"'{'y' * 999}… ValueError 3"]


def test_names_in_our_reports_are_cut(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(MAX_SIZE=1, LEAK_THRESHOLD=0.01)
    with app.app_context():
        pool = extension(app).pool()
    long = "y" * 5000 + HOSTILE
    with connected_as(app, long):
        until(lambda: pool.maintain() and caplog.messages)
        with pytest.raises(PoolTimeout) as caught:
            pool.connection(timeout=0)
        until(lambda: [c for w in workers(app) for c in w.connections])
        [worker] = workers(app)
    connection = pool.connection(endpoint=long)
    until(lambda: pool.maintain() and len(caplog.messages) == 2)
    with pytest.raises(PoolTimeout) as second:
        pool.connection(timeout=0)
    connection.close()

    [about] = worker.connections
    assert about["endpoint"] == "y" * 200 + "…"
    assert len(caplog.messages) == 2
    for text in (*caplog.messages, str(caught.value), str(second.value)):
        assert "'" + "y" * 200 + "…'" in text
        assert "y" * 201 not in text and not RAW.search(text)


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("en_US", ("You have an error in your SQL", "near '…' at line 1")),
        ("de_DE", ("Fehler in der SQL-Syntax", "bei '…' in Zeile 1")),
    ],
)
def test_statements_of_the_settings_are_shown_nowhere(
    make_app: MakeApp, language: str, said: tuple[str, str]
) -> None:
    secret = {"INIT_COMMAND": f"SET @a = '{SECRET}'"}
    statements = [f"SET lc_messages = '{language}'", f"{SECRET} is no statement"]
    app = make_app(**secret, SETSESSION=statements)
    config = published(app)["default"]

    shown = [*texts(app), *pages(app), repr(config), str(config.settings())]
    with app.app_context(), pytest.raises(ProgrammingError) as caught:
        extension(app).get_db().ping()

    for text in (*shown, *caught.value.args[1:], *texts(app)):
        assert SECRET not in text
    assert caught.value.args[0] == 1064
    assert caught.value.args[1].startswith(f"SETSESSION: {said[0]}")
    assert said[1] in caught.value.args[1]
    assert config.settings()["INIT_COMMAND"] == "***"
    assert config.settings()["SETSESSION"] == ["***", "***"]


def test_lines_of_commands_are_as_long_as_they_seem() -> None:
    fitted = map(render.printable, render._fitted(HOSTILE * 20, 40))
    assert max(map(len, fitted)) <= 40
    for cell, shown in (("y" * 100, "y" * 60 + "…"), ("\x1b\u202e", r"\x1b\u202e")):
        assert render._aligned([["a", ""], [cell, "b"]])[1] == f"  {shown}  b"
    hostile = render.Styled("red", HOSTILE, HOSTILE + "y" * 5000)
    shown = render.printable(hostile)
    assert shown.startswith("\x1b[31m") and r"\x1b]0;owned" in shown
    assert not RAW.search(shown.removeprefix("\x1b[31m").replace("\x1b[0m", ""))
    assert len(render.printable("y" * 5000)) == 4001 and len(shown) < 4500


@pytest.mark.parametrize("depth", [200, 500, 900, 100_000])
def test_a_record_that_is_nested_without_end_is_no_traceback(
    make_app: MakeApp, depth: int
) -> None:
    app = make_app()
    client = monitored(app)
    registry = CollectorRegistry()
    registry.register(PoolCollector(app))
    sheet = heard_from(app, 0, more="NESTED")
    path = Path(folder_of(app).path, sheet.id + ".worker")
    head, _, data = path.read_bytes().partition(b"\n")
    data = data.strip(b"\0").replace(b'"NESTED"', b"[" * depth + b"]" * depth)
    head = b"%s %08x %d\n" % (head.split()[0], zlib.crc32(data), len(data))
    path.write_bytes(head + data)

    shown = [*texts(app, ["status"], ["status", "--json"], ["check"])]
    pages = [client.get(f"/mysqlpool/{path}") for path in ("", "status.json")]
    readable = "mysqlpool_readable 0.0" not in generate_latest(registry).decode()

    assert all(page.status_code == 200 for page in pages)
    said = "a worker that cannot be read: damaged"
    assert depth in (500, 900) or {said in text for text in shown} == {not readable}
    assert depth in (500, 900) or readable == (depth == 200)


def test_of_another_workers_connection_only_what_is_known_is_shown(
    make_app: MakeApp,
) -> None:
    app = make_app()
    nested: list[Any] = []
    for _ in range(200):
        nested = [nested]
    held = {"thread_id": 7, "state": "in_use", "for": 1}
    sheet = heard_from(app, 0, in_use=1, connections=[{**held, "more": nested}])

    lines, data = texts(app, ["status"], ["status", "--json"])
    sheet.remove()

    assert re.search(r"\d +1 +7 +\?\n", lines)
    [worker] = json.loads(data)["pools"]["default"]["workers"]
    assert worker["connections"] == [{**held, "endpoint": None, "age": None}]


def test_what_another_worker_says_is_cut(make_app: MakeApp) -> None:
    app = make_app(SQL_MODE="ANSI\u202e")
    reasons = {HOSTILE: 1, "y" * 2000: 2}
    failed = {"connect_error": "y" * 60_000, "last_connect_failure": time.time()}
    sheet = heard_from(app, 0, discarded_by_reason=reasons, **failed)
    Fleet(folder_of(app), "shop", published(app)).pause("default", by=HOSTILE * 1000)
    page, data = pages(app)

    shown = texts(app, ["status"], ["status", "--json"], ["check"])
    for text in (page, data, *shown):
        assert not RAW.search(text) and "y" * 1001 not in text
    assert r"ANSI\u202e" in page and json.loads(data)["problems"]
    sheet.remove()


def test_what_authorize_returns_is_told_by_its_kind(make_app: MakeApp) -> None:
    for text in pages(make_app(), authorize=Nameless):
        assert "authorize must return True or False, not a Nameless." in text


@pytest.mark.parametrize("charset", ["utf-8", "ascii"])
def test_what_a_terminal_has_no_character_for_is_escaped(
    make_app: MakeApp, charset: str
) -> None:
    app = make_app()
    about = {"connect_error": "naïf \x7f", "last_connect_failure": time.time()}
    sheet = heard_from(app, 0, **about)
    run = FlaskCliRunner(app, charset=charset).invoke
    lines = run(args=["mysqlpool", "status"]).output
    data = run(args=["mysqlpool", "status", "--json"]).output
    sheet.remove()

    assert ("naïf" if charset == "utf-8" else r"na\xeff") + r" \x7f" in lines
    assert r"na\u00eff \u007f" in data
