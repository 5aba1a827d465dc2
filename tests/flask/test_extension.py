"""Flask's contexts and the pools: which connection a request gets, and until when."""

from __future__ import annotations

import asyncio
import gc
import logging
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any
from weakref import ref

import flask.globals
import pymysql.err
import pytest
from conftest import MakeApp, MakePool, MakeServer, end_at_server, until
from flask import Flask, abort, appcontext_tearing_down, stream_with_context
from flask.testing import FlaskClient
from pymysql.err import MySQLError, OperationalError

from flask_mysqlpool import (
    ConfigError,
    ConnectionReturned,
    MySQLPool,
    PooledConnection,
    PoolError,
    PoolFull,
    PoolTimeout,
    ServerUnavailable,
    close_db,
    get_db,
)
from flask_mysqlpool.extension.app_state import _is_own_command
from flask_mysqlpool.pool.driver import logs
from flask_mysqlpool.testing import LocalServer


def database(app: Flask) -> MySQLPool:
    [db] = app.extensions["mysqlpool"]
    assert isinstance(db, MySQLPool)
    return db


def fetch(connection: PooledConnection, statement: str = "SELECT 1") -> Any:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def add_view(app: Flask, view: Callable[[], Any], rule: str = "/") -> FlaskClient:
    app.add_url_rule(rule, rule, view)
    return app.test_client()


def in_use(app: Flask) -> int:
    with app.app_context():
        return database(app).stats().in_use


def test_a_request_has_one_connection_all_through(make_app: MakeApp) -> None:
    app = make_app()
    seen: list[PooledConnection] = []

    def view() -> str:
        seen.extend([get_db(), get_db(), database(app).get_db()])
        assert database(app).stats().in_use == 1
        return str(fetch(get_db()))

    assert add_view(app, view).get("/").text == "((1,),)"

    assert seen[0] is seen[1] is seen[2]
    assert seen[0].returned
    assert in_use(app) == 0


def test_requests_inside_a_pushed_context_have_connections_of_their_own(
    app: Flask,
) -> None:
    seen: list[PooledConnection] = []

    @app.get("/")
    def view() -> str:
        seen.append(get_db())
        return ""

    outer = get_db()
    app.test_client().get("/")
    app.test_client().get("/")

    assert outer is get_db()
    assert not outer.returned
    assert [connection.returned for connection in seen] == [True, True]
    assert outer not in seen
    assert seen[0] is not seen[1]


def test_nothing_is_checked_out_by_a_request_that_does_not_ask(
    make_app: MakeApp,
) -> None:
    app = make_app(PORT=1)

    assert add_view(app, lambda: "static").get("/").status_code == 200


def handled(error: Exception) -> str:
    return "handled"


def raise_handled() -> None:
    get_db()
    raise LookupError


def raise_unhandled() -> None:
    get_db()
    raise ArithmeticError


def raise_abort() -> None:
    get_db()
    abort(404)


@pytest.mark.parametrize(
    ("view", "status"),
    [(raise_handled, 200), (raise_unhandled, 500), (raise_abort, 404)],
)
def test_every_end_of_a_request_returns_its_connection(
    make_app: MakeApp, view: Callable[[], None], status: int
) -> None:
    app = make_app()
    app.config["PROPAGATE_EXCEPTIONS"] = False
    app.register_error_handler(LookupError, handled)

    assert add_view(app, view).get("/").status_code == status

    assert in_use(app) == 0
    with app.app_context():
        assert database(app).stats().idle == 1


def test_system_exit_in_a_view_returns_its_connection(make_app: MakeApp) -> None:
    app = make_app()

    def view() -> None:
        get_db()
        raise SystemExit

    with pytest.raises(SystemExit):
        add_view(app, view).get("/")

    assert in_use(app) == 0


def test_a_failing_teardown_of_another_extension_does_not_keep_the_connection(
    make_app: MakeApp,
) -> None:
    app = make_app()

    @app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise ZeroDivisionError

    def view() -> str:
        get_db()
        return ""

    with pytest.raises(ZeroDivisionError):
        add_view(app, view).get("/")

    [state] = app.extensions["mysqlpool"].values()
    assert state.pool("default").stats().in_use == 0


# What such a function takes and then fails is dropped, as Flask calls no more of them.
@pytest.mark.filterwarnings("ignore:.*was never returned:ResourceWarning")
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("late", ["request", "context", "receiver", "both"])
def test_what_an_earlier_teardown_takes_is_returned(
    server: LocalServer, caplog: pytest.LogCaptureFixture, late: str, fails: bool
) -> None:
    gc.collect()  # what an earlier test has dropped is logged now
    caplog.clear()
    app = Flask("shop")
    app.config.update(MYSQLPOOL_URL=server.url, MYSQLPOOL_STATUS_DIR=False)
    app.testing = False
    calls = []

    def audit(*_: object, **__: object) -> None:
        calls.append(fetch(get_db()))
        if fails and late != "receiver":
            raise ZeroDivisionError

    if late in ("request", "both"):
        app.teardown_request(audit)
    if late in ("context", "both"):
        app.teardown_appcontext(audit)
    if late in ("receiver", "both"):
        appcontext_tearing_down.connect(audit, app)
    db = MySQLPool(app)
    client = add_view(app, lambda: str(fetch(get_db())))
    for _ in range(3):
        with suppress(ZeroDivisionError):
            client.get("/")

    with closing(app.extensions["mysqlpool"][db].pool("default")) as pool:
        assert calls
        if not fails:
            assert pool.stats().opened == 1
            assert not caplog.records
        until(lambda: pool.stats().in_use == 0)


def test_a_client_used_in_a_with_block_returns_at_its_end(make_app: MakeApp) -> None:
    app = make_app()
    client = add_view(app, lambda: str(fetch(get_db())))
    with client:
        client.get("/")
        assert not get_db().returned

    assert in_use(app) == 0


def test_a_stream_takes_a_connection_and_gives_it_back(make_app: MakeApp) -> None:
    app = make_app()

    def rows() -> Iterator[str]:
        for number in range(3):
            [[row]] = fetch(get_db(), f"SELECT {number}")
            yield str(row)

    client = add_view(app, lambda: stream_with_context(rows()))

    assert client.get("/").text == "012"
    assert in_use(app) == 0


def test_a_connection_can_be_returned_early_and_taken_again(
    make_app: MakeApp,
) -> None:
    app = make_app(MAX_SIZE=1)
    with app.app_context():
        first = get_db()
        close_db()
        close_db("default")
        assert first.returned
        assert fetch(get_db()) == ((1,),)
        get_db().close()
        assert fetch(get_db()) == ((1,),)
        with pytest.raises(ConnectionReturned):
            fetch(first)


def test_a_connection_outside_g_is_independent(make_app: MakeApp) -> None:
    app = make_app()
    with app.app_context():
        with database(app).connection() as one:
            assert one is not get_db()
            assert database(app).stats().in_use == 2
        assert one.returned
        assert database(app).stats().in_use == 1


def test_two_apps_have_two_pools(make_app: MakeApp) -> None:
    one, two = make_app(MAX_SIZE=1), make_app(MAX_SIZE=2)
    with one.app_context():
        outer = get_db()
        with two.app_context():
            assert get_db() is not outer
            assert database(two).pools["default"].config.max_size == 2
        assert get_db() is outer


def test_one_extension_object_serves_several_apps(server: LocalServer) -> None:
    db = MySQLPool()
    apps = [Flask("one"), Flask("two")]
    for app in apps:
        app.config["MYSQLPOOL_URL"] = server.url
        db.init_app(app)
    for app in apps:
        with app.app_context():
            assert db.pool().name == app.name
            assert fetch(get_db()) == ((1,),)
            db.close_db()
            db.close_pool()


def test_a_name_that_commands_would_have_for_two_pools_is_refused(
    make_app: MakeApp,
) -> None:
    app = make_app(BINDS={"default-2": {}})
    with pytest.raises(ConfigError, match=r"two pools as 'default-2'.* another name"):
        MySQLPool(app)
    assert len(app.extensions["mysqlpool"]) == 1


def test_two_extension_objects_on_one_app_must_be_called_by_name(
    make_app: MakeApp,
) -> None:
    app = make_app()
    second = MySQLPool(app)
    with app.app_context():
        with pytest.raises(RuntimeError, match="has 2 MySQLPool objects"):
            get_db()
        assert fetch(second.get_db()) == ((1,),)
        assert second.stats().in_use == 1
        second.close_db()
        second.close_pool()


def test_init_app_twice_says_what_to_do(make_app: MakeApp) -> None:
    app = make_app()

    with pytest.raises(RuntimeError, match="called twice for the app 'shop'"):
        database(app).init_app(app)


def test_without_a_context_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"app\.app_context\(\)"):
        get_db()


def test_without_init_app_it_says_what_to_do() -> None:
    with Flask("bare").app_context():
        with pytest.raises(RuntimeError, match=r"'bare' has no connection pool"):
            get_db()
        with pytest.raises(RuntimeError, match=r"'bare' has no connection pool"):
            MySQLPool().get_db()


def test_an_object_that_was_not_initialised_says_what_to_do(make_app: MakeApp) -> None:
    with make_app().app_context():
        with pytest.raises(RuntimeError, match="call init_app"):
            MySQLPool().get_db()


def test_a_bind_that_does_not_exist_lists_those_that_do(make_app: MakeApp) -> None:
    with make_app().app_context():
        with pytest.raises(ConfigError, match="'reports'; configured: 'default'"):
            get_db("reports")


def test_wrong_settings_are_all_named_at_once(make_app: MakeApp) -> None:
    with pytest.raises(ConfigError) as caught:
        make_app(MAX_SIZE="many", POOL_SIZE=3, TIMEOUT=-1)

    assert len(caught.value.faults) == 3


def test_an_exhausted_pool_is_a_503_that_is_logged(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0.05)
    client = add_view(app, lambda: str(fetch(get_db())))
    with app.app_context():
        with database(app).connection(timeout=5):
            answer = client.get("/")

    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"
    [record] = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert record.getMessage().startswith("shop: no connection within 0.0")
    assert "in use 1/1" in record.getMessage()


def test_a_held_connection_makes_the_second_request_a_503_in_time(
    make_app: MakeApp,
) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0.5)
    taken, release = threading.Event(), threading.Event()

    def hold() -> str:
        get_db()
        taken.set()
        assert release.wait(10)
        return ""

    client = add_view(app, hold)
    thread = threading.Thread(target=client.get, args=("/",))
    thread.start()
    assert taken.wait(10)
    started = time.monotonic()

    answer = app.test_client().get("/")

    assert answer.status_code == 503
    assert 0.5 <= time.monotonic() - started < 1
    release.set()
    thread.join()


@pytest.mark.parametrize(
    "error", [PoolTimeout, pymysql.err.OperationalError, Exception]
)
def test_an_app_that_handles_it_is_not_overruled(
    make_app: MakeApp, error: type[Exception]
) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0)
    app.register_error_handler(error, lambda error: ("mine", 418))
    client = add_view(app, lambda: str(get_db()))
    with app.app_context():
        with database(app).connection(timeout=5):
            assert client.get("/").status_code == 418


def test_the_page_for_503_is_the_apps_own(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0)
    app.register_error_handler(503, lambda error: ("busy", 503))
    client = add_view(app, lambda: str(get_db()))
    with app.app_context():
        with database(app).connection(timeout=5):
            assert client.get("/").text == "busy"


def test_handle_errors_can_be_switched_off(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0, HANDLE_ERRORS=False)
    client = add_view(app, lambda: str(get_db()))
    with app.app_context():
        with database(app).connection(timeout=5):
            with pytest.raises(PoolTimeout):
                client.get("/")


def test_a_full_line_is_a_503_too(make_app: MakeApp) -> None:
    app = make_app()

    def view() -> None:
        raise PoolFull("shop: 1 checkouts are waiting already")

    assert add_view(app, view).get("/").status_code == 503


@pytest.mark.parametrize(
    ("settings", "code"),
    [({"PASSWORD": "wrong"}, 1045), ({"DATABASE": "no"}, 1049)],
)
def test_a_server_that_refuses_is_a_500_with_its_own_words_in_the_log(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    code: int,
) -> None:
    app = make_app(**settings)
    app.config["PROPAGATE_EXCEPTIONS"] = False

    assert add_view(app, lambda: str(get_db())).get("/").status_code == 500

    assert str(code) in caplog.text


@pytest.mark.parametrize(
    ("settings", "number"),
    [({"PORT": 1}, 2003), ({"HOST": "no.such.host.invalid"}, 2003)],
    ids=["port", "name"],
)
def test_a_server_out_of_reach_is_a_503_and_one_line_a_second(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    settings: dict[str, Any],
    number: int,
) -> None:
    app = make_app(**settings)
    add_view(app, lambda: str(get_db()))
    started = time.monotonic()
    with ThreadPoolExecutor(50) as threads:
        sent = [threads.submit(app.test_client().get, "/") for _ in range(50)]
    seconds = time.monotonic() - started

    for response in (each.result() for each in sent):
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "1"
    lines = [r for r in caplog.records if str(number) in r.getMessage()]
    # Threads that come to it at once may log two.
    assert 1 <= len(lines) <= seconds + 3
    assert lines[0].getMessage().endswith("; to see what to do: flask mysqlpool check")


def test_a_server_out_of_reach_is_an_error_of_the_pool_and_of_the_driver(
    make_pool: MakePool,
) -> None:
    with pytest.raises(ServerUnavailable) as raised:
        make_pool(PORT=1).connection()
    error = raised.value
    assert isinstance(error, PoolError) and isinstance(error, OperationalError)
    assert error.args[0] == 2003
    assert isinstance(error.__cause__, ConnectionRefusedError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.args) == (ServerUnavailable, error.args)


def test_a_server_that_is_full_is_a_503(make_server: MakeServer) -> None:
    """MySQL and MariaDB keep one more connection, for an administrator."""
    server = make_server(options=["--max-connections=10"])
    full: list[Any] = []
    try:
        with pytest.raises(MySQLError):
            while len(full) < 20:
                full.append(server.connect())
        app = Flask(__name__)
        app.config["MYSQLPOOL_URL"] = server.url
        MySQLPool(app)
        assert add_view(app, lambda: str(get_db())).get("/").status_code == 503
    finally:
        for connection in full:
            connection.close()


def test_a_line_passes_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    throttle = logs.Throttle()
    assert [throttle.passes("a"), throttle.passes("a"), throttle.passes("b")] == [
        *(0, None, 0),
    ]
    throttle.passes("a")
    now = 101.0
    assert [throttle.passes("a"), throttle.passes("a")] == [2, None]


def test_close_pool_is_harmless_and_the_next_checkout_opens_a_new_one(
    make_app: MakeApp,
) -> None:
    app = make_app()
    with app.app_context():
        db = database(app)
        old = db.pool()
        assert fetch(get_db()) == ((1,),)
        close_db()

        db.close_pool()
        db.close_pool()

        assert fetch(get_db()) == ((1,),)
        assert db.pool() is not old


def test_reset_replaces_the_connections(make_app: MakeApp) -> None:
    app = make_app()
    with app.app_context():
        db = database(app)
        with db.connection() as connection:
            before = connection.thread_id()
        db.reset()
        with db.connection() as connection:
            assert connection.thread_id() != before


@pytest.fixture
def asleep(sql: Callable[..., Any]) -> Iterator[Callable[[PooledConnection], None]]:
    """Have a thread wait in a statement, which ends at the server with the test."""
    numbers, threads = [], []

    def sleep(connection: PooledConnection) -> None:
        with pytest.raises(pymysql.err.MySQLError):
            fetch(connection, "SELECT SLEEP(300)")

    def put_to_sleep(connection: PooledConnection) -> None:
        numbers.append(connection.thread_id())
        threads.append(threading.Thread(target=sleep, args=(connection,)))
        threads[-1].start()
        until(lambda: connection._guard.locked())

    yield put_to_sleep
    for number, thread in zip(numbers, threads, strict=True):
        thread.join()
        end_at_server(sql, number)


def test_a_connection_returned_by_another_thread_in_mid_statement_is_logged(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    asleep: Callable[[PooledConnection], None],
) -> None:
    app = make_app()
    with app.app_context():
        asleep(get_db())

    assert "discarded instead of returned" in caplog.text
    until(lambda: in_use(app) == 0)


def test_a_connection_is_returned_after_another_one_that_could_not_be(
    make_app: MakeApp,
    caplog: pytest.LogCaptureFixture,
    table: str,
    asleep: Callable[[PooledConnection], None],
) -> None:
    app = make_app(BINDS={"reports": {}})
    with app.app_context():
        stuck, other = get_db(), get_db("reports")
        asleep(stuck)
        fetch(other, f"INSERT INTO {table} (a) VALUES (1)")

    assert caplog.text.count("discarded instead of returned") == 1
    assert other.returned


def test_without_request_contexts_of_their_own_requests_still_return(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flask 3.2 has no ``request_ctx`` any more; each request has its own ``g``."""
    monkeypatch.delitem(vars(flask.globals), "request_ctx")
    app = make_app()

    assert add_view(app, lambda: str(fetch(get_db()))).get("/").text == "((1,),)"
    assert in_use(app) == 0


def test_a_decorated_function_returns_what_it_took(make_app: MakeApp) -> None:
    app = make_app()
    db = database(app)
    taken: list[PooledConnection] = []

    @db.auto_close_db
    def job(fail: bool = False) -> str:
        """Work."""
        taken.append(get_db())
        if fail:
            raise SystemExit
        return "done"

    with app.app_context():
        kept = db.get_db()
        assert job() == "done"
        assert taken.pop() is kept and not kept.returned
        close_db()
        assert job() == "done"
        with pytest.raises(SystemExit):
            job(fail=True)
        assert in_use(app) == 0
    assert [connection.returned for connection in taken] == [True, True]
    assert (job.__name__, job.__doc__) == ("job", "Work.")


def test_a_decorated_function_returns_what_it_took_after_an_early_return(
    make_app: MakeApp,
) -> None:
    app = make_app()
    db = database(app)
    with app.app_context():
        db.get_db().close()
        db.auto_close_db(db.get_db)()
        assert in_use(app) == 0


def test_a_decorated_function_needs_no_context_where_there_is_one_app(
    make_app: MakeApp, server: LocalServer
) -> None:
    app = make_app()
    db = database(app)
    rows: list[Any] = []
    thread = threading.Thread(
        target=db.auto_close_db(lambda: rows.extend(fetch(db.get_db())))
    )
    thread.start()
    thread.join()

    assert rows == [(1,)]
    assert in_use(app) == 0

    other = Flask("other")
    other.config["MYSQLPOOL_URL"] = server.url
    db.init_app(other)
    with pytest.raises(RuntimeError, match="has 2 apps; use 'with app.app_context"):
        db.auto_close_db(db.get_db)()


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.one_engine
@pytest.mark.usefixtures("no_garbage_collection")
@pytest.mark.parametrize("settings", [{}, {"RADAR": True}, {"STATUS_DIR": False}])
def test_an_app_that_is_dropped_is_gone_at_once(
    server: LocalServer, tmp_path: Path, settings: dict[str, Any]
) -> None:
    """As without the extension: Flask makes no cycle of references before requests."""
    db = MySQLPool()
    given = {"URL": server.url, "STATUS_DIR": tmp_path / "board", **settings}

    def create_app() -> Flask:
        app = Flask("shop")
        app.config.update({f"MYSQLPOOL_{key}": value for key, value in given.items()})
        db.init_app(app)
        return app

    @db.auto_close_db
    def job() -> Any:
        return fetch(db.get_db())

    for _ in range(2):
        app = create_app()
        assert job() == ((1,),)
        with db.transaction(app=app) as connection:
            assert fetch(connection) == ((1,),)
        with app.app_context():
            db.close_pool()
        dropped = ref(app)
        del app
        assert dropped() is None


def test_a_decorated_coroutine_returns_what_it_took(make_app: MakeApp) -> None:
    app = make_app()
    db = database(app)

    @db.auto_close_db
    async def job() -> int:
        await asyncio.sleep(0)
        db.get_db()
        return db.stats().in_use

    async def all_jobs() -> tuple[int, int]:
        return await asyncio.gather(job(), job())

    assert max(asyncio.run(all_jobs())) >= 1
    assert in_use(app) == 0


def test_generators_are_not_decorated(make_app: MakeApp) -> None:
    db = database(make_app())

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match=r"with db.connection\(\) as conn"):
        db.auto_close_db(rows)


@pytest.mark.parametrize("name", ["run", "shell", "routes", "users"])
def test_the_group_replaces_no_command(name: str) -> None:
    app = Flask("shop")
    app.cli.command("users")(lambda: None)
    app.config.update(MYSQLPOOL_URL="mysql://u@127.0.0.1:1/x", MYSQLPOOL_CLI=name)

    with pytest.raises(ConfigError, match=f"CLI names an existing .*: {name};"):
        MySQLPool(app)

    assert list(app.cli.commands) == ["users"]


@pytest.mark.parametrize(
    ("words", "is_own"),
    [
        ("mysqlpool status", True),
        ("--app shop mysqlpool pause", True),
        ("-A shop --debug -e .env mysqlpool reset", True),
        ("--app=shop -eenv mysqlpool reset", True),
        ("--app mysqlpool run", False),
        ("-A mysqlpool run --host mysqlpool", False),
        ("--env-file mysqlpool import mysqlpool", False),
        ("run", False),
        ("--app", False),
        ("", False),
    ],
)
def test_a_process_is_a_command_of_ours_by_its_first_word(
    monkeypatch: pytest.MonkeyPatch, words: str, is_own: bool
) -> None:
    monkeypatch.setattr(sys, "argv", ["flask", *words.split()])
    monkeypatch.setenv("FLASK_RUN_FROM_CLI", "true")
    assert _is_own_command("mysqlpool") is is_own

    monkeypatch.delenv("FLASK_RUN_FROM_CLI")
    assert not _is_own_command("mysqlpool")
