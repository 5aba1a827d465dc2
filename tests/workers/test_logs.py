"""A handler, or a filter, that raises on every line of ours fails nothing of ours."""

from __future__ import annotations

import ast
import gc
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeApp, extension, until
from flask.testing import FlaskCliRunner
from pymysql.err import OperationalError
from visits import csrf, monitored, order

import flask_mysqlpool
from flask_mysqlpool import ConnectionShared, PooledConnection, get_db, signals
from flask_mysqlpool.pool.maintenance import RECOVERY, MaintenanceThread, _maintain
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.testing.fake_driver import FakePool

PACKAGE = Path(flask_mysqlpool.__file__).parent

pytestmark = pytest.mark.one_engine


class Raising:
    """Raises on every line, in every thread, and remembers which it was."""

    def __init__(self) -> None:
        #: The logger of each line.
        self.seen: dict[str, str] = {}

    def __call__(self, record: logging.LogRecord) -> bool:
        self.seen[f"{record.module}.{record.funcName}"] = record.name
        raise LookupError("working outside of request context")


@pytest.fixture(params=["handler", "filter"])
def raising(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Raising]:
    raising, handler = Raising(), logging.StreamHandler()
    if request.param == "filter":
        handler.addFilter(raising)
    else:
        handler.emit = raising  # type: ignore[assignment, method-assign]
    monkeypatch.setattr(logging, "raiseExceptions", False)
    ours = [logging.getLogger(name) for name in ("flask_mysqlpool", "shop")]
    levels = [logger.level for logger in ours]
    for logger in ours:
        # Set as an attribute, it would not reach what loggers remember of it.
        logger.setLevel(logging.DEBUG)
    logging.getLogger().addHandler(handler)
    yield raising
    logging.getLogger().removeHandler(handler)
    for logger, level in zip(ours, levels, strict=True):
        logger.setLevel(level)


class Broken:
    """Raises whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError(name)


def observer_that_raises(make_app: MakeApp) -> None:
    pool = FakePool(MAX_SIZE=1)
    pool.add_observer(Broken())  # type: ignore[arg-type]
    for _ in range(2):
        pool.connection().close()


def session_that_cannot_be_cleaned(make_app: MakeApp) -> None:
    pool = FakePool(MAX_SIZE=1)
    connection: Any = pool.connection()
    connection._con.clean = False
    connection._con.login.obstacle = "refused"
    connection.close()
    assert pool.stats().size == 0


def connection_that_is_dropped(make_app: MakeApp) -> None:
    pool = FakePool(MAX_SIZE=1)
    connection = pool.connection()
    connection.thread_id()
    with pytest.warns(ResourceWarning):
        del connection
        gc.collect()
    until(lambda: pool.stats().size == 0)  # by maintenance


def receiver_that_raises(make_app: MakeApp) -> None:
    def hear(sender: Any, **about: Any) -> None:
        raise ValueError

    with signals.connection_checked_out.connected_to(hear), make_app().app_context():
        get_db().close()


def function_after_commit_that_raises(make_app: MakeApp) -> None:
    def fail() -> None:
        raise ValueError

    with make_app().app_context():
        get_db().after_commit(fail)


def slow_statement(make_app: MakeApp) -> None:
    with make_app(SLOW_QUERY=1e-9).app_context():
        assert get_db().cursor().execute("SELECT 1") == 1


def statement_that_cannot_be_recorded(make_app: MakeApp) -> None:
    app = make_app(RECORD_QUERIES=True)
    with app.app_context():
        recorder: Any = extension(app).pool().recorder
        recorder._keep = (Broken(),)
        assert get_db().cursor().execute("SELECT 1") == 1


def statement_in_a_loop(make_app: MakeApp) -> None:
    app = make_app(RADAR=True)

    @app.get("/")
    def view() -> str:
        return str([get_db().cursor().execute("SELECT 1") for _ in range(11)])

    assert app.test_client().get("/").status_code == 200


def folder_that_cannot_be_used(make_app: MakeApp) -> None:
    app = make_app(STATUS_DIR="/dev/null/folder")
    with app.app_context():
        get_db().ping()


def connection_that_cannot_be_returned(make_app: MakeApp) -> None:
    app = make_app()
    close = PooledConnection.close

    def refuse(connection: PooledConnection) -> None:
        close(connection)
        raise ConnectionShared("in use")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PooledConnection, "close", refuse)
        with app.app_context():
            get_db().ping()


def changes_that_are_not_committed(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=1)
    app.debug = True
    for _ in range(2):
        with app.app_context():
            get_db().cursor().execute("CREATE TEMPORARY TABLE x SELECT 1 AS n")
            get_db().cursor().execute("UPDATE x SET n = n + 1")


def request_that_gets_no_connection(make_app: MakeApp) -> None:
    app = make_app(MAX_SIZE=1, TIMEOUT=0)

    @app.get("/")
    def view() -> str:
        with extension(app).connection(), extension(app).connection():
            return "both"

    assert app.test_client().get("/").status_code == 503


def maintenance_that_cannot_start(make_app: MakeApp) -> None:
    keeper = MaintenanceThread()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaintenanceThread, "_start", no_threads)
        keeper.watch(FakePool())


def no_threads(_: object) -> None:
    raise RuntimeError("can't start new thread")


def housekeeping_that_fails(make_app: MakeApp) -> None:
    assert _maintain(Broken()) == RECOVERY


def order_of_the_monitor(make_app: MakeApp) -> None:
    app = make_app()
    client = monitored(app, control=True)
    with app.app_context():
        extension(app).connection().close()
    assert order(client, csrf(client)).status_code == 200


def pause_that_a_worker_obeys(make_app: MakeApp) -> None:
    app = make_app()
    with app.app_context():
        get_db().ping()
    assert FlaskCliRunner(app).invoke(args=["mysqlpool", "pause"]).exit_code == 0


def authorize_that_raises(make_app: MakeApp) -> None:
    client = monitored(make_app(), authorize=lambda: Broken().missing)
    assert client.get("/mysqlpool/").status_code == 403


def proxy_that_takes_one_command(make_app: MakeApp) -> None:
    plain = make_app()
    with plain.app_context():
        config = extension(plain).pool().config
    with FaultProxy(config.host, config.port) as proxy:
        proxy.second_command = "close"
        given = {"PORT": proxy.port, "SSL_MODE": "DISABLED", "CLEARTEXT_PLUGIN": True}
        for _ in range(2):  # one may be chance
            with make_app(**given).app_context():
                get_db().ping()


def url_with_a_parameter_that_has_no_effect(make_app: MakeApp) -> None:
    url = make_app().config["MYSQLPOOL_URL"]
    with make_app(URL=f"{url}?reconnect=true").app_context():
        get_db().ping()


def statement_that_is_given_up(make_app: MakeApp) -> None:
    with make_app(READ_TIMEOUT=0.1).app_context(), pytest.raises(OperationalError):
        get_db().cursor().execute("SELECT SLEEP(600)")


PROVOKED_BY: dict[str, Callable[[MakeApp], None]] = {
    "pool.__init__": url_with_a_parameter_that_has_no_effect,
    "connector.kill": statement_that_is_given_up,
    "connector._try": proxy_that_takes_one_command,
    "pool._notify": observer_that_raises,
    "pool._report_discard": session_that_cannot_be_cleaned,
    "pool._report_leak": connection_that_is_dropped,
    "signals.send": receiver_that_raises,
    "transaction.call_after_commit": function_after_commit_that_raises,
    "query_log._log": slow_statement,
    "query_log.note": statement_that_cannot_be_recorded,
    "radar.log_faults": statement_in_a_loop,
    "agent._note": folder_that_cannot_be_used,
    "contexts.release": connection_that_cannot_be_returned,
    "contexts._warn_of_rollback": changes_that_are_not_committed,
    "mysqlpool._unavailable": request_that_gets_no_connection,
    "maintenance.watch": maintenance_that_cannot_start,
    "maintenance._maintain": housekeeping_that_fails,
    "views.control": order_of_the_monitor,
    "agent._apply": pause_that_a_worker_obeys,
    "auth._ask": authorize_that_raises,
}


#: The others log to "flask_mysqlpool".
LOGGERS = {
    **dict.fromkeys(["query_log._log", "query_log.note"], "flask_mysqlpool.queries"),
    "radar.log_faults": "flask_mysqlpool.queries",
    **dict.fromkeys(["agent._note", "agent._apply"], "flask_mysqlpool.workers"),
    **dict.fromkeys(["contexts._warn_of_rollback", "mysqlpool._unavailable"], "shop"),
    **dict.fromkeys(["views.control", "auth._ask"], "shop"),
}


def test_these_are_all_the_functions_that_log() -> None:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(function, ast.FunctionDef):
                calls = [n.func for n in ast.walk(function) if isinstance(n, ast.Call)]
                if any(isinstance(f, ast.Name) and f.id == "log" for f in calls):
                    found.add(f"{path.stem}.{function.name}")

    assert found == set(PROVOKED_BY)


@pytest.mark.parametrize("line", PROVOKED_BY)
def test_logging_that_raises_fails_nothing(
    make_app: MakeApp, raising: Raising, line: str
) -> None:
    PROVOKED_BY[line](make_app)

    until(lambda: line in raising.seen)
    assert raising.seen[line] == LOGGERS.get(line, "flask_mysqlpool")


AT_EXIT = """
import gc, logging, sys, time, warnings
from flask_mysqlpool import Pool, PoolConfig
from flask_mysqlpool.pool.stats import Observer
warnings.simplefilter("ignore")
logging.raiseExceptions = False
lines = []
class Raising(logging.Handler):
    def emit(self, record):
        lines.append(record.funcName)
        raise LookupError
logging.getLogger().addHandler(Raising())
class Failing(Observer):
    def discarded(self, pool, thread_id, reason):
        print(reason, pool.stats().size)
        raise ValueError
pools = [Pool(PoolConfig.from_mapping({"URL": sys.argv[1]})) for _ in range(2)]
pool = pools[0]
connection = pool.connection()
connection.ping()
del connection
gc.collect()
while pool.stats().size:
    time.sleep(0.01)
assert lines, lines
for pool in pools:
    pool.add_observer(Failing())
    pool.connection().close()
"""


def test_at_exit_every_pool_is_closed_whatever_is_raised(server: LocalServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", AT_EXIT, server.url],
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "closed 0\n" * 2


def test_what_ends_a_round_of_housekeeping_ends_not_its_thread() -> None:
    rounds = list[int]()
    again = threading.Event()

    class Task:
        def maintain(self) -> float | None:
            rounds.append(threading.get_ident())
            if len(rounds) == 1:
                raise SystemExit
            again.set()
            return None

    keeper, kept = MaintenanceThread("test"), Task()
    keeper.watch(kept)
    until(lambda: rounds)
    keeper.wake()

    assert again.wait(5)
    assert len(set(rounds)) == 1
