"""The pool against a simple model of itself, in sequences that Hypothesis thinks up.

Real threads wait in the real pool, on a fake driver whose connects end when the test
says so, and with a clock that moves when the test moves it. After each step the pool
must come to look exactly like the model, and stay so.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import pymysql.err
import pytest
from conftest import until as until_then
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

import flask_mysqlpool.pool.pool
import flask_mysqlpool.pool.state
from flask_mysqlpool import PooledConnection, PoolTimeout
from flask_mysqlpool.testing import fake_driver


@dataclass
class ConnectAttempt:
    """A connect under way."""

    over: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.over.set()


def until(condition: Callable[[], object]) -> None:
    until_then(condition, seconds=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class PoolMachine(RuleBasedStateMachine):
    @initialize(size=st.integers(1, 4))
    def begin(self, size: int) -> None:
        self.patch = pytest.MonkeyPatch()
        self.clock = Clock()
        for module in (
            flask_mysqlpool.pool.pool,
            fake_driver,
        ):
            self.patch.setattr(module, "monotonic", self.clock)
        self.patch.setattr(flask_mysqlpool.pool.state, "FIRST_PAUSE", 0.0)
        self.executor = ThreadPoolExecutor(100)
        self.under_way: list[ConnectAttempt] = []
        self.size = size
        self.pool = fake_driver.FakePool(self.connect, MAX_SIZE=size, TIMEOUT=10)
        # The model: numbers of idle connections, what is out, and who stands in line.
        # How many connects are under way is left to the pool, within bounds.
        self.idle: list[int] = []
        self.held: list[PooledConnection] = []
        self.line: list[Future[PooledConnection]] = []
        #: Those that are out and will not be lent again.
        self.outdated: set[int] = set()

    def connect(self) -> None:
        connect = ConnectAttempt()
        self.under_way.append(connect)
        assert connect.over.wait(30)
        if connect.error is not None:
            raise connect.error

    def arrives(self) -> None:
        """Somebody checks out: the one last used, or a place at the end of the line."""
        future = self.executor.submit(self.pool.connection)
        if self.idle:
            handle = future.result(timeout=2)
            assert handle.thread_id() == self.idle.pop()
            self.held.append(handle)
        else:
            self.line.append(future)
            until(lambda: self.pool.stats().waiting == len(self.line))

    def is_free(self, number: int) -> None:
        """A connection is free: the first in line has it, or it is idle."""
        if not self.line:
            self.idle.append(number)
            return
        handle = self.line.pop(0).result(timeout=2)
        assert handle.thread_id() == number
        self.held.append(handle)

    def check_out(self, index: int) -> None:
        self.arrives()

    def give_back(self, index: int) -> None:
        if self.held:
            handle = self.held.pop(index % len(self.held))
            number = handle.thread_id()
            handle.close()
            if number in self.outdated:
                until(lambda: self.newest() is None)
            else:
                self.is_free(number)

    def end_a_connect(self, index: int) -> None:
        if self.under_way:
            opened = self.pool.stats().opened
            self.under_way.pop(index % len(self.under_way)).end()
            until(lambda: self.pool.stats().opened == opened + 1)
            until(lambda: self.newest() is not None)
            self.is_free(self.newest() or 0)

    def newest(self) -> int | None:
        """The connection that the model does not know of yet."""
        known = {*self.idle, *(handle.thread_id() for handle in self.held)}
        with self.pool._state.lock:
            numbers = [con.thread_id() for con in self.pool._state.open()]
        return next((number for number in numbers if number not in known), None)

    def all_connects_fail(self, index: int) -> None:
        if self.held or self.idle:
            return
        while self.pool.stats().connecting or self.pool.stats().waiting:
            until(lambda: self.under_way or not self.pool.stats().connecting)
            for connect in self.take_under_way():
                connect.end(pymysql.err.OperationalError(2003, "down"))
        for future in self.line:
            with pytest.raises(pymysql.err.OperationalError, match="2003"):
                future.result(timeout=2)
        self.line = []

    def take_under_way(self) -> list[ConnectAttempt]:
        taken, self.under_way[:] = list(self.under_way), []
        return taken

    def time_runs_out(self, index: int) -> None:
        self.clock.now += 11
        for waiter in list(self.pool._state.waiters):
            waiter.wake()
        for future in self.line:
            with pytest.raises(PoolTimeout):
                future.result(timeout=2)
        self.line = []

    def the_next_one_is_dead(self, index: int) -> None:
        if self.idle:
            self.pool._state.idle[-1].alive = False
            self.idle.pop()
            self.arrives()

    def reset(self, index: int) -> None:
        while self.under_way:  # what they open would be outdated, too
            self.end_a_connect(index)
            until(lambda: len(self.under_way) == self.pool.stats().connecting)
        self.pool.reset()
        self.idle.clear()
        self.outdated |= {handle.thread_id() for handle in self.held}

    def reset_and_return_all(self, index: int) -> None:
        self.reset(index)
        while self.held:
            self.held.pop().close()

    # One rule, since Hypothesis likes to leave out rules altogether.
    @rule(
        step=st.sampled_from(
            5 * ["check_out"]
            + 4 * ["end_a_connect", "give_back"]
            + ["all_connects_fail", "time_runs_out", "the_next_one_is_dead"]
            + ["reset", "reset_and_return_all"]
        ),
        index=st.integers(0, 3),
    )
    def step(self, step: str, index: int) -> None:
        getattr(self, step)(index)

    @invariant()
    def the_pool_is_like_the_model(self) -> None:
        if hasattr(self, "pool"):
            expected = [len(self.idle), len(self.held), len(self.line)]
            until(lambda: self.look() == expected)
            until(self.helps_those_in_line)
            until(lambda: len(self.under_way) == self.pool.stats().connecting)
            assert self.pool.open_most <= self.size
            assert not (self.idle and self.line)

    def look(self) -> list[int]:
        stats = self.pool.stats()
        return [stats.idle, stats.in_use, stats.waiting]

    def helps_those_in_line(self) -> bool:
        stats = self.pool.stats()
        full = stats.size == self.size
        return not stats.waiting or full or stats.connecting > 0

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
            for future in self.line:
                assert future.exception(timeout=10) is not None
            for handle in self.held:
                handle.close()
            while self.pool.open_now or self.pool.stats().connecting:
                for connect in self.take_under_way():
                    connect.end()
            self.executor.shutdown()
            self.patch.undo()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None, derandomize=True
)
