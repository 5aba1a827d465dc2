"""The monitor: what it tells, whom it answers, and what forged requests achieve.

How it looks and moves is tested in a browser, in :mod:`test_monitor_browser`.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from http.client import HTTPConnection
from io import BufferedReader, BytesIO
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask import Flask, Response, abort, redirect
from flask.testing import FlaskClient
from records import complete, identity_of
from visits import OURS, allow, csrf, monitored, order
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

import flask_mysqlpool.monitor.server_cache
import flask_mysqlpool.monitor.snapshot
import flask_mysqlpool.monitor.views
from flask_mysqlpool import MySQLPool, PoolConfig, PoolTimeout
from flask_mysqlpool.monitor import create_monitor, is_local
from flask_mysqlpool.monitor.auth import Gate
from flask_mysqlpool.monitor.percentiles import EMPTY, percentile, summary
from flask_mysqlpool.monitor.server_cache import ServerCache, without_values
from flask_mysqlpool.monitor.snapshot import Memory
from flask_mysqlpool.pool.stats import BOUNDS
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.workers.exited import total
from flask_mysqlpool.workers.fleet import Fleet
from flask_mysqlpool.workers.mysql_server import ServerReport
from flask_mysqlpool.workers.mysql_server import Thread as ServerThread
from flask_mysqlpool.workers.status import WorkerStatus, key_of
from flask_mysqlpool.workers.status_dir import StatusDir
from flask_mysqlpool.workers.status_file import StatusFile

TOKEN = "a-token-that-nobody-guesses"
SECRET = "hunter2-is-the-password"

POLICY = {
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "form-action 'self'",
    "base-uri 'none'",
    "frame-ancestors 'none'",
}


def pools(client: FlaskClient, query: str = "") -> dict[str, Any]:
    response = client.get(f"/mysqlpool/status.json{query}")
    assert response.status_code == 200
    found: dict[str, Any] = response.get_json()["pools"]
    return found


def pool(client: FlaskClient, query: str = "") -> dict[str, Any]:
    found: dict[str, Any] = pools(client, query)["default"]
    return found


def at_server(pool: dict[str, Any]) -> tuple[Any, Any]:
    """Threads and orphans at the server, if it has answered in time."""
    found = pool["seen_by_server"]
    return found.get("threads"), found.get("orphans")


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[Flask]:
    """An app whose server is not there; it has a board all the same."""
    app = Flask("shop")
    app.config.update(
        MYSQLPOOL_URL=f"mysql://shop:{SECRET}@127.0.0.1:1/shop",
        MYSQLPOOL_STATUS_DIR=tmp_path / "board",
        MYSQLPOOL_TIMEOUT=0.2,
    )
    db = MySQLPool(app)
    yield app
    with app.app_context():
        db.close_pool()


@pytest.fixture
def sheet(offline: Flask, tmp_path: Path) -> Iterator[Callable[..., StatusFile]]:
    """Publish as another worker of this app would."""
    board, sheets = StatusDir(tmp_path / "board"), []

    def publish(**about: Any) -> StatusFile:
        sheets.append(StatusFile(board))
        sheets[-1].write(complete(**identity_of(offline) | about))
        return sheets[-1]

    yield publish
    for sheet in sheets:
        sheet.remove()


# What it tells


def test_it_tells_who_holds_what_and_what_the_server_says_of_it(
    make_app: MakeApp,
) -> None:
    app = make_app(MAX_SIZE=3)
    client = monitored(app)
    seen: dict[str, Any] = {}

    @app.get("/report")
    def report() -> str:
        connection = extension(app).get_db()
        until(lambda: pool(client)["totals"]["in_use"] == 1)
        seen.update(pool(client), thread=connection.thread_id())
        return ""

    app.test_client().get("/report")

    [holder] = seen["holders"]
    assert holder["endpoint"] == "report"
    assert (holder["pid"], holder["thread_id"]) == (os.getpid(), seen["thread"])
    assert 0 <= holder["for"] < 10 and 0 <= holder["age"] < 10
    [worker] = seen["workers"]
    assert worker["pid"] == os.getpid() and worker["in_use"] == 1
    assert (seen["max_size"], seen["capacity"]) == (3, 3)
    assert seen["state"] == "ok" and seen["totals"]["workers"] == 1
    assert "connections" not in worker and "id" in worker


def test_what_the_server_says_of_a_holder_has_no_values(make_app: MakeApp) -> None:
    app = make_app()
    client = monitored(app)
    go = Barrier(2, timeout=10)

    def sleep() -> None:
        with app.app_context(), extension(app).connection() as connection:
            with connection.cursor() as cursor:
                cursor.execute("SELECT SLEEP(1.25), 'private'")
        go.wait()

    Thread(target=sleep).start()

    def doing() -> dict[str, Any]:
        held = [holder.get("doing") or {} for holder in pool(client)["holders"]]
        return held[0] if held else {}

    until(lambda: doing().get("command") == "Query", 5)
    assert doing()["statement"] == "SELECT SLEEP(?), …"
    go.wait()


def test_what_the_server_said_before_is_not_taken_for_the_next_holder(
    offline: Flask, sheet: Callable[..., StatusFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    his = ServerThread(7, "shop", "here", "shop", "Query", 3, "SELECT 1")
    server = Patient(monkeypatch, his, replace(his, thread_id=8))
    held = {"thread_id": 7, "state": "in_use", "endpoint": "e", "age": 9}
    client = monitored(offline)

    def shown(seconds: float) -> object:
        each = sheet(connections=[{**held, "for": seconds}], updated=time.time())
        found = pool(client)
        each.remove()
        assert found["seen_by_server"]["orphans"] == 1
        return found["holders"][0]["doing"]

    doing = {"command": "Query", "for": 3, "statement": "SELECT ?"}
    assert shown(5) == doing
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 0.5)
    assert (shown(5), shown(0.1)) == (doing, None)
    assert server.asked == 1


def test_what_one_host_says_is_not_taken_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A number may be that of a connection to each of a pool's hosts."""
    app = Flask("shop")
    app.config.update(
        MYSQLPOOL_HOST="db1,db2",
        MYSQLPOOL_STATUS_DIR=tmp_path / "board",
    )
    MySQLPool(app)
    his = ServerThread(7, "shop", "here", None, "Query", 3, "SELECT 1")
    Patient(monkeypatch, his)
    held = {"thread_id": 7, "state": "in_use", "endpoint": "e", "for": 9, "age": 9}
    sheet = StatusFile(StatusDir(tmp_path / "board"))
    sheet.write(complete(**identity_of(app), connections=[held]))

    found = pool(monitored(app))
    sheet.remove()

    assert found["seen_by_server"]["threads"] == 1
    assert "orphans" not in found["seen_by_server"]
    assert "doing" not in found["holders"][0]


@pytest.mark.parametrize(
    ("statement", "shown"),
    [
        ("SELECT 1", "SELECT ?"),
        ("SELECT  a\n FROM t1 WHERE b = 0x41 OR c=-1.5e3", None),
        ("INSERT INTO t (a) VALUES ('it''s', 2)", "INSERT INTO t (a) VALUES (…"),
        ('SELECT "a\\"b", 1', "SELECT …"),
        ("/* don't */ SELECT 'x'", "…"),
        ("SELECT a -- 'b'\n, 'c'", "SELECT a …"),
        ("SELECT a # 'b'\n, 'c'", "SELECT a …"),
        ("SELECT `a'b`, 'c'", "SELECT `a…"),
        ("", ""),
        ("SELECT " + "a" * 300, "SELECT " + "a" * 193 + "…"),
        ("SELECT " + " " * 3000 + "'x'", "SELECT…"),
    ],
)
def test_a_statement_is_shown_up_to_its_first_text(
    statement: str, shown: str | None
) -> None:
    shown = shown if shown is not None else "SELECT a FROM t1 WHERE b = ? OR c=-?"
    assert without_values(statement) == shown


def test_the_times_of_all_workers_are_one_histogram(
    offline: Flask, sheet: Callable[..., StatusFile]
) -> None:
    zeros = [0.0] * 16
    quick, slow = list(zeros), list(zeros)
    quick[0], quick[15] = 98, 0.0098
    slow[14], slow[15] = 2, 40.0
    sheet(pid=1, wait=quick, use=quick, create=zeros)
    sheet(pid=2, wait=slow, use=quick, create=zeros)
    # Of an older version, or half of it.
    sheet(pid=3)
    sheet(pid=4, wait=[1, 2], use=None, create=["?"] * 16)

    found = pool(monitored(offline))

    assert found["wait"]["count"] == 100 and found["use"]["count"] == 196
    assert found["wait"]["mean"] == pytest.approx(0.400098)
    assert found["wait"]["p50"] == pytest.approx(0.0005 * 50 / 98)
    assert found["wait"]["p99"] == 10.0
    assert found["create"] == {
        **{"count": 0, "mean": None, "p50": None, "p95": None, "p99": None}
    }
    assert [worker["wait"] for worker in found["workers"]] == [
        *(quick, slow, zeros, zeros)
    ]


def test_reasons_are_added_up_as_far_as_they_are_counts() -> None:
    of_others = [{"a": "x"}, {"a": 10**400}, ["a"], None]
    told = [{"a": 1}, *of_others, {"a": 2, "b": 3}]

    records = [complete(discarded_by_reason=each) for each in told]

    sums = total(WorkerStatus.from_json(record).counts for record in records)
    assert sums["discarded_by_reason"] == {"a": 3, "b": 3}


def test_a_percentile_lies_in_its_bucket() -> None:
    for number, bound in enumerate(BOUNDS):
        counts = [0] * 15
        counts[number] = 7
        lower = BOUNDS[number - 1] if number else 0
        for part in (0.5, 0.95, 0.99):
            found = percentile(counts, part)
            assert found is not None and lower < found <= bound
    assert percentile([0] * 14 + [3], 0.5) == 10.0
    assert percentile([0] * 15, 0.5) is None
    assert summary(EMPTY)["count"] == 0


def test_what_was_closed_and_what_failed_is_summed_up(
    offline: Flask, sheet: Callable[..., StatusFile]
) -> None:
    now = time.time()
    sheet(pid=1, discarded_by_reason={"dead": 2, "idle": 1}, last_timeout=now - 400)
    sheet(pid=2, discarded_by_reason={"dead": 3}, last_timeout=now - 300, timeouts=4)
    sheet(pid=3, last_connect_failure=now - 90, connect_error="2003: down")
    sheet(pid=4, last_connect_failure=now - 95, connect_error="1045: wrong")

    found = pool(monitored(offline))

    assert found["discarded_by_reason"] == {"dead": 5, "idle": 1}
    assert found["last_timeout"] == pytest.approx(300, abs=5)
    failure = found["connect_failure"]
    assert (failure["pid"], failure["error"]) == (3, "2003: down")
    assert failure["ago"] == pytest.approx(90, abs=5)


@pytest.mark.parametrize(
    ("state", "about"),
    [
        ("ok", {"in_use": 9}),
        ("full", {"in_use": 10}),
        ("full", {"in_use": 10, "last_timeout": -70}),
        ("timeouts", {"in_use": 10, "last_timeout": -50}),
        ("waiting", {"waiting": 1, "last_timeout": -50}),
        ("waiting", {"waiting": 1, "last_connect_failure": -70}),
        ("failing", {"waiting": 1, "last_connect_failure": -50}),
    ],
)
def test_the_state_is_the_worst_that_is_to_be_said(
    offline: Flask, sheet: Callable[..., StatusFile], state: str, about: dict[str, Any]
) -> None:
    now = time.time()
    sheet(**{k: v + now if k.startswith("last_") else v for k, v in about.items()})

    assert pool(monitored(offline))["state"] == state


def test_a_pool_that_nobody_uses_is_unused(offline: Flask) -> None:
    found = pool(monitored(offline))

    assert found["state"] == "unused" and found["totals"]["workers"] == 0


def test_at_most_fifty_holders_are_listed_and_the_others_counted(
    offline: Flask, sheet: Callable[..., StatusFile]
) -> None:
    held = [
        {"thread_id": n, "state": "in_use", "endpoint": "e", "for": n, "age": n}
        for n in range(60)
    ]
    sheet(connections=held, in_use=70, updated=time.time())

    found = pool(monitored(offline))

    assert len(found["holders"]) == 50 and found["unlisted"] == 20
    assert found["holders"][0]["thread_id"] == 59


def test_a_worker_that_has_fallen_silent_is_marked(
    offline: Flask, sheet: Callable[..., StatusFile], tmp_path: Path
) -> None:
    busy, idle = sheet(pid=1, size=1), sheet(pid=2)
    for each in (busy, idle):
        os.utime(tmp_path / "board" / f"{each.id}.worker", (1, time.time() - 30))

    found = pool(monitored(offline))["workers"]

    assert found[0]["silent"] == pytest.approx(30, abs=5)
    assert found[1]["silent"] == 0


def test_the_line_is_sampled_by_looking(
    offline: Flask, sheet: Callable[..., StatusFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = monitored(offline)
    now = time.time()
    first = sheet(in_use=3, waiting=2)
    for moment in (0.0, 0.1, 1.0):
        monkeypatch.setattr(time, "time", lambda moment=moment: now + moment)
        assert "line" not in pool(client)
        first.write(complete(**identity_of(offline), in_use=4))

    line = pool(client, "?line=1")["line"]

    assert [sample[1:] for sample in line] == [[3, 2], [4, 0]]


def test_without_a_board_this_process_alone_is_shown(make_app: MakeApp) -> None:
    app = make_app(STATUS_DIR=False, MAX_SIZE=2)
    client = monitored(app)
    with app.app_context():
        extension(app).connection().close()
        with extension(app).connection() as connection:
            report = client.get("/mysqlpool/status.json").get_json()
            thread = connection.thread_id()

    found = report["pools"]["default"]
    assert report["problems"] == [
        f"Only this worker is shown, {os.getpid()}: STATUS_DIR is False."
    ]
    assert found["totals"]["checkouts"] == 2 and found["totals"]["in_use"] == 1
    assert [holder["thread_id"] for holder in found["holders"]] == [thread]
    assert found["holders"][0]["endpoint"]
    assert found["wait"]["count"] == 2 and found["create"]["count"] == 1
    assert 0 < found["create"]["p50"] < 10


def test_a_board_that_cannot_be_used_leaves_this_process(
    make_app: MakeApp, tmp_path: Path
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    app = make_app(STATUS_DIR=folder)
    client = monitored(app, control=True)
    with app.app_context(), extension(app).connection():
        report = client.get("/mysqlpool/status.json").get_json()

    [problem] = report["problems"]
    assert "can be written to by others" in problem
    assert report["pools"]["default"]["totals"]["in_use"] == 1
    response = order(client, csrf(client))
    assert response.status_code == 503
    assert "can be written to by others" in response.get_json()["error"]


def test_what_of_the_board_cannot_be_read_is_named(
    offline: Flask, sheet: Callable[..., StatusFile], tmp_path: Path
) -> None:
    sheet(pid=4)
    broken = sheet()
    (tmp_path / "board" / f"{broken.id}.worker").write_bytes(b"damage")
    (tmp_path / "board" / "orders").write_bytes(b"damage")

    response = monitored(offline).get("/mysqlpool/status.json")

    report = response.get_json()
    assert [w["pid"] for w in report["pools"]["default"]["workers"]] == [4]
    assert any(broken.id in problem for problem in report["problems"])
    assert any(problem.startswith("orders: ") for problem in report["problems"])


def test_several_binds_and_two_extensions_are_shown(make_app: MakeApp) -> None:
    app = make_app(BINDS={"reports": {"MAX_SIZE": 2}}, MAX_HOST_CONNECTIONS=9)
    second = MySQLPool()
    second.init_app(app)
    client = monitored(app)
    with app.app_context(), second.connection("reports"):
        until(lambda: pools(client)["reports-2"]["totals"]["in_use"] == 1)
        # The same account, so one pool's connections are no strangers to the others.
        until(lambda: [*map(at_server, pools(client).values())] == [(1, 0)] * 4)
        found = pools(client)
        second.close_pool()

    assert list(found) == ["default", "reports", "default-2", "reports-2"]
    assert [each["totals"]["in_use"] for each in found.values()] == [0, 0, 0, 1]
    assert found["reports-2"]["capacity"] == 2
    assert found["reports-2"]["max_host_connections"] == 9
    page = client.get("/mysqlpool/").text
    assert re.findall('data-bind="([^"]*)"', page) == list(found)


def test_under_a_prefix_all_addresses_have_it(offline: Flask) -> None:
    client = monitored(offline, control=True, url_prefix="/ops/pools")
    page = client.get("/ops/pools", environ_overrides={"SCRIPT_NAME": "/shop"})

    addresses = re.findall(r'(?:href|src|data-\w+)="(/[^"]*)"', page.text)
    assert len(addresses) >= 5
    assert all(address.startswith("/shop/ops/pools/") for address in addresses)
    assert "; Path=/shop/ops/pools;" in page.headers["Set-Cookie"] + ";"


def test_without_the_extension_it_says_what_is_missing() -> None:
    app = Flask("bare")
    app.testing = True
    with pytest.raises(RuntimeError, match="'bare' has no MySQLPool"):
        monitored(app).get("/mysqlpool/status.json")


# It needs nothing of the pool, nor of the app


def test_an_exhausted_pool_is_shown_at_once(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=2)
    client = monitored(app)
    with app.app_context(), ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(extension(app).connection())
        with pytest.raises(PoolTimeout):
            extension(app).connection(timeout=0.01)
        until(lambda: pool(client)["totals"]["timeouts"] == 1)
        before = extension(app).stats().checkouts
        for path in ("/mysqlpool/", "/mysqlpool/status.json"):
            began = time.monotonic()
            assert client.get(path).status_code == 200
            assert time.monotonic() - began < 0.5
        until(lambda: at_server(pool(client)) == (2, 0))
        found = pool(client)
        assert extension(app).stats().checkouts == before

    assert found["totals"]["in_use"] == found["capacity"] == 2
    assert found["state"] == "timeouts"


def test_a_server_that_is_down_is_said_and_the_rest_is_shown(
    offline: Flask, sheet: Callable[..., StatusFile]
) -> None:
    sheet(in_use=1)
    client = monitored(offline)

    found = pool(client)

    assert "2003" in found["seen_by_server"]["error"]
    assert found["totals"]["in_use"] == 1
    assert client.get("/mysqlpool/").status_code == 200
    assert "seen_by_server" not in pool(client, "?server=0")


def test_a_file_for_tls_that_is_gone_is_said_and_the_rest_is_shown(
    make_app: MakeApp, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    file.touch()
    app = make_app(SSL_CA=str(file))
    file.unlink()

    found = pool(monitored(app))

    assert "SSL_CA" in found["seen_by_server"]["error"]
    assert found["totals"]["in_use"] == 0


def test_a_server_that_hangs_keeps_nobody_for_long(
    make_app: MakeApp, proxy: FaultProxy
) -> None:
    app = make_app(
        URL=None,
        HOST=proxy.host,
        PORT=proxy.port,
        BINDS={"b": {"DATABASE": "mysql"}, "c": {"DATABASE": "sys"}},
    )
    client = monitored(app)
    proxy.hang()

    began = time.monotonic()
    found = pools(client)
    first, began = time.monotonic() - began, time.monotonic()
    pools(client)
    second = time.monotonic() - began

    assert first < 1 and second < 1
    assert all(each["seen_by_server"]["error"] for each in found.values())
    assert found["b"]["seen_by_server"]["error"] == "has not been queried yet"


class Patient:
    """Stands for the server: counts who asks, and lets them wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *threads: ServerThread) -> None:
        self.asked = 0
        self.threads = threads
        self.asking, self.go = Barrier(2, timeout=10), Barrier(2, timeout=10)
        self.slow = False
        asking = flask_mysqlpool.monitor.server_cache
        monkeypatch.setattr(asking, "connect_to", lambda config: self)

    def __enter__(self) -> Patient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def report(self) -> ServerReport:
        self.asked += 1
        if self.slow:
            self.asking.wait()
            self.go.wait()
        return ServerReport(f"v{self.asked}", 1, 1, self.threads)


def version(asker: ServerCache, may_query: bool = True) -> str | None:
    report = asker.answer(may_query).report
    return None if report is None else report.version


def test_one_asks_and_the_others_take_what_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server, asker = Patient(monkeypatch), ServerCache(PoolConfig(host="h"))
    assert version(asker, may_query=False) is None
    assert [version(asker), version(asker)] == ["v1", "v1"]

    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 1.1)
    server.slow = True
    answers: list[str | None] = []
    first = Thread(target=lambda: answers.append(version(asker)))
    first.start()
    server.asking.wait()
    assert version(asker) == "v1"
    server.go.wait()
    first.join()

    assert answers == ["v2"] and server.asked == 2


def test_after_a_fork_during_a_query_the_child_queries(
    offline: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = Patient(monkeypatch), monitored(offline)
    server.slow = True
    first = Thread(target=lambda: pool(offline.test_client()))
    first.start()
    server.asking.wait()
    server.slow = False
    assert "error" in pool(client)["seen_by_server"]

    child = os.getpid() + 1
    for module in (flask_mysqlpool.monitor.snapshot, flask_mysqlpool.monitor.views):
        monkeypatch.setattr(module, "process", lambda: child)

    assert pool(client)["seen_by_server"]["version"] == "v2"
    server.go.wait()
    first.join()


def test_nothing_of_the_apps_own_pages_is_asked(offline: Flask) -> None:
    """Neither its context processors nor its error pages: they may need the pool."""

    def fail(*_: object) -> Any:
        raise AssertionError("was asked")

    offline.context_processor(fail)
    for code in (401, 403):
        offline.register_error_handler(code, fail)
    client = monitored(offline, authorize=None, token=TOKEN)

    assert client.get("/mysqlpool/").status_code == 401
    assert client.get("/mysqlpool/status.json").status_code == 401
    assert client.get("/mysqlpool/", headers=bearer()).status_code == 200


# Secrets, and texts of strangers


def test_no_secret_is_in_the_page_or_its_data(tmp_path: Path) -> None:
    app = Flask("shop")
    app.config.update(
        MYSQLPOOL_URL=f"mysql://shop:{SECRET}@127.0.0.1:1/shop",
        MYSQLPOOL_SSL_MODE="DISABLED",
        MYSQLPOOL_CONNECT_ARGS={"server_public_key": SECRET.encode()},
        MYSQLPOOL_STATUS_DIR=tmp_path / "board",
        MYSQLPOOL_BINDS={"other": {"USER": "o", "PASSWORD": SECRET + "2"}},
    )
    MySQLPool(app)
    client = monitored(app, control=True, authorize=None, token=TOKEN)

    for path in ("/mysqlpool/", "/mysqlpool/status.json"):
        response = client.get(path, headers=bearer())
        assert response.status_code == 200
        assert SECRET not in response.text and TOKEN not in response.text
        assert "a secret key" not in response.text
    assert (
        "<dt>PASSWORD</dt><dd>***</dd>"
        in client.get("/mysqlpool/", headers=bearer()).text
    )


def test_the_password_of_a_real_server_is_nowhere(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app(BINDS={"wrong": {"USER": "nobody", "PASSWORD": SECRET}})
    client = monitored(app)
    with app.app_context(), extension(app).connection():
        until(lambda: pool(client)["totals"]["in_use"] == 1)
        texts = [client.get(f"/mysqlpool/{path}").text for path in ("", "status.json")]

    assert server.password
    for text in texts:
        assert server.password not in text and SECRET not in text


def test_html_in_names_stays_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    app = Flask(evil, root_path=str(tmp_path))
    app.config.update(
        MYSQLPOOL_HOST="127.0.0.1",
        MYSQLPOOL_PORT=1,
        MYSQLPOOL_DATABASE=evil,
        MYSQLPOOL_STATUS_DIR=tmp_path / "board",
    )
    MySQLPool(app)
    held = {"thread_id": 1, "state": "in_use", "for": 1, "endpoint": evil, "age": 1}
    sheet = StatusFile(StatusDir(tmp_path / "board"))
    sheet.write(complete(**identity_of(app), connections=[held]))
    client = monitored(app)

    page = client.get("/mysqlpool/")
    status = client.get("/mysqlpool/status.json")
    sheet.remove()

    assert evil not in page.text and "&lt;script&gt;alert(1)" in page.text
    assert page.mimetype == "text/html" and status.mimetype == "application/json"
    assert status.get_json()["pools"]["default"]["holders"][0]["endpoint"] == evil


# Who is answered


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def answers(
    client: FlaskClient, headers: dict[str, str] | None = None, **environ: Any
) -> set[int]:
    """What is answered to whoever wants to see something; to all of it alike."""
    return {
        client.get(
            f"/mysqlpool/{path}", headers=headers, environ_overrides=environ
        ).status_code
        for path in ("", "status.json")
    }


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"authorize": allow, "token": TOKEN}, ValueError, "not both"),
        ({"token": "short"}, ValueError, "16 characters or more"),
        ({"authorize": True}, TypeError, "callable"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_made(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        create_monitor(**options)
    assert TOKEN not in str(caught.value) and "'short'" not in str(caught.value)


def test_without_a_guard_it_is_not_registered_outside_of_debug_mode(
    offline: Flask,
) -> None:
    with pytest.raises(RuntimeError, match="authorize=..."):
        offline.register_blueprint(create_monitor())


@pytest.mark.parametrize(
    "options", [{"token": TOKEN}, {"authorize": allow, "control": True}]
)
def test_without_a_secret_key_nothing_is_registered_that_signs(
    offline: Flask, options: dict[str, Any]
) -> None:
    with pytest.raises(RuntimeError, match="SECRET_KEY"):
        offline.register_blueprint(create_monitor(**options))


@pytest.mark.parametrize(
    ("environ", "headers", "status"),
    [
        ({}, {}, 200),
        ({"REMOTE_ADDR": "::1"}, {"Host": "[::1]:5000"}, 200),
        ({"REMOTE_ADDR": "::ffff:127.0.0.1"}, {"Host": "a.localhost"}, 200),
        ({"REMOTE_ADDR": "127.1.2.3"}, {"Host": "127.0.0.1:8000"}, 200),
        ({"REMOTE_ADDR": "192.0.2.1"}, {}, 403),
        ({"REMOTE_ADDR": "::ffff:192.0.2.1"}, {}, 403),
        ({"REMOTE_ADDR": ""}, {}, 403),
        ({"REMOTE_ADDR": "localhost"}, {}, 403),
        ({}, {"X-Forwarded-For": "127.0.0.1"}, 403),
        ({}, {"X-Forwarded-For": ""}, 403),
        ({}, {"X-Real-IP": "192.0.2.1"}, 403),
        ({}, {"Forwarded": "for=192.0.2.1"}, 403),
        ({}, {"Host": "rebound.example"}, 403),
        ({}, {"Host": "notlocalhost"}, 403),
    ],
)
def test_without_a_guard_this_host_alone_is_answered(
    offline: Flask, environ: dict[str, str], headers: dict[str, str], status: int
) -> None:
    offline.debug = offline.testing = True
    client = monitored(offline, authorize=None)

    assert answers(client, headers, **environ) == {status}
    offline.debug = False
    assert answers(client, headers, **environ) == {403}


def test_authorize_decides_in_debug_mode_too(offline: Flask) -> None:
    offline.debug = True
    assert answers(monitored(offline, authorize=lambda: False)) == {403}


def test_authorize_is_asked_in_each_request(offline: Flask) -> None:
    asked = [True, True, False, False]
    client = monitored(offline, authorize=lambda: asked.pop(0))

    assert (answers(client), answers(client)) == ({200}, {403})


@pytest.mark.parametrize("result", [1, "yes", None, 0, Response(), lambda: True])
def test_an_authorize_that_does_not_say_yes_or_no_opens_nothing(
    offline: Flask, result: object
) -> None:
    client = monitored(offline, authorize=lambda: result)

    assert answers(client) == {403}
    assert "must return True or False" in client.get("/mysqlpool/").text


def test_authorize_may_send_visitors_elsewhere(offline: Flask) -> None:
    def sign_in_first() -> bool:
        abort(redirect("/sign-in"))

    assert answers(monitored(offline, authorize=sign_in_first)) == {302}


def test_authorize_may_be_a_coroutine(offline: Flask) -> None:
    async def allow_later() -> bool:
        return True

    assert answers(monitored(offline, authorize=allow_later)) == {200}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (bearer(), 200),
        ({"Authorization": f"bearer {TOKEN}"}, 200),
        (bearer(TOKEN[:-1]), 401),
        (bearer(TOKEN + "x"), 401),
        (bearer(""), 401),
        (bearer("für-alle-die-es-wollen"), 401),
        ({"Authorization": TOKEN}, 401),
        ({"Authorization": f"Basic {TOKEN}"}, 401),
        ({}, 401),
        ({"Cookie": "mysqlpool_monitor=" + TOKEN}, 401),
    ],
)
def test_with_a_token_its_bearer_alone_is_answered(
    offline: Flask, headers: dict[str, str], status: int
) -> None:
    offline.debug = True
    client = monitored(offline, authorize=None, token=TOKEN)

    assert answers(client, headers) == {status}
    response = client.get("/mysqlpool/status.json", headers=headers)
    assert response.headers.get("WWW-Authenticate") == (
        "Bearer" if status == 401 else None
    )
    assert answers(client, {}, QUERY_STRING=f"token={TOKEN}") == {401}


def sign_in(client: FlaskClient, token: str = TOKEN, **headers: str) -> TestResponse:
    return client.post(
        "/mysqlpool/login", data={"token": token}, headers=OURS | headers
    )


def sign_out(client: FlaskClient) -> TestResponse:
    headers = OURS | {"X-CSRF-Token": csrf(client)}
    return client.post("/mysqlpool/logout", headers=headers)


def orders_of(app: Flask) -> Path:
    """The file of the desired state, and of signing in."""
    return Path(app.config["MYSQLPOOL_STATUS_DIR"], "orders")


def test_the_form_signs_in_and_the_button_out(offline: Flask) -> None:
    client = monitored(offline, authorize=None, token=TOKEN)
    page = client.get("/mysqlpool/")
    assert page.status_code == 401 and 'action="/mysqlpool/login"' in page.text

    response = sign_in(client)

    assert response.status_code == 303 and response.location == "/mysqlpool/"
    cookie = response.headers["Set-Cookie"]
    assert "; HttpOnly;" in cookie and cookie.endswith("; SameSite=Strict")
    assert "; Secure" not in cookie and TOKEN not in cookie
    assert answers(client) == {200}
    signed_in = client.get_cookie("mysqlpool_monitor", path="/mysqlpool")
    assert signed_in is not None

    response = client.post("/mysqlpool/logout", headers=OURS)
    assert response.status_code == 403 and answers(client) == {200}
    assert sign_out(client).status_code == 303
    assert answers(client) == {401}
    client.set_cookie("mysqlpool_monitor", signed_in.value, path="/mysqlpool")
    assert answers(client) == {401}  # nor is a copy of it good any more
    sign_in(client)
    assert answers(client) == {200}


def damage_orders(path: Path, app: Flask) -> None:
    path.write_bytes(b"damage")


def damage_and_replace_orders(path: Path, app: Flask) -> None:
    path.write_bytes(b"damage")
    with app.app_context():
        assert app.test_cli_runner().invoke(args=["mysqlpool", "pause"]).exit_code == 0


def remove_orders(path: Path, app: Flask) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "harm", [damage_orders, damage_and_replace_orders, remove_orders]
)
@pytest.mark.parametrize("signed_out_before", [False, True])
def test_a_cookie_that_was_signed_out_stays_so(
    offline: Flask, harm: Callable[[Path, Flask], None], signed_out_before: bool
) -> None:
    client = monitored(offline, authorize=None, token=TOKEN)
    for _ in range(1 + signed_out_before):
        sign_in(client)
        copied = client.get_cookie("mysqlpool_monitor", path="/mysqlpool")
        assert sign_out(client).status_code == 303
    assert copied is not None
    client.set_cookie("mysqlpool_monitor", copied.value, path="/mysqlpool")

    harm(orders_of(offline), offline)

    assert answers(client) == {401}


def test_nobody_signs_in_while_the_orders_are_damaged(offline: Flask) -> None:
    """A new file would end a pause that cannot be read."""
    client = monitored(offline, authorize=None, token=TOKEN)
    sign_in(client)
    orders = orders_of(offline)
    orders.write_bytes(b"damage")

    response = sign_in(client)

    assert response.status_code == 503 and "flask mysqlpool check" in response.text
    assert orders.read_bytes() == b"damage" and answers(client) == {401}


def test_who_signs_out_of_one_app_stays_signed_in_to_another(
    make_app: MakeApp, tmp_path: Path
) -> None:
    apps = [make_app(STATUS_DIR=str(tmp_path / "status")) for _ in range(2)]
    apps[1].name = "blog"
    shop, blog = (monitored(app, authorize=None, token=TOKEN) for app in apps)
    sign_in(shop), sign_in(blog)
    assert answers(shop) == answers(blog) == {200}

    assert sign_out(shop).status_code == 303

    assert answers(shop) == {401} and answers(blog) == {200}


@pytest.mark.parametrize("token", ["0123456789abcdef=token", "für-alle-die-es-wollen"])
def test_every_token_works_as_a_bearer(offline: Flask, token: str) -> None:
    client = monitored(offline, authorize=None, token=token)
    sent = token.encode().decode("latin-1")

    assert answers(client, {"Authorization": f"Bearer {sent}"}) == {200}
    assert answers(client, {"Authorization": "Bearer \xff"}) == {401}
    assert answers(client, {"Authorization": "Basic \xff"}) == {401}


@pytest.mark.parametrize("token", [b"x" * 40, ["x"] * 40, 10**40])
def test_a_token_is_a_text(token: Any) -> None:
    with pytest.raises(TypeError, match="token must be a str"):
        create_monitor(token=token)


def test_a_form_that_is_longer_than_a_token_is_not_read(offline: Flask) -> None:
    client = monitored(offline, authorize=None, token=TOKEN)

    assert sign_in(client, "x" * 5000).status_code == 413
    headers = OURS | {"Transfer-Encoding": "chunked"}
    response = client.post(
        "/mysqlpool/login",
        input_stream=BytesIO(f"token={TOKEN}".encode()),
        headers=headers,
        content_type="application/x-www-form-urlencoded",
    )
    assert response.status_code == 413


def test_binds_whose_connect_leads_elsewhere_have_an_answer_each() -> None:
    def connect(host: str, port: int, timeout: float) -> socket.socket:
        raise OSError

    one, other = PoolConfig(host="db", user="app"), PoolConfig(host="db", user="app")
    memory = Memory()
    assert memory.server_cache(one) is memory.server_cache(other)
    for different in (
        replace(one, connect=connect),
        replace(one, password="another"),
    ):
        assert memory.server_cache(one) is not memory.server_cache(different)


@dataclass
class Unhashable:
    """A callable that is equal to another one of the same path, and has no hash."""

    path: str

    def __call__(self, *args: object) -> Any:
        raise OSError


@pytest.mark.parametrize("setting", ["PASSWORD", "CONNECT"])
def test_a_callable_need_not_have_a_hash(setting: str) -> None:
    app, given = Flask("shop"), {"HOST": "127.0.0.1", setting: Unhashable("shop")}
    app.config.update({f"MYSQLPOOL_{name}": value for name, value in given.items()})
    app.config["MYSQLPOOL_STATUS_DIR"] = False
    MySQLPool(app)

    assert pool(monitored(app))["seen_by_server"]["error"]
    memory = Memory()
    caches = [
        memory.server_cache(
            PoolConfig.from_mapping({**given, setting: Unhashable(path)})
        )
        for path in ("shop", "shop", "blog")
    ]
    assert caches[0] is caches[1] is not caches[2]


def test_signing_out_says_if_a_copy_of_the_cookie_stays_good(make_app: MakeApp) -> None:
    client = monitored(make_app(STATUS_DIR=False), authorize=None, token=TOKEN)
    sign_in(client)

    response = sign_out(client)

    assert response.status_code == 503 and "STATUS_DIR is False" in response.text
    assert answers(client) == {401}


@pytest.mark.parametrize(
    "content", [5, [], ["id"], ["id", True], ["id", False], [["id"], 0], [5, 0]]
)
@pytest.mark.parametrize("token", [None, TOKEN])
def test_a_cookie_of_another_version_is_that_of_a_stranger(
    offline: Flask, content: object, token: str | None
) -> None:
    authorize = allow if token is None else None
    client = monitored(offline, authorize=authorize, token=token, control=True)
    with offline.app_context():
        cookie = str(Gate(authorize, token, True)._signer().dumps(content))
    client.set_cookie("mysqlpool_monitor", cookie, path="/mysqlpool")

    assert answers(client) == {401 if token else 200}


def test_a_cookie_without_an_id_has_no_csrf_token(offline: Flask) -> None:
    client = monitored(offline, control=True)
    with offline.app_context():
        cookie = str(Gate(allow, None, True)._signer().dumps(["", None]))
    client.set_cookie("mysqlpool_monitor", cookie, path="/mysqlpool")

    assert order(client, "").status_code == 403


def test_what_a_request_says_of_itself_is_cut(offline: Flask) -> None:
    client = monitored(offline, control=True)
    token, long = csrf(client), "y" * 5000

    response = order(client, token, Origin=f"https://{long}")
    assert response.status_code == 403 and "y" * 101 not in response.text
    environ = {"REMOTE_ADDR": "\x1b[2J" + long}
    headers = OURS | {"X-CSRF-Token": token}
    about = {"action": "pause", "bind": "default"}
    response = client.post(
        "/mysqlpool/control",
        json=about,
        headers=headers,
        environ_overrides=environ,
    )
    [state] = offline.extensions["mysqlpool"].values()
    by = Fleet(state.status_dir, "shop", state.published()).desired("default").by
    assert response.status_code == 200
    assert by.startswith(r"the monitor, asked from \x1b[2Jyyy") and len(by) < 150


def test_a_proxy_that_rewrites_the_host_is_named(offline: Flask) -> None:
    client = monitored(offline, control=True)

    response = order(client, csrf(client), Origin="https://shop.example")

    assert response.status_code == 403
    assert "a proxy in between rewrites Host" in response.text
    assert "https://shop.example" in response.text and "localhost" in response.text


def test_the_page_tells_who_has_paused(offline: Flask) -> None:
    client = monitored(offline, control=True)
    assert order(client, csrf(client), "pause").status_code == 200

    [problem] = client.get("/mysqlpool/status.json").get_json()["problems"]

    assert "default: paused by the monitor, asked from 127.0.0.1 since " in problem


def test_over_tls_the_cookie_stays_there(offline: Flask) -> None:
    client = monitored(offline, authorize=None, token=TOKEN)
    response = client.post(
        "/mysqlpool/login",
        data={"token": TOKEN},
        headers={"Origin": "https://localhost"},
        base_url="https://localhost",
    )
    assert "; Secure;" in response.headers["Set-Cookie"]


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("wrong", {}, 401),
        ("", {}, 401),
        (TOKEN, {"Origin": "https://evil.example"}, 403),
        (TOKEN, {"Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_form_that_does_not_sign_in(
    offline: Flask, token: str, headers: dict[str, str], status: int
) -> None:
    client = monitored(offline, authorize=None, token=TOKEN)

    response = sign_in(client, token, **headers)

    assert response.status_code == status
    assert "Set-Cookie" not in response.headers
    assert answers(client) == {401}


def test_a_cookie_is_good_for_its_app_its_token_and_its_time(
    offline: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = monitored(offline, authorize=None, token=TOKEN)
    offline.register_blueprint(
        create_monitor(token=TOKEN + "-2", name="other", url_prefix="/other")
    )
    cookie = sign_in(client).headers["Set-Cookie"].partition(";")[0]
    fresh = offline.test_client(use_cookies=False)
    assert answers(fresh, {"Cookie": cookie}) == {200}
    content, _, signature = cookie.rpartition(".")
    assert answers(fresh, {"Cookie": f"{content}.{signature[::-1]}"}) == {401}
    response = fresh.get("/other/status.json", headers={"Cookie": cookie})
    assert response.status_code == 401

    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 12 * 3600 + 2)
    assert answers(fresh, {"Cookie": cookie}) == {401}
    monkeypatch.undo()
    offline.secret_key = "another"
    assert answers(fresh, {"Cookie": cookie}) == {401}


def test_a_cookie_for_the_buttons_alone_signs_nobody_in(offline: Flask) -> None:
    """It is given to whoever has sent the token, and is no token itself."""
    client = monitored(offline, authorize=None, token=TOKEN, control=True)
    assert client.get("/mysqlpool/", headers=bearer()).status_code == 200
    assert client.get_cookie("mysqlpool_monitor", path="/mysqlpool")
    assert answers(client) == {401}


def test_all_answers_have_the_headers(offline: Flask) -> None:
    client = monitored(offline, authorize=None, token=TOKEN, control=True)
    paths = ["", "status.json", "static/monitor.js", "static/monitor.css"]
    responses = [client.get(f"/mysqlpool/{path}") for path in paths]
    responses += [client.get(f"/mysqlpool/{p}", headers=bearer()) for p in paths]
    responses += [client.post(f"/mysqlpool/{p}") for p in ("login", "control")]
    responses += [order(client, "wrong"), sign_in(client), client.get("/mysqlpool")]
    assert {r.status_code for r in responses} == {200, 303, 401, 403}

    for response in responses:
        headers = response.headers
        assert headers["Cache-Control"] == "no-store"
        assert set(headers["Content-Security-Policy"].split("; ")) == POLICY
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        response.close()


def test_the_page_has_nothing_inline_and_nothing_foreign(offline: Flask) -> None:
    offline.register_blueprint(
        create_monitor(authorize=lambda: False, name="closed", url_prefix="/closed")
    )
    client = monitored(offline, authorize=None, token=TOKEN, control=True)
    page = client.get("/mysqlpool/", headers=bearer()).text
    page += client.get("/mysqlpool/").text + client.get("/closed/").text
    for text in re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL):
        assert text == ""
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    for address in re.findall(r'\s(?:href|src|action)="([^"]*)"', page):
        assert address.startswith(("/mysqlpool/", "/closed/", "#"))
    for name in ("monitor.js", "monitor.css"):
        response = client.get(f"/mysqlpool/static/{name}")
        assert "innerHTML" not in response.text and "//cdn" not in response.text
        assert not re.search(r"https?://|@import|url\(", response.text)
        response.close()


# Desired state


def orders(app: Flask) -> tuple[int, bool]:
    board = StatusDir(app.config["MYSQLPOOL_STATUS_DIR"])
    try:
        found = board.desired(key_of(identity_of(app)))
    except FileNotFoundError:
        return 0, False
    return found.generation, found.paused


def test_reset_pause_and_resume_reach_the_workers(make_app: MakeApp) -> None:
    app = make_app()
    client = monitored(app, control=True)
    db = extension(app)
    with app.app_context():
        db.connection().close()
        token = csrf(client)

        assert order(client, token).get_json() == {"action": "reset", "bind": "default"}
        until(lambda: db.stats().discarded)
        assert db.stats().discarded_by_reason == {"invalidated": 1}

        assert order(client, token, "pause").status_code == 200
        until(lambda: pool(client)["state"] == "paused")
        assert order(client, token, "resume").status_code == 200
        until(lambda: pool(client)["state"] != "paused")
        db.connection().close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": None}, 200),
        ({"Origin": None}, 200),
        ({"Origin": "null"}, 200),
        ({"Origin": None, "Sec-Fetch-Site": None}, 403),
        ({"Origin": "null", "Sec-Fetch-Site": None}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:81"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Origin": "http://evil.example", "Sec-Fetch-Site": None}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "none"}, 403),
        ({"X-CSRF-Token": None}, 403),
        ({"X-CSRF-Token": ""}, 403),
        ({"X-CSRF-Token": "0" * 64}, 403),
        ({"X-CSRF-Token": "ünïcode"}, 403),
        ({"Cookie": "mysqlpool_monitor=forged"}, 403),
        ({"Cookie": ""}, 403),
    ],
)
def test_only_orders_from_its_own_page_are_obeyed(
    offline: Flask, headers: dict[str, str | None], status: int
) -> None:
    client = monitored(offline, control=True)
    token = csrf(client)
    if "Cookie" in headers:
        client.delete_cookie("mysqlpool_monitor", path="/mysqlpool")
    if "ünïcode" in headers.values():
        headers = {"X-CSRF-Token": "ünïcode".encode().decode("latin-1")}

    response = order(client, **{"token": token} | _token_of(headers))

    assert response.status_code == status
    assert orders(offline) == ((1, False) if status == 200 else (0, False))


def _token_of(headers: dict[str, str | None]) -> dict[str, Any]:
    given: dict[str, Any] = dict(headers)
    if "X-CSRF-Token" in given:
        given["token"] = given.pop("X-CSRF-Token")
    return given


def test_the_token_of_another_visitor_is_none(offline: Flask) -> None:
    client = monitored(offline, control=True)
    other = offline.test_client()
    csrf(client)

    assert order(client, csrf(other)).status_code == 403
    assert orders(offline) == (0, False)


@pytest.mark.parametrize("method", ["get", "put", "delete", "head"])
def test_orders_are_posted(offline: Flask, method: str) -> None:
    client = monitored(offline, control=True)
    headers = OURS | {"X-CSRF-Token": csrf(client)}
    response = client.open(
        "/mysqlpool/control",
        method=method,
        json={"action": "reset", "bind": "default"},
        headers=headers,
    )
    assert response.status_code == 405 and orders(offline) == (0, False)


def test_whoever_may_not_look_may_not_order(offline: Flask) -> None:
    client = monitored(offline, authorize=None, token=TOKEN, control=True)
    token = csrf(client, **bearer())

    assert order(client, token).status_code == 401
    assert orders(offline) == (0, False)
    assert order(client, token, **bearer()).status_code == 200
    assert orders(offline) == (1, False)


def test_without_control_there_is_nothing_to_order_with(offline: Flask) -> None:
    client = monitored(offline)

    page = client.get("/mysqlpool/")

    assert "data-action" not in page.text and "Set-Cookie" not in page.headers
    assert order(client, "").status_code == 404
    assert orders(offline) == (0, False)


@pytest.mark.parametrize(
    "body",
    [
        *({"action": "reset", "bind": "x"}, {"action": "close", "bind": "default"}),
        *({"action": "reset"}, {"bind": "default"}, {}, [], "reset", None),
        *({"action": ["reset"], "bind": "default"}, {"action": "reset", "bind": {}}),
    ],
)
def test_orders_that_make_no_sense_are_refused(offline: Flask, body: object) -> None:
    client = monitored(offline, control=True)
    headers = OURS | {"X-CSRF-Token": csrf(client)}

    response = client.post("/mysqlpool/control", json=body, headers=headers)

    assert response.status_code == 400 and orders(offline) == (0, False)


def test_without_a_board_there_is_nobody_to_order(make_app: MakeApp) -> None:
    app = make_app(STATUS_DIR=False)
    client = monitored(app, control=True)
    response = order(client, csrf(client))

    assert response.status_code == 503
    assert "STATUS_DIR is False" in response.get_json()["error"]


def test_two_apps_may_have_one_monitor(offline: Flask, make_app: MakeApp) -> None:
    monitor = create_monitor(authorize=allow)
    other = make_app()
    for app in (offline, other):
        app.register_blueprint(monitor)
    with other.app_context(), extension(other).connection():
        client = other.test_client()
        until(lambda: pool(client)["totals"]["in_use"] == 1)
        assert pool(client)["seen_by_server"]["threads"] == 1
        assert "error" in pool(offline.test_client())["seen_by_server"]


def test_is_local_is_for_other_pages_too() -> None:
    app = Flask("shop")
    app.testing = True
    with app.test_request_context():
        assert not is_local()  # from nobody knows where
    with app.test_request_context(environ_base={"REMOTE_ADDR": "127.0.0.1"}):
        assert is_local()
        app.testing = False  # some servers make an environment like that of a test
        assert not is_local()


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("guard", [is_local, None])
@pytest.mark.parametrize(
    ("sent_by", "status"),
    [
        ({}, 200),
        ({"SERVER_SOFTWARE": "Werkzeug/3", "werkzeug.socket": None}, 200),
        ({"SERVER_SOFTWARE": "waitress"}, 403),
        ({"SERVER_SOFTWARE": "gunicorn/27"}, 403),
        ({"wsgi.input": BufferedReader(BytesIO())}, 403),
    ],
)
def test_a_server_that_may_stand_behind_a_proxy_receives_nothing_local(
    offline: Flask,
    debug: bool,
    guard: Callable[[], bool] | None,
    sent_by: dict[str, Any],
    status: int,
) -> None:
    offline.debug, offline.testing = debug or guard is None, True
    client = monitored(offline, authorize=guard)

    response = client.get("/mysqlpool/", environ_overrides=sent_by)

    assert response.status_code == status
    if status == 403:
        assert "Flask&#39;s development server only" in response.text


def test_flasks_development_server_receives_what_is_local(offline: Flask) -> None:
    monitored(offline, authorize=is_local)
    server = make_server("127.0.0.1", 0, offline)
    answering = Thread(target=server.handle_request)
    answering.start()
    with closing(HTTPConnection("127.0.0.1", server.port)) as connection:
        connection.request("GET", "/mysqlpool/")
        assert connection.getresponse().status == 200
    answering.join()
    server.server_close()


def test_what_it_sends_is_small(
    offline: Flask, sheet: Callable[..., StatusFile]
) -> None:
    for pid in range(4):
        sheet(pid=pid, wait=[9999] * 16, use=[9999] * 16, create=[9999] * 16)
    client = monitored(offline, control=True)
    sizes = {}
    for path in ("", "status.json", "static/monitor.js", "static/monitor.css"):
        response = client.get(f"/mysqlpool/{path}")
        sizes[path] = len(response.data)
        response.close()

    assert sum(sizes.values()) < 60_000 and sizes["status.json"] < 6_000
    assert json.loads(client.get("/mysqlpool/status.json").data)
