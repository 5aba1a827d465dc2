"""A pool's presence on the board: what it publishes, and what it does on orders.

All that takes place on a thread of its own, so that files that cannot be written, or
that take for ever, are in no request's way. It sleeps while nothing changes; while
much does, it publishes ten times a second.
"""

from __future__ import annotations

import atexit
import time
from contextlib import ExitStack
from hashlib import sha256
from logging import DEBUG, WARNING
from math import inf
from os import getpid
from threading import Event
from typing import Any
from weakref import WeakSet

from ..pool import Pool
from ..pool.driver.logs import NAME, WORKERS, log, plain
from ..pool.driver.process import process
from ..pool.maintenance import maintenance_thread
from ..pool.stats import ConnectionStats, PoolStats
from .exited import identity, key_of, process_group_id
from .host_limit import HostLimit
from .status_dir import BUDGET, DesiredState, StatusDir, StatusFile

#: Seconds between two rounds: while something changes, and while nothing does.
BUSY, QUIET = 0.1, 0.4
#: Seconds that a pool without connections waits to be told whether it may connect.
PATIENCE = 0.25
#: Connections that are listed one by one.
LISTED = 100

_PRESENCES: WeakSet[WorkerAgent] = WeakSet()


class WorkerAgent:
    """Publishes the status of one pool of this process, and applies its desired state.

    ``app`` and ``bind`` are what commands know the pool by. A pool outside of Flask
    has ``WorkerAgent(pool, StatusDir("/run/jobs"), app="jobs")``. With ``silent``
    it does neither, and only keeps MAX_HOST_CONNECTIONS.
    """

    def __init__(
        self,
        pool: Pool,
        board: StatusDir,
        *,
        app: str,
        bind: str = "default",
        silent: bool = False,
    ) -> None:
        self._pool = pool
        self._board = board
        pool_identity = identity(app, bind, pool.config)
        self._about: dict[str, Any] = {**pool_identity, "pid": 0}
        self._key = key_of(pool_identity)
        self._silent = silent
        self._budget = self._make_budget()
        self._begin()
        pool.coordinator = self
        if not silent:
            pool.notify_from = 0.0
        _PRESENCES.add(self)

    def _make_budget(self) -> HostLimit | None:
        size = self._pool.config.max_host_connections
        if size is None:
            return None
        # The name of a file has an end, that of a key has none.
        name = BUDGET + sha256(self._key.encode()).hexdigest()[:16]
        return HostLimit(self._board, name, size)

    def _begin(self) -> None:
        self._file = StatusFile(self._board)
        self._published: tuple[Any, ...] | None = None
        self._applied: DesiredState | None = None
        self._withdrawn = False
        #: Whether rounds are being made. If not, orders may have been given unheard.
        self._attended = False
        self._looked = Event()
        self._problem = ""
        self._limit = self._pool.config.max_size
        self._about["site"] = process_group_id()
        self._about["pid"] = getpid()
        self._pid = process()

    # What the pool calls

    def state_changed(self) -> None:
        """Make a round soon; costs whoever calls it no more than a message."""
        maintenance_thread("workers").wake(self)

    def before_connect(self) -> None:
        """Look for orders, if nobody has for some time.

        Whoever gives orders takes a pool that has published no connection to have
        none. So this one is published, and only then the orders are read.
        """
        if self._silent:
            return
        if self._pid != process():
            self._file.detach_after_fork()
            self._begin()
        if not self._attended:
            looked = self._looked
            maintenance_thread("workers").watch(self)
            looked.wait(PATIENCE)

    def take_slot(self) -> object | None:
        """A place among the connections of this host; None if all are taken."""
        if self._budget is None:
            return True
        return self._budget.take()

    # On a thread of its own

    def maintain(self) -> float | None:
        """Publish what changed and apply the desired state; called by a thread."""
        pool = self._pool
        if self._withdrawn:
            return None
        looked, self._looked = self._looked, Event()
        stats = pool.stats()
        if not stats.size:
            # A connect that begins after this waits for a round that begins after it;
            # those before are in the snapshot.
            self._attended = False
            stats = pool.stats()
        before = self._published, self._applied
        try:
            self._try_publish(stats)
            self._try_to_apply(stats)
            self._attended = stats.size > 0
        finally:
            looked.set()
        if not stats.waiting and before == (self._published, self._applied):
            # From here on every change is told; and the last one before is seen here.
            pool.notify_from = 0.0
            if _essence(pool.stats()) == _essence(stats):
                return QUIET if stats.size else None
            pool.notify_from = float("inf")
        return BUSY

    def _try_publish(self, stats: PoolStats) -> None:
        """Publish what changed; and anything while somebody waits, for it ages."""
        applied = self._applied or DesiredState()
        state = (*_essence(stats), applied)
        unchanged = state == self._published and not stats.waiting
        self._published = state
        try:
            if not (unchanged and self._file.touch()):
                self._file.write(self._content(stats, applied))
                self._problem = ""
        except OSError as error:
            self._note(error)

    def _note(self, error: Exception) -> None:
        """Say once why the board is of no use."""
        # Not the file: that has another name each time.
        text = getattr(error, "strerror", None) or str(error)
        before, self._problem = self._problem, text
        if text != before:
            name = self._pool.name
            text = "%s: nothing is published: %r"
            log(DEBUG, text, name, error, logger=WORKERS)

    def _content(self, stats: PoolStats, applied: DesiredState) -> dict[str, Any]:
        now, connections = time.time(), self._pool.connections()
        return {
            **self._about,
            "generation": applied.generation,
            "size": stats.size,
            "idle": stats.idle,
            "in_use": stats.in_use,
            "connecting": stats.connecting,
            "waiting": stats.waiting,
            "checkouts": stats.checkouts,
            "timeouts": stats.timeouts,
            "opened": stats.opened,
            "discarded": stats.discarded,
            "discarded_by_reason": stats.discarded_by_reason,
            "wait": stats.wait_seconds,
            "use": stats.use_seconds,
            "create": stats.create_seconds,
            "updated": now,
            "paused": stats.paused,
            "outdated": stats.outdated,
            "last_timeout": stats.last_timeout,
            "last_connect_failure": stats.last_connect_failure,
            "connect_error": stats.connect_error,
            "waited": stats.waited,
            "short": stats.short,
            "connections": [_describe(c) for c in connections[:LISTED]],
            "thread_ids": [c.thread_id for c in connections],
        }

    def _try_to_apply(self, stats: PoolStats) -> None:
        try:
            try:
                orders = self._board.orders(self._key)
            except Exception:
                # What cannot be read is as it was; so a pause ends in its time.
                if self._applied is not None:
                    self._apply(self._applied.now())
                raise
            self._apply(orders)
            if self._budget is not None:
                self._share(self._budget, stats)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._note(error)

    def _apply(self, orders: DesiredState) -> None:
        # At the first look there is nothing yet that a reset could replace.
        before = self._applied or DesiredState(orders.generation)
        # It only grows; if it does not, somebody has removed the orders.
        newest = max(orders.generation, before.generation)
        self._applied = orders = orders._replace(generation=newest)
        if orders.generation != before.generation:
            self._pool.reset()
        if orders.paused and not before.paused:
            self._pool.pause()
        elif before.paused and not orders.paused:
            self._pool.resume()
        if orders[1:] != before[1:]:
            told = orders.in_words() if orders.paused else "resumed"
            log(WARNING, "%s: %s", self._pool.name, told, logger=WORKERS)

    def _share(self, budget: HostLimit, mine: PoolStats) -> None:
        """Give up what is more than a fair share, if another process needs it."""
        since = time.time() - mine.waited if mine.waiting else inf
        share = budget.share(since, mine.in_use + mine.waiting, mine.short)
        limit = self._pool.config.max_size if share is None else share
        if limit != self._limit or mine.size > limit:
            self._limit = limit
            self._pool.limit(limit)

    def closed(self) -> None:
        """Take the pool off the board."""
        self._withdrawn = True
        if self._pid == process() and not self._silent:
            # What was counted since the last round would be missing for ever.
            self._try_publish(self._pool.stats())
            self._file.remove()
            if self._budget is not None:
                self._budget.leave()


def _at_exit() -> None:
    with ExitStack() as all_of_them:  # whatever one of them raises
        for agent in list(_PRESENCES):
            all_of_them.callback(agent.closed)


atexit.register(_at_exit)


def _essence(stats: PoolStats) -> tuple[Any, ...]:
    """What there is to a state apart from the time that passed."""
    about = vars(stats).copy()
    del about["waited"], about["discarded_by_reason"]
    return tuple(about.values())


def _describe(connection: ConnectionStats) -> dict[str, Any]:
    return {
        "thread_id": connection.thread_id,
        "state": connection.state,
        "for": round(connection.since, 3),
        "endpoint": connection.endpoint and plain(connection.endpoint, NAME),
        "age": round(connection.age, 1),
    }
