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

import _thread
import atexit
import logging
import os
import random
import threading
import time
from collections import Counter, deque
from os import getpid
from typing import Any, Protocol
from weakref import WeakSet, ref

from dbutils.pooled_db import PooledDB

from .config import PoolConfig
from .connection import DRIVER, AnotherRole, PhysicalConnection, without_traceback
from .connector import Connector
from .connects import LONGEST_PAUSE, SEARCH_PAUSE, Connect, Connects
from .errors import PoolClosed, PoolError, PoolFull, PoolTimeout
from .handle import PooledConnection
from .housekeeper import housekeeper
from .leaks import describe, stack
from .recording import Recorder, make_recorder
from .stats import ConnectionStats, Observer, PoolStats, Times
from .waiters import Waiter, WaiterQueue

#: While other connections are open, a waiter trusts for so many seconds that one
#: of them, or the one connect under way, will serve it; then it starts its own.
PATIENCE = 0.05

#: Seconds that the server always has to answer what was asked on the last return.
GRACE = 0.005

monotonic = time.monotonic
log = logging.getLogger(__name__)

#: Seconds for which a replica is trusted not to have fallen behind.
LAG_CHECKED = 1.0

#: Seconds for which a connection to a primary is kept where a replica is preferred.
SECOND_BEST = 10.0

#: Seconds between two rounds of the housekeeper.
INTERVAL = 1.0

#: What a fork or the end of the process has to be told to.
_POOLS: WeakSet[Pool] = WeakSet()


class Liaison(Protocol):
    """What keeps a pool in touch with the other processes of a site."""

    def news(self) -> None:
        """Something changed; called when :attr:`Pool.news_from` lets it."""

    def before_connect(self) -> None:
        """Called outside the lock, before each connect."""

    def closed(self) -> None:
        """The pool has been closed for good."""

    def take_slot(self) -> object | None:
        """A place among this host's connections, given back with its last reference.

        None if there is none left.
        """


class Alone:
    """In touch with nobody."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config

    def news(self) -> None:
        """Interests nobody."""

    def before_connect(self) -> None:
        """Needs nothing."""

    def closed(self) -> None:
        """Neither."""

    def take_slot(self) -> object:
        if self._config.max_host_connections is None:
            return True
        raise PoolError(
            "MAX_HOST_CONNECTIONS cannot be kept by a pool that is in touch with no"
            " other process; give it a Presence on a Board"
        )


class _Errand:
    """Holds connections that are about to be closed, for as long as that takes."""


class Pool(PooledDB):  # type: ignore[misc]
    """A bounded pool of PyMySQL connections to one server.

    A :class:`dbutils.pooled_db.PooledDB` by type and by face. It opens nothing until
    the first checkout, belongs to the process that makes that checkout, and starts
    anew in a forked child.
    """

    def __init__(self, config: PoolConfig) -> None:
        if not isinstance(config, PoolConfig):
            raise TypeError(
                "Pool takes a PoolConfig; write Pool(PoolConfig.from_mapping(...))"
            )
        self.config = config
        self.name = config.name
        self._ping_after = config.ping_after
        self._max_usage = config.max_usage or float("inf")
        self._connector = Connector(config)
        self._births: dict[int, threading.Lock] = {}
        #: Handles that were garbage before they were returned. The one thing that
        #: a finalizer may touch, so it is not under the lock.
        self._dropped: deque[PhysicalConnection] = deque()
        self.liaison: Liaison = Alone(config)
        #: From when on, in `time.monotonic()` seconds, the liaison wants to hear news.
        self.news_from = float("inf")
        self._observers: tuple[Observer, ...] = ()
        #: Notes statements, if that is asked for.
        self.recorder: Recorder | None = make_recorder(config, _ignore)
        super().__init__(DRIVER, maxconnections=config.max_size, ping=0, reset=False)
        self._begin()
        _POOLS.add(self)

    def _begin(self) -> None:
        """Start with nothing, as the pool of this process."""
        #: The only lock. Everything below is read and written with it held. It lets
        #: its holder in again, since a finalizer or a signal handler may use the pool
        #: in the middle of anything that its thread is doing.
        self._lock = threading.RLock()
        #: The last one returned is the first to go out again.
        self._idle_cache: list[PhysicalConnection] = []
        #: Who holds which, in order of checkout. A holder that is gone without having
        #: returned anything leaves a dead reference; see :meth:`housekeep`.
        self._in_use: dict[PhysicalConnection, ref[Any]] = {}
        #: Handles that were logged as leaks.
        self._leaks: WeakSet[PooledConnection] = WeakSet()
        #: Connects under way; each takes a place.
        self._connects = Connects(
            SEARCH_PAUSE if self.config.target != "any" else LONGEST_PAUSE
        )
        self._waiters: WaiterQueue[PhysicalConnection] = WaiterQueue()
        self._generation = 0
        self._closed = self._paused = self._short = False
        #: The most connections at present; never more than MAX_SIZE.
        self._limit = self.config.max_size
        self._timeouts = self._opened = 0
        self._last_timeout: float | None = None
        #: Checkouts of the connections that are no more; the others count theirs.
        self._past_uses = 0
        self._past_times = Times()
        #: Of the checkouts that took any time, and of the connects.
        self._waits, self._creates = Times(), Times()
        self._discarded: Counter[str] = Counter()
        self._pid = getpid()

    def _begin_in_child(self) -> None:
        """Leave everything to the parent process and start anew; there, do nothing."""
        if self._pid == getpid():
            return
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
        self,
        shareable: bool = True,
        timeout: float | None = None,
        endpoint: str | None = None,
    ) -> PooledConnection:
        """Check a connection out.

        ``timeout`` is in seconds, by default the setting ``TIMEOUT``; 0 means now or
        never. It covers everything: waiting, validating and, if need be, connecting.
        Connections are never shared, whatever ``shareable`` says. ``endpoint`` is what
        status shows it to be taken for; by default, the thread's name.

        Raises :exc:`~.errors.PoolTimeout`, :exc:`~.errors.PoolFull`,
        :exc:`~.errors.PoolClosed`, or what the server said to the connect that was
        made for this checkout.
        """
        handle = PooledConnection(self, endpoint)
        if self.config.leak_threshold:
            handle.stack = stack()
        self.lend(handle, timeout)
        return handle

    def dedicated_connection(self) -> PooledConnection:
        """The same as :meth:`connection`; every connection is dedicated."""
        return self.connection()

    def steady_connection(self) -> PhysicalConnection:
        """Open a connection outside of the pool, within ``CONNECT_TIMEOUT``."""
        return self._connector.connect(monotonic() + self.config.connect_timeout)

    def lend(self, handle: PooledConnection, timeout: float | None = None) -> None:
        """Check a connection out for this handle; what :meth:`connection` does."""
        if self._pid != getpid():
            self._begin_in_child()
        started = monotonic()
        deadline = started + (self.config.timeout if timeout is None else timeout)
        owner = ref(handle)
        been_served = False
        while True:
            waiter: Waiter[PhysicalConnection] | None = None
            with self._lock:
                if self._idle_cache:
                    con = self._idle_cache[-1]
                    self._in_use[con] = owner
                    del self._idle_cache[-1]
                else:
                    waiter = Waiter(started, deadline, owner)
                    self._stand_in_line(waiter, been_served)
            if waiter is not None:
                con = self._wait(waiter)
            elif con.unanswered:
                con = self._one_that_is_answered(con, owner)
            at_once = (
                started < con.fresh_until
                and con.generation == self._generation
                and not con.unanswered
                and con.is_alive()
            )
            if at_once or self._is_usable(con, started, deadline):
                con.uses += 1
                con.since = max(con.since, started)
                con.holder = threading.get_ident()
                handle._con = con
                if started >= self.news_from:
                    self.tell()
                if self._observers or waiter is not None or not at_once:
                    self._took_time(handle, monotonic() - started)
                return
            been_served = True

    def _took_time(self, handle: PooledConnection, seconds: float) -> None:
        with self._lock:
            self._waits.add(seconds)
        self._notify("checked_out", handle, seconds)

    def _stand_in_line(
        self, waiter: Waiter[PhysicalConnection], been_served: bool
    ) -> None:
        """Queue, unless there is no queue to stand in. [lock held]"""
        if self._closed:
            raise PoolClosed(f"{self.name}: the pool has been closed")
        limit = self.config.max_waiting
        if limit and len(self._waiters) >= limit and not been_served:
            raise PoolFull(f"{self.name}: {limit} checkouts are waiting already")
        self._waiters.join(waiter)
        if waiter.since >= self.news_from:
            self.tell()

    def add_observer(self, observer: Observer) -> None:
        """Have this told of every event from now on."""
        self._observers += (observer,)

    def _notify(self, event: str, *about: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, event)(self, *about)
            except Exception:
                log.exception("%s: %r is told nothing any more", self.name, observer)
                self._observers = tuple(o for o in self._observers if o is not observer)

    def tell(self) -> None:
        """Tell the liaison that something changed; not again until it asks."""
        self.news_from = float("inf")
        self.liaison.news()

    def _wait(self, waiter: Waiter[PhysicalConnection]) -> PhysicalConnection:
        """Sleep until served; start a connect whenever that is due."""
        try:
            while not waiter.served:
                with self._lock:
                    now = monotonic()
                    connect = self._due_connect(waiter, now)
                    if connect is None and now >= waiter.deadline:
                        self._leave_line(waiter)
                        break
                    sleep = self._look_again(waiter, now) - now
                if connect is not None:
                    self._start(connect)
                waiter.wait(sleep)
        except BaseException:
            with self._lock:
                self._leave_line(waiter)
            if waiter.item is not None:
                self.cache(waiter.item)
            raise
        if self._waiters and self._places() < self._limit:
            # It may have been told of a place before it was served otherwise.
            with self._lock:
                self._ring_next()
        if waiter.item is not None:
            return waiter.item
        if waiter.error is not None:
            raise waiter.error
        raise self._timed_out(waiter.since)

    def _leave_line(self, waiter: Waiter[PhysicalConnection]) -> None:
        """Give up; and hand on the ring that may have come for it. [lock held]"""
        self._waiters.leave(waiter)
        self._ring_next()

    def _due_connect(
        self, waiter: Waiter[PhysicalConnection], now: float
    ) -> Connect | None:
        """A place for a connect, if this waiter should have one made. [lock held]"""
        if waiter.served or waiter.connecting or not self._has_room():
            return None
        may_be_served_soon = self._connects and self._in_use
        if may_be_served_soon and now < waiter.since + PATIENCE:
            return None
        if not self._connects.may_begin(now):
            return None
        connect = self._connects.begin(self._generation, now, waiter)
        # Whoever takes a chance passes the word on, so that no chance is missed.
        self._ring_next()
        return connect

    def _look_again(self, waiter: Waiter[PhysicalConnection], now: float) -> float:
        """When this waiter has to wake by itself. [lock held]"""
        if waiter.connecting or not self._has_room():
            return waiter.deadline
        patient_until = waiter.since + PATIENCE
        soonest = patient_until if patient_until > now else float("inf")
        return min(soonest, self._connects.next_chance(now), waiter.deadline)

    def _all(self) -> tuple[PhysicalConnection, ...]:
        """Every open connection. [lock held]"""
        return (*self._idle_cache, *self._in_use)

    def _has_room(self) -> bool:
        """Whether one more connection is allowed. [lock held]"""
        return self._places() < self._limit and not self._paused

    def _places(self) -> int:
        """How many connections there are or may be. [lock held]"""
        return len(self._idle_cache) + len(self._in_use) + len(self._connects)

    def _one_that_is_answered(
        self, con: PhysicalConnection, owner: ref[Any]
    ) -> PhysicalConnection:
        """Of the idle ones, prefer any whose last clean-up the server has confirmed.

        If there is none, take the one that has been waiting for it longest.
        """
        passed = []
        while not con.is_answered():
            with self._lock:
                if not self._idle_cache:
                    break
                passed.append(con)
                con = self._idle_cache[-1]
                self._in_use[con] = owner
                del self._idle_cache[-1]
        for other in reversed(passed):
            self._put_back(other, other.since)
        return con

    def _is_usable(
        self, con: PhysicalConnection, started: float, deadline: float
    ) -> bool:
        """Whether a connection may be handed out; if not, it is discarded.

        A server that is silent for half of the time that is left is given up, so that
        the other half can serve to find out whether it still accepts a connection.
        """
        try:
            if con.generation != self._generation:
                fault = "invalidated"
            elif started >= con.expires:
                fault = "expired"
            else:
                if con.unanswered:
                    con.read_answers(_half_way_to(deadline))
                fault = "dead"
                if con.is_alive():
                    if started > con.lag_checked + LAG_CHECKED:
                        con.check_lag(_half_way_to(deadline))
                    elif started - con.since > self._ping_after:
                        con.ping(_half_way_to(deadline))
                    return True
        except Exception as error:
            fault = "dead" if con.is_disconnected else "reset_failed"
            self._note_refusal(con, error)
        except BaseException:
            self._discard(con, "reset_failed")
            raise
        self._discard(con, fault)
        return False

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
        if self._lock._is_owned():  # type: ignore[attr-defined]
            # A finalizer, in the middle of something that this thread does here.
            self.dropped(con)
            return
        now = monotonic()
        used = now - con.since
        con.times.add(used)
        fault = self._fault(con, now)
        if fault is None:
            con.fresh_until = min(
                con.expires, now + self._ping_after, con.lag_checked + LAG_CHECKED
            )
            self._put_back(con, now)
        else:
            self._discard(con, fault)
        if self._observers:
            self._notify("checked_in", con.raw.thread_id(), used)

    def unshare(self, con: PhysicalConnection) -> None:
        """The same as :meth:`cache`: no connection is ever shared."""
        self.cache(con)

    def _fault(self, con: PhysicalConnection, now: float) -> str | None:
        """Why a connection that comes back cannot stay; None if it can."""
        if con.lost is not None:
            return "dead"
        if self._closed:
            return "closed"
        if con.retired or con.generation != self._generation:
            return con.retired or "invalidated"
        if now >= con.expires or con.uses >= self._max_usage:
            return "expired"
        try:
            return None if con.reset_session() else "reset_failed"
        except Exception:
            return "reset_failed"

    def _put_back(self, con: PhysicalConnection, now: float) -> None:
        """Hand a connection to the first in line, or keep it."""
        with self._lock:
            if con not in self._in_use:
                return
            con.since = now
            if now >= self.news_from:
                self.tell()
            waiter = self._waiters.hand_over(con) if self._waiters else None
            del self._in_use[con]
            if waiter is not None:
                # Put in again, so that the oldest holder is the first.
                self._in_use[con] = waiter.owner
                return
            if not self._closed:
                self._idle_cache.append(con)
                return
            errand = _Errand()
            self._in_use[con] = ref(errand)
        self._discard(con, "closed")

    def _discard(self, con: PhysicalConnection, reason: str) -> None:
        """Close a connection that is in use, and only then free its place."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            # A signal handler, in the middle of something that this thread does here.
            self.dropped(con)
            return
        con.close()
        with self._lock:
            if con not in self._in_use:
                return
            del self._in_use[con]
            self._discarded[reason] += 1
            self._past_uses += con.uses
            self._past_times.merge(con.times)
            gone = con.is_disconnected or con.is_demoted
            if gone and con.generation == self._generation:
                # The server went away under one connection, or is the primary no more;
                # the others look as good as ever for as long as nobody tells them.
                self._generation += 1
            self._ring_next()
        if self._observers:
            self._notify("discarded", con.raw.thread_id(), reason)

    def _discard_idle(self, reason: str, count: int | None = None) -> None:
        """Close so many of the idle connections, those first that were idle longest."""
        errand = _Errand()
        with self._lock:
            idle = self._idle_cache[:count]
            del self._idle_cache[:count]
            self._in_use.update(dict.fromkeys(idle, ref(errand)))
        for con in idle:
            self._discard(con, reason)

    def _ring_next(self) -> None:
        """There may be room: let the first without a connect see. [lock held]"""
        # A copy, for a signal handler may change the line in the middle of this.
        for waiter in tuple(self._waiters):
            if waiter.owner() is None:
                self._waiters.leave(waiter)
            elif not waiter.connecting:
                waiter.ring()
                return

    def dropped(self, con: PhysicalConnection) -> None:
        """Note, from a finalizer, that a handle vanished without being returned."""
        self._dropped.append(con)
        housekeeper().nudge()

    # Connecting

    def _start(self, connect: Connect) -> None:
        """Open a connection on a thread of its own; its place is taken already."""
        try:
            # Not a Thread: one whose start is interrupted is never forgotten by the
            # threading module, nor is what it was to work on.
            _thread.start_new_thread(self._connect, (connect,))
        except RuntimeError as error:
            self._connect_failed(connect, error)

    def _connect(self, connect: Connect) -> None:
        slot: object | None = None
        try:
            self.liaison.before_connect()
            # Whatever was ordered so far does not concern what does not exist yet.
            connect.generation = self._generation
            slot = None if self._paused else self.liaison.take_slot()
            if slot is None:
                self._postpone(connect)
                return
            begun = monotonic()
            con = self.steady_connection()
        except BaseException as error:
            slot = None  # whoever keeps the error keeps this frame
            self._connect_failed(connect, error)
            return
        con.slot = slot
        con.generation = connect.generation
        if lifetime := self.config.max_lifetime:
            con.expires = con.opened + lifetime * random.uniform(0.9, 1.1)
        if self.config.target == "prefer-replica" and not con.is_replica:
            con.expires = min(con.expires, con.opened + SECOND_BEST)
        took = monotonic() - begun
        with self._lock:
            self._creates.add(took)
            self._in_use[con] = ref(connect)
            self._connects.succeeded(connect)
            self._opened += 1
            self._short = False
            outdated = con.generation != self._generation
        number = con.raw.thread_id()
        if outdated:
            self._discard(con, "invalidated")
        else:
            self._put_back(con, monotonic())
        with self._lock:
            self._ring_next()
        housekeeper().watch(self)
        self._notify("created", number, took)

    def _postpone(self, connect: Connect) -> None:
        """Give up a connect that may not be made now, for the time being."""
        with self._lock:
            self._short = not self._paused
            self._connects.postponed(connect, monotonic())
            if connect.waiter is not None:
                connect.waiter.ring()
        if monotonic() >= self.news_from:
            self.tell()

    def _connect_failed(self, connect: Connect, error: BaseException) -> None:
        kept = without_traceback(error)
        with self._lock:
            self._connects.failed(connect, kept, monotonic())
            if isinstance(error, AnotherRole):
                # A primary that is still to be made is worth waiting for.
                refused = []
                if connect.waiter is not None:
                    connect.waiter.ring()
            else:
                refused = self._refused(connect.waiter)
            self._ring_next()
        for waiter in refused:
            waiter.error = (
                error if waiter is connect.waiter else without_traceback(kept)
            )
            waiter.ring()
        self._notify("connect_failed", kept)

    def _refused(
        self, owner: Waiter[PhysicalConnection] | None
    ) -> list[Waiter[PhysicalConnection]]:
        """Take out of the line those whom a failed connect concerns. [lock held]

        Whom it was made for; all, if there is nothing that they could wait for.
        """
        refused = []
        if owner is not None and self._waiters.leave(owner):
            refused.append(owner)
        while self._waiters and self._places() == 0:
            waiter = self._waiters.next()
            if waiter is not None:
                refused.append(waiter)
        return refused

    # For everybody

    def reset(self) -> None:
        """Replace all connections: idle ones now, the others as they come back."""
        self._begin_in_child()
        with self._lock:
            self._generation += 1
        self._discard_idle("invalidated")
        self._notify("was_reset")

    def pause(self) -> None:
        """Let new checkouts wait, within their deadlines, until :meth:`resume`.

        What is in use may finish, and is closed when it comes back; idle connections
        are closed now.
        """
        self._begin_in_child()
        with self._lock:
            self._paused = True
            self._generation += 1
        self._discard_idle("invalidated")

    def resume(self) -> None:
        """End :meth:`pause`: serve those who wait, in order."""
        self._begin_in_child()
        with self._lock:
            self._paused = False
            self._ring_next()

    def limit(self, size: int) -> None:
        """Have at most so many connections from now on, and never above ``MAX_SIZE``.

        What is too much is closed now, if it is idle, or else when it comes back.
        """
        self._begin_in_child()
        with self._lock:
            self._limit = min(size, self.config.max_size)
            excess = max(self._places() - self._limit, 0)
            to_return = max(excess - len(self._idle_cache), 0)
            # Those that are to go already come first.
            for con in sorted(self._in_use, key=_stays)[:to_return]:
                con.retired = con.retired or "surplus"
            self._ring_next()
        self._discard_idle("surplus", excess)

    def close(self) -> None:
        """Close the pool for good.

        Checkouts, those waiting too, raise :exc:`~.errors.PoolClosed`; what is in use
        stays usable and is closed when it comes back.
        """
        self._begin_in_child()
        with self._lock:
            self._closed = True
            while (waiter := self._waiters.next()) is not None:
                waiter.error = PoolClosed(f"{self.name}: the pool has been closed")
                waiter.ring()
        self._discard_idle("closed")
        self.liaison.closed()

    def stats(self) -> PoolStats:
        """The pool at this instant."""
        self._begin_in_child()
        with self._lock:
            now, generation = monotonic(), self._generation
            first = next(iter(self._waiters), None)
            outdated = sum(con.generation != generation for con in self._all())
            checkouts = self._past_uses + sum(con.uses for con in self._all())
            uses, waits = Times(), Times()
            for times in (self._past_times, *(con.times for con in self._all())):
                uses.merge(times)
            waits.merge(self._waits)
            # The others took no time.
            waits.counts[0] += checkouts - sum(waits.counts)
            return PoolStats(
                name=self.name,
                min_size=self.config.min_size,
                max_size=self.config.max_size,
                limit=self._limit,
                closed=self._closed,
                size=self._places(),
                idle=len(self._idle_cache),
                in_use=len(self._in_use),
                connecting=len(self._connects),
                waiting=len(self._waiters),
                waited=now - first.since if first else 0.0,
                generation=generation,
                outdated=outdated + self._connects.outdated(generation),
                paused=self._paused,
                short=self._short and first is not None and self._has_room(),
                checkouts=checkouts,
                timeouts=self._timeouts,
                last_timeout=self._last_timeout,
                last_connect_failure=self._connects.failed_at,
                connect_error=_what_was_said(self._connects.last_error),
                failing=self._connects.failing,
                opened=self._opened,
                discarded=self._discarded.total(),
                discarded_by_reason=dict(self._discarded),
                wait_seconds=waits.snapshot(),
                use_seconds=uses.snapshot(),
                create_seconds=self._creates.snapshot(),
            )

    def connections(self) -> list[ConnectionStats]:
        """Every open connection: those in use first, the oldest holder at the top."""
        self._begin_in_child()
        with self._lock:
            in_use = [(con, owner()) for con, owner in self._in_use.items()]
            idle = [*self._idle_cache]
        now, names = monotonic(), _thread_names()

        def about(con: PhysicalConnection, state: str, who: object) -> ConnectionStats:
            return ConnectionStats(
                thread_id=con.raw.thread_id(),
                state=state,
                since=now - con.since,
                endpoint=getattr(who, "endpoint", None)
                or (names.get(con.holder) if who else None),
                age=now - con.opened,
            )

        return [
            *(about(con, "in_use", owner) for con, owner in in_use),
            *(about(con, "idle", None) for con in reversed(idle)),
        ]

    def discard_dead(self) -> None:
        """Close idle connections that the server has closed; costs no round trip."""
        self._begin_in_child()
        errand = _Errand()
        with self._lock:
            dead = [
                c for c in self._idle_cache if not c.unanswered and not c.is_alive()
            ]
            self._idle_cache[:] = [c for c in self._idle_cache if c not in dead]
            self._in_use.update(dict.fromkeys(dead, ref(errand)))
        for con in dead:
            self._discard(con, "dead")

    def probe(self) -> None:
        """Open a connection for nobody, if there is room, to see whether that works."""
        self._begin_in_child()
        connect = None
        with self._lock:
            now = monotonic()
            may = self._has_room() and not self._closed and not self._connects
            if may and self._connects.may_begin(now):
                connect = self._connects.begin(self._generation, now)
        if connect is not None:
            self._start(connect)

    def housekeep(self) -> float | None:
        """Do what is due without anybody asking, on the housekeeper's thread.

        The seconds until it wants to be called again; None if not before a connect.
        """
        now = monotonic()
        errand = _Errand()
        with self._lock:
            stale = self._take_abandoned() | self._take_old(now)
            self._in_use.update(dict.fromkeys(stale, ref(errand)))
            held = [*self._in_use.items()] if self.config.leak_threshold else []
        for con, reason in stale.items():
            self._report_dropped(con)
            self._discard(con, reason)
        for con, owner in held:
            self._report_leak(con, owner(), now)
        with self._lock:
            missing = min(self.config.min_size, self._limit) - self._places()
            if self._closed or self._paused or self._connects.failing:
                missing = 0
            connects = [
                self._connects.begin(self._generation, now) for _ in range(missing)
            ]
            more_to_do = self._places() > 0
        for connect in connects:
            self._start(connect)
        pause = min(INTERVAL, self.config.leak_threshold or INTERVAL)
        return pause if more_to_do else None

    def _report_dropped(self, con: PhysicalConnection) -> None:
        if con.dropped_by is not None:
            who = describe(
                con.dropped_by[0], _thread_names().get(con.holder), con.dropped_by[1]
            )
            report = (
                f"{self.name}: a connection was dropped without being returned; {who}"
            )
            self._report(con.dropped_by[0], report)

    def _report_leak(self, con: PhysicalConnection, handle: Any, now: float) -> None:
        """Report a holder that has had its connection for too long, once."""
        if not isinstance(handle, PooledConnection) or handle in self._leaks:
            return
        held = now - con.since
        if held > self.config.leak_threshold:
            self._leaks.add(handle)
            who = describe(
                handle.endpoint, _thread_names().get(con.holder), handle.stack
            )
            report = f"{self.name}: a connection is in use for {held:.1f} s; {who}"
            self._report(handle.endpoint, report)

    def _report(self, endpoint: str | None, report: str) -> None:
        log.warning("%s", report)
        self._notify("leaked", endpoint, report)

    def _take_abandoned(self) -> dict[PhysicalConnection, str]:
        """What nobody holds any more, and why it must go. [lock held]

        An interrupt may have left it entered twice, as idle and as in use.
        """
        for waiter in tuple(self._waiters):
            if waiter.owner() is None:
                self._waiters.leave(waiter)
        entries = tuple(self._in_use.items())
        abandoned = [con for con, owner in entries if owner() is None]
        while self._dropped:
            abandoned.append(self._dropped.popleft())
        for con in set(abandoned) & set(self._idle_cache):
            self._idle_cache.remove(con)
        return {con: "invalidated" for con in abandoned if con in self._in_use}

    def _take_old(self, now: float) -> dict[PhysicalConnection, str]:
        """Take out what has been idle, or alive, for too long. [lock held]"""
        max_idle = self.config.max_idle or float("inf")
        spare = self._places() - self.config.min_size
        old: dict[PhysicalConnection, str] = {}
        for con in self._idle_cache:
            if now >= con.expires:
                old[con] = "expired"
            elif now - con.since >= max_idle and len(old) < spare:
                old[con] = "idle"
        self._idle_cache[:] = [con for con in self._idle_cache if con not in old]
        return old

    def _timed_out(self, started: float) -> PoolTimeout:
        """The error for a checkout that ran out of time; counts it, too."""
        with self._lock:
            self._timeouts += 1
            self._last_timeout = time.time()
            oldest = next(iter(self._in_use), None)
            text = (
                f"{self.name}: no connection within {monotonic() - started:.2f} s:"
                f" in use {len(self._in_use)}/{self.config.max_size},"
                f" waiting {len(self._waiters)}, connecting {len(self._connects)}"
                + ", paused" * self._paused
                + ", and this host's MAX_HOST_CONNECTIONS are taken" * self._short
            )
            cause = self._connects.error
            in_use = len(self._in_use) or None
            mine = sum(c.holder == threading.get_ident() for c in self._in_use)
        if oldest:
            text += f"; held longest: {monotonic() - oldest.since:.2f} s by thread"
            text += f" {_thread_names().get(oldest.holder, 'that has ended')!r}"
        if mine:
            text += f"; this thread itself holds {mine}"
        if mine == in_use:
            text += ", and waits for itself: let it return one before it takes another"
        error = PoolTimeout(text)
        error.__cause__ = cause
        if monotonic() >= self.news_from:
            self.tell()
        self._notify("timed_out", error)
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


def _thread_names() -> dict[int | None, str]:
    return {thread.ident: thread.name for thread in threading.enumerate()}


def _ignore(_: object) -> None:
    """Keep nothing: only an app has a place for what was recorded."""


def _stays(con: PhysicalConnection) -> bool:
    return not con.retired


def _what_was_said(error: BaseException | None) -> str | None:
    """An error as the mysql client prints it; no more than its kind if it is not ours.

    What a ``PASSWORD`` that is a function raises could hold a secret.
    """
    if isinstance(error, (DRIVER.MySQLError, PoolError)):
        return ": ".join(map(str, error.args))
    return None if error is None else type(error).__name__


def _half_way_to(deadline: float) -> float:
    """Half of the time left; a moment of grace even for those who have none."""
    now = monotonic()
    return now + max((deadline - now) / 2, GRACE)


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
