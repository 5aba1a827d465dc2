"""How connections are lent, opened, taken back and closed: read it from top to bottom.

Every operation has one shape: *decide* with the lock held, *act* without it, *settle*
with the lock held again. :mod:`.state` decides; this module acts. No statement, connect
or close happens with the lock held, so a server that hangs delays only the threads that
wait for that server.

A place for a connection is taken before its connect begins and is free again only
after its socket has been closed; that is what makes ``MAX_SIZE`` a hard limit.

Blocked checkouts stand in one queue (:mod:`.waiters`) and are served in order, by a
connection that was returned or one that was opened meanwhile. They never connect
themselves. A connect runs on a thread of its own, started by a waiter, and serves the
first waiter in the queue when it is done.
"""

from __future__ import annotations

import _thread
import atexit
import os
import random
import threading
import time
from contextlib import ExitStack
from contextvars import copy_context
from logging import ERROR, WARNING
from typing import Any, Protocol
from weakref import WeakSet, ref

from dbutils.pooled_db import PooledDB

from ..config import PoolConfig
from ..errors import PoolError, PoolTimeout
from . import diagnostics
from .connection import PooledConnection
from .diagnostics import stack
from .driver.connector import Connector
from .driver.logs import log
from .driver.process import process
from .driver.session import AnotherRole, Session
from .driver.transport import DRIVER, SILENCE, NotAnswered, without_traceback
from .maintenance import maintenance_thread
from .query_log import Recorder, make_recorder
from .state import ConnectAttempt, Discards, PoolState
from .stats import ConnectionStats, Observer, PoolStats, Times
from .waiters import Waiter

#: Seconds that the server always has to answer what was asked on the last return.
GRACE = 0.005

#: Seconds for which a replica is trusted not to have fallen behind.
LAG_CHECKED = 1.0

#: Seconds for which a connection to a primary is kept where a replica is preferred.
SECOND_BEST = 10.0

#: Seconds between two rounds of maintenance; and where a LEAK_THRESHOLD is short.
INTERVAL, SHORTEST = 1.0, 0.02

monotonic = time.monotonic

_Waiter = Waiter[Session]

#: The pools that a fork or the end of the process concerns.
_POOLS: WeakSet[Pool] = WeakSet()


class Coordinator(Protocol):
    """What keeps a pool in touch; called outside its lock."""

    def state_changed(self) -> None:
        """Something changed; called when ``Pool.notify_from`` lets it."""

    def before_connect(self) -> None:
        """Called before each connect."""

    def closed(self) -> None:
        """The pool has been closed for good."""

    def take_slot(self) -> object | None:
        """A place among this host's connections, given back with its last reference.

        None if there is none left.
        """


class NoCoordinator:
    """In touch with nobody."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config

    def state_changed(self) -> None:
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
            " other process; give it a WorkerAgent with a StatusDir"
        )


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
        self.coordinator: Coordinator = NoCoordinator(config)
        #: The `time.monotonic()` from which on the coordinator is notified.
        self.notify_from = float("inf")
        #: Notes statements, if that is asked for.
        self.recorder: Recorder | None = make_recorder(config, _ignore)
        self._ping_after = config.ping_after
        self._max_usage = config.max_usage or float("inf")
        self._connector = Connector(config)
        self._observers: tuple[Observer, ...] = ()
        #: What the server said when it first refused to clean a session; until told.
        self._refusal: object | None = None
        self._was_refused = False
        self._child_locks: dict[int, threading.Lock] = {}
        self._begin()
        PooledDB.__init__(
            self, DRIVER, maxconnections=config.max_size, ping=0, reset=False
        )
        #: Handles that were logged as leaks.
        self._leaks: WeakSet[PooledConnection] = WeakSet()
        _POOLS.add(self)

    def _begin(self) -> None:
        """Start with nothing, as the pool of this process."""
        self._state = PoolState(self.config)
        self._pid = process()

    def _begin_in_child(self) -> None:
        """Leave everything to the parent process and start anew; there, do nothing."""
        if self._pid == process():
            return
        # The lock was inherited, perhaps held; this one belongs to the child, and
        # setdefault lets exactly one of several threads supply it.
        with self._child_locks.setdefault(process(), threading.Lock()):
            if self._pid == process():
                return
            parents = self._state
            for con in parents.open():
                con.abandon()
            self._begin()
            self._state.closed = parents.closed

    # Checkout

    def connection(
        self,
        shareable: bool = True,
        timeout: float | None = None,
        endpoint: str | None = None,
    ) -> PooledConnection:
        """Check a connection out.

        ``timeout`` is in seconds, by default the setting ``TIMEOUT``. It covers
        everything: waiting, validating and, if need be, connecting. 0 means not to wait
        for other borrowers: a connect is made if there is room, within
        ``CONNECT_TIMEOUT``, and this fails at once if all places are taken.
        Connections are never shared, whatever ``shareable`` says. ``endpoint`` is what
        status shows it to be taken for; by default, the thread's name.

        Raises :exc:`~.errors.PoolTimeout`, :exc:`~.errors.PoolFull`,
        :exc:`~.errors.PoolClosed`, or what the server said to the connect that was
        made for this checkout.
        """
        handle = PooledConnection(self, endpoint)
        if self.config.leak_threshold:
            handle.stack = stack()
        self.checkout(handle, timeout)
        return handle

    def dedicated_connection(self) -> PooledConnection:
        """The same as :meth:`connection`; every connection is dedicated."""
        return self.connection()

    def checkout(self, handle: PooledConnection, timeout: float | None = None) -> None:
        """Check a connection out for this handle; what :meth:`connection` does."""
        if self._pid != process():
            self._begin_in_child()
        started = monotonic()
        if timeout is None:
            timeout = self.config.timeout
        elif not timeout >= 0:  # nan, too
            raise ValueError(f"timeout must be seconds, 0 or more (got {timeout!r})")
        # Who waits for no other still waits for the server.
        waits = timeout > 0
        deadline = started + (timeout if waits else self.config.connect_timeout)
        state, owner = self._state, ref(handle)
        if state.lock._is_owned():
            raise PoolError(
                f"{self.name}: a signal handler or a finalizer that has interrupted the"
                " pool itself cannot take a connection; let it note what is to be done"
            )
        waiter: _Waiter | None = None
        try:
            with state.lock:
                con = state.take_idle(owner)
                if con is None:
                    waiter = Waiter(started, deadline, owner, waits)
                    state.join(waiter)
            while True:
                if con is None:
                    assert waiter is not None
                    con = self._wait(waiter)
                elif con.unanswered:
                    con = self._prefer_answered(con, owner)
                at_once = (
                    started < con.fresh_until
                    and con.generation == state.generation
                    and not con.unanswered
                    and con.is_alive()
                )
                fault = None if at_once else self._why_unusable(con, started, deadline)
                if fault is None:
                    break
                waiter = Waiter(started, deadline, owner, waits)
                con = self._replace(con, fault, waiter)
            con.uses += 1
            if con.since < started:
                con.since = started
            con.holder = threading.get_ident()
            con.writes = handle.writes
            handle._con = con
            if started >= self.notify_from:
                self.notify_state_changed()
            if self._observers or waiter is not None or not at_once:
                self._record_checkout(handle, monotonic() - started)
        except BaseException:
            handle._con = None
            self._abort_checkout(owner, waiter)
            raise

    def _wait(self, waiter: _Waiter) -> Session:
        """Sleep until served; start a connect whenever that is due."""
        state = self._state
        if waiter.since >= self.notify_from:
            self.notify_state_changed()
        while not waiter.served:
            with state.lock:
                now = monotonic()
                due = state.due_connect(waiter, now)
                if not due and waiter.is_over(now):
                    state.leave(waiter)
                    break
                sleep = state.wake_time(waiter, now) - now
            self._start(due)
            waiter.wait(sleep)
        if state.waiters and state.size() < state.limit:
            # It may have been told of a place before it was served otherwise.
            with state.lock:
                state.wake_next()
        con, waiter.item = waiter.item, None
        if con is not None:
            return con
        if waiter.error is not None:
            raise waiter.error
        raise self._timed_out(waiter.since)

    def _prefer_answered(self, con: Session, owner: ref[Any]) -> Session:
        """Of the idle ones, prefer any whose last clean-up the server has confirmed.

        If there is none, take the one that has been waiting for it longest.
        """
        passed = []
        while not con.is_answered():
            with self._state.lock:
                another = self._state.take_idle(owner)
            if another is None:
                break
            passed.append(con)
            con = another
        for other in reversed(passed):
            self._put_back(other, other.since)
        return con

    def _why_unusable(
        self, con: Session, started: float, deadline: float
    ) -> str | None:
        """Why a connection cannot be handed out; None if it can.

        A server that is silent for half of the time that is left is given up, so that
        the other half can serve to find out whether it still accepts a connection. But
        not before SILENCE: the connection is then put back, and this is a timeout.
        """
        cleaning = False
        try:
            if fault := self._state.fault(con):
                return fault
            if started >= con.expires:
                return "expired"
            if con.unanswered:
                cleaning = True
                con.read_answers(_answer_deadline(deadline, con.asked))
                cleaning = False
            if not con.is_alive():
                return "dead"
            if started > con.lag_checked + LAG_CHECKED:
                con.check_lag(_answer_deadline(deadline, monotonic()))
            elif started - max(con.since, con.asked) > self._ping_after:
                con.ping(_answer_deadline(deadline, monotonic()))
            # Again, for it may have taken the server its time to answer.
            return self._state.fault(con)
        except NotAnswered as error:
            self._put_back(con, con.since)
            raise self._timed_out(started) from error
        except Exception as error:
            if con.is_disconnected:
                return "dead"
            if isinstance(error, AnotherRole) or con.is_demoted:
                return "invalidated"
            if cleaning and con.lost is None:
                self._note_refusal(error)
            return "reset_failed"

    def _replace(self, con: Session, reason: str, waiter: _Waiter) -> Session | None:
        """Close a connection that proved to be of no use; another one, if one is idle.

        If none is, whoever had got it stands in line again, and in front of all that
        came later: only then are they told that a place is free.
        """
        con.close()
        try:
            with self._state.lock:
                self._state.free(con, reason)
                another = self._state.take_idle(waiter.owner)
                if another is None:
                    self._state.join(waiter, requeue=True)
                self._state.wake_next()
            return another
        finally:
            self._report_discard(con, reason)

    def _abort_checkout(self, owner: ref[Any], waiter: _Waiter | None) -> None:
        """Leave the line, and give up what a checkout that ends has come to have."""
        with self._state.lock:
            if waiter is not None:
                self._state.leave(waiter)
            held = [c for c, who in self._state.in_use.items() if who is owner]
        for con in held:
            if waiter is not None and con is waiter.item:
                self.checkin(con)
            else:  # what it was asked, or has answered, may not have been judged
                self._discard(con, "reset_failed")

    def _timed_out(self, started: float) -> PoolTimeout:
        """The error for a checkout that ran out of time; counts it, too."""
        with self._state.lock:
            self._state.timeouts += 1
            self._state.last_timeout = time.time()
        error = diagnostics.timeout(self._state, started, monotonic())
        if monotonic() >= self.notify_from:
            self.notify_state_changed()
        self._notify("timed_out", error)
        return error

    def _record_checkout(self, handle: PooledConnection, seconds: float) -> None:
        with self._state.lock:
            self._state.waits.add(seconds)
        self._notify("checked_out", handle, seconds)

    # Connect

    def _start(self, due: list[ConnectAttempt]) -> None:
        """Open connections on threads of their own; their places are taken already."""
        while due:
            connect = due.pop()
            try:
                # Not a Thread: one whose start is interrupted is never forgotten by the
                # threading module, nor is what it was to work on.
                if callable(self.config.password):
                    # For current_app in it, where a view asks for a connection.
                    run = copy_context().run
                    _thread.start_new_thread(run, (self._connect, connect))
                else:
                    _thread.start_new_thread(self._connect, (connect,))
            except Exception as error:
                self._connect_failed(connect, error)
            except BaseException:
                del connect, due[:]  # or who keeps the interrupt keeps their places
                raise

    def _connect(self, connect: ConnectAttempt) -> None:
        con: Session | None = None
        slot: object | None = None
        try:
            self.coordinator.before_connect()
            # Whatever was ordered so far does not concern what does not exist yet.
            connect.generation = self._state.generation
            if not (self._state.paused or self._state.closed):
                slot = self.coordinator.take_slot()
            if slot is None:
                self._postpone(connect)
                return
            begun = monotonic()
            con = self.steady_connection()
            con.slot, slot = slot, None
            con.times = Times()
            con.generation = connect.generation
            if lifetime := self.config.max_lifetime:
                con.expires = con.opened + lifetime * random.uniform(0.9, 1.1)
            if self.config.target == "prefer-replica" and not con.is_replica:
                con.expires = min(con.expires, con.opened + SECOND_BEST)
            number, took = con.raw.thread_id(), monotonic() - begun
            # Before anybody has it: who gets it may end the process at once, and up to
            # Python 3.11 a thread that is starting then would crash it.
            maintenance_thread().watch(self)
        except BaseException as error:
            slot = None  # whoever keeps the error keeps this frame
            if con is not None:
                con.abandon()
            self._connect_failed(connect, error)
            return
        now = monotonic()
        with self._state.lock:
            fault = self._state.opened_by(connect, con, took, now)
        if fault is not None:
            self._discard(con, fault)
        elif now >= self.notify_from:
            self.notify_state_changed()
        self._notify("created", number, took)

    def _postpone(self, connect: ConnectAttempt) -> None:
        """Give up a connect that may not be made now, for the time being."""
        with self._state.lock:
            self._state.postpone(connect, monotonic())
        if monotonic() >= self.notify_from:
            self.notify_state_changed()

    def _connect_failed(self, connect: ConnectAttempt, error: BaseException) -> None:
        kept = without_traceback(error)
        # A primary that is still to be made is worth waiting for.
        patient = isinstance(error, AnotherRole)
        with self._state.lock:
            refused = self._state.failed(connect, kept, monotonic(), patient)
        for waiter in refused:
            waiter.error = (
                error if waiter is connect.waiter else without_traceback(kept)
            )
            waiter.wake()
        self._notify("connect_failed", kept)

    def steady_connection(self) -> Session:
        """Open a connection outside of the pool, within ``CONNECT_TIMEOUT``."""
        return self._connector.connect(monotonic() + self.config.connect_timeout)

    # Checkin

    def checkin(self, con: Session) -> None:
        """Take a connection back. Never waits for the network; never raises."""
        if con.pid != process():
            con.abandon()
            return
        if self._state.lock._is_owned():
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

    def cache(self, con: Session) -> None:
        """Do the same as :meth:`checkin`, by the name that PooledDB has for it."""
        self.checkin(con)

    def unshare(self, con: Session) -> None:
        """Do the same as :meth:`checkin`: no connection is ever shared."""
        self.checkin(con)

    def _fault(self, con: Session, now: float) -> str | None:
        """Why a connection that comes back cannot stay; None if it can."""
        if con.lost is not None:
            return "dead"
        if con.generation != self._state.generation:
            return self._state.fault(con)
        if now >= con.expires or con.uses >= self._max_usage:
            return "expired"
        try:
            if con.reset_session():
                if con.is_suspect:
                    # Last: a session that is not cleaned may not be able to answer.
                    con.ask_role()
                return None
            if con.login.obstacle:
                self._note_refusal(con.login.obstacle)
            return "reset_failed"
        except Exception:
            return "reset_failed"
        except BaseException:
            self._discard(con, "reset_failed")
            raise

    def _put_back(self, con: Session, now: float) -> None:
        """Hand a connection to the first in line, or keep it."""
        with self._state.lock:
            fault = self._state.put_back(con, now)
        if fault is not None:
            self._discard(con, fault)
        elif now >= self.notify_from:
            self.notify_state_changed()

    def dropped(self, con: Session) -> None:
        """Note, from a finalizer, that a handle vanished without being returned."""
        self._state.dropped.append(con)
        maintenance_thread().wake()

    # Discard

    def _discard(self, con: Session, reason: str) -> None:
        """Close a connection that is in use, and only then free its place."""
        if self._state.lock._is_owned():
            # A signal handler, in the middle of something that this thread does here.
            self.dropped(con)
            return
        try:
            con.close()
        except BaseException:
            self._state.dropped.append(con)  # maintenance closes it
            raise
        with self._state.lock:
            had_place = self._state.free(con, reason)
            self._state.wake_next()
        if had_place:
            self._report_discard(con, reason)

    def _discard_all(self, discards: Discards) -> None:
        """Close what was taken to be closed, by maintenance if this is interrupted."""
        try:
            while discards:
                self._discard(*discards.popitem())
        except BaseException:
            self._state.dropped.extend(discards)
            raise

    def _note_refusal(self, error: object) -> None:
        """Note the first answer of a server that refuses to clean a session."""
        with self._state.lock:
            if not self._was_refused:
                self._was_refused, self._refusal = True, error

    def _report_discard(self, con: Session, reason: str) -> None:
        """Tell that a connection was closed; once, if clean-ups are refused, too."""
        error, self._refusal = self._refusal, None
        if error is not None:  # connects are dear
            text = "%s: a session could not be cleaned: %s"
            log(WARNING, text, self.name, error)
        if self._observers:
            self._notify("discarded", con.raw.thread_id(), reason)

    # Steering

    def reset(self) -> None:
        """Replace all connections: idle ones now, the others as they come back."""
        self._begin_in_child()
        with self._state.lock:
            stale = self._state.outdate()
        self._discard_all(stale)
        self._notify("was_reset")

    def pause(self) -> None:
        """Let new checkouts wait, within their deadlines, until :meth:`resume`.

        What is in use may finish, and is closed when it comes back; idle connections
        are closed now.
        """
        self._begin_in_child()
        with self._state.lock:
            self._state.paused = True
            stale = self._state.outdate()
        self._discard_all(stale)

    def resume(self) -> None:
        """End :meth:`pause`: serve those who wait, in order."""
        self._begin_in_child()
        with self._state.lock:
            self._state.paused = False
            self._state.wake_next()

    def limit(self, size: int) -> None:
        """Have at most so many connections from now on, and never above ``MAX_SIZE``.

        What is too much is closed now, if it is idle, or else when it comes back.
        """
        self._begin_in_child()
        with self._state.lock:
            surplus = self._state.shrink(size)
        self._discard_all(surplus)

    def close(self) -> None:
        """Close the pool for good.

        Checkouts, those waiting too, raise :exc:`~.errors.PoolClosed`; what is in use
        stays usable and is closed when it comes back.
        """
        self._begin_in_child()
        with self._state.lock:
            idle = self._state.close()
        self._discard_all(idle)
        self.coordinator.closed()

    # Figures

    def stats(self) -> PoolStats:
        """The pool at this instant."""
        self._begin_in_child()
        with self._state.lock:
            return diagnostics.snapshot(self._state, monotonic())

    def connections(self) -> list[ConnectionStats]:
        """Every open connection: those in use first, the oldest holder at the top."""
        self._begin_in_child()
        return diagnostics.connections(self._state, monotonic())

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{type(self).__name__} {self.name!r} at {self.config.server}:"
            f" in use {stats.in_use}/{stats.max_size}, idle {stats.idle},"
            f" connecting {stats.connecting}, waiting {stats.waiting}>"
        )

    # Maintenance

    def maintain(self) -> float | None:
        """Do what is due between checkouts; called by the maintenance thread.

        Returns the seconds until the next call; None for not before a connect.
        """
        state, now = self._state, monotonic()
        threshold = self.config.leak_threshold
        with state.lock:
            stale = state.take_stale(now)
            dropped = [(con, con.dropped_by) for con in stale if con.dropped_by]
            held = [*state.in_use.items()] if threshold else []
        self._discard_all(stale)
        with state.lock:
            due = state.missing(now)
            state.wake_next()  # an interrupt may have swallowed a ring
            more_to_do = state.size() > 0 or bool(state.waiters)
        self._start(due)
        # What is told may take its time, or fail: all the rest is done by now.
        for con, by in dropped:
            self._report_leak(by[0], diagnostics.drop(self.name, con))
        for con, owner in held:
            self._look_for_leak(con, owner(), now - con.since)
        pause = max(min(INTERVAL, threshold or INTERVAL), SHORTEST)
        return pause if more_to_do else None

    def discard_dead(self) -> None:
        """Close idle connections that the server has closed; costs no round trip."""
        self._begin_in_child()
        with self._state.lock:
            uses = {con: con.uses for con in self._state.idle}
        # One that is borrowed meanwhile has something to read, too.
        dead = {c: n for c, n in uses.items() if not c.unanswered and not c.is_alive()}
        with self._state.lock:
            taken = self._state.take_dead(dead)
        self._discard_all(taken)

    def probe(self) -> None:
        """Open a connection for nobody, if there is room, to see whether that works."""
        self._begin_in_child()
        with self._state.lock:
            due = self._state.probe(monotonic())
        self._start(due)

    def _look_for_leak(self, con: Session, handle: object, held: float) -> None:
        """Report a holder that has had its connection for too long, once."""
        if not isinstance(handle, PooledConnection) or handle in self._leaks:
            return
        if held > self.config.leak_threshold:
            self._leaks.add(handle)
            report = diagnostics.leak(self.name, con, handle, held)
            self._report_leak(handle.endpoint, report)

    def _report_leak(self, endpoint: str | None, report: str) -> None:
        log(WARNING, report)
        self._notify("leaked", endpoint, report)

    # Observers

    def add_observer(self, observer: Observer) -> None:
        """Have this told of every event from now on."""
        self._observers += (observer,)

    def _notify(self, event: str, *about: Any) -> None:
        for observer in self._observers:
            try:
                getattr(observer, event)(self, *about)
            except Exception as error:
                self._observers = tuple(o for o in self._observers if o is not observer)
                text = "%s: %r is told nothing any more"
                log(ERROR, text, self.name, observer, error=error)

    def notify_state_changed(self) -> None:
        """Tell the coordinator that something changed; not again until it asks."""
        self.notify_from = float("inf")
        self.coordinator.state_changed()

    def __del__(self) -> None:
        """Do nothing: PooledDB would talk to the server from the finalizer."""


def _ignore(_: object) -> None:
    """Keep nothing: only an app has a place for what was recorded."""


def _answer_deadline(deadline: float, asked: float) -> float:
    """When to stop waiting for an answer; there is a moment of grace in any case."""
    now = monotonic()
    patience = min(max(now + (deadline - now) / 2, asked + SILENCE), deadline)
    return max(patience, now + GRACE)


class NullPool(Pool):
    """Connects for each checkout and closes at each return: no pooling.

    Everything else is the same: the bound, the deadline, the line and the errors.
    """

    def _fault(self, con: Session, now: float) -> str | None:
        return "dead" if con.lost is not None else "surplus"


def make_pool(config: PoolConfig) -> Pool:
    """A pool of the kind that ``BACKEND`` says."""
    if isinstance(config.backend, type):
        pool: Pool = config.backend(config)
        return pool
    return NullPool(config) if config.backend == "null" else Pool(config)


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool._begin_in_child()


def _at_exit() -> None:
    """Say goodbye to the server, where the process ends in a way that allows it."""
    with ExitStack() as all_of_them:  # whatever one of them raises
        for pool in list(_POOLS):
            if pool._pid == process():
                all_of_them.callback(pool.close)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
