"""The agent of a pool: publishes its status, and applies its desired state.

It works on a background thread, so that a disk that is full or hangs delays no request.
It looks for changes twice a second while the pool has connections, and publishes them
at most ten times a second.
"""

from __future__ import annotations

import atexit
import time
from contextlib import ExitStack
from hashlib import sha256
from logging import DEBUG, WARNING
from math import inf
from threading import Event
from typing import Any
from weakref import WeakSet

from ..pool import Pool
from ..pool.driver.logs import WORKERS, log
from ..pool.driver.process import process
from ..pool.maintenance import maintenance_thread
from ..pool.stats import PoolStats
from .desired_state import DesiredState
from .host_limit import HostLimit
from .records import reason_of
from .status import WorkerStatus, identity, key_of, process_group_id
from .status_dir import LIMIT, StatusDir
from .status_file import StatusFile

#: Seconds between two rounds: while something changes, and while nothing does.
BUSY, QUIET = 0.1, 0.5
#: Seconds for which the first connect of a pool waits for a round of the agent.
PATIENCE = 0.25

_AGENTS: WeakSet[WorkerAgent] = WeakSet()


class WorkerAgent:
    """Publishes the status of one pool of this process, and applies its desired state.

    Commands know the pool by ``app`` and ``bind``. A pool outside Flask gets an agent
    by ``WorkerAgent(pool, StatusDir("/run/jobs"), app="jobs")``. With ``read_only`` it
    neither publishes nor applies anything: it only keeps MAX_HOST_CONNECTIONS.
    """

    def __init__(
        self,
        pool: Pool,
        status_dir: StatusDir,
        *,
        app: str,
        bind: str = "default",
        read_only: bool = False,
    ) -> None:
        self._pool = pool
        self._status_dir = status_dir
        pool_identity = identity(app, bind, pool.config)
        self._about: dict[str, Any] = {**pool_identity}
        self._key = key_of(pool_identity)
        self._read_only = read_only
        self._host_limit = self._make_host_limit()
        self._begin()
        pool.coordinator = self
        _AGENTS.add(self)

    def _make_host_limit(self) -> HostLimit | None:
        size = self._pool.config.max_host_connections
        if size is None:
            return None
        # Hashed: a key may be longer than the name of a file.
        name = LIMIT + sha256(self._key.encode()).hexdigest()[:16]
        return HostLimit(self._status_dir, name, size)

    def _begin(self) -> None:
        self._file = StatusFile(self._status_dir)
        self._published: dict[str, Any] | None = None
        self._applied: DesiredState | None = None
        self._closed = False
        #: Whether rounds are being made, so that the desired state is up to date.
        self._is_running = False
        #: Whether :meth:`wake` has to ask for a round.
        self._is_quiet = False
        #: Set at the end of the next round.
        self._round_made = Event()
        self._problem = ""
        self._limit = self._pool.config.max_size
        self._about["site"] = process_group_id()
        self._pid = process()

    # Called by the pool

    def wake(self) -> None:
        """Make a round now: other processes may have connections to give up."""
        if self._is_quiet:
            self._is_quiet = False
            maintenance_thread("workers").wake(self)

    def before_connect(self) -> None:
        """Apply the desired state first, unless rounds are being made.

        Commands do not wait for a pool that has published no connections. So this
        connect is published before the desired state is read.
        """
        if self._read_only:
            return
        if self._pid != process():
            self._file.detach_after_fork()
            self._begin()
        if not self._is_running:
            round_made = self._round_made
            if maintenance_thread("workers").watch(self):
                round_made.wait(PATIENCE)

    def take_host_slot(self) -> object | None:
        """Take one of the host's connection slots; None if all are taken."""
        if self._host_limit is None:
            return True
        return self._host_limit.take()

    # Called by the background thread

    def maintain(self) -> float | None:
        """Make a round: publish what changed, and apply the desired state."""
        pool = self._pool
        if self._closed:
            return None
        round_made, self._round_made = self._round_made, Event()
        stats = pool.stats()
        if not stats.size:
            # A connect that begins from here on waits for the next round; earlier
            # ones are in the snapshot.
            self._is_running = False
            stats = pool.stats()
        before = self._published, self._applied
        try:
            self._try_publish(stats)
            self._try_to_apply(stats)
            self._is_running = stats.size > 0
        finally:
            round_made.set()
        if stats.waiting or before != (self._published, self._applied):
            return BUSY
        self._is_quiet = True
        # A checkout that waits from here on asks for a round.
        return QUIET if stats.size or pool.stats().waiting else None

    def _try_publish(self, stats: PoolStats) -> None:
        """Publish a change; with waiters always, because their waiting times grow."""
        state = {**vars(stats), "waited": 0.0, "applied": self._applied}
        unchanged = state == self._published and not stats.waiting
        self._published = state
        try:
            if not (unchanged and self._file.touch()):
                self._file.write(self._record(stats))
                self._problem = ""
        except OSError as error:
            self._note(error)

    def _record(self, stats: PoolStats) -> dict[str, Any]:
        generation = (self._applied or DesiredState()).generation
        about = {**self._about, "generation": generation}
        return WorkerStatus.of(stats, self._pool.connections(), **about).to_json()

    def _note(self, error: Exception) -> None:
        """Log a problem with the status directory when it is a new one."""
        # Without the name of the file, which differs at each attempt.
        before, self._problem = self._problem, reason_of(error)
        if self._problem != before:
            name, text = self._pool.name, "%s: nothing is published: %r"
            log(DEBUG, text, name, error, logger=WORKERS)

    def _try_to_apply(self, stats: PoolStats) -> None:
        try:
            try:
                desired = self._status_dir.desired(self._key)
            except Exception:
                # The last state that was read stays: a pause still expires.
                if self._applied is not None:
                    self._apply(self._applied.now())
                raise
            self._apply(desired)
            if self._host_limit is not None:
                self._apply_share(self._host_limit, stats)
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._note(error)

    def _apply(self, desired: DesiredState) -> None:
        # A pool's first round has no older connections that a reset could replace.
        before = self._applied or DesiredState(desired.generation)
        # The generation never decreases, even if the file has been removed.
        newest = max(desired.generation, before.generation)
        self._applied = desired = desired._replace(generation=newest)
        if desired.generation != before.generation:
            self._pool.reset()
        if desired.paused and not before.paused:
            self._pool.pause()
        elif before.paused and not desired.paused:
            self._pool.resume()
        if desired[1:] != before[1:]:
            change = desired.in_words() if desired.paused else "resumed"
            log(WARNING, "%s: %s", self._pool.name, change, logger=WORKERS)

    def _apply_share(self, host_limit: HostLimit, mine: PoolStats) -> None:
        """Limit the pool to its fair share while another process needs slots."""
        since = time.time() - mine.waited if mine.waiting else inf
        share = host_limit.share(since, mine.in_use + mine.waiting, mine.short)
        limit = self._pool.config.max_size if share is None else share
        if limit != self._limit or mine.size > limit:
            self._limit = limit
            self._pool.limit(limit)

    def closed(self) -> None:
        """Publish the last counters, and remove the status file."""
        self._closed = True
        if self._pid == process() and not self._read_only:
            # Counters that have changed since the last round would be lost.
            try:
                self._file.remove(self._record(self._pool.stats()))
            except OSError as error:
                self._note(error)
            if self._host_limit is not None:
                self._host_limit.leave()


def _at_exit() -> None:
    with ExitStack() as stack:  # calls the others if one raises
        for agent in list(_AGENTS):
            stack.callback(agent.closed)


atexit.register(_at_exit)
