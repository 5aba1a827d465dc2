"""The line of blocked checkouts: strictly first come, first served.

Nothing here locks, does I/O or knows what it hands over. Every method but
:meth:`Waiter.wait` is called with the lock of the pool held; that is what makes
a hand-off certain. A waiter that gives up takes itself out of the line under the
same lock, so whoever is in the line can be served, and nothing is ever handed to
somebody who has just gone.
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
    """One blocked checkout.

    ``owner`` is what it waits on behalf of. If that is gone, so is whoever waited: an
    interrupt can end a thread at a point where it could not leave the line.
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
        #: Whether it waits for others; if not, for a connect of its own alone.
        self.waits = waits
        self.item: T | None = None
        self.error: BaseException | None = None
        #: The connect that was started for this waiter and is still under way.
        self.connect: ref[Any] | None = None
        # A held lock is the cheapest thing that one thread can sleep on and
        # another can end; an Event would allocate three objects.
        self._wakeup = threading.Lock()
        self._wakeup.acquire()

    def wait(self, seconds: float) -> None:
        """Sleep until :meth:`wake`, or for so many seconds. No lock is held."""
        self._wakeup.acquire(timeout=min(max(seconds, 0.0), threading.TIMEOUT_MAX))

    def wake(self) -> None:
        """Wake the sleeper, to find itself served or to look around again."""
        with suppress(RuntimeError):  # it has been rung
            self._wakeup.release()

    @property
    def served(self) -> bool:
        return self.item is not None or self.error is not None

    def is_over(self, now: float) -> bool:
        """Whether there is nothing left to wait for."""
        return now >= self.deadline or not (self.waits or self.connecting)

    @property
    def connecting(self) -> bool:
        return self.connect is not None and self.connect() is not None


class WaiterQueue(OrderedDict[Waiter[T], None]):
    """Waiters in order of arrival."""

    def join(self, waiter: Waiter[T]) -> None:
        """Stand in line: behind all that came earlier, in front of all others."""
        [last] = self._look(1, reversed) or [waiter]
        [first] = self._look(1) or [waiter]
        self[waiter] = None
        if last.since <= waiter.since:
            return
        # It was served before, with a connection that could not be used.
        if first.since > waiter.since:
            self.move_to_end(waiter, last=False)
            return
        for other in tuple(self):
            if other.since > waiter.since and other in self:
                self.move_to_end(other)

    def first(self, count: int) -> tuple[Waiter[T], ...]:
        """The first of the line, in order."""
        return self._look(count)

    def _look(
        self, count: int, direction: Callable[..., Iterator[Waiter[T]]] = iter
    ) -> tuple[Waiter[T], ...]:
        """Copy one end of the line, again if a signal handler changes it meanwhile."""
        while True:
            with suppress(RuntimeError):
                return tuple(islice(direction(self), count))

    def leave(self, waiter: Waiter[T]) -> bool:
        """Give up; False if it was not in line any more."""
        return self.pop(waiter, self) is None

    def next(self) -> Waiter[T] | None:
        """Take out whoever has waited longest."""
        while self:
            waiter, _ = self.popitem(last=False)
            if waiter.owner() is not None:
                return waiter
        return None

    def hand_over(self, item: T, held: dict[T, ref[Any]]) -> bool:
        """Give an item that is held to whoever has waited longest; False if nobody has.

        Its new holder is entered at the end, so that the oldest one is the first.
        """
        waiter = self._first()
        if waiter is None:
            return False
        # Up to the bell nothing is called, so no interrupt gets in between.
        try:
            del held[item]
            held[item] = waiter.owner
            waiter.item = item
            del self[waiter]
            waiter._wakeup.release()
        except RuntimeError:
            pass  # it has been rung
        return True

    def _first(self) -> Waiter[T] | None:
        """Whoever has waited longest, in line still."""
        while self:
            # One at a time: a signal handler may change the line in the middle of this.
            for waiter in self:
                if waiter.owner() is not None:
                    return waiter
                self.leave(waiter)
                break
        return None
