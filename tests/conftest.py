"""What all tests share: throw-away servers, and pools that are closed again.

What needs a server runs on MariaDB and on MySQL, if that can be had.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import matrix
import pymysql
import pytest
from certificates import Authority
from flask import Flask
from hypothesis import HealthCheck, settings

from flask_mysqlpool import MySQLPool, Pool, PoolConfig, PooledConnection
from flask_mysqlpool.pool.driver import connector
from flask_mysqlpool.testing import FaultProxy, LocalServer, ServerNotFound
from flask_mysqlpool.testing.server_binaries import find_engine

#: The folder that ``scripts/mysql-server`` filled, unless MySQL is installed; and one
#: with another MariaDB than the installed one.
MYSQL_ROOT = os.environ.get("FLASK_MYSQLPOOL_MYSQL_ROOT")
MARIADB_ROOT = os.environ.get("FLASK_MYSQLPOOL_MARIADB_ROOT")

# The machine may be busy.
settings.register_profile(
    "patient",
    settings.default,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Without the settings of whoever runs the tests, and the system's certificates.

    PyMySQL loads these for each connection, which takes 35 ms. Those that a test needs
    are looked up in the system's folder.
    """
    none = tmp_path_factory.mktemp("certificates") / "none.pem"
    none.touch()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FLASK_")]:
            patch.delenv(name)
        patch.setenv("SSL_CERT_FILE", str(none))
        yield


@pytest.fixture(autouse=True)
def forgotten_ports() -> None:
    """Nothing is known of a port: an earlier test may have had another server there."""
    connector._PIPELINES.clear()


@pytest.fixture(scope="session", autouse=True)
def surroundings(record_testsuite_property: Callable[[str, object], None]) -> None:
    """What the table of docs/compatibility.rst says about this run."""
    for name, value in matrix.surroundings(MYSQL_ROOT, MARIADB_ROOT).items():
        record_testsuite_property(name, value)


def _mysql() -> Any:
    """The parameter for tests on MySQL, which alone may be missing."""
    try:
        find_engine("mysql", MYSQL_ROOT)
    except ServerNotFound as error:
        reason, _, _ = str(error).partition(". ")
        return pytest.param("mysql", marks=pytest.mark.skip(reason=reason))
    return "mysql"


MYSQL = _mysql()


@pytest.fixture(scope="session", params=["mariadb", MYSQL])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def local_server(engine: str, **options: Any) -> LocalServer:
    """A server to be started."""
    root = MYSQL_ROOT if engine == "mysql" else MARIADB_ROOT
    return LocalServer(engine=engine, root=root, **options)


@pytest.fixture(scope="session")
def servers() -> Iterator[Callable[[str], LocalServer]]:
    """Servers by engine; each is started once, and runs to the end."""
    with ExitStack() as stack:
        yield cache(lambda engine: stack.enter_context(local_server(engine)))


@pytest.fixture(scope="session")
def server(engine: str, servers: Callable[[str], LocalServer]) -> LocalServer:
    """The server that all tests share: not to be stopped or restarted."""
    return servers(engine)


#: Runs a statement as root, and returns its rows.
Sql = Callable[..., tuple[tuple[Any, ...], ...]]


def execute(connection: PooledConnection, statement: str) -> Any:
    """Run one statement, and return its rows."""
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


class MakeServer(Protocol):
    def __call__(self, **options: Any) -> LocalServer: ...


@pytest.fixture
def make_server(engine: str) -> Iterator[MakeServer]:
    """Servers of the test's own, started, to be treated badly."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(local_server(engine, **options))


@pytest.fixture
def root(server: LocalServer) -> Iterator[pymysql.Connection[Any]]:
    """A connection outside of every pool, to watch and to disturb."""
    connection = server.connect(database="test")
    yield connection
    connection.close()


@pytest.fixture
def sql(root: pymysql.Connection[Any]) -> Sql:
    def run(statement: str, *args: object) -> tuple[tuple[Any, ...], ...]:
        with root.cursor() as cursor:
            cursor.execute(statement, args or None)
            return tuple(cursor.fetchall())

    return run


@pytest.fixture
def table(sql: Sql) -> str:
    """An empty table ``t`` with one column ``a``."""
    sql("DROP TABLE IF EXISTS t")
    sql("CREATE TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, a INT)")
    return "t"


def end_at_server(sql: Callable[..., Any], number: int) -> None:
    """End a connection that a pool has closed, and what it executes at the server.

    A server may notice seconds later, and the monitor shows such a connection.
    """
    with suppress(pymysql.err.MySQLError):
        sql("KILL %s", number)
    listed = "SELECT 1 FROM information_schema.processlist WHERE id = %s"
    until(lambda: not sql(listed, number))


@pytest.fixture(params=["tells", "silent"])
def tells(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether servers tell with each answer what has changed in the session."""
    if request.param == "silent":
        monkeypatch.setattr("flask_mysqlpool.pool.driver.results.TRACKING", 1 << 40)
    return bool(request.param == "tells")


class MakePool(Protocol):
    def __call__(self, **settings: Any) -> Pool: ...


@pytest.fixture
def make_pool(server: LocalServer) -> Iterator[MakePool]:
    pools = []

    def make(**settings: Any) -> Pool:
        pools.append(
            Pool(PoolConfig.from_mapping({"URL": server.url, "TIMEOUT": 5, **settings}))
        )
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


@pytest.fixture(params=[False, True], ids=["manual", "autocommit"])
def autocommit(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def connection(make_pool: MakePool, autocommit: bool) -> Iterator[PooledConnection]:
    """A connection of a pool, with and without AUTOCOMMIT."""
    with make_pool(AUTOCOMMIT=autocommit).connection() as connection:
        yield connection


@pytest.fixture
def proxy(server: LocalServer) -> Iterator[FaultProxy]:
    with FaultProxy(server.host, server.port) as proxy:
        yield proxy


class MakeApp(Protocol):
    def __call__(self, **settings: Any) -> Flask: ...


@pytest.fixture
def make_app(server: LocalServer, tmp_path: Path) -> Iterator[MakeApp]:
    made = []
    status_dir = tmp_path / "board"

    def make(**settings: Any) -> Flask:
        app = Flask("shop")
        given = {"URL": server.url, "TIMEOUT": 5, "STATUS_DIR": status_dir}
        settings = given | settings
        app.config.from_mapping({f"MYSQLPOOL_{k}": v for k, v in settings.items()})
        app.config["TESTING"] = True
        MySQLPool(app)
        made.append(app)
        return app

    yield make
    for app in made:
        for state in app.extensions["mysqlpool"].values():
            for pool in state._pools.values():
                pool.close()


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """For pytest-flask: ``client`` and the pushed context belong to this app."""
    return make_app()


def extension(app: Flask) -> MySQLPool:
    """The only one of this app."""
    [db] = app.extensions["mysqlpool"]
    assert isinstance(db, MySQLPool)
    return db


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for what another process does and nobody announces.

    Counted are the pauses and the time that this thread computes. What it waits for a
    processor is not: on a busy machine, that for which it waits is as late.
    """
    pause, pauses, begun = SHORTEST, 0.0, time.thread_time()
    while not condition():
        assert pauses + time.thread_time() - begun < seconds, "waited in vain"
        time.sleep(pause)
        pauses += pause
        pause = min(pause * 2, LONGEST_PAUSE)


#: Seconds between two looks.
SHORTEST, LONGEST_PAUSE = 0.0005, 0.005

#: What takes longest comes first, so that all processes end at the same time.
LONGEST = [
    *("ledger", "session_audit", "cli", "local_server", "docs", "servers", "results"),
    *("interruptions", "galera", "faults", "transactions", "hosts", "monitor_browser"),
    *("fleet", "foreign", "pitfalls", "benchmarks", "replication", "connects"),
    *("contexts", "tls", "connect_setting", "settling", "host_limit", "folder"),
    *("status_dir", "mistakes", "prometheus", "pool_model", "monitor"),
]


#: The marks of a folder or a module; those with the fixture ``engine`` need a server.
MARKS: dict[str, set[str]] = {
    "cluster": {"cluster", "server"},
    "docs": {"docs", "server"},
    "deployment": {"slow", "server"},
    "tools": {"slow", "server"},
    "tests": {"server"},  # of example_app
    "monitor_browser": {"browser", "server"},
    "contexts": {"server"},
    **dict.fromkeys(("agent", "host_limit", "scripts"), {"slow"}),
}


def pytest_collection_finish() -> None:
    """Spare the collector what stays: a collection would take a quarter of a second."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Drop what would say the same on the second server, and put what is long first.

    The mark ``one_engine`` is for the tests to set; ``server``, ``slow``, ``cluster``,
    ``browser`` and ``docs`` follow from where a test is, and from its fixtures.
    """
    for item in items:
        _refuse_another_engine(item)
    items[:] = [item for item in items if not _says_the_same_again(item)]
    for item in items:
        for mark in _marks(item):
            item.add_marker(mark)
    yield
    items.sort(key=lambda item: _rank(item.path.stem.removeprefix("test_")))


def _refuse_another_engine(item: pytest.Item) -> None:
    """Refuse a module's own fixture ``engine``.

    After it, pytest would give tests the server of the wrong engine.
    """
    known = getattr(item, "_fixtureinfo").name2fixturedefs  # noqa: B009
    if len(known.get("engine", ())) > 1:
        text = "has a fixture 'engine' of its own: use the mark one_engine"
        raise pytest.UsageError(f"{item.path} {text}")


def _marks(item: pytest.Item) -> set[str]:
    folder, subject = item.path.parent.name, item.path.stem.removeprefix("test_")
    own = {"server"} if "engine" in getattr(item, "fixturenames", ()) else set()
    return own | MARKS.get(folder, set()) | MARKS.get(subject, set())


def _rank(subject: str) -> int:
    return LONGEST.index(subject) if subject in LONGEST else len(LONGEST)


def _says_the_same_again(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("one_engine")
    if mark is None or mark.args == (False,):
        return False
    return _engine(item) == "mysql"


def _engine(item: pytest.Item) -> object:
    params = getattr(item, "callspec", None)
    return params and params.params.get("engine")
