"""Behind a proxy that does not take several commands at once, everything works."""

from __future__ import annotations

import logging
import time

import pytest
from conftest import MakePool, Sql, execute, until
from pymysql.err import MySQLError

from flask_mysqlpool import PoolConfig, PooledConnection, TransactionError
from flask_mysqlpool.cli.check import examine
from flask_mysqlpool.config.addresses import Place
from flask_mysqlpool.pool.driver import connector
from flask_mysqlpool.pool.transaction import transaction
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.testing.fault_proxy import SECOND_COMMANDS


@pytest.fixture(params=SECOND_COMMANDS)
def one_by_one(proxy: FaultProxy, request: pytest.FixtureRequest) -> FaultProxy:
    """What it does with the second of two commands."""
    proxy.second_command = request.param
    return proxy


@pytest.fixture
def url(server: LocalServer, one_by_one: FaultProxy) -> str:
    # With TLS, the proxy could not see the commands.
    return f"{server.url_at(one_by_one.port)}?ssl-mode=DISABLED&cleartext-plugin=true"


@pytest.fixture
def procedures(sql: Sql, table: str) -> None:
    for name, body in {
        "shows": "BEGIN SELECT 1; INSERT INTO t (a) VALUES (60); SELECT 2; END",
        "commits": "BEGIN COMMIT; START TRANSACTION; END",
    }.items():
        sql(f"DROP PROCEDURE IF EXISTS {name}")
        sql(f"CREATE PROCEDURE {name}() {body}")


def stored(sql: Sql) -> list[int]:
    return [a for (a,) in sql("SELECT a FROM t ORDER BY id")]


def insert(connection: PooledConnection, a: int) -> None:
    with connection.cursor() as cursor:
        assert cursor.execute("INSERT INTO t (a) VALUES (%s)", (a,)) == 1


@pytest.mark.parametrize(
    ("pipelining", "reset", "autocommit"),
    [
        *(("off", "always", True), ("off", "transaction", False)),
        *(("off", "auto", True), ("auto", "auto", False)),
    ],
)
def test_sessions_are_set_up_and_cleaned(
    make_pool: MakePool, url: str, pipelining: str, reset: str, autocommit: bool
) -> None:
    pool = make_pool(
        URL=url,
        MAX_SIZE=1,
        AUTOCOMMIT=autocommit,
        RESET_SESSION=reset,
        CONNECT_TIMEOUT=4,
        PIPELINING=pipelining,
        SETSESSION=["SET @set_up = 1"],
        TARGET="primary",
    )
    numbers = set()
    for _ in range(3):
        with pool.connection() as connection:
            numbers.add(connection.thread_id())
            assert execute(connection, "SELECT @set_up, @left") == ((1, None),)
            if reset != "transaction":
                execute(connection, "SET @left = 1, time_zone = '+03:00'")
    assert len(numbers) == 1


def test_blocks_work(
    make_pool: MakePool, url: str, procedures: None, sql: Sql, tells: bool
) -> None:
    with make_pool(URL=url, PIPELINING="off").connection() as connection:
        with transaction(connection):
            insert(connection, 1)
            with transaction(connection):
                insert(connection, 2)
            with pytest.raises(ZeroDivisionError), transaction(connection):
                insert(connection, 3)
                _ = 1 / 0
            execute(connection, "CALL shows()")
        assert stored(sql) == [1, 2, 60]
        with pytest.raises(TransactionError), transaction(connection):
            insert(connection, 4)
            execute(connection, "CALL commits()")
        assert stored(sql) == [1, 2, 60, 4]


def test_many_statements_are_all_executed_or_none(
    make_pool: MakePool, url: str, table: str, sql: Sql
) -> None:
    sql("ALTER TABLE t ADD UNIQUE (a)")
    sql("INSERT INTO t (id, a) VALUES " + ", ".join(f"({i}, {i})" for i in range(1, 9)))
    text = "UPDATE t SET a = %s WHERE id = %s"
    with make_pool(URL=url, PIPELINING="off").connection() as connection:
        with transaction(connection), connection.cursor() as cursor:
            with pytest.raises(MySQLError, match=r"\(row 3 of executemany"):
                cursor.executemany(text, [(-1, 1), (-2, 2), (7, 3), (-4, 4)])
            assert cursor.executemany(text, [(-5, 5), (-6, 6)]) == 2
    assert sorted(stored(sql)) == [-6, -5, 1, 2, 3, 4, 7, 8]


def test_results_that_nobody_read_are_cleaned(
    make_pool: MakePool, url: str, procedures: None
) -> None:
    pool = make_pool(URL=url, PIPELINING="off", MAX_SIZE=1)
    for _ in range(3):
        with pool.connection() as connection, connection.cursor() as cursor:
            cursor.execute("CALL shows()")
            connection.commit()
    with pool.connection() as connection:
        assert execute(connection, "SELECT 5") == ((5,),)


def test_two_connects_fail_in_the_whole_process(
    make_pool: MakePool,
    url: str,
    one_by_one: FaultProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        pool = make_pool(URL=url, CONNECT_TIMEOUT=4)
        with pool.connection() as one, pool.connection() as other:
            assert execute(one, "SELECT 1") == execute(other, "SELECT 1") == ((1,),)
    assert one_by_one.connections == 6
    told = [r for r in caplog.records if "several commands at once" in r.getMessage()]
    assert len(told) == 1


def test_one_connect_that_is_cut_off_proves_nothing(
    make_pool: MakePool,
    url: str,
    one_by_one: FaultProxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place(one_by_one.host, one_by_one.port)
    pool = make_pool(URL=url, CONNECT_TIMEOUT=4)
    with pool.connection() as one:
        one_by_one.second_command = None
        with pool.connection() as other:
            assert execute(one, "SELECT 1") == execute(other, "SELECT 1") == ((1,),)
    assert connector._PIPELINES[place] is True
    assert not caplog.records


def test_a_proxy_that_comes_later_costs_one_connect(
    make_pool: MakePool, url: str, one_by_one: FaultProxy
) -> None:
    how, one_by_one.second_command = one_by_one.second_command, None
    pool = make_pool(URL=url, CONNECT_TIMEOUT=4)
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    pool.reset()
    one_by_one.second_command = how

    with pytest.raises(MySQLError):
        pool.connection()
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)


def test_it_can_be_told(make_pool: MakePool, url: str, one_by_one: FaultProxy) -> None:
    off = make_pool(URL=url, PIPELINING="off")
    with off.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    assert one_by_one.connections == 1
    on = make_pool(URL=url, CONNECT_TIMEOUT=1, PIPELINING="on")
    with pytest.raises(MySQLError):
        on.connection()


def test_a_slow_statement_of_the_user_has_half_of_the_time(
    make_pool: MakePool, server: LocalServer, proxy: FaultProxy
) -> None:
    """In the first connect of a process; later, it has all."""
    pool = make_pool(
        URL=server.url_at(proxy.port),
        CONNECT_TIMEOUT=6,
        SETSESSION=["DO SLEEP(1)"],
    )
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    assert proxy.connections == 1


def test_what_is_off_proves_nothing(
    make_pool: MakePool, url: str, one_by_one: FaultProxy
) -> None:
    make_pool(URL=url, PIPELINING="off").connection().close()
    with make_pool(URL=url, CONNECT_TIMEOUT=4).connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
    assert one_by_one.connections == 3


def test_check_says_so(url: str) -> None:
    config = PoolConfig.from_mapping({"URL": url, "PIPELINING": "off"})
    [said] = [each for each in examine(config, None) if each.subject == "connection"]
    assert "one command at a time" in said.text


def test_an_error_of_the_set_up_is_no_reason_to_try_again(
    make_pool: MakePool, server: LocalServer, proxy: FaultProxy
) -> None:
    pool = make_pool(URL=server.url_at(proxy.port), SETSESSION=["SET nosuch = 1"])
    with pytest.raises(MySQLError):
        pool.connection()
    assert proxy.connections == 1


#: What a holder does that locks something, and how another client waits for it.
HOLD_AND_WAIT = {
    "row": (["UPDATE t SET a = 2"], "UPDATE t SET a = 3"),
    "row with unread results": (["CALL locks()"], "UPDATE t SET a = 3"),
    "rows of a procedure": (["CALL locks()", "SELECT 1"], "UPDATE t SET a = 3"),
    "lock": (["CALL commits()", "DO GET_LOCK('it', 0)"], "SELECT GET_LOCK('it', 10)"),
    "table": (["LOCK TABLES t WRITE"], "UPDATE t SET a = 3"),
}


@pytest.fixture
def locking(sql: Sql, procedures: None) -> None:
    sql("INSERT INTO t (a) VALUES (1)")
    sql("DROP PROCEDURE IF EXISTS locks")
    sql("CREATE PROCEDURE locks() BEGIN SELECT 1; UPDATE t SET a = 2; SELECT 2; END")
    for variable in ("innodb_lock_wait_timeout", "lock_wait_timeout"):
        sql(f"SET {variable} = 10")


@pytest.mark.parametrize("one_by_one", ["close"], indirect=True)
@pytest.mark.parametrize("kind", HOLD_AND_WAIT)
def test_locks_end_soon_after_the_return_without_a_checkout(
    make_pool: MakePool, url: str, kind: str, locking: None, sql: Sql
) -> None:
    statements, wait = HOLD_AND_WAIT[kind]
    pool = make_pool(URL=url, PIPELINING="off", MAX_SIZE=1, AUTOCOMMIT=False)
    with pool.connection() as connection:
        for statement in statements:
            connection.cursor().execute(statement)
        number = connection.thread_id()
    assert sql(wait) in ((), ((1,),))
    with pool.connection() as connection:
        assert connection.thread_id() == number
        assert execute(connection, "SELECT CONNECTION_ID()") == ((number,),)
        assert not connection._con.has_waiting  # type: ignore[union-attr]


@pytest.mark.parametrize("one_by_one", ["close"], indirect=True)
def test_a_server_that_hangs_delays_no_maintenance(
    make_pool: MakePool, url: str, one_by_one: FaultProxy, locking: None
) -> None:
    pool = make_pool(URL=url, PIPELINING="off", MAX_SIZE=2, AUTOCOMMIT=False)
    held = [pool.connection(), pool.connection()]
    for connection in held:
        execute(connection, "SET @left = 1")
    one_by_one.hang()
    for connection in held:
        connection.close()
    started = time.monotonic()
    assert pool.maintain()
    # A checkout would not have waited either: all are idle again.
    assert pool.stats().idle == 2
    assert time.monotonic() - started < 0.5
    one_by_one.resume()
    until(lambda: not any(con.has_waiting for con in pool._state.idle))
    with pool.connection() as connection:
        assert execute(connection, "SELECT @left") == ((None,),)
    assert pool.stats().opened == 2


@pytest.mark.parametrize("one_by_one", ["close"], indirect=True)
def test_a_connection_that_breaks_while_it_is_cleaned_is_closed(
    make_pool: MakePool, url: str, one_by_one: FaultProxy
) -> None:
    pool = make_pool(URL=url, PIPELINING="off", MAX_SIZE=1)
    with pool.connection() as connection:
        execute(connection, "SET @left = 1")
        one_by_one.hang()
    one_by_one.cut()
    until(lambda: not pool.stats().size)
    one_by_one.resume()
    with pool.connection() as connection:
        assert execute(connection, "SELECT @left") == ((None,),)
