"""A pool without a server, for tests of interleavings and for counting.

Every call that would do I/O asserts that the calling thread does not hold the pool's
lock, a rule that tests with a real server cannot check.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ..config import PoolConfig
from ..pool import Pool
from ..pool.driver.session import Session
from ..pool.pool import monotonic


class FakeConnection(Session):
    """A session without a server; attributes set its faults."""

    def __init__(self, pool: FakePool, number: int) -> None:
        super().__init__(pool.config, {"defer_connect": True, "ssl_disabled": True})
        self.raw = self
        self.opened = self.since = monotonic()
        self.number = number
        self.alive = self.clean = True
        self.closed = False
        self._pool = pool

    def _io(self) -> None:
        self._pool.io()

    def failed(self, error: BaseException) -> None:
        self.lost = error

    def thread_id(self) -> int:
        return self.number

    def is_answered(self) -> bool:
        self._io()
        return not self.unanswered

    def is_alive(self) -> bool:
        self._io()
        return self.alive and not self.closed

    def read_answers(self, deadline: float) -> list[Any]:
        self._io()
        return []

    def ping(self, deadline: float) -> None:
        self._io()

    def reset_session(self) -> bool:
        self._io()
        return self.clean

    def confirm_demotion(self) -> bool:
        self._io()
        return self.is_demoted

    def close(self) -> None:
        self._io()
        if not self.closed:
            self.closed = True
            self.host_slot = None
            self._pool.count(-1)

    abandon = interrupt = close

    def __repr__(self) -> str:
        return f"<FakeConnection {self.number}>"


class FakePool(Pool):
    """A :class:`Pool` of fake connections.

    ``on_connect``, called in the connecting thread, may block, or raise a server's
    error.
    """

    def __init__(self, on_connect: Callable[[], None] | None = None, **settings: Any):
        self.on_connect = on_connect
        #: Sockets that a real pool would have open now, and the maximum so far.
        self.open_now = self.open_most = 0
        self.connects = 0
        self._numbers = threading.Lock()
        super().__init__(PoolConfig.from_mapping(settings))

    def io(self) -> None:
        """Assert that I/O is allowed here; a real pool would use the network."""
        assert not self._state.lock._is_owned(), "I/O with the pool's lock held"

    def steady_connection(self) -> Any:
        self.io()
        number = self.count(+1)
        try:
            if self.on_connect is not None:
                self.on_connect()
        except BaseException:
            self.count(-1)
            raise
        return FakeConnection(self, number)

    def count(self, change: int) -> int:
        """Count a socket as opened or closed; return how many were opened so far."""
        with self._numbers:
            self.connects += max(change, 0)
            self.open_now += change
            self.open_most = max(self.open_most, self.open_now)
            return self.connects
