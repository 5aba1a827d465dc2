"""The state of a pool, and every decision about it.

Each method of :class:`PoolState` is called with its lock held. None does I/O, blocks or
calls an observer: it returns the connections to close or the connects to start, and
the pool does so after it has released the lock.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any
from weakref import ref

from ..config import PoolConfig
from ..errors import PoolClosed, PoolFull
from .driver.error_codes import pause_after
from .driver.session import Session
from .stats import Times
from .waiters import Waiter, WaiterQueue

#: Seconds until a connect is tried again after the host limit was reached.
POSTPONEMENT = 0.03

#: Back-off after a failed connect: seconds, from the first to the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
#: The longest pause where TARGET is set, so that a new primary is found soon.
SEARCH_PAUSE = 0.25


class ConnectAttempt:
    """A connect under way, and the waiter that it was started for, if any.

    It takes up a slot of the pool for as long as this object lives.
    """

    __slots__ = ("__weakref__", "generation", "waiter")

    def __init__(self, generation: int, waiter: Waiter[Any] | None) -> None:
        self.generation = generation
        self.waiter = waiter


class ConnectAttempts:
    """The connects under way, and the back-off after failures.

    Only weak references are kept, so the slot of a thread that dies in an unexpected
    way becomes free on its own.
    """

    def __init__(self, longest_pause: float = LONGEST_PAUSE) -> None:
        self._longest_pause = longest_pause
        # No WeakSet: it would change, without the lock, in the thread that drops the
        # last reference.
        self._under_way: set[ref[ConnectAttempt]] = set()
        #: The error of the most recent connect; None if it succeeded.
        self.error: BaseException | None = None
        #: The most recent error, and when it occurred, in `time.time()` seconds.
        self.last_error: BaseException | None = None
        self.failed_at: float | None = None
        #: Consecutive failures; those within one pause count once.
        self._failures = 0
        self._tried_at = self._retry_at = 0.0
        self._postponed_until = 0.0

    def __len__(self) -> int:
        return len(self._alive())

    def _alive(self) -> list[ConnectAttempt]:
        connects = [reference() for reference in self._under_way.copy()]
        return [connect for connect in connects if connect is not None]

    @property
    def failing(self) -> bool:
        """Whether connects have failed since the last one succeeded."""
        return self._failures > 0

    def may_begin(self, now: float) -> bool:
        """Return whether the back-off allows a connect."""
        # While connects fail, make one at a time; but one that hangs must not prevent
        # another from finding that the server is back.
        is_turn = not len(self) or now >= self._tried_at + LONGEST_PAUSE
        if now < self._postponed_until:
            return False
        return not self._failures or (now >= self._retry_at and is_turn)

    def next_chance(self, now: float) -> float:
        """Return when :meth:`may_begin` may next change merely because time passes."""
        moments = [self._postponed_until]
        if self._failures:
            moments += self._retry_at, self._tried_at + LONGEST_PAUSE
        return min((m for m in moments if m > now), default=float("inf"))

    def begin(
        self, generation: int, now: float, waiter: Waiter[Any] | None = None
    ) -> ConnectAttempt:
        """Record a connect, which takes up a slot, and return it."""
        connect = ConnectAttempt(generation, waiter)
        self._under_way = {ref(other) for other in (*self._alive(), connect)}
        self._tried_at = now
        if waiter is not None:
            waiter.connect = ref(connect)
        return connect

    def _end(self, connect: ConnectAttempt) -> None:
        self._under_way.discard(ref(connect))
        waiter = connect.waiter
        if waiter is not None:
            waiter.connect = None
            if not waiter.waits:
                # With a timeout of 0 it waits only for this connect, which may have
                # served a waiter ahead of it.
                waiter.wake()

    def postponed(self, connect: ConnectAttempt, now: float) -> None:
        """End a connect that was not tried, and allow none for a moment."""
        self._end(connect)
        self._postponed_until = now + POSTPONEMENT

    def outdated(self, generation: int) -> int:
        """Count the connects that were begun before this generation."""
        return sum(connect.generation != generation for connect in self._alive())

    def succeeded(self, connect: ConnectAttempt) -> None:
        """End a connect and the back-off."""
        self._end(connect)
        self.error = None
        self._failures = 0
        self._retry_at = 0.0

    def failed(self, connect: ConnectAttempt, error: BaseException, now: float) -> None:
        """End a connect and begin, or extend, the back-off."""
        self._end(connect)
        self.error = self.last_error = error
        self.failed_at = time.time()
        if now < self._retry_at:
            return  # begun before the failure that has started this pause
        self._failures += 1
        self._retry_at = now + pause_after(
            self._failures, FIRST_PAUSE, self._longest_pause
        )


#: While connections are in use and a connect is under way, seconds that a waiter waits
#: to be served by one of them before it starts a connect of its own.
CONNECT_DELAY = 0.05


class Discards(dict[Session, str]):
    """Connections about to be closed, with the reason of each; their holder meanwhile.

    If the thread that closes them is interrupted, this object is gone, and maintenance
    closes the connections whose holder is gone.
    """


class PoolState:
    """The connections and the waiters of one pool in one process.

    A slot is taken when a connect begins and is free when the socket has been closed:
    ``size = connecting + idle + in_use`` holds at each moment.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        #: The only lock. It is reentrant, because a finalizer or a signal handler may
        #: use the pool while its thread holds the lock.
        self.lock: Any = threading.RLock()
        #: A stack: the connection returned last is the first to be checked out.
        self.idle: list[Session] = []
        #: The holder of each connection, in order of checkout. A holder that is gone
        #: without a checkin leaves a dead reference; see :meth:`take_abandoned`.
        self.in_use: dict[Session, ref[Any]] = {}
        #: Connects under way; each takes up a slot.
        self.connects = ConnectAttempts(
            LONGEST_PAUSE if config.target == "any" else SEARCH_PAUSE
        )
        self.waiters: WaiterQueue[Session] = WaiterQueue()
        #: Connections whose handles were garbage-collected without a checkin. Appended
        #: to by finalizers, without the lock.
        self.dropped: deque[Session] = deque()
        #: The last connection returned after an error which may mean that the server
        #: was demoted. It was asked for its role; the next checkout takes it first,
        #: because the answer concerns all connections.
        self.suspect: Session | None = None
        #: Incremented by a reset, a pause, a close and the loss of the server: each
        #: outdates all connections opened before.
        self.generation = 0
        self.closed = self.paused = self.host_limit_reached = False
        #: The current maximum size; never more than MAX_SIZE.
        self.limit = config.max_size
        self.timeouts = self.opened = 0
        self.last_timeout: float | None = None
        #: Checkouts of connections already closed; an open one has its own count.
        self.past_uses = 0
        self.past_times = Times()
        #: Durations of the checkouts that had to wait, and of the connects.
        self.waits, self.creates = Times(), Times()
        self.discarded: Counter[str] = Counter()

    # Slots

    def open(self) -> tuple[Session, ...]:
        """Return the open connections."""
        return (*self.idle, *self.in_use)

    def size(self) -> int:
        """Count the slots taken, by open connections and by connects."""
        return len(self.idle) + len(self.in_use) + len(self.connects)

    def has_room(self) -> bool:
        """Return whether a connect may take a slot."""
        return self.size() < self.limit and not self.paused

    # Checkout

    def take_idle(self, owner: ref[Any]) -> Session | None:
        """Give the owner the connection returned last; None if none is idle."""
        if not self.idle:
            return None
        if self.suspect is not None:
            self._take_first(self.suspect)
        con = self.idle[-1]
        # In this order, an interrupt in between does not lose the connection.
        self.in_use[con] = owner
        del self.idle[-1]
        return con

    def _take_first(self, con: Session) -> None:
        """Move an idle connection to the top of the stack."""
        self.suspect = None
        if con in self.idle:
            self.idle.append(con)
            self.idle.remove(con)

    def join(self, waiter: Waiter[Session], requeue: bool = False) -> None:
        """Put a waiter into the queue, whose limit does not apply with ``requeue``.

        Raises :exc:`~.errors.PoolClosed` or :exc:`~.errors.PoolFull`.
        """
        limit = self.config.max_waiting
        if limit and len(self.waiters) >= limit and not requeue:
            raise PoolFull(f"{self.config.name}: {limit} checkouts are waiting already")
        self.waiters.join(waiter)
        # Last, because a signal handler may have closed the pool just now.
        if self.closed:
            self.waiters.leave(waiter)
            raise PoolClosed(f"{self.config.name}: the pool has been closed")

    def leave(self, waiter: Waiter[Session]) -> None:
        """Remove a waiter from the queue; wake the next, in case this one was woken."""
        self.waiters.leave(waiter)
        self.wake_next()

    def wake_next(self) -> None:
        """Wake the first waiter that has no connect under way; a slot may be free."""
        look = bool(self.waiters)
        while look and self.has_room():
            look = False
            # At most MAX_SIZE waiters have a connect, so one of these has none.
            for waiter in self.waiters.first(self.config.max_size + 1):
                if waiter.owner() is None:
                    look = self.waiters.leave(waiter)
                elif not waiter.connecting:
                    waiter.wake()
                    return

    def due_connect(self, waiter: Waiter[Session], now: float) -> list[ConnectAttempt]:
        """Reserve a slot and return the connect to start for this waiter, if due."""
        if waiter.served or waiter.connecting or not self.has_room():
            return []
        may_be_served_soon = waiter.waits and self.connects and self.in_use
        if may_be_served_soon and now < waiter.since + CONNECT_DELAY:
            return []
        if not self.connects.may_begin(now):
            return []
        connect = self.connects.begin(self.generation, now, waiter)
        # Another slot may be free for another waiter.
        self.wake_next()
        return [connect]

    def wake_time(self, waiter: Waiter[Session], now: float) -> float:
        """Return when this waiter has to look again even if it is not woken."""
        if waiter.connecting or not self.has_room():
            return waiter.deadline
        delayed_until = waiter.since + CONNECT_DELAY
        soonest = delayed_until if delayed_until > now else float("inf")
        return min(soonest, self.connects.next_chance(now), waiter.deadline)

    # Checkin

    def put_back(self, con: Session, now: float) -> str | None:
        """Hand a connection that is in use to the first waiter, or keep it idle.

        If it has to be closed instead, return the reason.
        """
        if con not in self.in_use:
            return None
        if con.discard_reason or con.generation != self.generation:
            return self.fault(con)
        con.since, con.holder = now, 0
        if con.is_suspect:
            self.suspect = con
        if self.waiters and self.waiters.hand_over(con, self.in_use):
            return None
        del self.in_use[con]
        self.idle.append(con)
        return None

    def fault(self, con: Session) -> str | None:
        """Return the reason to close a connection that works; None if there is none."""
        if con.generation != self.generation:
            return "closed" if self.closed else con.discard_reason or "invalidated"
        return con.discard_reason or None

    def free(self, con: Session, reason: str) -> bool:
        """Free the slot of a connection that has been closed; False if it has none."""
        if con not in self.in_use:
            return False
        del self.in_use[con]
        self.discarded[reason] += 1
        self.past_uses += con.uses
        self.past_times.merge(con.times)
        gone = con.is_disconnected or con.is_demoted
        if gone and con.generation == self.generation:
            # The server has gone away, or is no longer the primary. The other
            # connections are affected, too, even if they do not show it yet.
            self.generation += 1
        return True

    # Connect

    def opened_by(
        self, connect: ConnectAttempt, con: Session, took: float, now: float
    ) -> str | None:
        """Enter a new connection: hand it to the first waiter, or keep it idle.

        If it has to be closed instead, return the reason.
        """
        self.creates.add(took)
        self.in_use[con] = ref(connect)
        self.connects.succeeded(connect)
        self.opened += 1
        self.host_limit_reached = False
        if self.size() > self.limit:
            con.discard_reason = "surplus"
        # Under the same lock as succeeded(), or the waiter could start another connect.
        fault = self.put_back(con, now)
        if fault is None:
            self.wake_next()
        return fault

    def postpone(self, connect: ConnectAttempt, now: float) -> None:
        """End a connect that may not be made now; it is tried again in a moment."""
        self.host_limit_reached = not (self.paused or self.closed)
        self.connects.postponed(connect, now)
        if connect.waiter is not None:
            connect.waiter.wake()
        self.wake_next()

    def failed(
        self, connect: ConnectAttempt, error: BaseException, now: float, patient: bool
    ) -> list[Waiter[Session]]:
        """End a failed connect; remove and return the waiters that get its error.

        That is the waiter that it was started for; with no connection and no other
        connect to wait for, all waiters; none if they are to be ``patient``.
        """
        self.connects.failed(connect, error, now)
        refused = []
        if patient:
            if connect.waiter is not None:
                connect.waiter.wake()
        elif connect.waiter is not None and self.waiters.leave(connect.waiter):
            refused.append(connect.waiter)
        while self.waiters and self.size() == 0 and not patient:
            waiter = self.waiters.next()
            if waiter is not None:
                refused.append(waiter)
        self.wake_next()
        return refused

    def missing(self, now: float) -> list[ConnectAttempt]:
        """Reserve slots for the connects that ``MIN_SIZE`` requires."""
        if self.closed or self.paused or self.connects.failing:
            return []
        missing = min(self.config.min_size, self.limit) - self.size()
        return [self.connects.begin(self.generation, now) for _ in range(missing)]

    def probe(self, now: float) -> list[ConnectAttempt]:
        """Reserve a slot for a connect without a waiter, if none is under way."""
        if self.closed or self.connects or not self.has_room():
            return []
        if not self.connects.may_begin(now):
            return []
        return [self.connects.begin(self.generation, now)]

    # Discard

    def outdate(self, reason: str = "invalidated") -> Discards:
        """Begin a new generation; take out the idle connections.

        Those in use are closed when they are returned.
        """
        self.generation += 1
        return self._take(dict.fromkeys(self.idle, reason))

    def take_dead(self, dead: Mapping[Session, int]) -> Discards:
        """Take out idle connections with the number of uses given in ``dead``."""
        return self._take({c: "dead" for c in self.idle if dead.get(c) == c.uses})

    def take_stale(self, now: float) -> Discards:
        """Take out the connections whose holder is gone, and idle ones too old."""
        return self._take(self.take_abandoned() | self.old(now))

    def take_uncleaned(self) -> Discards:
        """Take out the idle connections that have not been sent their whole clean-up.

        If the thread that sends it is interrupted, they are closed.
        """
        waiting = [con for con in self.idle if con.has_waiting]
        return self._take(dict.fromkeys(waiting, "reset_failed"))

    def _take(self, going: Mapping[Session, str]) -> Discards:
        """Take these out of ``idle``; the returned object holds them until closed."""
        discards = Discards(going)
        entries = dict.fromkeys(discards, ref(discards))
        self.idle[:] = [con for con in self.idle if con not in discards]
        self.in_use.update(entries)
        return discards

    def take_abandoned(self) -> dict[Session, str]:
        """Remove waiters whose owner is gone; return connections whose holder is gone.

        An interrupt may have left such a connection both in ``idle`` and ``in_use``.
        """
        for waiter in tuple(self.waiters):
            if waiter.owner() is None:
                self.waiters.leave(waiter)
        entries = tuple(self.in_use.items())
        abandoned = [con for con, owner in entries if owner() is None]
        while self.dropped:
            abandoned.append(self.dropped.popleft())
        for con in set(abandoned) & set(self.idle):
            self.idle.remove(con)
        return {con: "invalidated" for con in abandoned if con in self.in_use}

    def old(self, now: float) -> dict[Session, str]:
        """Return idle connections that are outdated, expired, or idle for too long."""
        max_idle = self.config.max_idle or float("inf")
        spare = self.size() - self.config.min_size
        old: dict[Session, str] = {}
        for con in self.idle:
            if con.generation != self.generation:
                old[con] = "invalidated"
            elif now >= con.expires:
                old[con] = "expired"
            elif now - con.since >= max_idle and len(old) < spare:
                old[con] = "idle"
        return old

    def shrink(self, size: int) -> Discards:
        """Limit the pool to ``size`` connections; take out idle ones above the limit.

        Mark those in use, as far as still necessary, to be closed when returned.
        """
        self.limit = min(size, self.config.max_size)
        excess = max(self.size() - self.limit, 0)
        to_return = max(excess - len(self.idle), 0)
        # First those that are marked already.
        for con in sorted(self.in_use, key=_is_unmarked)[:to_return]:
            con.discard_reason = con.discard_reason or "surplus"
        self.wake_next()
        return self._take(dict.fromkeys(self.idle[:excess], "surplus"))

    def close(self) -> Discards:
        """Close the pool: fail all waiters and refuse new ones; take out idle ones."""
        self.closed = True
        while (waiter := self.waiters.next()) is not None:
            waiter.error = PoolClosed(f"{self.config.name}: the pool has been closed")
            waiter.wake()
        return self.outdate("closed")


def _is_unmarked(con: Session) -> bool:
    return not con.discard_reason
