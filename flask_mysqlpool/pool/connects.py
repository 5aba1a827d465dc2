"""The connects of a pool: which are under way, and when the next may begin.

While connects fail, they are tried one at a time, with growing pauses, however many
checkouts wait; what one finds out holds for all. Nothing here does I/O, and everything
is called with the lock of the pool held.
"""

from __future__ import annotations

import random
import time
from typing import Any
from weakref import ref

from .waiters import Waiter

#: Seconds until a connect is tried again for which the host had no place left.
POSTPONEMENT = 0.03

#: Pauses between failing connects: seconds, doubling from the first to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
#: The longest while it is looked for the host that has been made the primary.
SEARCH_PAUSE = 0.25


class Connect:
    """A connect under way, and the waiter that it was started for."""

    __slots__ = ("__weakref__", "generation", "waiter")

    def __init__(self, generation: int, waiter: Waiter[Any] | None) -> None:
        self.generation = generation
        self.waiter = waiter


class Connects:
    """Each connect takes a place for as long as the object that stands for it lives.

    So one that dies in a way that nobody thought of gives its place back.
    """

    def __init__(self, longest_pause: float = LONGEST_PAUSE) -> None:
        self._longest_pause = longest_pause
        # No WeakSet: whoever lets go of one last would change it, without the lock.
        self._under_way: set[ref[Connect]] = set()
        #: The error of the last connect, if it failed.
        self.error: BaseException | None = None
        #: The last error that there was, and when, in `time.time()` seconds.
        self.last_error: BaseException | None = None
        self.failed_at: float | None = None
        #: How often the server was found to be out of reach since it last was not.
        self._failures = 0
        self._tried_at = self._retry_at = 0.0
        self._postponed_until = 0.0

    def __len__(self) -> int:
        return len(self._alive())

    def _alive(self) -> list[Connect]:
        connects = [reference() for reference in self._under_way.copy()]
        return [connect for connect in connects if connect is not None]

    @property
    def failing(self) -> bool:
        return self._failures > 0

    def may_begin(self, now: float) -> bool:
        """Whether a connect may be made at all."""
        # One that hangs must not keep others from finding that the server is back.
        patient = not len(self) or now >= self._tried_at + LONGEST_PAUSE
        if now < self._postponed_until:
            return False
        return not self._failures or (now >= self._retry_at and patient)

    def next_chance(self, now: float) -> float:
        """When :meth:`may_begin` may change without anything happening."""
        moments = [self._postponed_until]
        if self._failures:
            moments += self._retry_at, self._tried_at + LONGEST_PAUSE
        return min((m for m in moments if m > now), default=float("inf"))

    def begin(
        self, generation: int, now: float, waiter: Waiter[Any] | None = None
    ) -> Connect:
        """Take a place."""
        connect = Connect(generation, waiter)
        self._under_way = {ref(other) for other in (*self._alive(), connect)}
        self._tried_at = now
        if waiter is not None:
            waiter.connect = ref(connect)
        return connect

    def _end(self, connect: Connect) -> None:
        self._under_way.discard(ref(connect))
        waiter = connect.waiter
        if waiter is not None:
            waiter.connect = None
            if not waiter.waits:
                waiter.ring()  # it may have served another one

    def postponed(self, connect: Connect, now: float) -> None:
        """It was not even tried."""
        self._end(connect)
        self._postponed_until = now + POSTPONEMENT

    def outdated(self, generation: int) -> int:
        """How many were begun before this generation."""
        return sum(connect.generation != generation for connect in self._alive())

    def succeeded(self, connect: Connect) -> None:
        """It serves who is first in line, which need not be whom it was made for."""
        self._end(connect)
        self.error = None
        self._failures = 0
        self._retry_at = 0.0

    def failed(self, connect: Connect, error: BaseException, now: float) -> None:
        self._end(connect)
        self.error = self.last_error = error
        self.failed_at = time.time()
        if now < self._retry_at:
            return  # begun before the failure that this pause is for
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), self._longest_pause)
        self._retry_at = now + pause * random.uniform(0.5, 1.0)
        self._failures += 1
