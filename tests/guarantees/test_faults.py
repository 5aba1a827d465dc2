"""Faults, one at a time, on real servers: what a caller gets, and what comes after."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from conftest import MakePool, MakeServer, Sql, execute, until
from interrupts import interrupted_by
from liars import Liar, Talk, config, refusal
from pymysql.cursors import SSCursor
from pymysql.err import MySQLError, OperationalError

from flask_mysqlpool import ConnectionLost, Pool
from flask_mysqlpool.pool.driver import transport
from flask_mysqlpool.pool.stats import Observer
from flask_mysqlpool.testing import FaultProxy, LocalServer

#: The first is more than a server keeps to itself until there is a second.
SLOW_ROWS = "SELECT REPEAT('x', 100000) UNION ALL SELECT SLEEP(0.5)"


def works(pool: Pool, times: int = 1) -> bool:
    for _ in range(times):
        with pool.connection() as connection:
            assert execute(connection, "SELECT 1") == ((1,),)
    return True


def fill(pool: Pool, size: int) -> None:
    """Have so many idle connections, all known to be clean."""
    with ExitStack() as stack:
        for _ in range(size):
            execute(stack.enter_context(pool.connection()), "SELECT 1")
    for con in tuple(pool._state.idle):
        con.read_answers(time.monotonic() + 5)
    assert pool.stats().idle == size


def through(proxy: FaultProxy, server: LocalServer) -> dict[str, Any]:
    return {"URL": server.url_at(proxy.port)}


# The server refuses


@pytest.fixture
def plain_user(server: LocalServer, sql: Sql) -> Iterator[str]:
    """The URL of somebody without privileges beyond the database."""
    sql("DROP USER IF EXISTS plain")
    sql("CREATE USER plain IDENTIFIED BY 'plain'")
    sql("GRANT ALL ON test.* TO plain")
    yield server.url.replace(f"{server.user}:{server.password}", "plain:plain")
    sql("DROP USER plain")


@contextmanager
def setting(sql: Sql, name: str, value: object) -> Iterator[None]:
    [(before,)] = sql(f"SELECT @@global.{name}")
    sql(f"SET GLOBAL {name} = {value}")
    try:
        yield
    finally:
        sql(f"SET GLOBAL {name} = {before}")


def test_too_many_connections_is_what_the_waiter_gets_until_there_is_room(
    make_pool: MakePool, sql: Sql, plain_user: str
) -> None:
    pool, other = make_pool(URL=plain_user), make_pool(URL=plain_user, MAX_SIZE=20)
    with setting(sql, "max_connections", 10), ExitStack() as stack:
        with pytest.raises(OperationalError, match="1040"):
            while True:
                taken = stack.enter_context(other.connection())

        with pytest.raises(OperationalError, match="1040"):
            pool.connection()
        assert pool.stats().size == 0
        execute(taken, "SELECT 1")
        taken.close()
        other.reset()

        until(lambda: not raises(MySQLError, lambda: works(pool)))
        assert works(pool, 3)


def raises(kind: type[BaseException], call: Callable[[], object]) -> bool:
    try:
        call()
    except kind:
        return True
    return False


def updates(sql: Sql) -> int:
    [(_, count)] = sql("SHOW GLOBAL STATUS LIKE 'Com_update'")
    return int(count)


def test_a_lock_wait_timeout_is_waited_for_once_and_costs_no_connection(
    make_pool: MakePool, sql: Sql, root: pymysql.Connection[Any], table: str
) -> None:
    sql("INSERT INTO t (a) VALUES (1)")
    pool = make_pool(MAX_SIZE=1, SETSESSION=["SET innodb_lock_wait_timeout = 1"])
    root.begin()
    sql("UPDATE t SET a = 2")
    with pool.connection() as connection:
        first = connection.thread_id()
        before = updates(sql)
        with pytest.raises(OperationalError, match="1205"):
            execute(connection, "UPDATE t SET a = 3")

        assert updates(sql) == before + 1
        connection.rollback()
        root.rollback()
        execute(connection, "UPDATE t SET a = 4")
        connection.commit()
        assert connection.thread_id() == first
    assert sql("SELECT a FROM t") == ((4,),)
    assert pool.stats().opened == 1


def test_a_deadlock_is_reported_once_and_the_connection_goes_on(
    make_pool: MakePool, sql: Sql, table: str
) -> None:
    sql("INSERT INTO t (id, a) VALUES (1, 0), (2, 0)")
    pool = make_pool(MAX_SIZE=2)
    errors: list[BaseException] = []
    barrier = threading.Barrier(2)

    def transact(first: int, second: int) -> None:
        with pool.connection() as connection:
            execute(connection, f"UPDATE t SET a = a + 1 WHERE id = {first}")
            barrier.wait()
            try:
                execute(connection, f"UPDATE t SET a = a + 1 WHERE id = {second}")
            except OperationalError as error:
                errors.append(error)
                connection.rollback()
            connection.commit()

    threads = [threading.Thread(target=transact, args=p) for p in ((1, 2), (2, 1))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [error.args[0] for error in errors] == [1213]
    assert sql("SELECT a FROM t") == ((1,), (1,))
    assert pool.stats().opened == 2
    assert works(pool, 3)


def test_a_server_that_became_read_only_loses_the_connection_when_it_returns(
    make_pool: MakePool, sql: Sql, plain_user: str, table: str
) -> None:
    pool = make_pool(URL=plain_user, MAX_SIZE=1)
    with setting(sql, "read_only", 1), pool.connection() as connection:
        with pytest.raises(MySQLError, match="1290"):
            execute(connection, "INSERT INTO t (a) VALUES (1)")
        connection.rollback()
        # What only reads may go on.
        assert execute(connection, "SELECT a FROM t") == ()
        first = connection.thread_id()

    assert pool.stats().discarded_by_reason == {"invalidated": 1}
    with pool.connection() as connection:
        assert connection.thread_id() != first
        execute(connection, "INSERT INTO t (a) VALUES (1)")


@pytest.mark.parametrize("number", [1053, 1927, 2006, 2013, 4031])
def test_a_number_that_an_app_signals_costs_no_other_connection(
    make_pool: MakePool, number: int
) -> None:
    pool = make_pool(MAX_SIZE=3)
    fill(pool, 3)
    with pool.connection() as connection, pytest.raises(MySQLError, match=str(number)):
        execute(connection, f"SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = {number}")
    fill(pool, 3)
    assert pool.stats().opened == 4


def test_a_server_that_closes_after_its_error_has_time_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits, waiting = [], threading.Event()
    monkeypatch.setattr(transport, "CLOSING", 20)

    def server(talk: Talk) -> None:
        talk.let_in()
        talk.serve(until=b"\3CALL")
        talk.say(refusal(1927))
        waiting.wait(20)

    with (
        Liar(server) as liar,
        closing(Pool(config(liar.port))) as pool,
        pool.connection() as connection,
    ):
        session: Any = connection._con
        readable = session._readable

        def look(deadline: float) -> Any:
            waits.append(deadline - time.monotonic())
            waiting.set()
            return readable(deadline)

        session._readable = look
        with pytest.raises(OperationalError, match="1927"):
            connection.query("CALL p()")
        assert session.is_disconnected
    assert 0 < waits[-1] <= 20


# In the middle of a reply


def test_a_reply_that_takes_too_long_ends_the_connection_and_no_other(
    make_pool: MakePool,
) -> None:
    pool = make_pool(READ_TIMEOUT=0.5, MAX_SIZE=2, KILL_ABANDONED=False)
    fill(pool, 2)
    with pool.connection() as connection:
        with pytest.raises(OperationalError, match="2013"):
            execute(connection, "SELECT SLEEP(2)")
        with pytest.raises(ConnectionLost):
            execute(connection, "SELECT 'the next reply'")

    assert pool.stats().idle == 1
    assert works(pool, 5)
    assert pool.stats().opened == 2


def test_a_time_out_between_two_rows_ends_the_connection(make_pool: MakePool) -> None:
    pool = make_pool(READ_TIMEOUT=0.2, MAX_SIZE=1)
    with pool.connection() as connection, connection.cursor(SSCursor) as cursor:
        with pytest.raises(OperationalError):
            cursor.execute(SLOW_ROWS)
            cursor.fetchall()
        with pytest.raises(ConnectionLost):
            connection.commit()

    assert works(pool)


class Stopped(BaseException):
    """What some servers throw into a request that takes too long."""


class Alarm(Exception):
    """The same, by those who do not know that it will be caught."""


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Stopped, Alarm])
def test_an_interrupt_in_the_middle_of_a_query_costs_just_its_connection(
    kind: type[BaseException], make_pool: MakePool
) -> None:
    pool = make_pool(MAX_SIZE=2)
    fill(pool, 2)
    with pytest.raises(kind), interrupted_by(kind), pool.connection() as connection:
        execute(connection, "SELECT SLEEP(5)")

    assert pool.stats().in_use == 0
    assert pool.stats().idle == 1
    with pool.connection() as one, pool.connection() as other:
        assert execute(one, "SELECT 1") == execute(other, "SELECT 1") == ((1,),)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Stopped, Alarm])
def test_an_interrupt_that_is_caught_does_not_shift_the_replies(
    kind: type[BaseException], make_pool: MakePool
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection() as connection:
        with pytest.raises(kind), interrupted_by(kind):
            execute(connection, "SELECT SLEEP(0.3)")
        with pytest.raises(ConnectionLost):
            execute(connection, "SELECT 2")
        connection.rollback()
        assert execute(connection, "SELECT 3") == ((3,),)


def test_an_interrupt_of_somebody_who_waits_loses_no_connection(
    make_pool: MakePool,
) -> None:
    pool = make_pool(MAX_SIZE=1)
    with pool.connection():
        with pytest.raises(Stopped), interrupted_by(Stopped):
            pool.connection(timeout=5)
    assert pool.stats().waiting == pool.stats().in_use == 0
    assert works(pool)


# The network


@pytest.mark.parametrize("fault", ["cut", "reset", "half_close"])
def test_idle_connections_that_the_network_ended_are_not_handed_out(
    fault: str, make_pool: MakePool, proxy: FaultProxy, server: LocalServer
) -> None:
    pool = make_pool(**through(proxy, server), MAX_SIZE=5)
    fill(pool, 5)
    ended = tuple(pool._state.idle)

    getattr(proxy, fault)()
    until(lambda: not any(con.is_alive() for con in ended))

    assert works(pool, 20)
    until(lambda: proxy.live == pool.stats().size)


def test_one_that_the_network_has_forgotten_is_found_out_in_half_of_the_time(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer
) -> None:
    pool = make_pool(**through(proxy, server), MAX_SIZE=1, PING_AFTER=0, TIMEOUT=2)
    fill(pool, 1)

    class Healing(Observer):
        def discarded(self, pool: Any, thread_id: int, reason: str) -> None:
            proxy.resume()

    pool.add_observer(Healing())
    proxy.drop_replies()
    started = time.monotonic()

    assert works(pool)
    assert 0.9 < time.monotonic() - started < 2
    assert pool.stats().discarded_by_reason == {"dead": 1}


@pytest.mark.parametrize(("ping_after", "pings"), [(0, 5), (3600, 0)])
def test_one_that_was_idle_for_ping_after_is_pinged_and_no_other(
    ping_after: float, pings: int, make_pool: MakePool, sql: Sql
) -> None:
    def asked() -> int:
        # Pings are among the few of these.
        return int(sql("SHOW GLOBAL STATUS LIKE 'Com_admin_commands'")[0][1])

    pool = make_pool(PING_AFTER=ping_after)
    fill(pool, 1)
    before = asked()

    assert works(pool, 5)
    assert asked() - before == pings


@pytest.mark.parametrize("fault", ["cut", "reset", "half_close"])
def test_a_connection_that_ends_in_the_middle_of_a_reply_stays_ended(
    fault: str,
    make_pool: MakePool,
    proxy: FaultProxy,
    server: LocalServer,
    sql: Sql,
    table: str,
) -> None:
    pool = make_pool(**through(proxy, server), MAX_SIZE=1)
    with pool.connection() as connection:
        execute(connection, "INSERT INTO t (a) VALUES (1)")
        rows = connection.cursor(SSCursor)
        rows.execute(SLOW_ROWS)
        assert rows.fetchone()
        getattr(proxy, fault)()
        with pytest.raises(MySQLError):
            rows.fetchall()
        with pytest.raises(ConnectionLost):
            execute(connection, "INSERT INTO t (a) VALUES (2)")
        with pytest.raises(ConnectionLost):
            connection.commit()

    assert works(pool)
    assert sql("SELECT a FROM t") == ()


def test_a_cleaning_that_is_never_answered_holds_up_one_checkout_and_no_other(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer
) -> None:
    pool = make_pool(**through(proxy, server), MAX_SIZE=3)
    fill(pool, 2)
    with pool.connection() as other, pool.connection() as connection:
        execute(connection, "SET @a = 1")
        proxy.drop_replies()
        connection.close()

        started = time.monotonic()
        with pytest.raises(MySQLError):
            pool.connection(timeout=0.4)
        took = time.monotonic() - started

        # Whoever has one goes on, and may return it meanwhile.
        proxy.resume()
        assert execute(other, "SELECT 1") == ((1,),)
    assert 0.1 < took < 0.6
    assert works(pool, 3)


def test_a_checkout_that_hangs_delays_no_other_checkout_or_return(
    make_pool: MakePool, proxy: FaultProxy, server: LocalServer
) -> None:
    pool = make_pool(**through(proxy, server), MAX_SIZE=3)
    fill(pool, 2)
    held = pool.connection()
    with pool.connection() as connection:
        execute(connection, "SET @a = 1")
        proxy.drop_replies()
    hanging = threading.Thread(
        target=lambda: raises(MySQLError, lambda: pool.connection(timeout=1).close())
    )
    hanging.start()
    until(lambda: pool.stats().in_use == 2)
    worst = 0.0
    for _ in range(50):
        started = time.monotonic()
        held.close()
        held = pool.connection(timeout=1)
        worst = max(worst, time.monotonic() - started)

    assert hanging.is_alive()
    assert worst < 0.2
    proxy.resume()
    hanging.join()
    held.close()


def test_answers_that_trickle_do_not_stretch_the_deadline(
    make_pool: MakePool, server: LocalServer
) -> None:
    """Each byte comes in time; all of them do not."""
    with Trickle(server) as trickle:
        pool = make_pool(URL=server.url_at(trickle.port), MAX_SIZE=1)
        with pool.connection() as connection:
            execute(connection, "SET @a = 1")
            trickle.slow.set()
        started = time.monotonic()
        with pytest.raises(MySQLError):
            pool.connection(timeout=0.4)
        took = time.monotonic() - started
        trickle.slow.clear()

        assert 0.1 < took < 0.6
        until(lambda: not raises(MySQLError, lambda: works(pool)))


class Trickle:
    """Passes on what the server says, and at that, if slow, a byte now and then."""

    def __init__(self, server: LocalServer) -> None:
        self.slow = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = server.host, server.port
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> Trickle:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # Only this wakes a thread that is inside accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                upstream = socket.create_connection(self._target)
                for way in ((client, upstream, 65536), (upstream, client, 1)):
                    threading.Thread(target=self._pass, args=way, daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, least: int) -> None:
        with source, suppress(OSError):
            while data := source.recv(least if self.slow.is_set() else 65536):
                for piece in self._pieces(data, least):
                    sink.sendall(piece)
                    time.sleep(0.04 if least == 1 and self.slow.is_set() else 0)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)

    def _pieces(self, data: bytes, least: int) -> list[bytes]:
        size = least if self.slow.is_set() else len(data)
        return [data[i : i + size] for i in range(0, len(data), size)]


# The server goes away


def test_after_a_restart_no_request_of_fifty_idle_connections_fails(
    make_pool: MakePool, make_server: MakeServer
) -> None:
    server = make_server()
    pool = make_pool(URL=server.url, MAX_SIZE=50)
    fill(pool, 50)

    server.restart()

    assert works(pool, 100)
    assert pool.stats().opened <= 52


def test_after_a_kill_no_request_of_fifty_busy_and_idle_connections_fails(
    make_pool: MakePool, make_server: MakeServer
) -> None:
    server = make_server()
    pool = make_pool(URL=server.url, MAX_SIZE=50)
    fill(pool, 50)
    with pool.connection() as connection:
        server.kill()
        with pytest.raises(MySQLError):
            execute(connection, "SELECT 1")
        with pytest.raises(OperationalError, match="2003"):
            pool.connection()

    server.start()

    assert works(pool, 100)


def test_sessions_that_the_server_let_time_out_are_all_replaced(
    make_pool: MakePool,
) -> None:
    pool = make_pool(MAX_SIZE=5, SETSESSION=["SET wait_timeout = 1"])
    fill(pool, 5)
    idle = tuple(pool._state.idle)

    until(lambda: not any(con.is_alive() for con in idle))

    with ExitStack() as stack:
        for _ in range(5):
            connection = stack.enter_context(pool.connection())
            assert execute(connection, "SELECT 1") == ((1,),)
    assert pool.stats().opened == 10


# Passwords


def test_a_password_that_cannot_be_had_is_the_error_of_the_checkout(
    make_pool: MakePool, server: LocalServer
) -> None:
    broken = [True]

    def password() -> str:
        if broken:
            raise LookupError("no token today")
        return server.password

    url = server.url.replace(f":{server.password}", "")
    pool = make_pool(URL=url, PASSWORD=password)
    for _ in range(3):
        with pytest.raises(OperationalError, match="PASSWORD.*LookupError") as info:
            pool.connection()
        assert isinstance(info.value.__cause__, LookupError)
    assert pool.stats().size == 0

    broken.clear()
    assert works(pool)


def test_a_password_that_was_rotated_is_used_for_new_connections_only(
    make_pool: MakePool, sql: Sql, plain_user: str
) -> None:
    current = ["plain"]
    pool = make_pool(
        URL=plain_user.replace("plain:plain", "plain"), PASSWORD=lambda: current[0]
    )
    fill(pool, 2)
    sql("ALTER USER plain IDENTIFIED BY 'rotated'")
    current[0] = "rotated"

    assert works(pool, 3)
    assert pool.stats().opened == 2
    pool.reset()
    assert works(pool, 3)
    assert pool.stats().opened == 3


# Forks

FORKING = """
import faulthandler, os, signal, sys, threading
if {hooks} is False:
    os.register_at_fork = lambda **kwargs: None
from flask_mysqlpool import ConnectionShared, Pool, PoolConfig

pool = Pool(PoolConfig.from_mapping({{"URL": {url!r}, "MAX_SIZE": 4, "TIMEOUT": 20}}))
# Where it hangs, if it does.
faulthandler.register(signal.SIGALRM, chain=True)
signal.alarm(35)

def ask(connection, statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()

def check(times):
    for number in range(times):
        with pool.connection() as connection:
            assert ask(connection, f"SELECT {{number}}") == ((number,),)
            thread = connection.thread_id()
            assert ask(connection, "SELECT CONNECTION_ID()") == ((thread,),)

failures = []
stop = threading.Event()

def work():
    try:
        while not stop.is_set():
            check(5)
    except BaseException as error:
        failures.append(error)

def in_child(way):
    signal.alarm(25)
    if way == "leave":
        # Without a hook, it does not even know that it is one.
        sys.exit(0)
    try:
        try:
            held.cursor().execute("SELECT 1")
        except ConnectionShared:
            pass
        else:
            os._exit(3)
        check(20)
        with pool.connection() as connection:
            assert connection.thread_id() not in parents
    except BaseException as error:
        print("child:", repr(error), file=sys.stderr, flush=True)
        os._exit(4)
    if way == "exit":
        sys.exit(0)
    if way == "close":
        pool.close()
    os._exit(0)

with pool.connection() as held:
    kept = ask(held, "SELECT CONNECTION_ID()")
    parents = {{kept[0][0]}}
    idle = [pool.connection() for _ in range(3)]
    parents.update(connection.thread_id() for connection in idle)
    for connection in idle:
        connection.close()
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for way in ("exit", "leave", "close", "kill") * 3:
        child = os.fork()
        if child == 0:
            in_child(way)
        _, status = os.waitpid(child, 0)
        if status:
            failures.append(f"child: {{status}}")
    stop.set()
    for thread in threads:
        thread.join()
    assert ask(held, "SELECT CONNECTION_ID()") == kept
check(10)
assert not failures, failures
assert pool.stats().opened <= 4, pool
print("fine")
"""


@pytest.mark.parametrize("hooks", [True, False], ids=["hooks", "no hooks"])
def test_forks_under_load_share_nothing_and_end_nothing(
    hooks: bool, server: LocalServer, tmp_path: Path
) -> None:
    program = textwrap.dedent(FORKING).format(hooks=hooks, url=server.url)

    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        capture_output=True,
        text=True,
        timeout=40,
        cwd=tmp_path,
    )

    assert run.stdout == "fine\n", run.stderr
    assert run.returncode == 0
