"""When a connection is opened, handed out, taken back and ended.

Every operation has one shape: *decide* under the lock, *act* outside it, *settle*
under it again. No call to the server, no connect and no close happens while the
lock is held, so a server that hangs delays nobody but those who wait for it.

A place for a connection is taken before its connect begins and is free again only
after its socket has been closed; that is what makes ``MAX_SIZE`` a hard limit.

Blocked checkouts stand in one line (:mod:`.waiters`) and are handed what comes
first: a connection that somebody returned, or one that was opened meanwhile. They
never connect themselves. A connect runs on a thread of its own, started by a
waiter, and serves whoever is first in line when it is done.
"""

from __future__ import annotations

import atexit
import copy
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from os import getpid
from threading import get_ident
from weakref import WeakSet

from dbutils.pooled_db import PooledDB

from .config import PoolConfig
from .connection import DRIVER, Connector, PhysicalConnection
from .errors import PoolClosed, PoolFull, PoolTimeout
from .handle import PooledConnection
from .housekeeper import HOUSEKEEPER
from .stats import PoolStats
from .waiters import Waiter, WaiterQueue

#: While other connections are open, a waiter trusts for so many seconds that one
#: of them, or the one connect under way, will serve it; then it starts its own.
PATIENCE = 0.05

#: Pauses between failing connects: seconds, doubling from the first to the last.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0

monotonic = time.monotonic
log = logging.getLogger(__name__)

#: What a fork or the end of the process has to be told to.
_POOLS: WeakSet[Pool] = WeakSet()


class Pool(PooledDB):  # type: ignore[misc]
    """A bounded pool of PyMySQL connections to one server.

    A :class:`dbutils.pooled_db.PooledDB` by type and by face. It opens nothing until
    the first checkout, belongs to the process that makes that checkout, and starts
    anew in a forked child.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.name = config.name
        self._connector = Connector(config)
        self._births: dict[int, threading.Lock] = {}
        #: Handles that were garbage before they were returned. The one thing that
        #: a finalizer may touch, so it is not under the lock.
        self._dropped: deque[PhysicalConnection] = deque()
        super().__init__(DRIVER, maxconnections=config.max_size, ping=0, reset=False)
        self._begin()
        _POOLS.add(self)

    def _begin(self) -> None:
        """Start with nothing, as the pool of this process."""
        #: The only lock. Everything below is read and written with it held.
        self._lock = threading.Lock()
        #: The last one returned is the first to go out again.
        self._idle_cache: list[PhysicalConnection] = []
        #: In order of checkout, so that the first is the oldest holder.
        self._in_use: dict[PhysicalConnection, None] = {}
        #: Places taken by connects that have not ended yet.
        self._connecting = 0
        self._waiters: WaiterQueue[PhysicalConnection] = WaiterQueue()
        self._generation = 0
        self._closed = False
        self._timeouts = self._opened = 0
        #: Checkouts of the connections that are no more; the others count theirs.
        self._past_uses = 0
        self._discarded: Counter[str] = Counter()
        #: Of the connects that failed since the last that did not.
        self._failures = 0
        self._connect_error: BaseException | None = None
        self._retry_at = 0.0
        self._pid = getpid()

    def _begin_in_child(self) -> None:
        """Leave everything to the parent process and start anew."""
        # The lock was inherited, perhaps held; this one belongs to the child, and
        # setdefault lets exactly one of several threads supply it.
        with self._births.setdefault(getpid(), threading.Lock()):
            if self._pid == getpid():
                return
            closed = self._closed
            for con in self._all():
                con.abandon()
            self._begin()
            self._closed = closed

    # Checkout

    def connection(
        self, shareable: bool = True, timeout: float | None = None
    ) -> PooledConnection:
        """Check a connection out.

        ``timeout`` is in seconds, by default the setting ``TIMEOUT``; 0 means now or
        never. It covers everything: waiting, validating and, if need be, connecting.
        Connections are never shared, whatever ``shareable`` says.

        Raises :exc:`~.errors.PoolTimeout`, :exc:`~.errors.PoolFull`,
        :exc:`~.errors.PoolClosed`, or what the server said to the connect that was
        made for this checkout.
        """
        return PooledConnection(self, self.checkout(timeout))

    def dedicated_connection(self) -> PooledConnection:
        """The same as :meth:`connection`; every connection is dedicated."""
        return self.connection()

    def steady_connection(self) -> PhysicalConnection:
        """Open a connection outside of the pool, within ``CONNECT_TIMEOUT``."""
        return self._connector.connect(monotonic() + self.config.connect_timeout)

    def checkout(self, timeout: float | None = None) -> PhysicalConnection:
        """What :meth:`connection` does, without the handle."""
        if self._pid != getpid():
            self._begin_in_child()
        started = monotonic()
        deadline = started + (self.config.timeout if timeout is None else timeout)
        waiter = None
        while True:
            with self._lock:
                if self._idle_cache:
                    con = self._idle_cache.pop()
                    self._in_use[con] = None
                    waiter = None
                else:
                    waiter = self._stand_in_line(started, deadline, waiter)
            if waiter is not None:
                con = self._wait(waiter)
            if self._is_usable(con, started, deadline):
                return con

    def _stand_in_line(
        self,
        now: float,
        deadline: float,
        served: Waiter[PhysicalConnection] | None,
    ) -> Waiter[PhysicalConnection]:
        """Queue, unless there is no queue to stand in. [lock held]

        Whoever was served already, with something that turned out to be of no use,
        is first in line again.
        """
        if self._closed:
            raise PoolClosed(f"{self.name}: the pool has been closed")
        limit = self.config.max_waiting
        if limit and len(self._waiters) >= limit and served is None:
            raise PoolFull(f"{self.name}: {limit} checkouts are waiting already")
        waiter: Waiter[PhysicalConnection] = Waiter(now, deadline)
        self._waiters.join(waiter, first=served is not None)
        return waiter

    def _wait(self, waiter: Waiter[PhysicalConnection]) -> PhysicalConnection:
        """Sleep until served; start a connect whenever that is due."""
        try:
            while True:
                with self._lock:
                    if waiter.served:
                        break
                    now = monotonic()
                    if due := self._connect_is_due(waiter, now):
                        self._connecting += 1
                        waiter.connecting = True
                    elif now >= waiter.deadline:
                        self._waiters.leave(waiter)
                        break
                    sleep = self._look_again(waiter, now) - now
                if due:
                    self._start_connect(waiter)
                waiter.wait(sleep)
        except BaseException:
            self._withdraw(waiter)
            raise
        if waiter.item is not None:
            return waiter.item
        if waiter.error is not None:
            raise waiter.error
        raise self._timed_out(waiter.since)

    def _withdraw(self, waiter: Waiter[PhysicalConnection]) -> None:
        """Leave the line because of an interrupt; lose nothing by it."""
        with self._lock:
            self._waiters.leave(waiter)
        if waiter.item is not None:
            self.cache(waiter.item)

    def _connect_is_due(self, waiter: Waiter[PhysicalConnection], now: float) -> bool:
        """Whether this waiter should have a connection opened. [lock held]"""
        if waiter.connecting or self._places() >= self.config.max_size:
            return False
        if self._connecting == 0:
            return now >= self._retry_at
        if self._failures:
            # One at a time is enough to find out whether the server is back.
            return False
        return not self._in_use or now >= waiter.since + PATIENCE

    def _look_again(self, waiter: Waiter[PhysicalConnection], now: float) -> float:
        """When this waiter has to wake by itself. [lock held]"""
        patience_ends = waiter.since + PATIENCE
        for moment in (self._retry_at, patience_ends):
            if not waiter.connecting and moment > now:
                return min(moment, waiter.deadline)
        return waiter.deadline

    def _all(self) -> tuple[PhysicalConnection, ...]:
        """Every open connection. [lock held]"""
        return (*self._idle_cache, *self._in_use)

    def _places(self) -> int:
        """How many connections there are or may be. [lock held]"""
        return len(self._idle_cache) + len(self._in_use) + self._connecting

    def _is_usable(
        self, con: PhysicalConnection, started: float, deadline: float
    ) -> bool:
        """Whether a connection may be handed out; if not, it is discarded.

        Raises :exc:`~.errors.PoolTimeout` if the deadline passes while the server
        has not said that the session is clean.
        """
        try:
            fault = self._fault_of(con, started, deadline)
        except Exception as error:
            fault = "dead" if con.lost is not None else "reset_failed"
            self._note_refusal(con, error)
        except BaseException:
            self._discard(con, "reset_failed")
            raise
        if fault is not None:
            self._discard(con, fault)
            return False
        con.uses += 1
        con.since = max(con.since, started)
        con.holder = get_ident()
        return True

    def _fault_of(
        self, con: PhysicalConnection, started: float, deadline: float
    ) -> str | None:
        """Why a connection that was idle cannot be handed out; None if it can.

        Raises what reading the answers to the last reset, or to a ping, raises. A
        server that is silent for half of the time that is left is given up, so that the
        other half can serve to find out whether it still accepts a connection.
        """
        if con.generation != self._generation:
            return "invalidated"
        if started >= con.expires:
            return "expired"
        if con.unanswered:
            con.read_answers(_half_way_to(deadline))
        if not con.is_alive():
            return "dead"
        if started - con.since > self.config.ping_after:
            con.ping(_half_way_to(deadline))
        return None

    def _note_refusal(self, con: PhysicalConnection, error: Exception) -> None:
        """Say once that the server does not clean sessions: connects are dear."""
        if con.lost is None and not self._discarded["reset_failed"]:
            log.warning("%s: a session could not be cleaned: %s", self.name, error)

    # Return

    def cache(self, con: PhysicalConnection) -> None:
        """Take a connection back. Never waits for the network; never raises."""
        if con.pid != getpid():
            con.abandon()
            return
        now = monotonic()
        reason = self._fault(con, now)
        if reason is None:
            self._put_back(con, now)
        else:
            self._discard(con, reason)

    def unshare(self, con: PhysicalConnection) -> None:
        """The same as :meth:`cache`: no connection is ever shared."""
        self.cache(con)

    def _fault(self, con: PhysicalConnection, now: float) -> str | None:
        """Why a connection that comes back cannot stay; None if it can."""
        if con.lost is not None:
            return "dead"
        if self._closed:
            return "closed"
        if con.retired:
            return "invalidated"
        if con.generation != self._generation:
            return "invalidated"
        if now >= con.expires or 0 < self.config.max_usage <= con.uses:
            return "expired"
        try:
            return None if con.reset_session() else "reset_failed"
        except Exception:
            return "reset_failed"

    def _put_back(self, con: PhysicalConnection, now: float) -> None:
        """Hand a connection to the first in line, or keep it."""
        with self._lock:
            if self._in_use.pop(con, self) is self:
                return
            con.since = now
            if self._waiters:
                self._in_use[con] = None
                self._waiters.hand_over(con)
            else:
                self._idle_cache.append(con)
            closed = self._closed
        if closed:
            self._discard_idle("closed")

    def _discard(self, con: PhysicalConnection, reason: str) -> None:
        """Close a connection that is in use, and only then free its place."""
        con.close()
        with self._lock:
            if con not in self._in_use:
                return
            del self._in_use[con]
            self._discarded[reason] += 1
            self._past_uses += con.uses
            if con.is_disconnected and con.generation == self._generation:
                # The server went away under one connection; the others may look
                # alive for as long as nobody tells them.
                self._generation += 1
            self._ring_next()

    def _discard_idle(self, reason: str) -> None:
        with self._lock:
            idle, self._idle_cache = self._idle_cache, []
            self._in_use.update(dict.fromkeys(idle))
        for con in idle:
            self._discard(con, reason)

    def _ring_next(self) -> None:
        """There may be room: let the first without a connect see. [lock held]"""
        for waiter in self._waiters:
            if not waiter.connecting:
                waiter.ring()
                return

    def dropped(self, con: PhysicalConnection) -> None:
        """Note, from a finalizer, that a handle vanished without being returned."""
        self._dropped.append(con)
        HOUSEKEEPER.nudge()

    # Connecting

    def _start_connect(self, waiter: Waiter[PhysicalConnection] | None) -> None:
        """Open a connection on a thread of its own; its place is taken already."""
        thread = threading.Thread(
            target=self._connect,
            args=(waiter,),
            name=f"mysqlpool-connect-{self.name}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError as error:
            self._connect_failed(waiter, error)

    def _connect(self, waiter: Waiter[PhysicalConnection] | None) -> None:
        generation = self._generation
        try:
            con = self.steady_connection()
        except BaseException as error:
            self._connect_failed(waiter, error)
            return
        con.generation = generation
        if lifetime := self.config.max_lifetime:
            con.expires = con.opened + lifetime * random.uniform(0.9, 1.1)
        with self._lock:
            self._connecting -= 1
            self._opened += 1
            self._in_use[con] = None
            if waiter is not None:
                # It serves who is first in line, which need not be this one.
                waiter.connecting = False
            if self._failures:
                self._failures = 0
                self._connect_error = None
                for other in self._waiters:
                    other.ring()
        HOUSEKEEPER.watch(self)
        self._put_back(con, monotonic())
        with self._lock:
            self._ring_next()

    def _connect_failed(
        self, waiter: Waiter[PhysicalConnection] | None, error: BaseException
    ) -> None:
        with self._lock:
            self._connecting -= 1
            self._connect_error = error
            pause = min(FIRST_PAUSE * 2.0 ** min(self._failures, 10), LONGEST_PAUSE)
            self._failures += 1
            self._retry_at = monotonic() + pause * random.uniform(0.5, 1.0)
            if waiter is not None:
                waiter.connecting = False
                self._waiters.refuse(waiter, error)
            nothing_to_hope_for = self._places() == 0
            for other in tuple(self._waiters):
                if nothing_to_hope_for:
                    self._waiters.refuse(other, _twin(error))
                else:
                    other.ring()

    # For everybody

    def reset(self) -> None:
        """Replace all connections: idle ones now, the others as they come back."""
        with self._lock:
            self._generation += 1
        self._discard_idle("invalidated")

    def close(self) -> None:
        """Close the pool for good.

        Checkouts, those waiting too, raise :exc:`~.errors.PoolClosed`; what is in use
        stays usable and is closed when it comes back.
        """
        with self._lock:
            self._closed = True
            for waiter in tuple(self._waiters):
                error = PoolClosed(f"{self.name}: the pool has been closed")
                self._waiters.refuse(waiter, error)
        self._discard_idle("closed")

    def stats(self) -> PoolStats:
        """The pool at this instant."""
        with self._lock:
            return PoolStats(
                name=self.name,
                max_size=self.config.max_size,
                size=self._places(),
                idle=len(self._idle_cache),
                in_use=len(self._in_use),
                connecting=self._connecting,
                waiting=len(self._waiters),
                generation=self._generation,
                checkouts=self._past_uses + sum(con.uses for con in self._all()),
                timeouts=self._timeouts,
                opened=self._opened,
                discarded=self._discarded.total(),
                discarded_by_reason=dict(self._discarded),
            )

    def housekeep(self) -> bool:
        """Do what is due without anybody asking; False if nothing ever will be.

        Called about once a second, on the housekeeper's thread.
        """
        while self._dropped:
            self._discard(self._dropped.popleft(), "invalidated")
        now = monotonic()
        with self._lock:
            stale = self._take_stale(now)
            missing = self.config.min_size - self._places() + len(stale)
            if self._closed or now < self._retry_at or self._failures:
                missing = 0
            self._connecting += max(missing, 0)
        for con, reason in stale:
            self._discard(con, reason)
        for _ in range(missing):
            self._start_connect(None)
        return bool(self._places() or missing > 0)

    def _take_stale(self, now: float) -> list[tuple[PhysicalConnection, str]]:
        """Take out the idle connections that are too old. [lock held]"""
        max_idle = self.config.max_idle or float("inf")
        spare = self._places() - self.config.min_size
        stale: list[tuple[PhysicalConnection, str]] = []
        for con in self._idle_cache:
            if now >= con.expires:
                stale.append((con, "expired"))
            elif now - con.since >= max_idle and len(stale) < spare:
                stale.append((con, "idle"))
        for con, _ in stale:
            self._idle_cache.remove(con)
            self._in_use[con] = None
        return stale

    def _timed_out(self, started: float) -> PoolTimeout:
        """The error for a checkout that ran out of time; counts it, too."""
        with self._lock:
            self._timeouts += 1
            oldest = next(iter(self._in_use), None)
            text = (
                f"{self.name}: no connection within {monotonic() - started:.2f} s:"
                f" in use {len(self._in_use)}/{self.config.max_size},"
                f" waiting {len(self._waiters)}, connecting {self._connecting}"
            )
            error = PoolTimeout(text + (_describe(oldest) if oldest else ""))
            error.__cause__ = self._connect_error
        return error

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{type(self).__name__} {self.name!r} at {self.config.server}:"
            f" in use {stats.in_use}/{stats.max_size}, idle {stats.idle},"
            f" connecting {stats.connecting}, waiting {stats.waiting}>"
        )

    def __del__(self) -> None:
        """Do nothing: PooledDB would talk to the server from the finalizer."""


def _describe(con: PhysicalConnection) -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return (
        f"; held longest: {monotonic() - con.since:.2f} s"
        f" by thread {names.get(con.holder, 'that has ended')!r}"
    )


def _half_way_to(deadline: float) -> float:
    now = monotonic()
    return now + max(deadline - now, 0.0) / 2


def _twin(error: BaseException) -> BaseException:
    """An equal error, since raising one in two threads would mix their tracebacks."""
    try:
        return copy.copy(error)
    except Exception:
        return error


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool._begin_in_child()


def _at_exit() -> None:
    """Say goodbye to the server, where the process ends in a way that allows it."""
    for pool in list(_POOLS):
        if pool._pid == getpid():
            pool.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
