"""What the pool promises, on a real server that is treated badly."""

from __future__ import annotations

import inspect
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pymysql
import pymysql.err
import pytest
from conftest import MakeApp, MakePool, MakeServer, Sql, end_at_server, execute, until
from pymysql.constants import CLIENT
from pymysql.cursors import DictCursor, SSCursor

from flask_mysqlpool import (
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
    PoolTimeout,
    get_db,
)
from flask_mysqlpool.testing import FaultProxy, LocalServer


def counted(sql: Sql, *names: str) -> dict[str, int]:
    """The server's own counters."""
    return {
        name: int(value)
        for name, value in sql("SHOW GLOBAL STATUS")
        if name.lower() in {wanted.lower() for wanted in names}
    }


def kill_all(sql: Sql, user: str = "app") -> int:
    rows = sql("SELECT id FROM information_schema.processlist WHERE user = %s", user)
    for (thread,) in rows:
        sql(f"KILL {thread}")
    until(lambda: not threads_of(sql, user))
    return len(rows)


def threads_of(sql: Sql, user: str = "app") -> int:
    statement = "SELECT COUNT(*) FROM information_schema.processlist WHERE user = %s"
    [(count,)] = sql(statement, user)
    return int(count)


def through(proxy: FaultProxy, server: LocalServer) -> dict[str, Any]:
    return {"URL": server.url_at(proxy.port)}


# Bounded


def test_the_server_never_sees_more_than_max_size(
    make_app: MakeApp, server: LocalServer, sql: Sql
) -> None:
    app = make_app(MAX_SIZE=5, TIMEOUT=30)

    @app.get("/")
    def view() -> str:
        return str(execute(get_db(), "SELECT SLEEP(0.001)"))

    until(lambda: not threads_of(sql))
    statuses: list[int] = []
    most, done = 0, threading.Event()

    def client() -> None:
        for _ in range(20):
            statuses.append(app.test_client().get("/").status_code)

    threads = [threading.Thread(target=client) for _ in range(50)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        most = max(most, threads_of(sql))
        done.wait(0.005)

    assert statuses == [200] * 1000
    assert 1 <= most <= 5


# On time


def test_a_server_that_accepts_and_says_nothing_costs_no_more_than_the_deadline(
    make_pool: MakePool,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        pool = make_pool(URL=f"mysql://app@127.0.0.1:{mute.getsockname()[1]}/x")
        started = time.monotonic()

        with pytest.raises(PoolTimeout, match="connecting 1"):
            pool.connection(timeout=0.3)

        assert 0.3 <= time.monotonic() - started < 1


def test_a_connect_ends_by_connect_timeout_even_if_the_server_trickles(
    make_pool: MakePool,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trickling:
        stop = threading.Event()

        def trickle() -> None:
            client, _ = trickling.accept()
            with client:
                client.sendall(b"\x4a\x00\x00\x00\x0a")
                while not stop.wait(0.05):
                    try:
                        client.sendall(b"5")
                    except OSError:
                        return

        thread = threading.Thread(target=trickle)
        thread.start()
        port = trickling.getsockname()[1]
        pool = make_pool(URL=f"mysql://app@127.0.0.1:{port}/x", CONNECT_TIMEOUT=0.4)
        started = time.monotonic()

        with pytest.raises(pymysql.err.OperationalError, match="timed out"):
            pool.connection(timeout=10)

        assert 0.4 <= time.monotonic() - started < 2
        stop.set()
        thread.join()


def test_a_return_does_not_wait_for_a_server_that_is_stopped(
    make_pool: MakePool, make_server: MakeServer
) -> None:
    server = make_server()
    pool = make_pool(URL=server.url)
    connection = pool.connection()
    execute(connection, "SELECT 1")
    server.pause()
    started = time.monotonic()

    connection.close()
    returned = time.monotonic() - started
    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0.2)

    server.resume()
    assert returned < 0.05
    with pool.connection(timeout=2) as connection:
        assert execute(connection, "SELECT 1") == ((1,),)


# No I/O under the lock


def test_one_hung_connect_delays_no_other_checkout(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer
) -> None:
    pool = make_pool(**through(proxy, server), MAX_SIZE=3)
    held = pool.connection()
    busy = pool.connection()
    proxy.hang()
    results: list[BaseException | None] = []

    def hang() -> None:
        try:
            pool.connection(timeout=0.5).close()
        except PoolTimeout as error:
            results.append(error)

    hanging = threading.Thread(target=hang)
    hanging.start()
    until(lambda: pool.stats().connecting == 1)
    hanging.join()
    worst = 0.0
    for _ in range(100):
        started = time.monotonic()
        held.close()
        held = pool.connection()
        worst = max(worst, time.monotonic() - started)

    assert worst < 0.1
    assert len(results) == 1
    proxy.resume()
    held.close()
    busy.close()


# At most once, no half transaction


def test_a_transaction_whose_connection_is_killed_leaves_nothing(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool()
    connection = pool.connection()
    execute(connection, "INSERT INTO t (a) VALUES (1)")
    sql(f"KILL {connection.thread_id()}")

    with pytest.raises(pymysql.err.OperationalError):
        execute(connection, "INSERT INTO t (a) VALUES (2)")
    with pytest.raises(ConnectionLost) as caught:
        connection.commit()
    with pytest.raises(ConnectionLost):
        execute(connection, "INSERT INTO t (a) VALUES (3)")
    connection.close()

    assert isinstance(caught.value.__cause__, pymysql.err.OperationalError)
    assert sql("SELECT * FROM t") == ()


def test_after_a_rollback_a_lost_connection_is_replaced(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        execute(connection, "INSERT INTO t (a) VALUES (1)")
        sql(f"KILL {connection.thread_id()}")
        with pytest.raises(pymysql.err.OperationalError):
            execute(connection, "INSERT INTO t (a) VALUES (2)")

        connection.rollback()
        connection.rollback()
        execute(connection, "INSERT INTO t (a) VALUES (3)")
        connection.commit()

    assert [a for _, a in sql("SELECT * FROM t")] == [3]
    assert pool.stats().size == 1


@pytest.mark.parametrize("statement", ["ROLLBACK", " rollback work ; "])
def test_a_rollback_by_statement_gives_up_a_lost_connection_as_well(
    make_pool: MakePool, sql: Sql, table: str, statement: str
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t (a) VALUES (1)")
        another = connection.cursor()
        another.execute("SELECT 7")
        sql(f"KILL {connection.thread_id()}")
        with pytest.raises(pymysql.err.OperationalError):
            cursor.execute("INSERT INTO t (a) VALUES (2)")
        with pytest.raises(ConnectionLost):
            cursor.execute("ROLLBACK TO SAVEPOINT s")

        assert another.execute(statement) == 0
        assert not another.fetchall()
        cursor.execute("INSERT INTO t (a) VALUES (3)")
        connection.commit()

    assert [a for _, a in sql("SELECT * FROM t")] == [3]
    assert pool.stats().size == 1


def test_a_rollback_that_finds_the_server_gone_has_rolled_back(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    with make_pool().connection() as connection:
        execute(connection, "INSERT INTO t (a) VALUES (1)")
        sql(f"KILL {connection.thread_id()}")

        connection.rollback()

        assert execute(connection, "SELECT * FROM t") == ()


def test_an_insert_whose_reply_is_lost_is_stored_at_most_once(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer, sql: Sql, table: str
) -> None:
    pool = make_pool(**through(proxy, server), AUTOCOMMIT=True)
    connection = pool.connection()
    execute(connection, "SELECT 1")
    proxy.cut_after_request()

    with pytest.raises(pymysql.err.OperationalError) as caught:
        execute(connection, "INSERT INTO t (a) VALUES (1)")

    assert caught.value.args[0] == 2013
    assert len(sql("SELECT * FROM t")) == 1
    connection.close()


def test_an_insert_that_times_out_is_sent_once(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool(READ_TIMEOUT=0.2, AUTOCOMMIT=True, KILL_ABANDONED=False)
    before = counted(sql, "Com_insert_select")
    connection = pool.connection()

    with pytest.raises(pymysql.err.OperationalError, match="timed out"):
        execute(connection, "INSERT INTO t (a) SELECT SLEEP(0.5)")
    connection.close()

    until(lambda: len(sql("SELECT * FROM t")) == 1)
    after = counted(sql, "Com_insert_select")
    assert after["Com_insert_select"] - before["Com_insert_select"] == 1


def test_a_wrong_column_is_asked_for_once_and_costs_no_connection(
    make_pool: MakePool, sql: Sql
) -> None:
    with make_pool().connection() as connection:
        before = counted(sql, "Com_select", "Connections")

        with pytest.raises(pymysql.err.OperationalError, match="1054"):
            execute(connection, "SELECT nosuchcolumn")

        after = counted(sql, "Com_select", "Connections")
        assert execute(connection, "SELECT 1") == ((1,),)
    assert after["Com_select"] - before["Com_select"] == 1
    assert after["Connections"] == before["Connections"]


# Clean


def test_what_was_not_committed_is_rolled_back_on_return(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        execute(connection, "INSERT INTO t (a) VALUES (1)")
        first = connection.thread_id()

    with pool.connection() as connection:
        assert connection.thread_id() == first
        assert execute(connection, "SELECT * FROM t") == ()


def test_a_reused_connection_sees_a_new_snapshot(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        assert execute(connection, "SELECT a FROM t") == ()
    sql("INSERT INTO t (a) VALUES (7)")

    with pool.connection() as connection:
        assert execute(connection, "SELECT a FROM t") == ((7,),)


def test_an_explicit_transaction_in_autocommit_mode_ends_on_return(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool(MAX_SIZE=1, AUTOCOMMIT=True)
    with pool.connection() as connection:
        connection.begin()
        execute(connection, "INSERT INTO t (a) VALUES (1)")

    with pool.connection() as connection:
        execute(connection, "INSERT INTO t (a) VALUES (2)")
    assert [a for _, a in sql("SELECT * FROM t")] == [2]


def test_rows_that_nobody_read_cost_the_connection(make_pool: MakePool) -> None:
    pool = make_pool()
    with pool.connection() as connection:
        cursor = connection.cursor(SSCursor)
        cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
        assert cursor.fetchone() == (1,)

    assert pool.stats().discarded_by_reason == {"reset_failed": 1}
    with pytest.raises(ConnectionReturned):
        cursor.fetchone()


@pytest.fixture
def two_results(sql: Sql) -> str:
    """A procedure that shows two tables."""
    sql("DROP PROCEDURE IF EXISTS two_results")
    sql("CREATE PROCEDURE two_results() BEGIN SELECT 1; SELECT 2; END")
    return "two_results"


def test_results_that_another_cursor_has_passed_over_are_none_of_the_first_one(
    make_pool: MakePool, two_results: str
) -> None:
    with make_pool().connection() as connection:
        first, second = connection.cursor(), connection.cursor()
        first.execute(f"CALL {two_results}()")
        assert first.fetchall() == ((1,),)

        second.execute("SELECT 7")

        assert first.nextset() is None
        assert second.fetchall() == ((7,),)


def test_a_cursor_that_has_executed_nothing_has_nothing_to_fetch(
    make_pool: MakePool,
) -> None:
    with make_pool().connection() as connection:
        with pytest.raises(pymysql.err.ProgrammingError, match=r"execute\(\) first"):
            connection.cursor().fetchone()

        assert execute(connection, "SELECT 1") == ((1,),)


def test_rows_of_a_closed_cursor_do_not_disturb_the_next_statement(
    make_pool: MakePool,
) -> None:
    with make_pool().connection() as connection:
        with connection.cursor(SSCursor) as cursor:
            cursor.execute("SELECT 1 UNION SELECT 2 UNION SELECT 3")
            assert cursor.fetchone() == (1,)

        assert execute(connection, "SELECT 4") == ((4,),)


# Live


def test_the_next_hundred_requests_after_a_massacre_succeed(
    make_app: MakeApp, sql: Sql
) -> None:
    app = make_app(MAX_SIZE=5)
    release = threading.Event()
    outcomes: list[int] = []
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.get("/")
    def view() -> str:
        return str(execute(get_db(), "SELECT 1"))

    @app.get("/busy")
    def busy() -> str:
        execute(get_db(), "SELECT 1")
        assert release.wait(10)
        return str(execute(get_db(), "SELECT 1"))

    def be_busy() -> None:
        outcomes.append(app.test_client().get("/busy").status_code)

    threads = [threading.Thread(target=be_busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    with app.app_context():
        [db] = app.extensions["mysqlpool"]
        pool = db.pool()
    until(lambda: pool.stats().in_use == 2)
    others = [pool.connection() for _ in range(3)]
    for connection in others:
        connection.close()

    assert kill_all(sql) == 5

    assert [app.test_client().get("/").status_code for _ in range(100)] == [200] * 100
    release.set()
    for thread in threads:
        thread.join()
    assert outcomes == [500, 500]


def test_a_session_that_timed_out_is_not_handed_out(make_pool: MakePool) -> None:
    pool = make_pool(SETSESSION=["SET wait_timeout = 1"])
    with pool.connection() as connection:
        first = connection.thread_id()
        execute(connection, "SELECT 1")
    [idle] = pool._state.idle
    idle.read_answers(time.monotonic() + 5)

    until(lambda: not idle.is_alive())

    with pool.connection() as connection:
        assert connection.thread_id() != first
        assert execute(connection, "SELECT 1") == ((1,),)


def test_it_recovers_when_the_server_does(
    make_pool: MakePool, make_server: MakeServer
) -> None:
    server = make_server()
    pool = make_pool(URL=server.url)
    with pool.connection() as connection:
        execute(connection, "SELECT 1")
    server.kill()
    for _ in range(3):
        with pytest.raises(pymysql.err.OperationalError, match="2003"):
            pool.connection()

    server.restart()

    for _ in range(20):
        with pool.connection() as connection:
            execute(connection, "SELECT 1")


# Private


def test_use_after_return_raises(make_pool: MakePool) -> None:
    pool = make_pool()
    connection = pool.connection()
    cursor = connection.cursor()
    cursor.execute("SELECT 1")
    connection.close()

    uses: list[Callable[[], object]] = [
        connection.commit,
        connection.rollback,
        connection.begin,
        connection.ping,
        connection.cursor,
        lambda: connection.thread_id(),
        lambda: connection.get_server_info(),
        lambda: connection.escape("x"),
        lambda: connection.server_status,
        lambda: cursor.execute("SELECT 1"),
        cursor.fetchone,
        cursor.fetchall,
        lambda: list(cursor),
    ]
    for use in uses:
        with pytest.raises(ConnectionReturned, match="check out another one"):
            use()
    cursor.close()
    connection.close()
    assert not connection.open


def test_two_threads_in_one_connection_raise_and_corrupt_nothing(
    make_pool: MakePool,
) -> None:
    connection = make_pool().connection()
    thread = threading.Thread(target=execute, args=(connection, "SELECT SLEEP(0.3)"))
    thread.start()
    until(lambda: connection._guard.locked())

    with pytest.raises(ConnectionShared):
        execute(connection, "SELECT 2")

    thread.join()
    assert execute(connection, "SELECT 3") == ((3,),)
    connection.close()


def test_a_return_in_the_middle_of_a_statement_ends_the_connection(
    make_pool: MakePool, sql: Sql
) -> None:
    pool = make_pool(KILL_ABANDONED=False)
    connection = pool.connection()
    number = connection.thread_id()
    errors = []

    def sleep() -> None:
        try:
            execute(connection, "SELECT SLEEP(30)")
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    until(lambda: connection._guard.locked())

    with pytest.raises(ConnectionShared):
        connection.close()

    thread.join()
    end_at_server(sql, number)
    assert len(errors) == 1
    assert pool.stats().size == 0


def test_an_interrupt_in_the_middle_of_a_reply_ends_the_connection(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(MAX_SIZE=1)
    connection = pool.connection()

    def interrupted(*args: object, **kwargs: object) -> None:
        raise SystemExit

    monkeypatch.setattr(connection._con.raw, "_read_query_result", interrupted)  # type: ignore[union-attr]
    with pytest.raises(SystemExit):
        execute(connection, "SELECT 1")
    with pytest.raises(ConnectionLost):
        execute(connection, "SELECT 2")
    connection.close()

    with pool.connection() as connection:
        assert execute(connection, "SELECT 3") == ((3,),)


# It is what PyMySQL users expect


def test_a_checked_out_connection_does_what_pymysql_does(
    make_pool: MakePool, root: pymysql.Connection[Any], table: str
) -> None:
    pool = make_pool(CURSORCLASS="DictCursor", NAME="shop")
    with pool.connection() as connection:
        with connection.cursor() as cursor:
            assert isinstance(cursor, DictCursor)
            assert cursor.execute("INSERT INTO t (a) VALUES (%s)", (5,)) == 1
            assert connection.insert_id() == cursor.lastrowid == 1
            cursor.executemany("INSERT INTO t (a) VALUES (%s)", [(6,), (7,)])
            cursor.execute("SELECT a FROM t ORDER BY a")
            assert [row["a"] for row in cursor] == [5, 6, 7]
        connection.commit()
        assert connection.get_autocommit() is False
        connection.autocommit(True)
        assert connection.get_autocommit() is True
        assert connection.get_server_info() == root.get_server_info()
        assert connection.escape("a'b") == r"'a\'b'"
        assert connection.open
        connection.ping()
        connection.select_db("mysql")
        assert execute(connection, "SELECT DATABASE() d") == [{"d": "mysql"}]
        execute(connection, "SELECT 1/0")
        assert connection.show_warnings()[0][1] == 1365
        assert connection.server_status & 2
        assert connection.character_set_name() == "utf8mb4"
        assert repr(connection) == (
            f"<PooledConnection of 'shop': thread {connection.thread_id()}>"
        )
        with pytest.raises(ConnectionShared):
            connection.connect()
    assert repr(connection) == "<PooledConnection of 'shop': returned>"


def test_the_charset_that_one_borrower_chose_is_not_that_of_the_next(
    make_pool: MakePool,
) -> None:
    question = "SELECT @@character_set_client, @@character_set_results"
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        before = connection.thread_id()
        with pytest.warns(DeprecationWarning, match="set_character_set"):
            connection.set_charset("latin1")
        assert execute(connection, question) == (("latin1", "latin1"),)
        assert connection.character_set_name() == "latin1"

    with pool.connection() as connection:
        assert connection.thread_id() == before
        assert execute(connection, question) == (("utf8mb4", "utf8mb4"),)
        assert connection.character_set_name() == "utf8mb4"


def test_a_connection_may_kill_another_one_of_its_account(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=2)
    with pool.connection() as connection, pool.connection() as victim:
        connection.kill(victim.thread_id())

        with pytest.raises(pymysql.err.OperationalError):
            execute(victim, "SELECT 1")
        assert execute(connection, "SELECT 2") == ((2,),)
        with pytest.raises(TypeError):
            connection.kill("1; DROP TABLE t")  # type: ignore[arg-type]


def test_what_several_statements_at_once_have_left_is_known_after_each_result(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    pool = make_pool(MAX_SIZE=1, CONNECT_ARGS={"client_flag": CLIENT.MULTI_STATEMENTS})
    with pool.connection() as connection:
        before = connection.thread_id()
        connection.query("SELECT 1; INSERT INTO t (a) VALUES (5), (6)")
        assert connection.changed == 0
        assert connection.next_result() == 2
        assert connection.changed == 2
        connection.commit()
        connection.query("BEGIN; INSERT INTO t (a) VALUES (7)")
        assert connection.changed == 0
        assert connection.next_result() == 1
        assert connection.changed == 1

    with pool.connection() as connection:
        assert connection.thread_id() == before
        assert execute(connection, "SELECT a FROM t ORDER BY a") == ((5,), (6,))


def test_nothing_that_python_asks_an_object_for_is_looked_for_at_pymysql(
    make_pool: MakePool,
) -> None:
    with make_pool().connection() as connection:
        assert connection._con is not None
        connection._con.raw.__wrapped__ = "not the handle's"

        assert inspect.unwrap(connection) is connection  # type: ignore[arg-type]
        assert not hasattr(connection, "__array__")


def test_settings_reach_the_session(make_pool: MakePool) -> None:
    pool = make_pool(
        CHARSET="latin1",
        COLLATION="latin1_german1_ci",
        SQL_MODE="ANSI,NO_BACKSLASH_ESCAPES",
        INIT_COMMAND="SET @a = 1",
        SETSESSION=["SET @b = @a + 1", "SELECT 5"],
        AUTOCOMMIT=True,
    )
    with pool.connection() as connection:
        assert execute(
            connection,
            "SELECT @@collation_connection, @@sql_mode LIKE 'REAL%', @b, @@autocommit",
        ) == (("latin1_german1_ci", 1, 2, 1),)


def test_a_session_may_be_set_up_by_a_procedure_that_has_several_results(
    make_pool: MakePool, sql: Sql, two_results: str
) -> None:
    set_up = [f"CALL {two_results}()", "SET @a = 1"]
    pool = make_pool(MAX_SIZE=1, SETSESSION=set_up)
    with pool.connection() as connection:
        before = connection.thread_id()
        assert execute(connection, "SELECT @a, @b") == ((1, None),)
        execute(connection, "SET @b = 2")

    # Cleaned, which is to be set up once more.
    with pool.connection() as connection:
        assert connection.thread_id() == before
        assert execute(connection, "SELECT @a, @b") == ((1, None),)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is nobody's")
def test_connections_come_from_the_address_that_they_are_bound_to(
    make_pool: MakePool, sql: Sql
) -> None:
    pool = make_pool(CONNECT_ARGS={"bind_address": "127.0.0.2"})
    with pool.connection() as connection:
        query = "SELECT host FROM information_schema.processlist WHERE id = %s"
        [(client,)] = sql(query, connection.thread_id())

    assert client.startswith("127.0.0.2:")


def test_a_unix_socket_serves_as_well(make_pool: MakePool, server: LocalServer) -> None:
    pool = make_pool(
        URL=f"mysql://app:{server.password}@/test?unix_socket={server.unix_socket}",
    )
    with pool.connection() as connection:
        assert execute(connection, "SELECT 1") == ((1,),)
        assert connection.get_host_info() == "Localhost via UNIX socket"


def test_the_password_callable_is_asked_once_for_each_connect(
    make_pool: MakePool, server: LocalServer
) -> None:
    asked = []

    def password() -> str:
        asked.append(1)
        return server.password

    url = server.url.replace(f":{server.password}", "")
    pool = make_pool(URL=url, PASSWORD=password)
    with pool.connection(), pool.connection():
        assert len(asked) == 2


def test_a_refused_password_is_asked_for_again_once(
    make_pool: MakePool, server: LocalServer
) -> None:
    answers = ["outdated", server.password, "outdated", "outdated", server.password]
    url = server.url.replace(f":{server.password}", "")
    pool = make_pool(URL=url, PASSWORD=lambda: answers.pop(0))

    with pool.connection():
        with pytest.raises(pymysql.err.OperationalError, match="1045"):
            pool.connection()

    assert answers == [server.password]


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"PASSWORD": "wrong"}, 1045),
        ({"DATABASE": "nosuch"}, 1049),
        ({"PORT": 1}, 2003),
        ({"INIT_COMMAND": "NONSENSE"}, 1064),
        ({"HOST": "nosuchhost.invalid"}, 2003),
    ],
)
def test_what_the_server_says_to_a_connect_is_what_the_caller_gets(
    make_pool: MakePool, settings: dict[str, Any], code: int
) -> None:
    pool = make_pool(**settings)

    with pytest.raises(pymysql.err.MySQLError) as caught:
        pool.connection()

    assert caught.value.args[0] == code
    assert pool.stats().size == 0


def test_a_set_up_costs_two_round_trips_after_the_greeting(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer
) -> None:
    # MySQL asks for more if it has not seen the password yet; TLS has its own price.
    make_pool().connection().close()
    pool = make_pool(
        **through(proxy, server),
        SQL_MODE="ANSI",
        INIT_COMMAND="SET @a = 1",
        SSL_MODE="DISABLED",
    )

    with pool.connection():
        assert proxy.round_trips == 2


def test_a_closed_pool_leaves_nothing_open(make_pool: MakePool, sql: Sql) -> None:
    until(lambda: not threads_of(sql))
    pool = make_pool()
    with pool.connection():
        assert threads_of(sql) == 1

    pool.close()

    until(lambda: not threads_of(sql))
