"""What happens between two steps of one thread when others take theirs."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import Any

import pymysql.err
import pytest
from conftest import MakePool, until
from flask import Flask
from pymysql.cursors import SSCursor

import flask_mysqlpool.pool.maintenance
import flask_mysqlpool.pool.pool
import flask_mysqlpool.pool.state
from flask_mysqlpool import (
    ConnectionLost,
    ConnectionReturned,
    ConnectionShared,
    MySQLPool,
    Pool,
    PoolClosed,
    PooledConnection,
    PoolTimeout,
    get_db,
)
from flask_mysqlpool.pool.maintenance import MaintenanceThread
from flask_mysqlpool.pool.state import CONNECT_DELAY
from flask_mysqlpool.pool.stats import Observer, PoolStats
from flask_mysqlpool.pool.waiters import Waiter
from flask_mysqlpool.testing import FaultProxy, LocalServer
from flask_mysqlpool.testing.fake_driver import FakeConnection, FakePool

GONE = ConnectionResetError("gone")
DOWN = pymysql.err.OperationalError(2003, "Can't connect to MySQL server on 'db'")


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as executor:
        yield executor


@pytest.fixture
def frequent_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def in_line(
    pool: Pool, threads: ThreadPoolExecutor, number: int
) -> list[Future[PooledConnection]]:
    """So many checkouts, blocked in this order, none of which wakes by itself."""
    futures = []
    for _ in range(number):
        before = pool.stats().waiting
        futures.append(threads.submit(pool.connection))
        until(lambda: pool.stats().waiting == before + 1)  # noqa: B023
    time.sleep(2 * CONNECT_DELAY)
    return futures


def lose(connection: PooledConnection) -> None:
    assert connection._con is not None
    connection._con.lost = GONE


def places(pool: Pool) -> tuple[int, int, int]:
    stats = pool.stats()
    return stats.in_use, stats.connecting, stats.waiting


# Who is told of a free place


def test_two_places_freed_in_a_row_wake_two_waiters(
    threads: ThreadPoolExecutor,
) -> None:
    hang = threading.Event()
    numbers = count(1)

    def connect() -> None:
        if next(numbers) == 3:
            hang.wait(60)

    pool = FakePool(connect, MAX_SIZE=2, TIMEOUT=30)
    held = [pool.connection(), pool.connection()]
    waiters = in_line(pool, threads, 2)
    for connection in held:
        lose(connection)
        connection.close()

    until(lambda: any(waiter.done() for waiter in waiters))
    hang.set()

    for waiter in waiters:
        waiter.result(timeout=5).close()


def test_a_place_is_not_forgotten_when_the_one_told_of_it_is_served_otherwise(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = FakePool(MAX_SIZE=2, TIMEOUT=30)
    lost, healthy = pool.connection(), pool.connection()
    returned = threading.Event()
    wait = Waiter.wait

    def wait_and_oversleep(waiter: Waiter[Any], seconds: float) -> None:
        wait(waiter, seconds)
        if seconds > 1:
            returned.wait(5)

    monkeypatch.setattr(Waiter, "wait", wait_and_oversleep)
    first, second = in_line(pool, threads, 2)
    lose(lost)
    lost.close()  # tells the first of a place
    healthy.close()  # serves the first
    returned.set()

    first.result(timeout=5)
    second.result(timeout=5).close()
    first.result().close()


def test_who_finds_its_idle_connection_dead_has_not_lost_its_turn(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=30)
    pool.connection().close()
    [dead] = pool._state.idle
    looking, look = threading.Event(), threading.Event()

    def is_alive(con: FakeConnection) -> bool:
        if con is dead:
            looking.set()
            look.wait(10)
        return con is not dead

    monkeypatch.setattr(FakeConnection, "is_alive", is_alive)
    first = threads.submit(pool.connection)
    assert looking.wait(5)
    [second] = in_line(pool, threads, 1)
    look.set()

    connection = first.result(timeout=5)
    assert not second.done()
    connection.close()
    second.result(timeout=5).close()


def test_two_who_were_handed_dead_ones_keep_their_order(
    threads: ThreadPoolExecutor,
) -> None:
    pool = FakePool(MAX_SIZE=2, TIMEOUT=30)
    held = [pool.connection(), pool.connection()]
    waiters = in_line(pool, threads, 3)
    for connection in held:
        assert connection._con is not None
        connection._con.alive = False
        connection.close()

    first, second = (waiter.result(timeout=5) for waiter in waiters[:2])

    assert not waiters[2].done()
    first.close()
    second.close()
    waiters[2].result(timeout=5).close()


def test_who_was_handed_a_dead_one_is_in_line_again_before_others_hear_of_its_place(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=30)
    held = pool.connection()
    first, second = in_line(pool, threads, 2)
    since = [waiter.since for waiter in pool._state.waiters]
    woken, wake = list[float](), Waiter.wake

    def note(waiter: Waiter[Any]) -> None:
        woken.append(waiter.since)
        wake(waiter)

    monkeypatch.setattr(Waiter, "wake", note)
    assert held._con is not None
    held._con.alive = False
    held.close()

    first.result(timeout=5).close()
    second.result(timeout=5).close()
    assert woken[0] == since[0]


def test_who_is_interrupted_by_an_observer_of_a_dead_one_stands_in_no_line(
    threads: ThreadPoolExecutor,
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=5)
    pool.connection().close()
    [dead] = pool._state.idle
    dead.alive = False

    class Interrupting(Observer):
        def discarded(self, pool: Any, thread_id: int, reason: str) -> None:
            raise SystemExit

    pool.add_observer(Interrupting())
    with pytest.raises(SystemExit) as kept:
        pool.connection()

    assert pool.stats().waiting == pool.stats().size == 0
    threads.submit(pool.connection).result(timeout=3).close()
    assert kept.tb is not None  # and with it the frames that it went through


def test_a_dead_one_is_told_of_although_the_pool_is_closed_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    pool.connection().close()
    [dead] = pool._state.idle
    dead.alive = False
    told: list[str] = []

    class Told(Observer):
        def discarded(self, pool: Any, thread_id: int, reason: str) -> None:
            told.append(reason)

    pool.add_observer(Told())
    monkeypatch.setattr(dead, "close", pool.close)
    with pytest.raises(PoolClosed):
        pool.connection()

    assert told == ["dead"]


def test_one_that_is_borrowed_while_it_is_looked_at_is_not_dead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    pool.connection().close()

    def is_alive(con: FakeConnection) -> bool:
        monkeypatch.undo()
        pool.connection().close()
        return False  # as if the rows for the borrower had just come

    monkeypatch.setattr(FakeConnection, "is_alive", is_alive)
    pool.discard_dead()

    assert pool.stats().discarded == 0 and pool.stats().idle == 1


def test_who_looks_around_while_his_connect_ends_begins_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=2)

    def thread_id(con: FakeConnection) -> int:
        if not pool.stats().checkouts:
            pool.maintain()  # rings
            time.sleep(CONNECT_DELAY)  # for another connect to begin
        return con.number

    monkeypatch.setattr(FakeConnection, "thread_id", thread_id)
    pool.connection().close()

    assert pool.connects == 1


# Connects that fail or hang


def test_failures_side_by_side_count_as_one_and_the_next_success_ends_the_pause(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.pool.state, "FIRST_PAUSE", 600)
    monkeypatch.setattr(flask_mysqlpool.pool.state, "LONGEST_PAUSE", 600)
    gates = {number: threading.Event() for number in range(1, 6)}
    numbers = count(1)

    def connect() -> None:
        number = next(numbers)
        if number in gates:
            assert gates[number].wait(10)
        if number < 5:
            raise DOWN

    pool = FakePool(connect, MAX_SIZE=9, TIMEOUT=30)
    waiters = [threads.submit(pool.connection) for _ in range(5)]
    until(lambda: pool.stats().connecting == 5)
    for number in range(1, 5):
        gates[number].set()
        until(lambda: pool.stats().connecting == 5 - number)  # noqa: B023
    assert pool._state.connects._failures == 1

    gates[5].set()

    until(lambda: all(waiter.done() for waiter in waiters))
    [served] = [waiter for waiter in waiters if waiter.exception() is None]
    served.result().close()
    threads.submit(pool.connection).result(timeout=5).close()


def test_a_hung_attempt_does_not_hide_that_the_server_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flask_mysqlpool.pool.state, "LONGEST_PAUSE", 0.1)
    hang = threading.Event()
    numbers = count(1)

    def connect() -> None:
        number = next(numbers)
        if number == 1:
            raise DOWN
        if number == 2:
            hang.wait(60)

    pool = FakePool(connect, MAX_SIZE=5)
    with pytest.raises(pymysql.err.OperationalError, match="2003"):
        pool.connection()
    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0.15)

    pool.connection(timeout=5).close()
    hang.set()


def test_maintenance_has_been_started_before_anybody_has_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool()
    seen: list[PoolStats] = []

    def watch(keeper: MaintenanceThread, kept: Any) -> None:
        if kept is pool:  # another test's may still be connecting
            seen.append(kept.stats())

    monkeypatch.setattr(MaintenanceThread, "watch", watch)
    pool.connection().close()

    assert [(s.connecting, s.in_use, s.idle) for s in seen] == [(1, 0, 0)]


def test_without_a_thread_for_housekeeping_connections_are_lent_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start
    keeper = flask_mysqlpool.pool.maintenance.MaintenanceThread("maintenance")
    monkeypatch.setattr(
        flask_mysqlpool.pool.pool, "maintenance_thread", lambda *_: keeper
    )

    def start_no_maintenance(thread: threading.Thread) -> None:
        if thread.name == "mysqlpool-maintenance":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_no_maintenance)
    pool = FakePool(MAX_SIZE=1, TIMEOUT=5)

    for _ in range(3):
        connection = pool.connection()
        lose(connection)
        connection.close()

    until(lambda: places(pool) == (0, 0, 0))


def test_a_connect_that_fails_in_its_set_up_leaves_no_socket(
    make_pool: MakePool, server: LocalServer, proxy: FaultProxy
) -> None:
    pool = make_pool(
        URL=server.url_at(proxy.port),
        CHARSET="latin1",
        INIT_COMMAND="SET @a = '\u4e2d'",
    )

    for _ in range(4):
        with pytest.raises(
            pymysql.err.OperationalError, match="CHARSET 'latin1' lacks"
        ):
            pool.connection()

    until(lambda: proxy.live == 0)
    assert proxy.connections == 4


def test_housekeeping_never_counts_more_than_max_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=3, MIN_SIZE=3)
    for connection in [pool.connection() for _ in range(3)]:
        connection.close()
    for con in pool._state.idle:
        con.expires = 0
    close, sizes = FakeConnection.close, []

    def watch_and_close(con: FakeConnection) -> None:
        sizes.append(pool.stats().size)
        close(con)

    monkeypatch.setattr(FakeConnection, "close", watch_and_close)
    pool.maintain()
    monkeypatch.undo()

    assert sizes
    assert max(sizes) <= 3
    until(lambda: pool.stats().idle == 3)
    assert pool.open_most == 3


# A server that is slow to clean up


def clean_slowly(connection: PooledConnection) -> None:
    """Let the server take its time over the end of this connection's transaction."""
    con = connection._con
    assert con is not None
    con.reset_session = lambda: con.write(  # type: ignore[method-assign]
        ((3, b"DO SLEEP(1)"),)
    )


@pytest.mark.parametrize("timeout", [0, 0.5])
def test_a_session_that_is_slow_to_roll_back_starves_nobody(
    make_pool: MakePool, timeout: float
) -> None:
    pool = make_pool(MAX_SIZE=3)
    connections = [pool.connection() for _ in range(3)]
    slow = connections[-1]
    slow_id = slow.thread_id()
    clean_slowly(slow)
    for connection in connections:
        connection.close()

    started = time.monotonic()
    for _ in range(20):
        with pool.connection(timeout=timeout) as connection:
            assert connection.thread_id() != slow_id

    assert time.monotonic() - started < 1
    assert pool.stats().discarded == 0


# Several threads in one handle


@pytest.mark.usefixtures("frequent_switches")
def test_whoever_closes_one_handle_at_once_returns_it_once(
    threads: ThreadPoolExecutor,
) -> None:
    pool = FakePool(MAX_SIZE=100)

    def close_all(connections: list[PooledConnection]) -> None:
        for connection in connections:
            connection.close()

    for _ in range(200):
        connections = [pool.connection() for _ in range(100)]
        closing = [threads.submit(close_all, connections) for _ in range(2)]
        for future in closing:
            future.result()
        assert places(pool) == (0, 0, 0)
        assert len(set(pool._state.idle)) == pool.stats().size == pool.open_now

    assert pool.stats().discarded == 0


def test_what_a_closed_handle_was_about_to_take_again_is_not_kept(
    threads: ThreadPoolExecutor,
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=30)
    connection = pool.connection()
    lose(connection)
    connection.rollback()
    other = pool.connection()
    again = threads.submit(connection.thread_id)
    until(lambda: pool.stats().waiting == 1)

    connection.close()
    other.close()

    assert isinstance(again.exception(timeout=5), ConnectionReturned)
    assert places(pool) == (0, 0, 0)
    pool.connection(timeout=5).close()


def test_two_threads_that_take_a_lost_one_again_get_one_between_them(
    threads: ThreadPoolExecutor,
) -> None:
    pool = FakePool(MAX_SIZE=2, TIMEOUT=30)
    connection = pool.connection()
    lose(connection)
    connection.rollback()
    others = [pool.connection(), pool.connection()]
    first = threads.submit(connection.thread_id)
    until(lambda: pool.stats().waiting == 1)

    with pytest.raises(ConnectionShared):
        connection.thread_id()
    for other in others:
        other.close()

    first.result(timeout=5)
    assert pool.stats().in_use == 1
    connection.close()
    assert places(pool) == (0, 0, 0)


def test_a_handle_closed_while_its_rollback_fails_is_returned() -> None:
    pool = FakePool(MAX_SIZE=1)
    connection = pool.connection()

    class Guard:
        """Lets another thread close the handle as soon as this one is inside."""

        def __init__(self) -> None:
            self.lock = connection._guard
            self.acquired = False

        def acquire(self, wait: bool) -> bool:
            got = self.lock.acquire(wait)
            if got and not self.acquired:
                self.acquired = True
                thread = threading.Thread(target=connection.close)
                thread.start()
                thread.join()
            return got

        def release(self) -> None:
            self.lock.release()

    connection._guard = Guard()  # type: ignore[assignment]
    assert not connection._detach()

    assert places(pool) == (0, 0, 0)


def test_two_threads_on_one_handle_never_get_each_others_rows(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = make_pool().connection()
    mine, others = connection.cursor(), connection.cursor()
    leave = PooledConnection._leave
    interlopers: list[threading.Thread] = []

    def interlope() -> None:
        others.execute("SELECT 'other'")

    def leave_and_let_in(handle: PooledConnection, *args: Any) -> None:
        leave(handle, *args)
        if not interlopers:
            interlopers.append(threading.Thread(target=interlope))
            interlopers[0].start()
            interlopers[0].join()

    monkeypatch.setattr(PooledConnection, "_leave", leave_and_let_in)
    mine.execute("SELECT 'mine'")

    assert interlopers
    assert mine.fetchone() == ("mine",)
    assert others.fetchone() == ("other",)
    connection.close()


# Streams


def test_a_stream_says_when_its_connection_has_gone(
    make_pool: MakePool, sql: Callable[..., Any]
) -> None:
    bits = (f"(SELECT 0 UNION SELECT 1) bit{number}" for number in range(17))
    connection = make_pool().connection()
    rows = connection.cursor(SSCursor)
    rows.execute(f"SELECT REPEAT('x', 100) FROM {' CROSS JOIN '.join(bits)}")
    rows.fetchone()
    sql("KILL %s", connection.thread_id())

    with pytest.raises(pymysql.err.OperationalError):
        while rows.fetchone():
            pass
    with pytest.raises(ConnectionLost):
        rows.fetchone()
    connection.rollback()
    with pytest.raises(ConnectionLost):
        rows.fetchone()
    rows.close()
    connection.close()


def test_a_closed_stream_is_at_its_end_and_a_returned_one_is_not(
    make_pool: MakePool,
) -> None:
    with make_pool().connection() as connection:
        with connection.cursor(SSCursor) as rows:
            rows.execute("SELECT 1")
        assert rows.fetchone() is None
        with pytest.raises(pymysql.err.ProgrammingError):
            rows.execute("SELECT 1")
        left_open = connection.cursor(SSCursor)
        left_open.execute("SELECT 1")

    with pytest.raises(ConnectionReturned):
        left_open.fetchone()


# Threads that share a context


def test_threads_with_copies_of_one_context_share_one_connection(app: Flask) -> None:
    together = threading.Barrier(3)

    def take() -> PooledConnection:
        together.wait()
        return get_db()

    [db] = app.extensions["mysqlpool"]
    with ThreadPoolExecutor(3) as executor:
        contexts = [contextvars.copy_context() for _ in range(3)]
        futures = [executor.submit(context.run, take) for context in contexts]
        taken = [future.result() for future in futures]

    assert len(set(map(id, taken))) == 1
    assert db.stats().in_use == 1
    db.close_db()
    assert db.stats().in_use == 0


def test_a_handler_registered_before_init_app_is_kept(server: LocalServer) -> None:
    app = Flask("shop")
    app.config.update(
        MYSQLPOOL_URL=server.url, MYSQLPOOL_MAX_SIZE=1, MYSQLPOOL_TIMEOUT=5
    )

    @app.errorhandler(PoolTimeout)
    def handle(error: PoolTimeout) -> tuple[str, int]:
        return "mine", 418

    db = MySQLPool(app)

    @app.get("/")
    def view() -> str:
        with db.connection():
            return repr(db.connection(timeout=0))

    assert app.test_client().get("/").status_code == 418
    with app.app_context():
        db.close_pool()


# Forks

CHILD = """
import logging, os, random, sys, threading, warnings
import concurrent.futures.thread, flask, pymysql
url, ending, hooks, use = sys.argv[1:]
if hooks == "without":
    os.register_at_fork = dict  # forgets them, as a server does that forks in C
from flask_mysqlpool import Pool, PoolConfig, PoolError
warnings.simplefilter("ignore")

pool = Pool(PoolConfig.from_mapping({"URL": url, "TIMEOUT": 5}))
handle, watcher = pool.connection(), pool.connection()
mine, watch = handle.cursor(), watcher.cursor()
stream = pool.connection().cursor(pymysql.cursors.SSCursor)
stream.execute("SELECT 'row' UNION ALL SELECT 'another'")
stream.fetchone()

watch.execute("SELECT GET_LOCK('child', 0)")
query = threading.Thread(target=mine.execute, args=["SELECT GET_LOCK('child', 20), 7"])
query.start()
WAITING = "SELECT 1 FROM information_schema.processlist WHERE state = 'User lock'"
while not watch.execute(WAITING):
    pass

child = os.fork()
if child == 0:
    if use == "use":
        for inherited in (handle, watcher):
            try:
                inherited.close()
            except PoolError:
                pass
        with pool.connection() as own, own.cursor() as cursor:
            cursor.execute("SELECT 'child'")
            assert cursor.fetchone() == ("child",)
        assert pool.stats().opened == pool.stats().idle == 1
    sys.exit(0) if ending == "sys.exit" else os._exit(0)

status = os.waitpid(child, 0)[1]
assert status == 0, status
assert query.is_alive()
watch.execute("SELECT RELEASE_LOCK('child')")
query.join()
assert mine.fetchone() == (1, 7)
assert stream.fetchall() == [("another",)]
for cursor in (mine, watch):
    cursor.execute("SELECT 'alive'")
    assert cursor.fetchone() == ("alive",)
for one in (handle, watcher, stream.connection):
    one.close()
pool.close()
print("intact", end="")
"""


@pytest.mark.parametrize(
    ("use", "hooks", "ending"),
    [
        ("use", "with", "sys.exit"),
        ("use", "with", "os._exit"),
        ("use", "without", "sys.exit"),
        ("use", "without", "os._exit"),
        ("leave", "without", "sys.exit"),
    ],
)
def test_a_fork_in_the_middle_of_a_query_disturbs_neither_process(
    server: LocalServer, use: str, hooks: str, ending: str
) -> None:
    result = subprocess.run(
        [sys.executable, "-c", CHILD, server.url, ending, hooks, use],
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (result.stdout, result.stderr, result.returncode) == ("intact", "", 0)
