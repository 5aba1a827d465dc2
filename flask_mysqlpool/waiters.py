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
from typing import Generic, TypeVar

T = TypeVar("T")


class Waiter(Generic[T]):
    """One blocked checkout."""

    __slots__ = ("_bell", "connecting", "deadline", "error", "item", "since")

    def __init__(self, since: float, deadline: float) -> None:
        self.since = since
        self.deadline = deadline
        self.item: T | None = None
        self.error: BaseException | None = None
        #: Whether a connect is on its way that was started for this waiter.
        self.connecting = False
        # A held lock is the cheapest thing that one thread can sleep on and
        # another can end; an Event would allocate three objects.
        self._bell = threading.Lock()
        self._bell.acquire()

    def wait(self, seconds: float) -> None:
        """Sleep until :meth:`ring`, or for so many seconds. No lock is held."""
        self._bell.acquire(timeout=max(seconds, 0.0))

    def ring(self) -> None:
        """Wake the sleeper, to find itself served or to look around again."""
        if self._bell.locked():
            self._bell.release()

    @property
    def served(self) -> bool:
        return self.item is not None or self.error is not None


class WaiterQueue(OrderedDict[Waiter[T], None]):
    """Waiters in order of arrival; each operation takes constant time."""

    def join(self, waiter: Waiter[T], first: bool = False) -> None:
        """Go to the end of the line, or to its head."""
        self[waiter] = None
        if first:
            self.move_to_end(waiter, last=False)

    def leave(self, waiter: Waiter[T]) -> None:
        """Give up."""
        self.pop(waiter, None)

    def hand_over(self, item: T) -> bool:
        """Give the item to whoever has waited longest; False if nobody waits."""
        if not self:
            return False
        waiter, _ = self.popitem(last=False)
        waiter.item = item
        waiter.ring()
        return True

    def refuse(self, waiter: Waiter[T], error: BaseException) -> bool:
        """Let this waiter fail; False if it has been served or has gone."""
        if waiter not in self:
            return False
        del self[waiter]
        waiter.error = error
        waiter.ring()
        return True
