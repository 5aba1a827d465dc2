"""The queue of waiting checkouts: first come, first served.

Each method except :meth:`Waiter.wait` is called with the lock of the pool held. A
waiter that gives up removes itself under the same lock, so each waiter in the queue can
be served, and no connection is handed to one that has just given up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, Generic, TypeVar
from weakref import ref

T = TypeVar("T")


class Waiter(Generic[T]):
    """One waiting checkout.

    ``owner`` refers to the handle that it waits for. If the handle is gone, nothing
    waits any more: an interrupt has ended the checkout before it could leave the queue.
    """

    __slots__ = (
        *("_wakeup", "connect", "deadline", "error", "item", "owner", "since"),
        "waits",
    )

    def __init__(
        self, since: float, deadline: float, owner: ref[Any], waits: bool = True
    ) -> None:
        self.since = since
        self.deadline = deadline
        self.owner = owner
        #: Whether it waits for connections in use; if not, only for its own connect.
        self.waits = waits
        self.item: T | None = None
        self.error: BaseException | None = None
        #: The connect that was started for this waiter and is still under way.
        self.connect: ref[Any] | None = None
        # A lock that is held: to wait is to acquire it, to wake is to release it. An
        # Event would allocate three objects.
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    def wait(self, seconds: float) -> None:
        """Sleep until :meth:`wake`, at most ``seconds``; called without the lock."""
        self._wakeup.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Wake the waiting thread, which finds itself served or looks again."""
        with suppress(RuntimeError):  # it is awake already
            self._wakeup.release()

    @property
    def served(self) -> bool:
        """Whether it has been given a connection or an error."""
        return self.item is not None or self.error is not None

    def is_over(self, now: float) -> bool:
        """Return whether to stop waiting."""
        return now >= self.deadline or not (self.waits or self.connecting)

    @property
    def connecting(self) -> bool:
        """Whether a connect that was started for it is under way."""
        return self.connect is not None and self.connect() is not None


class WaiterQueue(OrderedDict[Waiter[T], None]):
    """Waiters in order of arrival."""

    def join(self, waiter: Waiter[T]) -> None:
        """Insert a waiter by the time of its checkout."""
        [last] = self._look(1, reversed) or [waiter]
        [first] = self._look(1) or [waiter]
        self[waiter] = None
        if last.since <= waiter.since:
            return
        # It is back in the queue, after it was given an unusable connection.
        if first.since > waiter.since:
            self.move_to_end(waiter, last=False)
            return
        for other in tuple(self):
            if other.since > waiter.since and other in self:
                self.move_to_end(other)

    def first(self, count: int) -> tuple[Waiter[T], ...]:
        """Return the first waiters in order."""
        return self._look(count)

    def _look(
        self, count: int, direction: Callable[..., Iterator[Waiter[T]]] = iter
    ) -> tuple[Waiter[T], ...]:
        """Copy one end of the queue; again if a signal handler changes it meanwhile."""
        while True:
            with suppress(RuntimeError):
                return tuple(islice(direction(self), count))

    def leave(self, waiter: Waiter[T]) -> bool:
        """Remove a waiter; False if it was not in the queue any more."""
        return self.pop(waiter, self) is None

    def next(self) -> Waiter[T] | None:
        """Remove and return the first waiter that has an owner, if there is one."""
        while self:
            waiter, _ = self.popitem(last=False)
            if waiter.owner() is not None:
                return waiter
        return None

    def hand_over(self, item: T, held: dict[T, ref[Any]]) -> bool:
        """Hand an item that is held to the first waiter; False if there is none.

        Enter the new holder at the end of ``held``, which is in order of checkout.
        """
        waiter = self._first()
        if waiter is None:
            return False
        # No call until the last line, so no signal handler can run in between.
        try:
            del held[item]
            held[item] = waiter.owner
            waiter.item = item
            del self[waiter]
            waiter._wakeup.release()
        except RuntimeError:
            pass  # it is awake already
        return True

    def _first(self) -> Waiter[T] | None:
        """Return the first waiter that has an owner, and leave it in the queue."""
        while self:
            # One at a time: a signal handler may change the queue meanwhile.
            for waiter in self:
                if waiter.owner() is not None:
                    return waiter
                self.leave(waiter)
                break
        return None
