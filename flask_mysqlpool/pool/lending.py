"""How one connection is opened, handed out, taken back and ended.

Every operation has one shape: *decide* under the lock, *act* outside it, *settle*
under it again. What is decided is in :mod:`.state`; here is what is done. No call
to the server, no connect and no close happens while the lock is held, so a server that
hangs delays nobody but those who wait for it.

A place for a connection is taken before its connect begins and is free again only
after its socket has been closed; that is what makes ``MAX_SIZE`` a hard limit.

Blocked checkouts stand in one line (:mod:`.waiters`) and are handed what comes
first: a connection that somebody returned, or one that was opened meanwhile. They
never connect themselves. A connect runs on a thread of its own, started by a
waiter, and serves whoever is first in line when it is done.
"""

from __future__ import annotations

import _thread
import random
import threading
import time
from contextvars import copy_context
from logging import ERROR, WARNING
from typing import Any
from weakref import ref

from ..config import PoolConfig
from ..errors import PoolError, PoolTimeout
from . import diagnostics
from .connection import PooledConnection
from .driver.connector import Connector
from .driver.logs import log
from .driver.process import process
from .driver.session import AnotherRole, PhysicalConnection
from .driver.transport import SILENCE, NotAnswered, without_traceback
from .liaison import Alone, Liaison
from .maintenance import housekeeper
from .query_log import Recorder, make_recorder
from .state import Connect, Errand, Inventory
from .stats import Observer, Times
from .waiters import Waiter

#: Seconds that the server always has to answer what was asked on the last return.
GRACE = 0.005

#: Seconds for which a replica is trusted not to have fallen behind.
LAG_CHECKED = 1.0

#: Seconds for which a connection to a primary is kept where a replica is preferred.
SECOND_BEST = 10.0

monotonic = time.monotonic

_Waiter = Waiter[PhysicalConnection]


class Lender:
    """Lends the connections of an inventory, and opens them when there are too few.

    It belongs to the process that first uses it, and starts anew in a forked child.
    """

    def __init__(self, config: PoolConfig) -> None:
        self.config = config
        self.name = config.name
        self.liaison: Liaison = Alone(config)
        #: From when on, in `time.monotonic()` seconds, the liaison wants to hear news.
        self.news_from = float("inf")
        #: Notes statements, if that is asked for.
        self.recorder: Recorder | None = make_recorder(config, _ignore)
        self._ping_after = config.ping_after
        self._max_usage = config.max_usage or float("inf")
        self._connector = Connector(config)
        self._observers: tuple[Observer, ...] = ()
        #: What the server said when it first refused to clean a session; until told.
        self._refusal: object | None = None
        self._was_refused = False
        self._births: dict[int, threading.Lock] = {}
        self._begin()

    def _begin(self) -> None:
        """Start with nothing, as the pool of this process."""
        self._inventory = Inventory(self.config)
        self._pid = process()

    def _begin_in_child(self) -> None:
        """Leave everything to the parent process and start anew; there, do nothing."""
        if self._pid == process():
            return
        # The lock was inherited, perhaps held; this one belongs to the child, and
        # setdefault lets exactly one of several threads supply it.
        with self._births.setdefault(process(), threading.Lock()):
            if self._pid == process():
                return
            parents = self._inventory
            for con in parents.open():
                con.abandon()
            self._begin()
            self._inventory.closed = parents.closed

    # Who is told

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
                log(__name__, ERROR, text, self.name, observer, error=error)

    def tell(self) -> None:
        """Tell the liaison that something changed; not again until it asks."""
        self.news_from = float("inf")
        self.liaison.news()

    # Checkout

    def lend(self, handle: PooledConnection, timeout: float | None = None) -> None:
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
        inventory, owner = self._inventory, ref(handle)
        if inventory.lock._is_owned():
            raise PoolError(
                f"{self.name}: a signal handler or a finalizer that has interrupted the"
                " pool itself cannot take a connection; let it note what is to be done"
            )
        waiter: _Waiter | None = None
        try:
            with inventory.lock:
                con = inventory.take_idle(owner)
                if con is None:
                    waiter = Waiter(started, deadline, owner, waits)
                    inventory.join(waiter)
            while True:
                if con is None:
                    assert waiter is not None
                    con = self._wait(waiter)
                elif con.unanswered:
                    con = self._one_that_is_answered(con, owner)
                at_once = (
                    started < con.fresh_until
                    and con.generation == inventory.generation
                    and not con.unanswered
                    and con.is_alive()
                )
                fault = None if at_once else self._fault_of(con, started, deadline)
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
            if started >= self.news_from:
                self.tell()
            if self._observers or waiter is not None or not at_once:
                self._took_time(handle, monotonic() - started)
        except BaseException:
            handle._con = None
            self._withdraw(owner, waiter)
            raise

    def _withdraw(self, owner: ref[Any], waiter: _Waiter | None) -> None:
        """Leave the line, and give up what a checkout that ends has come to have."""
        with self._inventory.lock:
            if waiter is not None:
                self._inventory.leave(waiter)
            held = [c for c, who in self._inventory.in_use.items() if who is owner]
        for con in held:
            if waiter is not None and con is waiter.item:
                self.cache(con)
            else:  # what it was asked, or has answered, may not have been judged
                self._discard(con, "reset_failed")

    def _took_time(self, handle: PooledConnection, seconds: float) -> None:
        with self._inventory.lock:
            self._inventory.waits.add(seconds)
        self._notify("checked_out", handle, seconds)

    def _wait(self, waiter: _Waiter) -> PhysicalConnection:
        """Sleep until served; start a connect whenever that is due."""
        inventory = self._inventory
        if waiter.since >= self.news_from:
            self.tell()
        while not waiter.served:
            with inventory.lock:
                now = monotonic()
                due = inventory.due_connect(waiter, now)
                if not due and waiter.is_over(now):
                    inventory.leave(waiter)
                    break
                sleep = inventory.look_again(waiter, now) - now
            self._start(due)
            waiter.wait(sleep)
        if inventory.waiters and inventory.places() < inventory.limit:
            # It may have been told of a place before it was served otherwise.
            with inventory.lock:
                inventory.ring_next()
        con, waiter.item = waiter.item, None
        if con is not None:
            return con
        if waiter.error is not None:
            raise waiter.error
        raise self._timed_out(waiter.since)

    def _timed_out(self, started: float) -> PoolTimeout:
        """The error for a checkout that ran out of time; counts it, too."""
        with self._inventory.lock:
            self._inventory.timeouts += 1
            self._inventory.last_timeout = time.time()
        error = diagnostics.timeout(self._inventory, started, monotonic())
        if monotonic() >= self.news_from:
            self.tell()
        self._notify("timed_out", error)
        return error

    def _one_that_is_answered(
        self, con: PhysicalConnection, owner: ref[Any]
    ) -> PhysicalConnection:
        """Of the idle ones, prefer any whose last clean-up the server has confirmed.

        If there is none, take the one that has been waiting for it longest.
        """
        passed = []
        while not con.is_answered():
            with self._inventory.lock:
                another = self._inventory.take_idle(owner)
            if another is None:
                break
            passed.append(con)
            con = another
        for other in reversed(passed):
            self._put_back(other, other.since)
        return con

    def _fault_of(
        self, con: PhysicalConnection, started: float, deadline: float
    ) -> str | None:
        """Why a connection cannot be handed out; None if it can.

        A server that is silent for half of the time that is left is given up, so that
        the other half can serve to find out whether it still accepts a connection. But
        not before SILENCE: the connection is then put back, and this is a timeout.
        """
        cleaning = False
        try:
            if fault := self._inventory.fault(con):
                return fault
            if started >= con.expires:
                return "expired"
            if con.unanswered:
                cleaning = True
                con.read_answers(_give_up_at(deadline, con.asked))
                cleaning = False
            if not con.is_alive():
                return "dead"
            if started > con.lag_checked + LAG_CHECKED:
                con.check_lag(_give_up_at(deadline, monotonic()))
            elif started - max(con.since, con.asked) > self._ping_after:
                con.ping(_give_up_at(deadline, monotonic()))
            # Again, for it may have taken the server its time to answer.
            return self._inventory.fault(con)
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

    def _replace(
        self, con: PhysicalConnection, reason: str, waiter: _Waiter
    ) -> PhysicalConnection | None:
        """Close a connection that proved to be of no use; another one, if one is idle.

        If none is, whoever had got it stands in line again, and in front of all that
        came later: only then are they told that a place is free.
        """
        con.close()
        try:
            with self._inventory.lock:
                self._inventory.free(con, reason)
                another = self._inventory.take_idle(waiter.owner)
                if another is None:
                    self._inventory.join(waiter, been_served=True)
                self._inventory.ring_next()
            return another
        finally:
            self._tell_of_end(con, reason)

    def _note_refusal(self, error: object) -> None:
        """Note the first answer of a server that refuses to clean a session."""
        with self._inventory.lock:
            if not self._was_refused:
                self._was_refused, self._refusal = True, error

    def _tell_of_end(self, con: PhysicalConnection, reason: str) -> None:
        """Tell that a connection was closed; once, if clean-ups are refused, too."""
        error, self._refusal = self._refusal, None
        if error is not None:  # connects are dear
            text = "%s: a session could not be cleaned: %s"
            log(__name__, WARNING, text, self.name, error)
        if self._observers:
            self._notify("discarded", con.raw.thread_id(), reason)

    # Return

    def cache(self, con: PhysicalConnection) -> None:
        """Take a connection back. Never waits for the network; never raises."""
        if con.pid != process():
            con.abandon()
            return
        if self._inventory.lock._is_owned():
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

    def _fault(self, con: PhysicalConnection, now: float) -> str | None:
        """Why a connection that comes back cannot stay; None if it can."""
        if con.lost is not None:
            return "dead"
        if con.generation != self._inventory.generation:
            return self._inventory.fault(con)
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

    def _put_back(self, con: PhysicalConnection, now: float) -> None:
        """Hand a connection to the first in line, or keep it."""
        with self._inventory.lock:
            fault = self._inventory.put_back(con, now)
        if fault is not None:
            self._discard(con, fault)
        elif now >= self.news_from:
            self.tell()

    def _discard(self, con: PhysicalConnection, reason: str) -> None:
        """Close a connection that is in use, and only then free its place."""
        if self._inventory.lock._is_owned():
            # A signal handler, in the middle of something that this thread does here.
            self.dropped(con)
            return
        try:
            con.close()
        except BaseException:
            self._inventory.dropped.append(con)  # the housekeeper closes it
            raise
        with self._inventory.lock:
            had_place = self._inventory.free(con, reason)
            self._inventory.ring_next()
        if had_place:
            self._tell_of_end(con, reason)

    def _discard_all(self, errand: Errand) -> None:
        """Close what was taken to be closed, by the housekeeper if this is ended."""
        try:
            while errand:
                self._discard(*errand.popitem())
        except BaseException:
            self._inventory.dropped.extend(errand)
            raise

    def dropped(self, con: PhysicalConnection) -> None:
        """Note, from a finalizer, that a handle vanished without being returned."""
        self._inventory.dropped.append(con)
        housekeeper().nudge()

    # Connecting

    def _start(self, due: list[Connect]) -> None:
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

    def _connect(self, connect: Connect) -> None:
        con: PhysicalConnection | None = None
        slot: object | None = None
        try:
            self.liaison.before_connect()
            # Whatever was ordered so far does not concern what does not exist yet.
            connect.generation = self._inventory.generation
            if not (self._inventory.paused or self._inventory.closed):
                slot = self.liaison.take_slot()
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
            housekeeper().watch(self)
        except BaseException as error:
            slot = None  # whoever keeps the error keeps this frame
            if con is not None:
                con.abandon()
            self._connect_failed(connect, error)
            return
        now = monotonic()
        with self._inventory.lock:
            fault = self._inventory.opened_by(connect, con, took, now)
        if fault is not None:
            self._discard(con, fault)
        elif now >= self.news_from:
            self.tell()
        self._notify("created", number, took)

    def _postpone(self, connect: Connect) -> None:
        """Give up a connect that may not be made now, for the time being."""
        with self._inventory.lock:
            self._inventory.postpone(connect, monotonic())
        if monotonic() >= self.news_from:
            self.tell()

    def _connect_failed(self, connect: Connect, error: BaseException) -> None:
        kept = without_traceback(error)
        # A primary that is still to be made is worth waiting for.
        patient = isinstance(error, AnotherRole)
        with self._inventory.lock:
            refused = self._inventory.failed(connect, kept, monotonic(), patient)
        for waiter in refused:
            waiter.error = (
                error if waiter is connect.waiter else without_traceback(kept)
            )
            waiter.ring()
        self._notify("connect_failed", kept)

    def steady_connection(self) -> PhysicalConnection:
        """Open a connection outside of the pool, within ``CONNECT_TIMEOUT``."""
        return self._connector.connect(monotonic() + self.config.connect_timeout)

    def housekeep(self) -> float | None:
        """Called by the housekeeper from the first connect on."""
        raise NotImplementedError


def _ignore(_: object) -> None:
    """Keep nothing: only an app has a place for what was recorded."""


def _give_up_at(deadline: float, asked: float) -> float:
    """When to stop waiting for an answer; there is a moment of grace in any case."""
    now = monotonic()
    patience = min(max(now + (deadline - now) / 2, asked + SILENCE), deadline)
    return max(patience, now + GRACE)
