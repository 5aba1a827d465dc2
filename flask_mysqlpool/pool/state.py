"""What a pool has and who is next: every decision about it, and nothing else.

Each method of :class:`PoolState` is called with its lock held. None does I/O, waits or
calls anybody back; what has to be closed or connected, they return, and the pool sees
to it after it has let go of the lock.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any
from weakref import ref

from ..config import PoolConfig
from ..errors import PoolClosed, PoolFull
from .driver.session import Session
from .stats import Times
from .waiters import Waiter, WaiterQueue

#: Seconds until a connect is tried again for which the host had no place left.
POSTPONEMENT = 0.03

#: Pauses between failing connects: seconds, doubling from the first to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
#: The longest while it is looked for the host that has been made the primary.
SEARCH_PAUSE = 0.25


class ConnectAttempt:
    """A connect under way, and the waiter that it was started for."""

    __slots__ = ("__weakref__", "generation", "waiter")

    def __init__(self, generation: int, waiter: Waiter[Any] | None) -> None:
        self.generation = generation
        self.waiter = waiter


class ConnectAttempts:
    """Each connect takes a place for as long as the object that stands for it lives.

    So one that dies in a way that nobody thought of gives its place back.
    """

    def __init__(self, longest_pause: float = LONGEST_PAUSE) -> None:
        self._longest_pause = longest_pause
        # No WeakSet: whoever lets go of one last would change it, without the lock.
        self._under_way: set[ref[ConnectAttempt]] = set()
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

    def _alive(self) -> list[ConnectAttempt]:
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
    ) -> ConnectAttempt:
        """Take a place."""
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
                waiter.wake()  # it may have served another one

    def postponed(self, connect: ConnectAttempt, now: float) -> None:
        """It was not even tried."""
        self._end(connect)
        self._postponed_until = now + POSTPONEMENT

    def outdated(self, generation: int) -> int:
        """How many were begun before this generation."""
        return sum(connect.generation != generation for connect in self._alive())

    def succeeded(self, connect: ConnectAttempt) -> None:
        """It serves who is first in line, which need not be whom it was made for."""
        self._end(connect)
        self.error = None
        self._failures = 0
        self._retry_at = 0.0

    def failed(self, connect: ConnectAttempt, error: BaseException, now: float) -> None:
        self._end(connect)
        self.error = self.last_error = error
        self.failed_at = time.time()
        if now < self._retry_at:
            return  # begun before the failure that this pause is for
        pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), self._longest_pause)
        self._retry_at = now + pause * random.uniform(0.5, 1.0)
        self._failures += 1


#: While other connections are open, a waiter trusts for so many seconds that one
#: of them, or the one connect under way, will serve it; then it starts its own.
CONNECT_DELAY = 0.05


class Discards(dict[Session, str]):
    """Connections that are about to be closed, and why; it holds them while it lives.

    If the thread that closes them is interrupted, maintenance finds those that are left
    without a holder, and closes them.
    """


class PoolState:
    """The connections of one pool in one process, and those who wait for one.

    A place is taken when a connect begins, and is free again when the socket has been
    closed: ``size = connecting + idle + in_use`` holds at each moment.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        #: The only lock. It lets its holder in again, since a finalizer or a signal
        #: handler may use the pool in the middle of anything that its thread is doing.
        self.lock: Any = threading.RLock()
        #: The last one returned is the first to go out again.
        self.idle: list[Session] = []
        #: Who holds which, in order of checkout. A holder that is gone without having
        #: returned anything leaves a dead reference; see :meth:`take_abandoned`.
        self.in_use: dict[Session, ref[Any]] = {}
        #: Connects under way; each takes a place.
        self.connects = ConnectAttempts(
            LONGEST_PAUSE if config.target == "any" else SEARCH_PAUSE
        )
        self.waiters: WaiterQueue[Session] = WaiterQueue()
        #: Handles that were garbage before they were returned. The one thing that
        #: a finalizer may touch, so it needs no lock.
        self.dropped: deque[Session] = deque()
        #: The last one that came back with an error which may mean that the server was
        #: demoted. The next checkout takes it first, for the answer concerns all.
        self.suspect: Session | None = None
        #: Raised by all that outdates the connections that there are: a reset, a pause,
        #: the end of the pool, and a server that went away.
        self.generation = 0
        self.closed = self.paused = self.host_limit_reached = False
        #: The most connections at present; never more than MAX_SIZE.
        self.limit = config.max_size
        self.timeouts = self.opened = 0
        self.last_timeout: float | None = None
        #: Checkouts of the connections that are no more; the others count theirs.
        self.past_uses = 0
        self.past_times = Times()
        #: Of the checkouts that took any time, and of the connects.
        self.waits, self.creates = Times(), Times()
        self.discarded: Counter[str] = Counter()

    # Places

    def open(self) -> tuple[Session, ...]:
        """Every open connection."""
        return (*self.idle, *self.in_use)

    def size(self) -> int:
        """How many connections there are or may be."""
        return len(self.idle) + len(self.in_use) + len(self.connects)

    def has_room(self) -> bool:
        """Whether one more connection is allowed."""
        return self.size() < self.limit and not self.paused

    # Checkout

    def take_idle(self, owner: ref[Any]) -> Session | None:
        """Let the owner have the connection that was returned last."""
        if not self.idle:
            return None
        if self.suspect is not None:
            self._take_first(self.suspect)
        con = self.idle[-1]
        # In this order, an interrupt in between loses nothing.
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
        """Stand in line; who has been served in vain may do so where others may not.

        Raises :exc:`~.errors.PoolClosed` or :exc:`~.errors.PoolFull`.
        """
        limit = self.config.max_waiting
        if limit and len(self.waiters) >= limit and not requeue:
            raise PoolFull(f"{self.config.name}: {limit} checkouts are waiting already")
        self.waiters.join(waiter)
        if self.closed:  # perhaps by a signal handler, just now
            self.waiters.leave(waiter)
            raise PoolClosed(f"{self.config.name}: the pool has been closed")

    def leave(self, waiter: Waiter[Session]) -> None:
        """Give up; and hand on the ring that may have come for this one."""
        self.waiters.leave(waiter)
        self.wake_next()

    def wake_next(self) -> None:
        """There may be room: let the first without a connect see."""
        look = bool(self.waiters)
        while look and self.has_room():
            look = False
            # With as many connects as places, one more waiter is the first without.
            for waiter in self.waiters.first(self.config.max_size + 1):
                if waiter.owner() is None:
                    look = self.waiters.leave(waiter)
                elif not waiter.connecting:
                    waiter.wake()
                    return

    def due_connect(self, waiter: Waiter[Session], now: float) -> list[ConnectAttempt]:
        """A place for a connect, if this waiter should have one made."""
        if waiter.served or waiter.connecting or not self.has_room():
            return []
        may_be_served_soon = waiter.waits and self.connects and self.in_use
        if may_be_served_soon and now < waiter.since + CONNECT_DELAY:
            return []
        if not self.connects.may_begin(now):
            return []
        connect = self.connects.begin(self.generation, now, waiter)
        # Whoever takes a chance passes the word on, so that no chance is missed.
        self.wake_next()
        return [connect]

    def wake_time(self, waiter: Waiter[Session], now: float) -> float:
        """When this waiter has to wake by itself."""
        if waiter.connecting or not self.has_room():
            return waiter.deadline
        patient_until = waiter.since + CONNECT_DELAY
        soonest = patient_until if patient_until > now else float("inf")
        return min(soonest, self.connects.next_chance(now), waiter.deadline)

    # Return

    def put_back(self, con: Session, now: float) -> str | None:
        """Hand a connection that is in use to the first in line, or keep it.

        Why not, if it has to be closed instead: by what was decided up to now.
        """
        if con not in self.in_use:
            return None
        if con.discard_reason or con.generation != self.generation:
            return self.fault(con)
        con.since = now
        if con.is_suspect:
            self.suspect = con
        if self.waiters and self.waiters.hand_over(con, self.in_use):
            return None
        del self.in_use[con]
        self.idle.append(con)
        return None

    def fault(self, con: Session) -> str | None:
        """Why a connection has to go although it works, if it has to."""
        if con.generation != self.generation:
            return "closed" if self.closed else con.discard_reason or "invalidated"
        return con.discard_reason or None

    def free(self, con: Session, reason: str) -> bool:
        """Free the place of a connection that has been closed; False if it had none."""
        if con not in self.in_use:
            return False
        del self.in_use[con]
        self.discarded[reason] += 1
        self.past_uses += con.uses
        self.past_times.merge(con.times)
        gone = con.is_disconnected or con.is_demoted
        if gone and con.generation == self.generation:
            # The server went away under one connection, or is the primary no more;
            # the others look as good as ever for as long as nobody tells them.
            self.generation += 1
        return True

    # Connecting

    def opened_by(
        self, connect: ConnectAttempt, con: Session, took: float, now: float
    ) -> str | None:
        """A connect has succeeded, for the first in line; why not, if it has to go."""
        self.creates.add(took)
        self.in_use[con] = ref(connect)
        self.connects.succeeded(connect)
        self.opened += 1
        self.host_limit_reached = False
        if self.size() > self.limit:
            con.discard_reason = "surplus"
        # In one step, or who waits for it could find that nobody connects for him.
        fault = self.put_back(con, now)
        if fault is None:
            self.wake_next()
        return fault

    def postpone(self, connect: ConnectAttempt, now: float) -> None:
        """Give up a connect that may not be made now, for the time being."""
        self.host_limit_reached = not (self.paused or self.closed)
        self.connects.postponed(connect, now)
        if connect.waiter is not None:
            connect.waiter.wake()

    def failed(
        self, connect: ConnectAttempt, error: BaseException, now: float, patient: bool
    ) -> list[Waiter[Session]]:
        """A connect has failed; whom that concerns, taken out of the line.

        Whom it was made for; all, if there is nothing that they could wait for. Nobody,
        if they are to be ``patient``.
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
        """Places for the connects that ``MIN_SIZE`` asks for."""
        if self.closed or self.paused or self.connects.failing:
            return []
        missing = min(self.config.min_size, self.limit) - self.size()
        return [self.connects.begin(self.generation, now) for _ in range(missing)]

    def probe(self, now: float) -> list[ConnectAttempt]:
        """A place for a connect that is for nobody, if none is under way."""
        if self.closed or self.connects or not self.has_room():
            return []
        if not self.connects.may_begin(now):
            return []
        return [self.connects.begin(self.generation, now)]

    # What goes

    def outdate(self, reason: str = "invalidated") -> Discards:
        """Have all connections replaced: the idle ones, and the others in time."""
        self.generation += 1
        return self._take(dict.fromkeys(self.idle, reason))

    def take_dead(self, dead: Mapping[Session, int]) -> Discards:
        """Those of these that are idle still, and were lent no more than so often."""
        return self._take({c: "dead" for c in self.idle if dead.get(c) == c.uses})

    def take_stale(self, now: float) -> Discards:
        """What nobody holds any more, and what has become too old; and why it goes."""
        return self._take(self.take_abandoned() | self.old(now))

    def _take(self, going: Mapping[Session, str]) -> Discards:
        discards = Discards(going)
        entries = dict.fromkeys(discards, ref(discards))
        self.idle[:] = [con for con in self.idle if con not in discards]
        self.in_use.update(entries)
        return discards

    def take_abandoned(self) -> dict[Session, str]:
        """What was dropped, or is held by nobody.

        An interrupt may have left it entered twice, as idle and as in use.
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
        """What is idle and outdated, or has been idle, or alive, for too long."""
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
        """Have at most so many from now on; those idle ones that are too many.

        Those that are not idle go when they come back.
        """
        self.limit = min(size, self.config.max_size)
        excess = max(self.size() - self.limit, 0)
        to_return = max(excess - len(self.idle), 0)
        # Those that are to go already come first.
        for con in sorted(self.in_use, key=_stays)[:to_return]:
            con.discard_reason = con.discard_reason or "surplus"
        self.wake_next()
        return self._take(dict.fromkeys(self.idle[:excess], "surplus"))

    def close(self) -> Discards:
        """Send everybody in line away, and let nobody join it any more."""
        self.closed = True
        while (waiter := self.waiters.next()) is not None:
            waiter.error = PoolClosed(f"{self.config.name}: the pool has been closed")
            waiter.wake()
        return self.outdate("closed")


def _stays(con: Session) -> bool:
    return not con.discard_reason
