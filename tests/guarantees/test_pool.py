"""The pool's decisions, on a fake driver: interleavings, limits, order, and counting.

The fake asserts in each of its methods that the caller does not hold the pool's lock.
"""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any, TypeVar

import pymysql.err
import pytest
from conftest import until
from dbutils.pooled_db import PooledDB, TooManyConnectionsError

import flask_mysqlpool.pool.pool
import flask_mysqlpool.pool.state
import flask_mysqlpool.pool.waiters
from flask_mysqlpool import (
    Observer,
    Pool,
    PoolClosed,
    PooledConnection,
    PoolFull,
    PoolTimeout,
    ServerUnavailable,
)
from flask_mysqlpool.pool.state import FIRST_PAUSE
from flask_mysqlpool.testing.fake_driver import FakeConnection, FakePool

T = TypeVar("T")

DOWN = pymysql.err.OperationalError(2003, "Can't connect to MySQL server on 'db'")


class Gate:
    """Connects wait here until they are let through, one by one or all."""

    def __init__(self) -> None:
        self.tickets = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)
        self.error: BaseException | None = None

    def __call__(self) -> None:
        self.arrived.release()
        assert self.tickets.acquire(timeout=10)
        if self.error is not None:
            raise self.error


@pytest.fixture
def gate() -> Gate:
    return Gate()


class Threads:
    """Runs checkouts on threads, and returns what they have got at the end."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        self._futures: list[Future[Any]] = []

    def submit(self, call: Callable[..., T], **kwargs: Any) -> Future[T]:
        future = self._executor.submit(call, **kwargs)
        self._futures.append(future)
        return future

    def clean_up(self) -> None:
        while any(not future.done() for future in self._futures):
            self._return_all()
        self._return_all()

    def _return_all(self) -> None:
        for future in self._futures:
            if future.done() and future.exception() is None:
                if isinstance(future.result(), PooledConnection):
                    future.result().close()


@pytest.fixture
def threads(gate: Gate) -> Iterator[Threads]:
    with ThreadPoolExecutor(64) as executor:
        threads = Threads(executor)
        yield threads
        gate.error = None
        gate.tickets.release(1000)
        threads.clean_up()


def number(connection: PooledConnection) -> int:
    return connection.thread_id()


def waiting(pool: FakePool, count: int) -> None:
    until(lambda: pool.stats().waiting == count)


def in_line(
    pool: FakePool, threads: Threads, count: int, **kwargs: Any
) -> list[Future[PooledConnection]]:
    """So many checkouts, blocked in this order."""
    futures = []
    for _ in range(count):
        before = pool.stats().waiting
        futures.append(threads.submit(pool.connection, **kwargs))
        waiting(pool, before + 1)
    return futures


def test_it_is_a_pooled_db_and_keeps_its_face() -> None:
    pool = FakePool()

    assert isinstance(pool, PooledDB)
    with pool.connection() as one, pool.dedicated_connection() as two:
        assert number(one) != number(two)
    pool.close()


def test_a_plain_mapping_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match=r"PoolConfig\.from_mapping"):
        Pool({"URL": "mysql://localhost"})  # type: ignore[arg-type]


def test_it_opens_nothing_before_the_first_checkout() -> None:
    pool = FakePool(MIN_SIZE=3)

    assert pool.connects == 0
    assert pool.stats().size == 0


def test_the_most_recently_used_connection_goes_out_first() -> None:
    pool = FakePool()
    one, two, three = (pool.connection() for _ in range(3))
    last = number(two)
    for connection in (one, three, two):
        connection.close()

    with pool.connection() as connection:
        assert number(connection) == last


def test_it_never_holds_more_than_max_size(threads: Threads) -> None:
    pool = FakePool(MAX_SIZE=4, TIMEOUT=30)

    def use() -> None:
        with pool.connection() as connection:
            if number(connection) % 7 == 0:
                connection._con.lost = DOWN  # type: ignore[union-attr]

    for future in [threads.submit(use) for _ in range(2000)]:
        future.result()

    assert pool.open_most <= 4
    assert pool.stats().checkouts == 2000
    assert pool.stats().in_use == 0


def test_a_connect_under_way_takes_a_place(gate: Gate, threads: Threads) -> None:
    pool = FakePool(gate, MAX_SIZE=1, TIMEOUT=10)
    in_line(pool, threads, 1)
    gate.arrived.acquire()

    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0)

    assert pool.connects == 1
    assert pool.stats().connecting == pool.stats().size == 1


def test_waiters_are_served_in_the_order_of_their_coming(
    threads: Threads,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    held = pool.connection()
    futures = in_line(pool, threads, 20)

    for index, future in enumerate(futures):
        held.close()
        held = future.result(timeout=5)
        assert not any(later.done() for later in futures[index + 1 :])

    assert pool.connects == 1


def test_a_newcomer_does_not_overtake_the_line(threads: Threads) -> None:
    pool = FakePool(MAX_SIZE=1)
    held = pool.connection()
    [first] = in_line(pool, threads, 1)

    held.close()

    with pytest.raises(PoolTimeout):
        pool.connection(timeout=0)
    first.result().close()


def test_the_timeout_says_who_holds_what_and_for_how_long() -> None:
    pool = FakePool(MAX_SIZE=1, NAME="shop")
    with pool.connection():
        with pytest.raises(PoolTimeout) as caught:
            pool.connection(timeout=0.02)

    text = str(caught.value)
    assert text.startswith("shop: no connection within 0.0")
    assert "in use 1/1" in text
    assert "held longest: 0." in text
    assert "by thread 'MainThread'" in text
    assert isinstance(caught.value, pymysql.err.OperationalError)
    assert ", for '" not in text
    assert isinstance(caught.value, TooManyConnectionsError)
    assert pool.stats().timeouts == 1

    with pool.connection(endpoint="shop.slow"):
        with pytest.raises(
            PoolTimeout, match="by thread 'MainThread', for 'shop.slow'"
        ):
            pool.connection(timeout=0)


def test_who_times_out_loses_no_connection(threads: Threads) -> None:
    pool = FakePool(MAX_SIZE=2, TIMEOUT=30)

    def use() -> None:
        try:
            pool.connection(timeout=0.0005).close()
        except PoolTimeout:
            pass

    for future in [threads.submit(use) for _ in range(3000)]:
        future.result()

    until(lambda: pool.stats().connecting == 0)
    assert pool.stats().in_use == pool.stats().waiting == 0


def test_the_one_too_many_in_line_is_refused_at_once(
    threads: Threads,
) -> None:
    pool = FakePool(MAX_SIZE=1, MAX_WAITING=1)
    held = pool.connection()
    [first] = in_line(pool, threads, 1)

    with pytest.raises(PoolFull, match="1 checkouts are waiting"):
        pool.connection(timeout=60)

    held.close()
    first.result().close()


def test_a_returned_connection_serves_a_waiter_whose_own_connect_hangs(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=2)
    gate.tickets.release()
    held = pool.connection()
    [waiter] = in_line(pool, threads, 1)
    gate.arrived.acquire()

    held.close()

    assert number(waiter.result(timeout=5)) == 1


def test_the_connect_of_somebody_served_goes_to_the_next(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=2)
    gate.tickets.release()
    held = pool.connection()
    first, second = in_line(pool, threads, 2)
    held.close()
    first.result(timeout=5)

    gate.tickets.release()

    assert number(second.result(timeout=5)) == 2
    assert pool.connects == 2


def test_one_hung_connect_delays_nobody_else(gate: Gate, threads: Threads) -> None:
    pool = FakePool(gate, MAX_SIZE=3)
    first, second = in_line(pool, threads, 2)
    gate.arrived.acquire()
    gate.arrived.acquire()

    gate.tickets.release()

    until(lambda: first.done() or second.done())


def test_many_waiters_start_few_connects_while_others_may_return(
    gate: Gate, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flask_mysqlpool.pool.state, "CONNECT_DELAY", 60)
    pool = FakePool(gate, MAX_SIZE=10)
    gate.tickets.release()
    held = pool.connection()

    futures = in_line(pool, threads, 20)

    assert pool.stats().connecting == 1
    held.close()
    for future in futures:
        future.result(timeout=5).close()


def test_a_failed_connect_gives_its_error_to_its_waiter(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=2)
    [waiter] = in_line(pool, threads, 1)
    gate.error = DOWN

    gate.tickets.release()

    with pytest.raises(pymysql.err.OperationalError, match="2003"):
        waiter.result(timeout=5)
    assert pool.stats().size == 0


def test_a_failed_connect_gives_its_error_to_all_who_have_nothing_to_hope_for(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=1)
    waiters = in_line(pool, threads, 5)
    gate.error = DOWN

    gate.tickets.release()

    errors = [waiter.exception(timeout=5) for waiter in waiters]
    assert [error.args[0] for error in errors if error] == [2003] * 5
    assert len(set(map(id, errors))) == 5
    assert pool.connects == 1


def test_a_failed_connect_leaves_its_error_as_the_cause_of_a_timeout(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=2)
    gate.tickets.release()
    with pool.connection():
        first, second = in_line(pool, threads, 2, timeout=0.5)
        gate.error = DOWN
        gate.tickets.release()
        raised = first.exception(timeout=5)
        assert isinstance(raised, ServerUnavailable) and raised.args == DOWN.args
        error = second.exception(timeout=5)

    assert isinstance(error, PoolTimeout)
    assert repr(error.__cause__) == repr(raised)


def test_a_thread_that_cannot_be_started_is_an_error_and_costs_no_place(
    monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> None:
    def start(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    pool = FakePool(MAX_SIZE=1)
    no_threads = SimpleNamespace(start_new_thread=start)
    monkeypatch.setattr(flask_mysqlpool.pool.pool, "_thread", no_threads)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.connection()
    stats = pool.stats()
    assert (stats.size, stats.connecting, stats.waiting) == (0, 0, 0)
    monkeypatch.undo()

    pool.connection(timeout=5).close()

    assert pool.stats().size == pool.connects == 1


def test_connects_pause_longer_and_longer_while_they_fail() -> None:
    def fail() -> None:
        raise DOWN

    pool = FakePool(fail)
    for _ in range(4):
        with pytest.raises(pymysql.err.OperationalError, match="2003"):
            pool.connection()

    pause = pool._state.connects.next_chance(0) - flask_mysqlpool.pool.pool.monotonic()
    assert 4 * FIRST_PAUSE * 0.9 < pause
    assert pool.connects == 4


def test_the_first_success_releases_everybody(gate: Gate, threads: Threads) -> None:
    pool = FakePool(gate, MAX_SIZE=8)
    gate.error = DOWN
    gate.tickets.release()
    with pytest.raises(pymysql.err.OperationalError):
        pool.connection()
    gate.error = None

    waiters = in_line(pool, threads, 8)
    gate.tickets.release(8)

    for waiter in waiters:
        waiter.result(timeout=5)
    assert pool.stats().in_use == 8


def test_a_dead_connection_is_replaced_and_its_place_is_free_again() -> None:
    pool = FakePool(MAX_SIZE=1)
    with pool.connection() as connection:
        connection._con.alive = False  # type: ignore[union-attr]

    with pool.connection() as connection:
        assert number(connection) == 2
    assert pool.stats().discarded_by_reason == {"dead": 1}
    assert pool.open_most == 1


def test_who_is_handed_a_dead_connection_is_still_first_in_line(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=1)
    gate.tickets.release()
    held = pool.connection()
    first, second = in_line(pool, threads, 2)
    held._con.alive = False  # type: ignore[union-attr]

    held.close()
    gate.tickets.release()

    assert number(first.result(timeout=5)) == 2
    assert not second.done()


def refuse(*_: object) -> None:
    raise DOWN


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda con: setattr(con, "clean", False), "reset_failed"),
        (lambda con: setattr(con, "reset_session", refuse), "reset_failed"),
        (lambda con: setattr(con, "expires", 0), "expired"),
        (lambda con: setattr(con, "lost", DOWN), "dead"),
        (lambda con: setattr(con, "generation", -1), "invalidated"),
    ],
)
def test_what_cannot_be_lent_again_is_discarded_on_return(
    spoil: Callable[[Any], None], reason: str
) -> None:
    pool = FakePool()
    connection = pool.connection()
    spoil(connection._con)

    connection.close()

    assert pool.stats().discarded_by_reason == {reason: 1}
    assert pool.open_now == 0


def test_a_connection_is_lent_max_usage_times() -> None:
    pool = FakePool(MAX_USAGE=3)

    numbers = []
    for _ in range(7):
        with pool.connection() as connection:
            numbers.append(number(connection))

    assert numbers == [1, 1, 1, 2, 2, 2, 3]


def test_lifetimes_differ_by_ten_percent_either_way() -> None:
    pool = FakePool(MAX_LIFETIME=100, MAX_SIZE=200)
    connections = [pool.connection() for _ in range(200)]
    lives = [c._con.expires - c._con.opened for c in connections]  # type: ignore[union-attr]
    for connection in connections:
        connection.close()

    assert 90 <= min(lives) < 94
    assert 106 < max(lives) <= 110


def test_without_max_lifetime_they_never_get_too_old() -> None:
    pool = FakePool(MAX_LIFETIME=0)

    with pool.connection() as connection:
        assert connection._con is not None
        assert connection._con.expires == float("inf")


def test_reset_replaces_idle_ones_now_and_the_others_as_they_come_back() -> None:
    pool = FakePool()
    idle, busy = pool.connection(), pool.connection()
    idle.close()

    pool.reset()

    assert pool.open_now == 1
    assert pool.stats().generation == 1
    busy.close()
    assert pool.open_now == 0
    assert pool.stats().discarded_by_reason == {"invalidated": 2}


def test_one_that_was_being_opened_at_a_reset_is_replaced_as_well(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=1)
    [waiter] = in_line(pool, threads, 1)
    assert gate.arrived.acquire(timeout=5)

    pool.reset()
    gate.tickets.release(2)

    assert number(waiter.result(timeout=5)) == 2
    assert pool.stats().discarded_by_reason == {"invalidated": 1}
    assert pool.open_now == 1


def test_one_that_was_being_opened_as_the_pool_was_closed_is_closed(
    gate: Gate, threads: Threads
) -> None:
    pool = FakePool(gate, MAX_SIZE=1)
    [waiter] = in_line(pool, threads, 1)
    assert gate.arrived.acquire(timeout=5)

    pool.close()
    gate.tickets.release()

    with pytest.raises(PoolClosed):
        waiter.result(timeout=5)
    until(lambda: pool.connects == 1 and pool.open_now == 0)


def test_a_disconnect_under_one_connection_replaces_all_older_ones() -> None:
    pool = FakePool()
    idle, broken = pool.connection(), pool.connection()
    idle.close()
    broken._con.lost = DOWN  # type: ignore[union-attr]
    broken._con.is_disconnected = True  # type: ignore[union-attr]
    broken.close()

    with pool.connection() as connection:
        assert number(connection) == 3


def test_a_closed_pool_is_closed_for_good(threads: Threads) -> None:
    pool = FakePool(MAX_SIZE=1)
    held = pool.connection()
    [waiter] = in_line(pool, threads, 1)

    pool.close()
    pool.close()

    with pytest.raises(PoolClosed):
        waiter.result(timeout=5)
    with pytest.raises(PoolClosed):
        pool.connection()
    held.close()
    assert pool.open_now == 0


@pytest.mark.parametrize("copy", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_connection_cannot_be_copied(copy: Callable[[Any], object]) -> None:
    pool = FakePool()
    with pool.connection() as connection:
        with pytest.raises(TypeError, match="cannot be copied"):
            copy(connection)
        assert connection.thread_id() == 1


def test_returning_twice_returns_once() -> None:
    pool = FakePool()
    first = pool.connection()
    first.close()
    second = pool.connection()

    first.close()

    assert pool.stats().in_use == 1
    second.close()


def test_an_interrupted_wait_leaves_nobody_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    held = pool.connection()

    def interrupt(waiter: Any, seconds: float) -> None:
        held.close()  # it is being served at this very moment
        raise KeyboardInterrupt

    monkeypatch.setattr(flask_mysqlpool.pool.waiters.Waiter, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pool.connection()

    assert pool.stats().waiting == 0
    assert pool.stats().idle == 1


class JobLimit(AssertionError):
    """As some libraries raise it where a signal finds the job."""


@pytest.mark.parametrize("moment", ["checkout", "checkin"])
def test_a_time_limit_comes_out_whatever_its_class(
    monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise JobLimit

    pool = FakePool(MAX_SIZE=1, PING_AFTER=0.01)
    connection = pool.connection()
    if moment == "checkin":
        monkeypatch.setattr(FakeConnection, "reset_session", interrupt)
        with pytest.raises(JobLimit):
            connection.close()
    else:
        connection.close()
        until(lambda: pool.connections()[0].since > 0.05)
        monkeypatch.setattr(FakeConnection, "ping", interrupt)
        with pytest.raises(JobLimit):
            pool.connection()

    assert pool.stats().discarded_by_reason == {"reset_failed": 1}
    assert (pool.stats().in_use, pool.stats().waiting) == (0, 0)


def test_a_checkout_that_is_not_done_holds_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> None:
    leaks: list[str] = []

    class Ear(Observer):
        def leaked(self, pool: str, endpoint: str | None, report: str) -> None:
            leaks.append(report)

    asked, answer = threading.Event(), threading.Event()

    def ping(con: object, deadline: float) -> None:
        asked.set()
        answer.wait(30)

    pool = FakePool(MAX_SIZE=1, PING_AFTER=0.01, LEAK_THRESHOLD=0.01)
    pool.add_observer(Ear())
    pool.connection().close()
    monkeypatch.setattr(FakeConnection, "ping", ping)
    until(lambda: pool.connections()[0].since > 0.05)
    late = threads.submit(pool.connection)
    try:
        assert asked.wait(10)
        pool.maintain()
        assert not leaks
        with pytest.raises(PoolTimeout) as caught:
            pool.connection(timeout=0.01)
        assert "in use 1/1" in str(caught.value)
        assert "held" not in str(caught.value) and "itself" not in str(caught.value)
    finally:
        answer.set()
    late.result().close()


def test_a_connect_for_no_checkout_wakes_one_when_it_is_postponed(
    threads: Threads,
) -> None:
    looks, has_room = threading.Event(), threading.Event()

    class Coordinator:
        def wake(self) -> None: ...

        closed = wake

        def before_connect(self) -> None:
            looks.wait(10)

        def take_host_slot(self) -> object:
            return object() if has_room.is_set() else None

    pool = FakePool(MAX_SIZE=1)
    pool.coordinator = Coordinator()
    pool.probe()
    waiting_one = threads.submit(pool.connection, timeout=60)
    waiting(pool, 1)
    looks.set()
    until(lambda: pool._state.host_limit_reached)
    has_room.set()
    waiting_one.result(timeout=20).close()


def test_with_a_timeout_of_0_a_failed_connect_is_no_timeout() -> None:
    main = threading.get_ident()
    has_looked = threading.Event()

    def refuse() -> None:
        raise DOWN

    pool = FakePool(refuse, MAX_SIZE=1)
    lock = pool._state.lock

    class Slow:
        """After what another thread does, this one has time to look."""

        _is_owned = lock._is_owned

        def __enter__(self) -> None:
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()
            if threading.get_ident() != main:
                has_looked.wait(0.2)

    pool._state.lock = Slow()
    try:
        with pytest.raises(pymysql.err.OperationalError, match="2003"):
            pool.connection(timeout=0)
    finally:
        has_looked.set()
    assert pool.stats().timeouts == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_handle_that_is_dropped_gives_its_place_back_but_not_its_session() -> None:
    pool = FakePool(MAX_SIZE=1)

    for expected in (1, 2, 3):
        connection = pool.connection()
        assert number(connection) == expected
        del connection

    until(lambda: pool.open_now == 0)


def test_connections_idle_for_too_long_are_closed_down_to_min_size() -> None:
    pool = FakePool(MAX_IDLE=1e-9, MIN_SIZE=1)
    connections = [pool.connection() for _ in range(3)]
    for connection in connections:
        connection.close()

    assert pool.maintain()

    assert pool.open_now == 1
    assert pool.stats().discarded_by_reason == {"idle": 2}


def test_min_size_is_filled_after_the_first_checkout() -> None:
    pool = FakePool(MIN_SIZE=3)

    pool.connection().close()

    until(lambda: pool.stats().idle == 3)
    assert pool.connects == 3


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("ask", [FakePool.stats, FakePool.reset, FakePool.close, repr])
def test_without_fork_hooks_a_child_can_ask_a_pool_whose_lock_was_held(
    ask: Callable[[FakePool], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = FakePool()
    monkeypatch.setattr(flask_mysqlpool.pool.pool, "_POOLS", [])  # nothing for the hook
    held, fork = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._state.lock:
            held.set()
            fork.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)

    child = os.fork()
    if child == 0:
        signal.alarm(5)
        ask(pool)
        os._exit(0)
    fork.set()
    thread.join()

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_starts_its_own_pool() -> None:
    pool = FakePool(MAX_SIZE=2)
    held = pool.connection()
    pool.connection().close()

    child = os.fork()
    if child == 0:
        try:
            stats = pool.stats()
            with pool.connection():
                ok = stats.size == 0 and pool.stats().in_use == 1
            os._exit(0 if ok else 1)
        finally:
            os._exit(2)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert pool.stats().size == 2
    held.close()


def test_its_repr_is_its_state() -> None:
    pool = FakePool(NAME="shop", HOST="db", PORT=3307, DATABASE="shop", MAX_SIZE=2)

    with pool.connection():
        assert repr(pool) == (
            "<FakePool 'shop' at db:3307/shop:"
            " in use 1/2, idle 0, connecting 0, waiting 0>"
        )
