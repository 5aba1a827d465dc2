"""Whatever ends a step, and whatever is decided meanwhile, is settled with it.

Each call into foreign code (the network, observers, handlers of logging, the other
processes of the host, the start of a thread) fails in turn, and is kept as an error
that keeps the frames it went through. Between any two instructions outside the lock
another thread's order comes.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import gc
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
from conftest import until
from interrupts import Signals, at_rest

from flask_mysqlpool import Pool, PoolClosed, PooledConnection, PoolError, PoolTimeout
from flask_mysqlpool.pool import state
from flask_mysqlpool.pool.maintenance import MaintenanceThread
from flask_mysqlpool.pool.stats import Observer
from flask_mysqlpool.testing.fake_driver import FakePool
from flask_mysqlpool.workers.host_limit import HostLimit
from flask_mysqlpool.workers.status_dir import StatusDir

pytestmark = [
    # What is dropped on the way says so.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Slot:
    """One of the host's places."""


class Foreign(Observer, logging.Handler):
    """All that is not the pool's; the n-th call into it raises."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.slots: WeakSet[Slot] = WeakSet()
        self._error: type[BaseException] = OSError
        self._left = 0
        for event in vars(Observer):
            if not event.startswith("_"):
                setattr(self, event, self.call)

    def raise_at(self, moment: int, error: type[BaseException]) -> None:
        self._left, self._error = moment, error

    def forgive(self) -> bool:
        """Raise no more; whether it has come to that."""
        left, self._left = self._left, 0
        return left <= 0

    def call(self, *_: object) -> None:
        if self._left > 0:
            self._left -= 1
            if self._left == 0:
                self._left = -1
                raise self._error("foreign")

    wake = before_connect = closed = call

    def emit(self, record: logging.LogRecord) -> None:
        record.exc_info = None  # pytest keeps it, and so the frames of what was dropped
        self.call()

    def take_host_slot(self) -> Slot:
        self.call()
        slot = Slot()
        self.slots.add(slot)
        return slot


class Fragile(FakePool):
    """A pool whose every call into foreign code may fail."""

    def __init__(self, foreign: Foreign, **settings: Any) -> None:
        self.foreign = foreign
        super().__init__(foreign.call, TIMEOUT=5, **settings)
        self.coordinator = foreign
        self.add_observer(foreign)

    def io(self) -> None:
        super().io()
        self.foreign.call()


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Iterator[Foreign]:
    foreign = Foreign()
    start, watch = _thread.start_new_thread, MaintenanceThread.watch

    def start_or_fail(*args: Any) -> int:
        try:
            foreign.call()
        except BaseException:
            del args  # as what is written in C keeps nothing
            raise
        return start(*args)

    def watch_or_fail(*args: Any) -> None:
        foreign.call()
        watch(*args)

    monkeypatch.setattr(_thread, "start_new_thread", start_or_fail)
    monkeypatch.setattr(MaintenanceThread, "watch", watch_or_fail)
    monkeypatch.setattr(logging, "raiseExceptions", False)
    # What has failed is tried again soon.
    for pause in ("FIRST_PAUSE", "LONGEST_PAUSE", "POSTPONEMENT"):
        monkeypatch.setattr(state, pause, 0.001)
    logger = logging.getLogger("flask_mysqlpool")
    logger.addHandler(foreign)
    yield foreign
    logger.removeHandler(foreign)


def idle(pool: Pool, number: int = 1) -> list[Any]:
    for connection in [pool.connection() for _ in range(number)]:
        connection.close()
    return list(pool._state.idle)


def use(pool: Pool) -> None:
    with pool.connection() as connection:
        connection.thread_id()


def use_one_that_is_idle(pool: Pool) -> None:
    idle(pool)
    use(pool)


def use_one_that_is_dead(pool: Pool) -> None:
    [con] = idle(pool)
    con.alive = False
    use(pool)


def use_one_that_has_to_answer(pool: Pool) -> None:
    for con in idle(pool, 2):
        con.unanswered = 1
    use(pool)


def use_one_that_was_idle_for_long(pool: Pool) -> None:
    [con] = idle(pool)
    con.fresh_until, con.since, con.asked = 0.0, -1e9, -1e9
    use(pool)


def lose_one_and_go_on(pool: Pool) -> None:
    with pool.connection() as connection:
        assert connection._con is not None
        connection._con.lost = ConnectionResetError("gone")
        connection.rollback()
        connection.thread_id()


def return_one_that_cannot_be_cleaned(pool: Pool) -> None:
    connection: Any = pool.connection()
    connection._con.clean = False
    connection._con.login.obstacle = "the server refuses"
    connection.close()


def drop_one(pool: Pool) -> None:
    connection = pool.connection()
    connection.thread_id()
    del connection
    gc.collect(0)
    pool.maintain()


def leak_one(pool: Pool) -> None:
    with pool.connection():
        pool.maintain()


def replace_all(pool: Pool) -> None:
    idle(pool, 2)
    pool.reset()


def pause(pool: Pool) -> None:
    idle(pool, 2)
    try:
        pool.pause()
    finally:
        pool.resume()


def shrink(pool: Pool) -> None:
    idle(pool, 2)
    try:
        pool.limit(1)
    finally:
        pool.limit(2)


def look_after_what_is_old_or_dead(pool: Pool) -> None:
    for con in idle(pool, 2):
        con.expires = 0.0
    pool.maintain()
    for con in idle(pool, 2):
        con.alive = False
    pool.discard_dead()


def look_for_the_server(pool: Pool) -> None:
    pool.probe()
    until(lambda: pool.stats().connecting == 0)


@pytest.mark.parametrize("error", [OSError, SystemExit])
@pytest.mark.parametrize(
    "work",
    [
        *(use, use_one_that_is_idle, use_one_that_is_dead, use_one_that_has_to_answer),
        *(use_one_that_was_idle_for_long, lose_one_and_go_on),
        *(return_one_that_cannot_be_cleaned, drop_one, leak_one),
        *(replace_all, pause, shrink, Pool.close),
        *(look_after_what_is_old_or_dead, look_for_the_server),
    ],
)
def test_whatever_fails_in_a_step_all_that_it_took_is_given_back(
    foreign: Foreign, work: Callable[[Pool], object], error: type[BaseException]
) -> None:
    kept: list[BaseException] = []
    for moment in count(1):
        pool = Fragile(foreign, MAX_SIZE=2, LEAK_THRESHOLD=1e-9)
        foreign.raise_at(moment, error)
        try:
            work(pool)
        except BaseException as failure:
            kept.append(failure)
        failed = foreign.forgive()

        until(lambda: at_rest(pool))  # noqa: B023
        assert pool.open_now == pool.stats().idle == len(foreign.slots), moment
        assert pool.open_most <= 2
        if not pool.stats().closed:
            use(pool)
            assert pool.stats().waiting == 0
        pool.close()
        assert pool.open_now == pool.stats().size == len(foreign.slots) == 0
        if not failed:
            break

    assert moment > 1


# What was decided meanwhile


def end(pool: Pool) -> None:
    pool.close()


def halt(pool: Pool) -> None:
    pool.pause()


def renew(pool: Pool) -> None:
    pool.reset()


def narrow(pool: Pool) -> None:
    pool.limit(0)


def give_back(pool: Pool, held: PooledConnection) -> None:
    held.close()


def give_back_to_one_in_line(pool: Pool, held: PooledConnection) -> None:
    held.close()
    use(pool)


def take_another(pool: Pool, held: PooledConnection) -> None:
    with held:
        use(pool)


def take_one_that_has_to_answer(pool: Pool, held: PooledConnection) -> None:
    con: Any = held._con
    held.close()
    con.unanswered, con.read_answers = 1, lambda _: setattr(con, "unanswered", 0)
    use(pool)


@pytest.mark.parametrize("order", [end, halt, renew, narrow])
@pytest.mark.parametrize(
    "work",
    [give_back, give_back_to_one_in_line, take_another, take_one_that_has_to_answer],
)
def test_an_order_between_any_two_instructions_concerns_what_is_settled_after_it(
    monkeypatch: pytest.MonkeyPatch,
    order: Callable[[Pool], None],
    work: Callable[[Pool, PooledConnection], None],
) -> None:
    # On the thread that is watched.
    monkeypatch.setattr(_thread, "start_new_thread", lambda f, args: f(*args))
    monkeypatch.setattr(MaintenanceThread, "watch", lambda *_: None)

    def let_it_come() -> None:
        if not pool._state.lock._is_owned():
            order(pool)

    signals = Signals(let_it_come)
    for moment in count(1):
        pool = FakePool(MAX_SIZE=2, TIMEOUT=0.01)
        held = pool.connection()

        def try_to_work() -> None:
            with suppress(PoolClosed, PoolTimeout):
                work(pool, held)  # noqa: B023

        ordered = signals.sent_during(try_to_work, moment)
        if not ordered:
            break
        stats = pool.stats()
        if stats.generation or stats.limit == 0:  # the lock was not held
            assert stats.outdated == stats.in_use == stats.waiting == 0, signals.where
            assert order is renew or stats.size == 0, signals.where
        assert pool.open_now == stats.size

    # It came at each step of a checkin, the shortest of these.
    tried = {Path(file).stem for file in signals.traced}
    assert moment > 15 and tried >= {"connection", "pool", "state"}


@pytest.mark.parametrize(
    ("order", "outcome"),
    [(end, PoolClosed), (halt, PoolTimeout), (renew, None), (narrow, PoolTimeout)],
)
@pytest.mark.parametrize("question", ["read_answers", "ping"])
def test_what_was_ordered_while_the_server_answered_concerns_the_checkout(
    order: Callable[[Pool], None], outcome: type[Exception] | None, question: str
) -> None:
    pool = FakePool(MAX_SIZE=1, TIMEOUT=0.1)
    [con] = idle(pool)
    con.unanswered = question == "read_answers"
    con.fresh_until, con.since, con.asked = 0.0, -1e9, -1e9

    def answer(_: float) -> None:
        con.unanswered = False
        order(pool)

    setattr(con, question, answer)
    if outcome is None:
        with pool.connection() as connection:
            assert connection._con is not con
    else:
        with pytest.raises(outcome):
            pool.connection()

    assert con.closed
    assert pool.stats().outdated == pool.stats().in_use == 0


def test_a_connect_that_the_limit_has_overtaken_is_given_up() -> None:
    pool = FakePool(lambda: pool.limit(0), MAX_SIZE=2, TIMEOUT=0.1)

    with pytest.raises(PoolTimeout):
        pool.connection()

    until(lambda: pool.stats().connecting == 0)
    assert pool.stats().discarded_by_reason == {"surplus": 1}
    assert pool.open_now == 0


def test_what_a_lost_connection_has_outdated_is_closed_though_nobody_takes_it() -> None:
    pool = FakePool(MAX_SIZE=2)
    lost, other = pool.connection(), pool.connection()
    other.close()
    con: Any = lost._con
    con.lost, con.is_disconnected = ConnectionResetError("gone"), True
    lost.close()
    assert pool.stats().outdated == 1

    pool.maintain()

    assert pool.stats().size == pool.open_now == 0


# The places of a host


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_whatever_fails_while_a_slot_is_taken_or_given_back_none_is_lost(
    tmp_path: Path, error: type[BaseException]
) -> None:
    kept: list[BaseException] = []
    left = 0

    def fragile(call: Callable[..., Any]) -> Callable[..., Any]:
        def fail_or_call(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise error(errno.EIO, "foreign")
            return call(*args, **options)

        return fail_or_call

    for moment in count(1):
        budget = HostLimit(StatusDir(tmp_path / "board"), f"budget-{moment}", 2)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("open", "close", "fstat", "stat", "pread", "pwrite"):
                patch.setattr(os, name, fragile(getattr(os, name)))
            patch.setattr(fcntl, "lockf", fragile(fcntl.lockf))
            left = moment
            try:
                for _ in range(2):
                    slot = budget.take()
                    assert slot is not None
                    del slot
            except (PoolError, KeyboardInterrupt) as failure:
                kept.append(failure)
            failed = left <= 0

        slots = [budget.take(), budget.take()]
        assert None not in slots, moment
        assert budget.take() is None
        if not failed:
            break

    assert moment > 10


class LimitOfAJob(Exception):
    """What the signal handlers of job queues raise."""


@pytest.mark.parametrize("question", ["read_answers", "ping"])
def test_the_limit_of_a_job_is_no_fault_of_the_server(question: str) -> None:
    pool = FakePool(MAX_SIZE=1)
    [con] = idle(pool)
    if question == "read_answers":
        con.unanswered = 1
    else:
        con.fresh_until, con.since, con.asked = 0.0, -1e9, -1e9

    def interrupt(*_: object) -> None:
        raise LimitOfAJob

    setattr(con, question, interrupt)

    with pytest.raises(LimitOfAJob):
        pool.connection()

    until(lambda: at_rest(pool))
    assert pool.stats().size == 0
    use(pool)
    pool.close()
