"""Signals, finalizers and asynchronous exceptions, whenever they can come.

CPython runs a signal's handler between two instructions: on entering a function, after
a call, and at the end of a loop. A trace function plays the signal at each in turn.
"""

from __future__ import annotations

import gc
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any

import pytest
from conftest import MakePool, Sql
from interrupts import OURS, Interrupt, Signals, at_rest

from flask_mysqlpool import Pool, PoolClosed, PooledConnection, PoolError
from flask_mysqlpool.pool.state import CONNECT_DELAY
from flask_mysqlpool.pool.transaction import transaction
from flask_mysqlpool.pool.waiters import Waiter
from flask_mysqlpool.testing.fake_driver import FakeConnection, FakePool

GONE = ConnectionResetError("gone")


pytestmark = [
    # What is dropped on the way says so, and there it cannot be raised.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class SoftLimit(Exception):
    """As a job queue's time limit raises it."""


def interrupt() -> None:
    raise Interrupt


def until(condition: Callable[[], bool], or_say: Signals | None = None) -> None:
    """Wait for what other threads do at once; say after which signal they did not."""
    end = time.monotonic() + 10
    while not condition():
        if sys.implementation.name != "cpython":
            gc.collect()  # what was dropped is freed at some time only
        after = f" after a signal in {or_say.where}" if or_say else ""
        assert time.monotonic() < end, f"waited in vain{after}"
        time.sleep(0.0005)


def use(pool: Pool) -> None:
    with pool.connection() as connection:
        connection.thread_id()


def use_after_a_loss(pool: Pool) -> None:
    with pool.connection() as connection:
        assert connection._con is not None
        connection._con.lost = GONE
        connection.rollback()
        connection.thread_id()


def query(pool: Pool) -> None:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        cursor.fetchall()
        connection.commit()
        cursor.execute("SELECT 2")


def query_after_a_loss(pool: Pool) -> None:
    with pool.connection() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert connection._con is not None
        connection._con.interrupt()
        with suppress(Exception):
            cursor.execute("SELECT 2")
        connection.rollback()
        cursor.execute("SELECT 3")


def keep_idle(pool: Pool) -> None:
    pool.connection().close()


def start_anew(pool: Pool) -> None:
    pool.reset()


IDLE_NEW_LOST = ["idle", "new", "lost"]


@pytest.mark.parametrize(
    ("prepare", "work"),
    [(keep_idle, use), (start_anew, use), (keep_idle, use_after_a_loss)],
    ids=IDLE_NEW_LOST,
)
def test_an_interrupt_at_any_moment_leaves_nothing_behind(
    prepare: Callable[[Pool], None], work: Callable[[Pool], None]
) -> None:
    pool = FakePool(MAX_SIZE=2, TIMEOUT=5)
    signals = Signals(interrupt)

    for moment in count(1):
        prepare(pool)
        if not signals.sent_during(lambda: work(pool), moment):
            break
        until(lambda: at_rest(pool), or_say=signals)

    assert moment > 20
    assert pool.open_now == pool.stats().idle
    assert pool.open_most <= 2
    use(pool)


@pytest.mark.parametrize(
    ("prepare", "work"),
    [(keep_idle, query), (start_anew, query), (keep_idle, query_after_a_loss)],
    ids=IDLE_NEW_LOST,
)
def test_an_interrupt_at_any_moment_of_a_query_leaves_nothing_behind(
    make_pool: MakePool,
    prepare: Callable[[Pool], None],
    work: Callable[[Pool], None],
) -> None:
    pool = make_pool(MAX_SIZE=2)
    signals = Signals(interrupt)

    # Every moment would take long; each run begins with another.
    for moment in count(random.randint(1, 3), 3):
        prepare(pool)
        if not signals.sent_during(lambda: work(pool), moment):
            break
        until(lambda: at_rest(pool), or_say=signals)

    assert moment > 60
    query(pool)


def insert(connection: PooledConnection, *values: int) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO t (a) SELECT %s", [(a,) for a in values])


def insert_within(connection: PooledConnection, *values: int) -> None:
    with transaction(connection), connection.cursor() as cursor:
        for value in values:
            cursor.execute("INSERT INTO t (a) VALUES (%s)", (value,))


@pytest.mark.parametrize("work", [insert, insert_within])
def test_a_block_that_catches_an_interrupt_is_still_all_or_nothing(
    make_pool: MakePool, table: str, sql: Sql, work: Callable[..., None]
) -> None:
    pool = make_pool(AUTOCOMMIT=True)
    signals = Signals(interrupt)

    for moment in count(random.randint(1, 2), 2):
        sql("DELETE FROM t")
        came = ended = False
        with suppress(PoolError), pool.connection() as connection:
            with transaction(connection):
                came = signals.sent_during(lambda: work(connection, 1, 2), moment)
                insert_within(connection, 3)
            ended = True
        until(lambda: at_rest(pool), or_say=signals)
        stored = [a for (a,) in sql("SELECT a FROM t ORDER BY a FOR UPDATE")]
        possible = [[3], [1, 2, 3]] if ended else [[]]
        assert stored in possible, signals.where
        if not came:
            break

    assert moment > 60


def test_an_alarm_at_random_moments_costs_no_place(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's would keep alive what an interrupted Thread.start() leaves.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    pool = make_pool(MAX_SIZE=100)
    alarms = 0

    def ring(*args: object) -> None:
        raise SoftLimit

    with alarm_handled_by(ring):
        # Longer than 2 s only where the machine is busy with something else.
        begun = time.monotonic()
        while (took := time.monotonic() - begun) < 2 or (alarms <= 50 and took < 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, random.uniform(2e-5, 8e-4))
                for _ in range(100):
                    query(pool)
            except SoftLimit:
                alarms += 1
            except Exception:
                # What it was in became of no use to the statement after it.
                signal.setitimer(signal.ITIMER_REAL, 0)

    gc.collect()
    assert alarms > 50
    until(lambda: at_rest(pool))
    query(pool)


@contextmanager
def alarm_handled_by(handler: Callable[..., object]) -> Iterator[None]:
    """SIGALRM and its timer, which pytest-timeout uses too."""
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


@pytest.mark.parametrize("ask", [Pool.stats, repr, Pool.reset, Pool.close])
@pytest.mark.parametrize("work", [use, use_after_a_loss])
def test_a_signal_handler_may_ask_the_pool_at_any_moment(
    ask: Callable[[Pool], object], work: Callable[[Pool], None]
) -> None:
    for moment in count(1):
        pool = FakePool(MAX_SIZE=2, TIMEOUT=5, MIN_SIZE=1)
        if moment % 2:
            keep_idle(pool)
        signals = Signals(lambda: ask(pool))  # noqa: B023
        with suppress(PoolClosed):
            if not signals.sent_during(lambda: work(pool), moment):  # noqa: B023
                break
        until(lambda: at_rest(pool), or_say=signals)  # noqa: B023
        assert pool.open_most <= 2
        pool.close()
        until(lambda: pool.open_now == pool.stats().size == 0)  # noqa: B023

    assert moment > 20


def test_an_interrupted_return_serves_who_waits_with_what_stays_open() -> None:
    signals = Signals(interrupt)
    for moment in count(1):
        pool = FakePool(MAX_SIZE=1, TIMEOUT=30)
        held = pool.connection()
        with ThreadPoolExecutor() as executor:
            waiter = executor.submit(pool.connection)
            until(lambda: pool.stats().waiting == 1)  # noqa: B023
            interrupted = signals.sent_during(held.close, moment)
            held.close()
            del held
            pool.maintain()
            connection = waiter.result(timeout=5)
            pool.maintain()
            assert connection._con is not None
            assert not connection._con.closed, signals.where
            connection.close()
        until(lambda: at_rest(pool), or_say=signals)  # noqa: B023
        if not interrupted:
            break

    assert moment > 15


@pytest.mark.parametrize("work", [use, start_anew, Pool.close, Pool.maintain])
def test_a_signal_handler_that_takes_a_connection_gets_one_or_is_refused(
    work: Callable[[Pool], object],
) -> None:
    refused = 0

    def take() -> None:
        nonlocal refused
        try:
            use(pool)
        except PoolClosed:
            pass
        except PoolError as error:
            assert "a signal handler" in str(error)
            refused += 1

    signals = Signals(take)
    for moment in count(1):
        pool = FakePool(MAX_SIZE=2, TIMEOUT=5)
        keep_idle(pool)
        if not signals.sent_during(lambda: work(pool), moment):  # noqa: B023
            break
        until(lambda: at_rest(pool), or_say=signals)  # noqa: B023
        stats = pool.stats()
        assert pool.open_most <= 2
        assert stats.opened - stats.discarded == stats.idle == pool.open_now

    assert refused > 0


def test_closing_the_pool_in_a_signal_handler_disturbs_nobody_in_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    held = pool.connection()
    with ThreadPoolExecutor() as executor:
        waiters = [executor.submit(pool.connection) for _ in range(2)]
        until(lambda: pool.stats().waiting == 2)
        assert held._con is not None
        held._con.lost = GONE
        in_the_line = len(pool._state.waiters)

        def connecting(waiter: Waiter[Any]) -> bool:
            in_the_middle = waiter in pool._state.waiters
            if threading.current_thread() is threading.main_thread():
                pool.close()
            return in_the_middle

        monkeypatch.setattr(Waiter, "connecting", property(connecting))
        held.close()

        assert in_the_line == 2
        for waiter in waiters:
            assert isinstance(waiter.exception(timeout=5), PoolClosed)
    assert pool.open_now == 0


def test_an_interrupt_while_an_answer_is_awaited_costs_the_connection_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    connection = pool.connection()
    con: Any = connection._con
    connection.close()
    con.unanswered = 1
    con.read_answers = lambda _: interrupt()

    with pytest.raises(Interrupt):
        pool.connection()

    assert con.closed
    assert pool.stats().size == 0
    pool.connection().close()


def test_who_was_interrupted_inside_and_closes_frees_the_place() -> None:
    """Between getting in and the ``try`` that leaves again, an interrupt may come."""
    pool = FakePool(MAX_SIZE=1)
    connection = pool.connection()
    connection._enter()

    connection.close()

    assert pool.open_now == 0
    assert pool.stats().discarded_by_reason == {"dead": 1}
    pool.connection().close()


@pytest.mark.parametrize("replace", [Pool.reset, Pool.close])
def test_an_interrupted_reset_keeps_no_place(
    replace: Callable[[Pool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = FakePool(MAX_SIZE=3)
    for connection in [pool.connection() for _ in range(3)]:
        connection.close()
    monkeypatch.setattr(FakeConnection, "close", lambda _: interrupt())
    with pytest.raises(Interrupt):
        replace(pool)
    monkeypatch.undo()

    until(lambda: at_rest(pool))

    assert pool.open_now == 0


def test_somebody_interrupted_on_joining_the_line_does_not_stand_in_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=30)
    held = pool.connection()
    monkeypatch.setattr(Pool, "_wait", lambda *_: interrupt())
    with pytest.raises(Interrupt):
        pool.connection()
    monkeypatch.undo()
    with ThreadPoolExecutor() as executor:
        waiter = executor.submit(pool.connection)
        until(lambda: any(one.owner() for one in tuple(pool._state.waiters)))
        time.sleep(2 * CONNECT_DELAY)  # until nobody looks around without being told
        assert held._con is not None
        held._con.lost = GONE
        held.close()

        waiter.result(timeout=5).close()

    assert at_rest(pool)


def test_an_interrupted_waiter_hands_on_the_ring_that_came_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=30)
    held = pool.connection()
    wait = Waiter.wait
    armed = threading.Event()

    def wait_and_be_interrupted(waiter: Waiter[Any], seconds: float) -> None:
        wait(waiter, seconds)
        if armed.is_set():
            armed.clear()
            raise Interrupt

    monkeypatch.setattr(Waiter, "wait", wait_and_be_interrupted)
    with ThreadPoolExecutor() as executor:
        waiters = [executor.submit(pool.connection) for _ in range(2)]
        until(lambda: pool.stats().waiting == 2)
        time.sleep(2 * CONNECT_DELAY)  # until nobody looks around without being told
        assert held._con is not None
        held._con.lost = GONE
        armed.set()
        held.close()

        got = [waiter.exception(timeout=5) for waiter in waiters]

        assert sorted(map(type, got), key=str) == [type(None), Interrupt]
        for waiter, error in zip(waiters, got, strict=True):
            if error is None:
                waiter.result().close()


def stream(pool: Pool) -> Iterator[PooledConnection]:
    with pool.connection() as connection:
        yield connection


def test_an_abandoned_stream_may_be_collected_while_its_thread_has_the_lock() -> None:
    pool = FakePool(MAX_SIZE=1)
    abandoned = stream(pool)
    next(abandoned)

    with pool._state.lock:
        del abandoned
        gc.collect()

    until(lambda: at_rest(pool))
    assert pool.open_now == 0
    use(pool)


def test_a_dropped_handle_may_be_reported_while_its_thread_has_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = FakePool(MAX_SIZE=1)
    reports: list[str] = []
    connection = pool.connection()
    use_of_it = connection.thread_id()

    with warnings.catch_warnings(), pool._state.lock:
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda *_: reports.append(repr(pool))
        )
        del connection
        gc.collect()

    assert use_of_it == 1
    assert len(reports) == 1
    until(lambda: at_rest(pool))


def test_a_handle_that_outlives_its_modules_says_nothing() -> None:
    program = """
import os, warnings
warnings.simplefilter("error")
from flask_mysqlpool.testing.fake_driver import FakePool
handle = FakePool().connection()
os.last_to_go = lambda: handle
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30)

    assert (ended.stdout, ended.stderr, ended.returncode) == ("", "", 0)


def test_what_was_dropped_is_counted_once_however_it_is_found() -> None:
    pool = FakePool(MAX_SIZE=2)
    connection = pool.connection()
    con, connection._con = connection._con, None
    del connection
    pool.maintain()  # finds that its owner is gone

    assert con is not None
    pool.dropped(con)  # its finalizer was slower
    pool.maintain()

    stats = pool.stats()
    assert (stats.discarded, stats.checkouts, stats.size) == (1, 1, 0)


def test_no_frame_of_a_failed_checkout_outlives_it() -> None:
    down: list[Exception] = []

    def connect() -> None:
        if down:
            raise down[0]

    def view(pool: Pool) -> None:
        rows = stream(pool)
        next(rows)
        down.append(OSError("down"))
        pool.connection()

    pool = FakePool(connect, MAX_SIZE=3)
    with suppress(OSError):
        view(pool)
    down.clear()
    gc.collect()

    until(lambda: at_rest(pool))


def test_a_lost_connection_whose_handle_is_dropped_gives_its_place_back(
    make_pool: MakePool,
) -> None:
    pool = make_pool(MAX_SIZE=1)
    for _ in range(3):
        with suppress(Exception):
            pool.connection().cursor().execute("KILL CONNECTION_ID()")
        until(lambda: at_rest(pool))
    query(pool)


def test_the_moments_are_in_all_of_these_modules(make_pool: MakePool) -> None:
    """A module that moves would be left out, and nothing would fail."""
    pool = make_pool(MAX_SIZE=1)
    signals = Signals(lambda: None)

    def use() -> None:
        with pool.connection() as connection, transaction(connection):
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
                assert cursor.fetchall() == ((1,),)

    assert not signals.sent_during(use, 1_000_000)

    assert {*OURS} <= signals.traced
