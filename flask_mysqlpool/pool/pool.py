"""The pool as a whole: what is asked of all its connections, and who looks after them.

How one of them goes out and comes back is in :mod:`.lending`.
"""

from __future__ import annotations

import atexit
import os
import time
from contextlib import ExitStack
from logging import WARNING
from weakref import WeakSet

from dbutils.pooled_db import PooledDB

from ..config import PoolConfig
from . import diagnostics
from .connection import PooledConnection
from .diagnostics import stack
from .driver.logs import log
from .driver.process import process
from .driver.session import PhysicalConnection
from .driver.transport import DRIVER
from .lending import Lender
from .stats import ConnectionStats, PoolStats

monotonic = time.monotonic

#: Seconds between two rounds of the housekeeper; and where a LEAK_THRESHOLD is short.
INTERVAL, SHORTEST = 1.0, 0.02

#: What a fork or the end of the process has to be told to.
_POOLS: WeakSet[Pool] = WeakSet()


class Pool(Lender, PooledDB):  # type: ignore[misc]
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
        Lender.__init__(self, config)
        PooledDB.__init__(
            self, DRIVER, maxconnections=config.max_size, ping=0, reset=False
        )
        #: Handles that were logged as leaks.
        self._leaks: WeakSet[PooledConnection] = WeakSet()
        _POOLS.add(self)

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
        self.lend(handle, timeout)
        return handle

    def dedicated_connection(self) -> PooledConnection:
        """The same as :meth:`connection`; every connection is dedicated."""
        return self.connection()

    def unshare(self, con: PhysicalConnection) -> None:
        """The same as :meth:`cache`: no connection is ever shared."""
        self.cache(con)

    # For everybody

    def reset(self) -> None:
        """Replace all connections: idle ones now, the others as they come back."""
        self._begin_in_child()
        with self._inventory.lock:
            stale = self._inventory.outdate()
        self._discard_all(stale)
        self._notify("was_reset")

    def pause(self) -> None:
        """Let new checkouts wait, within their deadlines, until :meth:`resume`.

        What is in use may finish, and is closed when it comes back; idle connections
        are closed now.
        """
        self._begin_in_child()
        with self._inventory.lock:
            self._inventory.paused = True
            stale = self._inventory.outdate()
        self._discard_all(stale)

    def resume(self) -> None:
        """End :meth:`pause`: serve those who wait, in order."""
        self._begin_in_child()
        with self._inventory.lock:
            self._inventory.paused = False
            self._inventory.ring_next()

    def limit(self, size: int) -> None:
        """Have at most so many connections from now on, and never above ``MAX_SIZE``.

        What is too much is closed now, if it is idle, or else when it comes back.
        """
        self._begin_in_child()
        with self._inventory.lock:
            surplus = self._inventory.shrink(size)
        self._discard_all(surplus)

    def close(self) -> None:
        """Close the pool for good.

        Checkouts, those waiting too, raise :exc:`~.errors.PoolClosed`; what is in use
        stays usable and is closed when it comes back.
        """
        self._begin_in_child()
        with self._inventory.lock:
            idle = self._inventory.close()
        self._discard_all(idle)
        self.liaison.closed()

    def stats(self) -> PoolStats:
        """The pool at this instant."""
        self._begin_in_child()
        with self._inventory.lock:
            return diagnostics.snapshot(self._inventory, monotonic())

    def connections(self) -> list[ConnectionStats]:
        """Every open connection: those in use first, the oldest holder at the top."""
        self._begin_in_child()
        return diagnostics.connections(self._inventory, monotonic())

    def discard_dead(self) -> None:
        """Close idle connections that the server has closed; costs no round trip."""
        self._begin_in_child()
        with self._inventory.lock:
            uses = {con: con.uses for con in self._inventory.idle}
        # One that is borrowed meanwhile has something to read, too.
        dead = {c: n for c, n in uses.items() if not c.unanswered and not c.is_alive()}
        with self._inventory.lock:
            taken = self._inventory.take_dead(dead)
        self._discard_all(taken)

    def probe(self) -> None:
        """Open a connection for nobody, if there is room, to see whether that works."""
        self._begin_in_child()
        with self._inventory.lock:
            due = self._inventory.probe(monotonic())
        self._start(due)

    def housekeep(self) -> float | None:
        """Do what is due without anybody asking, on the housekeeper's thread.

        The seconds until it wants to be called again; None if not before a connect.
        """
        inventory, now = self._inventory, monotonic()
        threshold = self.config.leak_threshold
        with inventory.lock:
            stale = inventory.take_stale(now)
            dropped = [(con, con.dropped_by) for con in stale if con.dropped_by]
            held = [*inventory.in_use.items()] if threshold else []
        self._discard_all(stale)
        with inventory.lock:
            due = inventory.missing(now)
            inventory.ring_next()  # an interrupt may have swallowed a ring
            more_to_do = inventory.places() > 0 or bool(inventory.waiters)
        self._start(due)
        # What is told may take its time, or fail: all the rest is done by now.
        for con, by in dropped:
            self._report_leak(by[0], diagnostics.drop(self.name, con))
        for con, owner in held:
            self._look_for_leak(con, owner(), now - con.since)
        pause = max(min(INTERVAL, threshold or INTERVAL), SHORTEST)
        return pause if more_to_do else None

    def _look_for_leak(
        self, con: PhysicalConnection, handle: object, held: float
    ) -> None:
        """Report a holder that has had its connection for too long, once."""
        if not isinstance(handle, PooledConnection) or handle in self._leaks:
            return
        if held > self.config.leak_threshold:
            self._leaks.add(handle)
            report = diagnostics.leak(self.name, con, handle, held)
            self._report_leak(handle.endpoint, report)

    def _report_leak(self, endpoint: str | None, report: str) -> None:
        log(__name__, WARNING, report)
        self._notify("leaked", endpoint, report)

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"<{type(self).__name__} {self.name!r} at {self.config.server}:"
            f" in use {stats.in_use}/{stats.max_size}, idle {stats.idle},"
            f" connecting {stats.connecting}, waiting {stats.waiting}>"
        )

    def __del__(self) -> None:
        """Do nothing: PooledDB would talk to the server from the finalizer."""


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
