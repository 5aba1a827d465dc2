"""The pool: check out, wait, connect, check in, discard. Read it from top to bottom.

A connection to the server is a :class:`.Session`, called ``con`` here. The caller of a
checkout holds it by a handle, a :class:`.PooledConnection`.

Each operation has three steps. *Decide*: with the lock held, :mod:`.state` reserves a
connection, or a slot for a new one. *Act*: without the lock, talk to the server.
*Settle*: with the lock held again, record the outcome. No statement, connect or close
runs under the lock, so a server that hangs delays only the threads that wait for it.

A connection takes up a slot from before its connect begins until its socket is closed.
That makes ``MAX_SIZE`` a hard limit.

Checkouts that find no idle connection wait in one queue (:mod:`.waiters`). The first
waiter gets the next connection that is returned or opened. A waiter never connects on
its own thread: it starts a thread that connects, and goes on waiting, because another
connection may be returned before that connect is done.

The state keeps only weak references to handles and connects. If an interrupt ends an
operation between two steps, the reference is dead: the slot of a connect is free again,
and maintenance closes the connection of a handle.
"""

from __future__ import annotations

import _thread
import atexit
import os
import random
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import copy_context
from logging import DEBUG, ERROR, WARNING
from threading import Lock, get_ident
from typing import Any, Protocol
from weakref import WeakSet, ref

from dbutils.pooled_db import PooledDB
from pymysql.err import MySQLError, OperationalError

from ..config import PoolConfig
from ..errors import PoolError, PoolTimeout, ServerUnavailable
from . import diagnostics
from .connection import PooledConnection
from .diagnostics import stack
from .driver.connector import Connector
from .driver.error_codes import UNAVAILABLE
from .driver.logs import log
from .driver.process import process
from .driver.session import AnotherRole, Session
from .driver.transport import DRIVER, SILENCE, NotAnswered, without_traceback
from .maintenance import maintenance_thread
from .query_log import OF_ALL_POOLS, Keep, Recorder, make_recorder
from .state import ConnectAttempt, Discards, PoolState
from .stats import ConnectionStats, Observer, PoolStats, Times
from .waiters import Waiter

#: What a server can cause, by answers of any kind.
OF_A_SERVER = (
    *(MySQLError, OSError, EOFError, ValueError, LookupError, ArithmeticError),
    *(TypeError, AttributeError, AssertionError, struct.error),
)

#: Minimum seconds to wait for an answer of the server, even past the deadline.
GRACE = 0.005

#: Maximum seconds to wait for the answer to a ping: what a network that has forgotten
#: an idle connection costs a checkout.
PING_PATIENCE = 1.0

#: Seconds for which the last measurement of a replica's lag remains valid.
LAG_VALID = 1.0

#: Maximum age, in seconds, of a connection to a primary where a replica is preferred.
SECOND_BEST = 10.0

#: Seconds between two runs of :meth:`Pool.maintain`; fewer with a short LEAK_THRESHOLD,
#: but never fewer than SHORTEST.
INTERVAL, SHORTEST = 1.0, 0.02

monotonic = time.monotonic

_Waiter = Waiter[Session]

#: All pools: to be emptied in a forked child and closed when the process exits.
_POOLS: WeakSet[Pool] = WeakSet()


class Coordinator(Protocol):
    """Coordinates this pool with those of other processes; called without the lock."""

    def wake(self) -> None:
        """Publish the demand of this pool: a checkout waits or has timed out."""

    def before_connect(self) -> None:
        """Prepare for a connect, on the thread that is about to make it."""

    def closed(self) -> None:
        """Note that the pool has been closed."""

    def take_host_slot(self) -> object | None:
        """Reserve one of the connections that this host may have.

        The reservation ends when its last reference is gone. None if all are taken.
        """


class NoCoordinator:
    """Coordinates with no other process."""

    def __init__(self, config: PoolConfig) -> None:
        self._config = config

    def wake(self) -> None:
        """No-op."""

    def before_connect(self) -> None:
        """No-op."""

    def closed(self) -> None:
        """No-op."""

    def take_host_slot(self) -> object:
        """Allow any number of connections, unless the host has a limit."""
        if self._config.max_host_connections is None:
            return True
        raise PoolError(
            "MAX_HOST_CONNECTIONS cannot be kept by a pool that is not coordinated with"
            " other processes; give it a WorkerAgent with a StatusDir"
        )


class Pool(PooledDB):  # type: ignore[misc]
    """A bounded pool of PyMySQL connections to one server.

    It is a subclass of :class:`dbutils.pooled_db.PooledDB` and has its methods. It
    opens no connection before the first checkout. In a forked child it starts empty.
    """

    _keeps_idle = True

    def __init__(self, config: PoolConfig) -> None:
        if not isinstance(config, PoolConfig):
            raise TypeError(
                "Pool takes a PoolConfig; write Pool(PoolConfig.from_mapping(...))"
            )
        self.config = config
        self.name = config.name
        self.coordinator: Coordinator = NoCoordinator(config)
        self.record()
        self._ping_after = config.ping_after
        self._max_usage = config.max_usage or float("inf")
        self._connector = Connector(config)
        self._observers: tuple[Observer, ...] = ()
        #: The first error of a session's clean-up, until it is logged.
        self._cleanup_error: object | None = None
        self._cleanup_failed = False
        self._child_locks: dict[int, Lock] = {}
        self._begin()
        PooledDB.__init__(
            self, DRIVER, maxconnections=config.max_size, ping=0, reset=False
        )
        #: Handles already reported as leaks.
        self._leaks: WeakSet[PooledConnection] = WeakSet()
        _POOLS.add(self)
        for key in config.ignored:
            log(DEBUG, "%s: %s has no effect, and is ignored", self.name, key)

    def record(self, *keep: Keep) -> None:
        """Have these functions receive each statement that cursors made now execute."""
        self._keep = keep
        #: Records statements; None if no setting and no function asks for them.
        self.recorder: Recorder | None = make_recorder(self.config, *keep)

    def _begin(self) -> None:
        """Start empty, as a pool of this process."""
        self._state = PoolState(self.config)
        self._pid = process()

    def _begin_in_child(self) -> None:
        """In a forked child, abandon the parent's connections and start empty."""
        if self._pid == process():
            return
        # The inherited lock may be held by a thread that the child does not have, so
        # the child has one of its own; setdefault() makes its threads agree on one.
        with self._child_locks.setdefault(process(), Lock()):
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
        """Check out a connection.

        ``timeout`` is in seconds, by default the setting ``TIMEOUT``. It covers
        waiting, validating and, if necessary, connecting. With 0, do not wait for
        another holder: open a connection if fewer than ``MAX_SIZE`` are open, within
        ``CONNECT_TIMEOUT``, and time out at once otherwise. ``endpoint`` names the
        purpose of the checkout in statistics; the default is the thread's name.
        ``shareable`` is ignored: connections are never shared.

        Raises :exc:`~.errors.PoolTimeout`, :exc:`~.errors.PoolFull`,
        :exc:`~.errors.PoolClosed`, or the error of the connect that was made for this
        checkout.
        """
        handle = PooledConnection(self, endpoint)
        if self.config.leak_threshold:
            handle.stack = stack()
        self.checkout(handle, timeout)
        return handle

    def dedicated_connection(self) -> PooledConnection:
        """Do the same as :meth:`connection`: every connection is dedicated."""
        return self.connection()

    def checkout(self, handle: PooledConnection, timeout: float | None = None) -> None:
        """Check out a session for this handle, as :meth:`connection` describes."""
        if self._pid != process():
            self._begin_in_child()
        if timeout is not None and not timeout >= 0:  # nan, too
            raise ValueError(f"timeout must be seconds, 0 or more (got {timeout!r})")
        started, state, owner = monotonic(), self._state, ref(handle)
        if state.lock._is_owned():
            raise PoolError(
                f"{self.name}: a signal handler or a finalizer that interrupts the pool"
                " itself cannot take a connection; let it set a flag instead"
            )
        waiter: _Waiter | None = None
        try:
            with state.lock:
                con = state.take_idle(owner)
                if con is None:
                    waiter = self._waiter(started, timeout, owner)
                    state.join(waiter)  # PoolFull, PoolClosed
            at_once = (
                con is not None
                and started < con.fresh_until
                and con.generation == state.generation
                and not con.unanswered
                and con.is_alive()
            )
            if not at_once:
                waiter = waiter or self._waiter(started, timeout, owner)
                con = self._find_usable(con, waiter)
            assert con is not None
            if con.since < started:  # otherwise it was handed over meanwhile
                con.since = started
            con.holder = get_ident()
            con.writes = handle.writes
            if self.config.statement_comments:
                con.name_in_comments(handle.endpoint)
            handle._con = con
            if self._observers or not at_once:
                self._record_checkout(con, handle, monotonic() - started)
            else:
                con.uses += 1
        except BaseException:
            handle._con = None
            self._abort_checkout(owner, waiter)
            raise

    def warm_up(self, timeout: float | None = None) -> None:
        """Open connections until ``MIN_SIZE`` of them are open, and at least one.

        While the server is out of reach, try again. ``timeout`` is in seconds, by
        default the setting ``TIMEOUT``.

        Raises what :meth:`connection` raises: an error of the server at once, and
        :exc:`~.errors.ServerUnavailable` or :exc:`~.errors.PoolTimeout` at the end.
        """
        left = seconds = self.config.timeout if timeout is None else timeout
        deadline = monotonic() + seconds
        with ExitStack() as held:
            while self._is_cold():
                try:
                    held.enter_context(self.connection(timeout=left))
                except ServerUnavailable:
                    if monotonic() >= deadline:
                        raise
                left = seconds and max(deadline - monotonic(), GRACE)

    def _is_cold(self) -> bool:
        """Return whether fewer connections are open than :meth:`warm_up` wants."""
        self._begin_in_child()
        state = self._state
        with state.lock:
            wanted = min(self.config.min_size, state.limit) or 1
            return len(state.open()) < wanted

    def _waiter(
        self, started: float, timeout: float | None, owner: ref[Any]
    ) -> _Waiter:
        """Make the waiter of a checkout, with its deadline."""
        if timeout is None:
            timeout = self.config.timeout
        # With a timeout of 0, there is still a server to wait for.
        deadline = started + (timeout or self.config.connect_timeout)
        return Waiter(started, deadline, owner, waits=timeout > 0)

    def _find_usable(self, con: Session | None, waiter: _Waiter) -> Session:
        """Return a session that works: this one, another idle one, or the next.

        ``con`` is None if the waiter has joined the queue.
        """
        while True:
            if con is None:
                con = self._wait(waiter)
            elif con.unanswered:
                con = self._prefer_answered(con, waiter.owner)
            fault = self._why_unusable(con, waiter.since, waiter.deadline)
            if fault is None:
                return con
            con = self._replace(con, fault, waiter)

    def _wait(self, waiter: _Waiter) -> Session:
        """Wait for a connection; start a connect for this waiter whenever one is due.

        Raises :exc:`~.errors.PoolTimeout`, or the error that the waiter was given.
        """
        state = self._state
        self.coordinator.wake()
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
            # This waiter may have been woken for a free slot that it did not need.
            with state.lock:
                state.wake_next()
        con, waiter.item = waiter.item, None
        if con is not None:
            return con
        if waiter.error is not None:
            raise waiter.error
        raise self._timed_out(waiter.since)

    def _prefer_answered(self, con: Session, owner: ref[Any]) -> Session:
        """Exchange a session for an idle one whose clean-up the server has answered.

        If there is none, return the idle session that was cleaned longest ago.
        """
        skipped = []
        while not con.is_answered():
            with self._state.lock:
                another = self._state.take_idle(owner)
            if another is None:
                break
            skipped.append(con)
            con = another
        for other in reversed(skipped):
            self._put_back(other, other.since)
        return con

    def _why_unusable(
        self, con: Session, started: float, deadline: float
    ) -> str | None:
        """Return the reason not to hand out this connection; None if it is usable.

        Wait for an answer for half of the remaining time, so that the other half is
        left to open another connection, but for at least SILENCE seconds after the
        question. If the deadline comes first, the silence proves nothing: put the
        connection back and time out.
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
            if started > con.lag_checked + LAG_VALID:
                con.check_lag(_answer_deadline(deadline, monotonic()))
            elif started - max(con.since, con.asked) > self._ping_after:
                now = monotonic()
                con.ping(min(_answer_deadline(deadline, now), now + PING_PATIENCE))
            # Again: the pool may have been reset while the server was answering.
            return self._state.fault(con)
        except NotAnswered as error:
            self._put_back(con, con.since)
            raise self._timed_out(started) from error
        except OF_A_SERVER as error:
            if _is_interrupt(error):
                raise
            if con.is_disconnected:
                return "dead"
            if isinstance(error, AnotherRole) or con.is_demoted:
                return "invalidated"
            if cleaning and con.lost is None:
                self._note_cleanup_error(error)
            return "reset_failed"

    def _replace(self, con: Session, reason: str, waiter: _Waiter) -> Session | None:
        """Close an unusable connection and return another idle one.

        If none is idle, put the waiter back into the queue, ahead of all that came
        later, and only then wake the first waiter for the slot that is now free.
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
        """Leave the queue and return what a failed checkout has received so far."""
        with self._state.lock:
            if waiter is not None:
                self._state.leave(waiter)
            held = [c for c, o in self._state.in_use.items() if o is owner]
        for con in held:
            if waiter is not None and con is waiter.item:
                self.checkin(con)  # handed over, but not used by this thread yet
            else:  # it may have been interrupted while reading an answer
                self._discard(con, "reset_failed")

    def _timed_out(self, started: float) -> PoolTimeout:
        """Count a checkout that ran out of time and return the error to raise."""
        with self._state.lock:
            self._state.timeouts += 1
            self._state.last_timeout = time.time()
        error = diagnostics.timeout(self._state, started, monotonic())
        self.coordinator.wake()
        self._notify("timed_out", error)
        return error

    def _record_checkout(
        self, con: Session, handle: PooledConnection, seconds: float
    ) -> None:
        """Count it, add to the histogram of waits, and notify the observers."""
        with self._state.lock:
            con.uses += 1
            self._state.waits.add(seconds)
        self._notify("checked_out", handle, seconds)

    # Connect

    def _start(self, due: list[ConnectAttempt]) -> None:
        """Connect on a new thread for each of these; their slots are taken already."""
        while due:
            connect = due.pop()
            try:
                # No threading.Thread: if an interrupt hits its start(), the threading
                # module keeps it, and with it the slot, until the process ends.
                if callable(self.config.password):
                    # A PASSWORD function that a view has called may use current_app.
                    run = copy_context().run
                    _thread.start_new_thread(run, (self._connect, connect))
                else:
                    _thread.start_new_thread(self._connect, (connect,))
            except Exception as error:
                self._connect_failed(connect, error)
            except BaseException:
                # The traceback keeps this frame alive, so free the slots now.
                del connect, due[:]
                raise

    def _connect(self, connect: ConnectAttempt) -> None:
        """Open a connection, on a thread of its own, for the first waiter."""
        con: Session | None = None
        host_slot: object | None = None
        try:
            self.coordinator.before_connect()
            # A reset up to now does not concern a connection that is not open yet.
            connect.generation = self._state.generation
            if not (self._state.paused or self._state.closed):
                host_slot = self.coordinator.take_host_slot()
            if host_slot is None:
                self._postpone(connect)
                return
            begun = monotonic()
            con = self.steady_connection()
            con.host_slot, host_slot = host_slot, None
            con.times = Times()
            con.generation = connect.generation
            if lifetime := self.config.max_lifetime:
                con.expires = con.opened + lifetime * random.uniform(0.9, 1.1)
            if self.config.target == "prefer-replica" and not con.is_replica:
                con.expires = min(con.expires, con.opened + SECOND_BEST)
            number, took = con.raw.thread_id(), monotonic() - begun
            # Before the connection is handed over: its holder may exit the process at
            # once, which crashes Python 3.11 while a thread is starting.
            maintenance_thread().watch(self)
        except BaseException as error:
            host_slot = None  # the traceback keeps this frame alive
            if con is not None:
                con.abandon()
            self._connect_failed(connect, error)
            return
        now = monotonic()
        with self._state.lock:
            fault = self._state.opened_by(connect, con, took, now)
        if fault is not None:
            self._discard(con, fault)
        self._notify("created", number, took)

    def _postpone(self, connect: ConnectAttempt) -> None:
        """Postpone a connect: the pool is paused, closed, or the host limit reached."""
        with self._state.lock:
            self._state.postpone(connect, monotonic())

    def _connect_failed(self, connect: ConnectAttempt, error: BaseException) -> None:
        """Record the error of a connect and raise it in the waiters it concerns."""
        # During a failover no host is the primary yet: let the waiters go on waiting.
        patient = isinstance(error, AnotherRole)
        error = _as_unavailable(error)
        kept = without_traceback(error)
        with self._state.lock:
            # Under the lock: one that looks meanwhile would not know of the error.
            for waiter in self._state.failed(connect, kept, monotonic(), patient):
                is_own = waiter is connect.waiter
                waiter.error = error if is_own else without_traceback(kept)
                waiter.wake()
        self._notify("connect_failed", kept)

    def steady_connection(self) -> Session:
        """Open a connection that the pool does not count, by ``CONNECT_TIMEOUT``."""
        return self._connector.connect(monotonic() + self.config.connect_timeout)

    # Checkin

    def checkin(self, con: Session) -> None:
        """Take a connection back, without waiting for the network and without raising.

        The session is cleaned by commands that are sent now; the next checkout reads
        the answers.
        """
        if con.pid != process():
            con.abandon()
            return
        state, now = self._state, monotonic()
        if state.lock._is_owned():
            # A finalizer has interrupted this thread while it was holding the lock.
            self.dropped(con)
            return
        used = now - con.since
        con.times.add(used)
        fault = self._fault(con, now)
        if fault is None:
            con.fresh_until = min(
                con.expires, now + self._ping_after, con.lag_checked + LAG_VALID
            )
            with state.lock:
                fault = state.put_back(con, now)
        if fault is not None:
            self._discard(con, fault)
        if self._observers:
            self._notify("checked_in", con.raw.thread_id(), used)

    def cache(self, con: Session) -> None:
        """Do the same as :meth:`checkin`, under PooledDB's name for it."""
        self.checkin(con)

    def unshare(self, con: Session) -> None:
        """Do the same as :meth:`checkin`: no connection is ever shared."""
        self.checkin(con)

    def _fault(self, con: Session, now: float) -> str | None:
        """Begin to clean a returned connection; if it has to be closed, return why."""
        if con.lost is not None:
            return "dead"
        if con.generation != self._state.generation:
            return self._state.fault(con)
        if now >= con.expires or con.uses >= self._max_usage:
            return "expired"
        try:
            if con.reset_session():
                if con.is_suspect:
                    # After the clean-up: a dirty session may be unable to answer.
                    con.ask_role()
                return None
            if con.login.obstacle:
                self._note_cleanup_error(con.login.obstacle)
            return "reset_failed"
        except BaseException as error:
            if isinstance(error, OF_A_SERVER) and not _is_interrupt(error):
                return "reset_failed"
            self._discard(con, "reset_failed")
            raise

    def _put_back(self, con: Session, now: float) -> None:
        """Hand a connection to the first waiter, or keep it idle."""
        with self._state.lock:
            fault = self._state.put_back(con, now)
        if fault is not None:
            self._discard(con, fault)

    def dropped(self, con: Session) -> None:
        """Leave a connection to the maintenance thread; callable from a finalizer."""
        self._state.dropped.append(con)
        maintenance_thread().wake()

    # Discard

    def _discard(self, con: Session, reason: str) -> None:
        """Close a connection that is in use, and only then free its slot."""
        if self._state.lock._is_owned():
            # A signal handler has interrupted this thread while it held the lock.
            self.dropped(con)
            return
        try:
            con.close()
        except BaseException:
            self._state.dropped.append(con)  # maintenance closes it
            raise
        with self._state.lock:
            had_slot = self._state.free(con, reason)
            self._state.wake_next()
        if self._connector.abandoned:
            maintenance_thread().wake(self)
        if had_slot:
            self._report_discard(con, reason)

    def _discard_all(self, discards: Discards) -> None:
        """Close these connections; if interrupted, leave the rest to maintenance."""
        try:
            while discards:
                self._discard(*discards.popitem())
        except BaseException:
            self._state.dropped.extend(discards)
            raise

    def _note_cleanup_error(self, error: object) -> None:
        """Keep the first error of a clean-up, to be logged when the session closes."""
        with self._state.lock:
            if not self._cleanup_failed:
                self._cleanup_failed, self._cleanup_error = True, error

    def _report_discard(self, con: Session, reason: str) -> None:
        """Notify the observers of a closed connection; log the first failed clean-up.

        Where clean-ups fail, each checkout costs a connect, and its cause should be
        known.
        """
        error, self._cleanup_error = self._cleanup_error, None
        if error is not None:
            text = "%s: a session could not be cleaned: %s"
            log(WARNING, text, self.name, error)
        if self._observers:
            self._notify("discarded", con.raw.thread_id(), reason)

    # Reset, pause, resize, close

    def reset(self) -> None:
        """Replace all connections: close idle ones now, others when returned."""
        self._begin_in_child()
        with self._state.lock:
            stale = self._state.outdate()
        self._discard_all(stale)
        self._notify("was_reset")

    def pause(self) -> None:
        """Hold new checkouts, within their deadlines, until :meth:`resume`.

        Close idle connections now, and those in use when they are returned.
        """
        self._begin_in_child()
        with self._state.lock:
            self._state.paused = True
            stale = self._state.outdate()
        self._discard_all(stale)

    def resume(self) -> None:
        """End :meth:`pause` and serve the waiters in order."""
        self._begin_in_child()
        with self._state.lock:
            self._state.paused = False
            self._state.wake_next()

    def limit(self, size: int) -> None:
        """Keep at most ``size`` connections from now on, and at most ``MAX_SIZE``.

        Close surplus idle connections now, and surplus ones in use when returned.
        """
        self._begin_in_child()
        with self._state.lock:
            surplus = self._state.shrink(size)
        self._discard_all(surplus)

    def close(self) -> None:
        """Close the pool permanently.

        Waiting and later checkouts raise :exc:`~.errors.PoolClosed`. Connections in use
        remain usable and are closed when they are returned.
        """
        self._begin_in_child()
        with self._state.lock:
            idle = self._state.close()
        self._discard_all(idle)
        self.coordinator.closed()

    # Statistics

    def stats(self) -> PoolStats:
        """Return a snapshot of the pool."""
        self._begin_in_child()
        with self._state.lock:
            killed = self._connector.abandoned.killed
            return diagnostics.snapshot(self._state, killed, monotonic())

    def connections(self) -> list[ConnectionStats]:
        """List the open connections: first those in use, longest held first."""
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
        """Discard stale connections, keep ``MIN_SIZE`` open, look for leaks.

        Without pipelining, also send idle connections the rest of their clean-up, as an
        open transaction would keep its locks until the next checkout.

        The maintenance thread calls this. Return the seconds until the next call; None
        if none is needed before the next connect.
        """
        state, now = self._state, monotonic()
        threshold = self.config.leak_threshold
        with state.lock:
            stale = state.take_stale(now)
            dropped = [(con, con.dropped_by[0]) for con in stale if con.dropped_by]
            held = [*state.in_use.items()] if threshold else []
            uncleaned = state.take_uncleaned()
        self._discard_all(stale)
        is_cleaning = self._continue_clean_up(uncleaned)
        with state.lock:
            due = state.missing(now)
            if self._connector.abandoned and self._keeps_idle:
                due += state.probe(now)  # a new connection kills them
            state.wake_next()  # in case an interrupt has prevented that
            more_to_do = state.size() > 0 or bool(state.waiters)
        self._start(due)
        # Last, because log handlers and observers may be slow, or raise.
        for con, endpoint in dropped:
            self._report_leak(endpoint, diagnostics.drop(self.name, con))
        for con, owner in held:
            self._look_for_leak(con, owner(), now - con.since)
        pause = max(min(INTERVAL, threshold or INTERVAL), SHORTEST)
        if is_cleaning:
            pause = SHORTEST
        return pause if more_to_do else None

    def _continue_clean_up(self, uncleaned: Discards) -> bool:
        """Send these the next commands of their clean-up, and put them back.

        Wait for no answer, so that a checkout can have the connections at once. Return
        whether to look again soon: an answer is missing, and may still come.
        """
        soon = False
        for con in uncleaned:
            try:
                con.send_waiting()
            except Exception:
                self._discard(con, "dead" if con.is_disconnected else "reset_failed")
            else:
                soon |= con.has_waiting and monotonic() < con.asked + SILENCE
                self._put_back(con, con.since)
        return soon

    def _look_for_leak(self, con: Session, handle: object, held: float) -> None:
        """Report, once, a holder that exceeds ``LEAK_THRESHOLD``."""
        if not isinstance(handle, PooledConnection) or handle in self._leaks:
            return
        if handle._con is not con:
            return  # the checkout is not done yet
        if held > self.config.leak_threshold:
            self._leaks.add(handle)
            report = diagnostics.leak(self.name, con, handle, held)
            self._report_leak(handle.endpoint, report)

    def _report_leak(self, endpoint: str | None, report: str) -> None:
        log(WARNING, report)
        self._notify("leaked", endpoint, report)

    # Health checks

    def discard_dead(self) -> None:
        """Discard idle connections that the server has closed, without a round trip."""
        self._begin_in_child()
        with self._state.lock:
            uses = {con: con.uses for con in self._state.idle}
        # A connection that is checked out meanwhile may have something to read, too;
        # its number of uses tells it from one that stayed idle.
        dead = {c: n for c, n in uses.items() if not c.unanswered and not c.is_alive()}
        with self._state.lock:
            taken = self._state.take_dead(dead)
        self._discard_all(taken)

    def probe(self) -> None:
        """Open an idle connection, if a slot is free, to test that the server accepts.

        At most one connect at a time is made for this purpose.
        """
        self._begin_in_child()
        with self._state.lock:
            due = self._state.probe(monotonic())
        self._start(due)

    # Observers

    def add_observer(self, observer: Observer) -> None:
        """Notify this observer of every event from now on."""
        self._observers += (observer,)

    def _notify(self, event: str, *about: Any) -> None:
        """Call the observers; remove one that raises."""
        for observer in self._observers:
            try:
                getattr(observer, event)(self, *about)
            except Exception as error:
                self._observers = tuple(o for o in self._observers if o is not observer)
                text = "%s: observer %r raised and is removed"
                log(ERROR, text, self.name, observer, error=error)

    def __del__(self) -> None:
        """No-op: PooledDB would talk to the server from the finalizer."""


@contextmanager
def recording(keep: Keep) -> Iterator[None]:
    """Have a function receive the statements of all pools, until the end of the block.

    Cursors that were made before are not recorded, unless a setting does so anyway.
    """
    OF_ALL_POOLS.append(keep)
    _renew_recorders()
    try:
        yield
    finally:
        OF_ALL_POOLS.remove(keep)
        _renew_recorders()


def _renew_recorders() -> None:
    for pool in list(_POOLS):
        pool.record(*pool._keep)


def _as_unavailable(error: BaseException) -> BaseException:
    """Return the error that a checkout raises for one of a connect."""
    if not isinstance(error, OperationalError) or error.args[0] not in UNAVAILABLE:
        return error
    unavailable = ServerUnavailable(*error.args)
    unavailable.__dict__.update(error.__dict__)
    unavailable.__cause__ = error.__cause__
    return unavailable


def _is_interrupt(error: BaseException) -> bool:
    """Return whether an error of a server's kind is of a class of the app's.

    The time limit of a job may be a ValueError or an AssertionError.
    """
    known = isinstance(error, MySQLError | OSError | struct.error)
    return not known and type(error).__module__ != "builtins"


def _answer_deadline(deadline: float, asked: float) -> float:
    """Return when to stop waiting for the server's answer to what was asked."""
    now = monotonic()
    patience = min(max(now + (deadline - now) / 2, asked + SILENCE), deadline)
    return max(patience, now + GRACE)


class NullPool(Pool):
    """A pool that connects for each checkout and closes each returned connection.

    Limits, deadlines, queue and errors are those of :class:`Pool`.
    """

    _keeps_idle = False

    def _fault(self, con: Session, now: float) -> str | None:
        """Have every connection closed that is returned."""
        return "dead" if con.lost is not None else "surplus"


def make_pool(config: PoolConfig) -> Pool:
    """Make a pool of the kind that ``BACKEND`` names."""
    if isinstance(config.backend, type):
        pool: Pool = config.backend(config)
        return pool
    return NullPool(config) if config.backend == "null" else Pool(config)


def _after_fork() -> None:
    for pool in list(_POOLS):
        pool._begin_in_child()


def _at_exit() -> None:
    """Close the pools when the interpreter exits, so that MySQL logs no aborts."""
    with ExitStack() as all_of_them:  # each, even if another raises
        for pool in list(_POOLS):
            if pool._pid == process():
                all_of_them.callback(pool.close)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
