"""Whatever duration is accepted works, and no deadline is missed in a crowd."""

from __future__ import annotations

import threading
import time
from typing import Any
from weakref import ref

import pytest
from conftest import MakePool

from flask_mysqlpool import Pool, PoolConfig, PoolTimeout
from flask_mysqlpool.cli.commands import _Seconds
from flask_mysqlpool.config.validators import YEAR
from flask_mysqlpool.pool.driver.sockets import LONGEST_WAIT
from flask_mysqlpool.pool.state import PoolState
from flask_mysqlpool.pool.waiters import Waiter
from flask_mysqlpool.testing.fake_driver import FakePool

DAY = 86_400.0


def insert(pool: Pool, **timeout: Any) -> None:
    with pool.connection(**timeout) as connection, connection.cursor() as cursor:
        cursor.execute("INSERT INTO t (a) VALUES (1)")


@pytest.mark.parametrize(
    "name",
    [
        *("TIMEOUT", "CONNECT_TIMEOUT", "READ_TIMEOUT", "WRITE_TIMEOUT"),
        *("MAX_LIFETIME", "MAX_IDLE", "PING_AFTER", "SLOW_QUERY", "LEAK_THRESHOLD"),
    ],
)
@pytest.mark.parametrize("seconds", [25 * DAY, 50 * DAY, YEAR])
def test_a_session_is_used_again_whatever_the_duration(
    make_pool: MakePool, table: str, name: str, seconds: float
) -> None:
    pool = make_pool(**{name: seconds})
    for _ in range(3):
        insert(pool)

    assert pool.stats().opened == 1


@pytest.mark.parametrize(
    "timeout", [25 * DAY, 50 * DAY, 10 * YEAR, 1e300, float("inf")]
)
def test_a_checkout_takes_any_timeout(
    make_pool: MakePool, table: str, timeout: float
) -> None:
    pool = make_pool(MAX_SIZE=1)
    for _ in range(3):
        insert(pool, timeout=timeout)
    held = pool.connection()
    waiter = threading.Thread(target=insert, args=[pool], kwargs={"timeout": timeout})
    waiter.start()
    while not pool.stats().waiting:
        time.sleep(0.001)
    held.close()
    waiter.join(5)

    assert not waiter.is_alive()
    assert pool.stats().opened == 1


@pytest.mark.parametrize("timeout", [float("nan"), -1, -0.001, float("-inf")])
def test_a_timeout_that_is_no_duration_is_refused(timeout: float) -> None:
    pool = FakePool()

    with pytest.raises(ValueError, match="timeout must be seconds, 0 or more"):
        pool.connection(timeout=timeout)

    assert pool.connects == 0


def test_a_command_waits_for_any_duration_but_nan() -> None:
    seconds = _Seconds(min=0)

    assert seconds.convert("inf", None, None) == YEAR
    assert seconds.convert("2.5", None, None) == 2.5
    with pytest.raises(Exception, match="is not a duration"):
        seconds.convert("nan", None, None)


def test_a_socket_takes_the_longest_wait() -> None:
    assert LONGEST_WAIT * 1000 < 2**31


def test_maintenance_rests_between_rounds_whatever_the_threshold() -> None:
    pool = FakePool(LEAK_THRESHOLD=1e-9)
    with pool.connection():
        pause = pool.maintain()

    assert pause is not None
    assert pause >= 0.01


class Owner:
    """The holder of a place in the line."""


def cost_of_leaving(count: int) -> float:
    """Seconds per waiter until all have left the line of a pool without room."""
    state = PoolState(PoolConfig.from_mapping({"HOST": "db", "MAX_SIZE": 10}))
    owner = Owner()
    state.paused = True
    waiters: list[Any] = [Waiter(float(i), 1e9, ref(owner)) for i in range(count)]
    for waiter in waiters:
        state.join(waiter)
    state.paused = False
    started = time.thread_time()
    for waiter in waiters:
        state.leave(waiter)
    return (time.thread_time() - started) / count


def test_the_time_to_leave_the_line_does_not_grow_with_its_length() -> None:
    cost_of_leaving(100)

    assert cost_of_leaving(20_000) < 10 * cost_of_leaving(500) + 1e-5


def test_a_timeout_lists_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = FakePool(MAX_SIZE=1)
    with pool.connection():
        monkeypatch.setattr(threading, "enumerate", None)
        with pytest.raises(PoolTimeout, match="by thread 'MainThread'"):
            pool.connection(timeout=0.001)
