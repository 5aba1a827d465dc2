"""Signals and observers: what each receives, and what it may cost."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import accumulate, pairwise
from types import FrameType
from typing import Any
from weakref import ref

import pymysql.err
import pytest
from blinker import NamedSignal
from conftest import MakeApp, MakePool, extension, until
from flask import Flask

from flask_mysqlpool import MySQLPool, Pool, PoolTimeout, get_db, signals
from flask_mysqlpool.pool.stats import BOUNDS, Observer, Times
from flask_mysqlpool.testing import LocalServer
from flask_mysqlpool.testing.fake_driver import FakePool

ALL = [signal for signal in vars(signals).values() if isinstance(signal, NamedSignal)]


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any, dict[str, Any]]]]:
    """Every signal that is sent: its name, its sender, and the rest."""
    heard: list[tuple[str, Any, dict[str, Any]]] = []
    with ExitStack() as stack:
        for signal in ALL:

            def hear(sender: Any, *, name: str = signal.name, **about: Any) -> None:
                heard.append((name, sender, about))

            stack.enter_context(signal.connected_to(hear))
        yield heard


def test_the_life_of_a_connection_is_told(
    make_app: MakeApp, heard: list[tuple[str, Any, dict[str, Any]]]
) -> None:
    app = make_app(BINDS={"reports": {}})
    with app.app_context():
        connection = get_db("reports")
        thread_id = connection.thread_id()
        connection.close()
        extension(app).reset("reports")
        pool = extension(app).pool("reports")
    # The thread that has connected tells of it when the connection is already in use.
    until(lambda: "connection-created" in {name for name, _, _ in heard})

    assert {sender for _, sender, _ in heard} == {app}
    assert {about["bind"] for _, _, about in heard} == {"reports"}
    assert {about["pool"] for _, _, about in heard} == {pool}
    by_name = {name: about for name, _, about in heard}
    assert sorted(by_name) == [
        "connection-checked-in",
        "connection-checked-out",
        "connection-created",
        "connection-discarded",
        "pool-reset",
    ]
    assert by_name["connection-created"]["thread_id"] == thread_id
    assert by_name["connection-created"]["seconds"] > 0
    assert by_name["connection-checked-out"]["connection"] is connection
    assert by_name["connection-checked-out"]["waited"] > 0
    assert by_name["connection-checked-in"]["used"] >= 0
    assert by_name["connection-discarded"]["reason"] == "invalidated"


def test_what_goes_wrong_is_told(
    make_app: MakeApp,
    server: LocalServer,
    heard: list[tuple[str, Any, dict[str, Any]]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = make_app(
        MAX_SIZE=1,
        LEAK_THRESHOLD=0.01,
        BINDS={"nowhere": {"URL": "mysql://x@localhost:1"}},
    )
    with app.app_context():
        held = get_db()
        with pytest.raises(PoolTimeout):
            extension(app).connection(timeout=0)
        with pytest.raises(pymysql.err.OperationalError):
            get_db("nowhere")
        until(lambda: caplog.messages)
        held.close()
    told = {"connect-failed", "leak-detected"}
    until(lambda: told <= {name for name, _, _ in heard})

    by_name = {name: about for name, _, about in heard}
    assert isinstance(by_name["pool-timeout"]["error"], PoolTimeout)
    assert by_name["connect-failed"]["error"].args[0] == 2003
    assert by_name["connect-failed"]["bind"] == "nowhere"
    assert "test_signals.py" in by_name["leak-detected"]["report"]


def test_a_receiver_of_one_app_hears_nothing_of_another(make_app: MakeApp) -> None:
    one, other = make_app(), make_app()
    heard: list[Any] = []

    def hear(sender: Any, **about: Any) -> None:
        heard.append(sender)

    with signals.connection_checked_out.connected_to(hear, sender=one):
        for app in (one, other):
            with app.app_context():
                get_db()

    assert heard == [one]


def test_a_receiver_that_is_connected_later_hears_from_then_on(
    make_app: MakeApp,
) -> None:
    app = make_app()
    heard: list[Any] = []
    with app.app_context():
        get_db().close()
        before = extension(app).pool()._observers

        def hear(sender: Any, **about: Any) -> None:
            heard.append(about["connection"])

        with signals.connection_checked_out.connected_to(hear):
            taken = get_db()

    assert heard == [taken]
    # Until a receiver is connected, a pool has no observer.
    assert before == ()


def test_a_receiver_that_raises_is_not_called_again_and_requests_go_on(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app()
    calls: Counter[str] = Counter()

    def bad(sender: Any, **about: Any) -> None:
        calls["bad"] += 1
        raise ValueError("no")

    def good(sender: Any, **about: Any) -> None:
        calls["good"] += 1

    @app.get("/")
    def view() -> str:
        get_db()
        return "done"

    client = app.test_client()
    with signals.connection_checked_out.connected_to(bad):
        with signals.connection_checked_out.connected_to(good):
            assert [client.get("/").status_code for _ in range(3)] == [200] * 3

    assert calls == {"bad": 1, "good": 3}
    assert len(caplog.messages) == 1


class Failing(Observer):
    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        raise ValueError("no")


def test_an_observer_that_raises_is_switched_off(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool()
    pool.add_observer(Failing())
    for _ in range(3):
        pool.connection().close()

    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "raised and is removed" in record.getMessage()
    assert pool.stats().idle == 1


class Locked(Observer):
    """Counts what it is told with the lock of the pool held."""

    calls: Counter[str]
    locked: Counter[str]

    def __init__(self) -> None:
        self.calls, self.locked = Counter(), Counter()

    def __getattribute__(self, name: str) -> Any:
        if name not in vars(Observer) or name.startswith("_"):
            return super().__getattribute__(name)

        def note(pool: Pool, *about: object) -> None:
            self.calls[name] += 1
            self.locked[name] += pool._state.lock._is_owned()

        return note


def test_observers_are_told_outside_of_the_lock(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1, MAX_USAGE=2)
    observer = Locked()
    pool.add_observer(observer)
    for _ in range(2):
        with pool.connection():
            with pytest.raises(PoolTimeout):
                pool.connection(timeout=0)
    pool.reset()
    until(lambda: observer.calls["created"])

    assert observer.locked.total() == 0
    assert observer.calls == {
        "created": 1,
        "checked_out": 2,
        "checked_in": 2,
        "timed_out": 2,
        "discarded": 1,
        "was_reset": 1,
    }


# Without a GIL, the collector may come by the socket before what would close it.
@pytest.mark.filterwarnings("ignore:unclosed <:ResourceWarning")
def test_an_app_that_is_gone_takes_its_pool_along(server: LocalServer) -> None:
    app = Flask("mortal")
    app.config.update(MYSQLPOOL_URL=server.url, MYSQLPOOL_STATUS_DIR=False)
    MySQLPool(app)
    with app.app_context():
        get_db().query("SELECT 1")
        pool = ref(extension(app).pool())
    gone = ref(app)
    del app
    until(lambda: gc.collect() is not None and gone() is None and pool() is None)


class Quitting(Observer):
    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        raise SystemExit


def test_an_observer_that_quits_keeps_no_checkout_waiting(make_pool: MakePool) -> None:
    pool = make_pool(TIMEOUT=5)
    pool.add_observer(Quitting())

    with pool.connection():
        assert pool.stats().opened == 1


# How long things take


def test_durations_are_counted_by_their_length() -> None:
    times = Times()
    for seconds in (0.0, 0.0005, 0.0006, 3, 1000):
        times.add(seconds)

    counts = dict(zip((*BOUNDS, "more"), times.counts, strict=True))
    assert {bound: count for bound, count in counts.items() if count} == {
        0.0005: 2,
        0.001: 1,
        5: 1,
        "more": 1,
    }
    assert times.seconds == pytest.approx(1003.0011)


def test_a_pool_counts_waits_uses_and_connects(make_pool: MakePool) -> None:
    pool = make_pool(MAX_SIZE=1)
    for _ in range(10):
        pool.connection().close()
    pool.reset()
    pool.connection().close()

    stats = pool.stats()
    assert sum(stats.wait_seconds[:-1]) == stats.checkouts == 11
    assert sum(stats.use_seconds[:-1]) == 11
    assert sum(stats.create_seconds[:-1]) == stats.opened == 2
    # Nine found one that was ready; the two others waited for a connect.
    assert stats.wait_seconds[0] >= 9
    assert stats.wait_seconds[-1] >= stats.create_seconds[-1] > 0


def test_a_wait_is_counted_in_one_bucket_at_every_moment_of_a_checkout() -> None:
    pool = FakePool(lambda: time.sleep(BOUNDS[0] * 2))
    seen: list[list[float]] = []

    def look(frame: FrameType, event: str, argument: object) -> Any:
        if not pool._state.lock._is_owned():
            seen.append(list(accumulate(pool.stats().wait_seconds[:-1])))
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        pool.connection().close()
    finally:
        sys.settrace(before)

    assert seen[0][-1] == 0 and seen[-1][-1] == 1
    # Each bucket includes those before it, as Prometheus has them.
    for one, later in pairwise(seen):
        assert all(a <= b for a, b in zip(one, later, strict=True))
    assert seen[-1][0] == 0
