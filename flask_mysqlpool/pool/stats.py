"""Snapshots of a pool, histograms, health, and the interface of observers."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pool import Pool

#: Upper bounds of the histograms' buckets, in seconds; one more bucket has none.
BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Times:
    """A histogram of durations."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        #: The number of durations in each bucket of :data:`BOUNDS`, and above.
        self.counts = [0] * (len(BOUNDS) + 1)
        #: The sum of all durations.
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Add one duration."""
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def merge(self, other: Times) -> None:
        """Add all durations of another histogram."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds

    def snapshot(self) -> tuple[float, ...]:
        """Return the counts and then the sum."""
        return (*self.counts, self.seconds)


class Observer:
    """The events of a pool; each method is a no-op.

    Pass an instance of a subclass to :meth:`Pool.add_observer()
    <flask_mysqlpool.Pool>`. Its methods are called in checkouts and checkins, without
    the lock. They should be quick and must not take a connection from the same pool.
    An observer that raises is removed, which is logged. Durations are in seconds.
    """

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        """Note that a connection was opened, in ``seconds``."""

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        """Note that a connection was checked out, after ``waited`` seconds."""

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        """Note that a connection was returned, after a use of ``used`` seconds."""

    def discarded(self, pool: Any, thread_id: int, reason: str) -> None:
        """Note that a connection was closed."""

    def timed_out(self, pool: Any, error: Exception) -> None:
        """Note that a checkout timed out."""

    def connect_failed(self, pool: Any, error: BaseException) -> None:
        """Note that a connection could not be opened."""

    def was_reset(self, pool: Any) -> None:
        """Note that all connections are being replaced."""

    def leaked(self, pool: Any, endpoint: str | None, report: str) -> None:
        """Note that a holder exceeds ``LEAK_THRESHOLD``, or has vanished."""


@dataclass(frozen=True)
class PoolStats:
    """One immutable snapshot of a pool, taken under its lock.

    ``size = connecting + idle + in_use``. The counters at the end never decrease. They
    begin when this process first uses the pool.
    """

    name: str
    min_size: int
    max_size: int
    #: The current maximum, which is below ``max_size`` while other processes of this
    #: host need connections; and whether the pool has been closed.
    limit: int
    closed: bool
    size: int
    #: Open and not checked out.
    idle: int
    #: Checked out.
    in_use: int
    #: Being opened; counted against ``max_size`` from before the first packet.
    connecting: int
    #: Checkouts that are waiting.
    waiting: int
    #: Seconds that the first of them has been waiting.
    waited: float
    #: Incremented by a reset and by a disconnect; older connections are replaced.
    generation: int
    #: Connections of an older generation, not replaced yet; part of ``size``.
    outdated: int
    #: Whether checkouts wait until the pool is resumed.
    paused: bool
    #: Whether checkouts wait because ``MAX_HOST_CONNECTIONS`` is reached.
    short: bool
    #: Whether all open connections send several commands at once; see ``PIPELINING``.
    pipelining: bool
    checkouts: int
    timeouts: int
    #: When the last timeout was, in `time.time()` seconds; None if there was none.
    last_timeout: float | None
    #: When the last connect failed, and its error.
    last_connect_failure: float | None
    connect_error: str | None
    #: Whether connects have failed since the last one succeeded.
    failing: bool
    opened: int
    #: Connections closed, and the number for each reason.
    discarded: int
    discarded_by_reason: Mapping[str, int]
    #: Statements that were given up, and killed at the server.
    killed: int
    #: Histograms of checkouts, uses and connects: the number for each of
    #: :data:`BOUNDS`, the number above, and the sum in seconds.
    wait_seconds: tuple[float, ...]
    use_seconds: tuple[float, ...]
    create_seconds: tuple[float, ...]


@dataclass(frozen=True)
class ConnectionStats:
    """One open connection in a snapshot; durations are in seconds."""

    #: The server's number for the connection.
    thread_id: int
    #: ``in_use`` or ``idle``, and the time in that state.
    state: str
    since: float
    #: The endpoint of the request that holds it or, elsewhere, the name of the thread.
    endpoint: str | None
    age: float


#: From the best to the worst.
OK, UNKNOWN, SATURATED, PAUSED, DOWN = "ok", "unknown", "saturated", "paused", "down"
STATES = (OK, UNKNOWN, SATURATED, PAUSED, DOWN)


@dataclass(frozen=True)
class Health:
    """The health of the pools of this process; :attr:`state` is that of the worst.

    ``ok``: connections are open. ``unknown``: none is open; the check has started a
    connect, so check again. ``saturated``: all are in use, or checkouts wait.
    ``paused``: by ``flask mysqlpool pause``. ``down``: the last connect failed, or the
    pool is closed; each check tries another connect, subject to the back-off.
    """

    state: str
    #: One sentence for each pool that is not ``ok``.
    reasons: tuple[str, ...]
    pools: Mapping[str, PoolStats]

    @property
    def ok(self) -> bool:
        """Whether requests that need a connection can be expected to get one."""
        return self.state in (OK, UNKNOWN)


def examine(pools: Mapping[str, Pool]) -> Health:
    """Return the health of these pools, without waiting."""
    for pool in pools.values():
        pool.discard_dead()
    found = {bind: pool.stats() for bind, pool in pools.items()}
    judged = {bind: _judge(stats) for bind, stats in found.items()}
    for bind, pool in pools.items():
        if judged[bind][0] in (UNKNOWN, DOWN):
            pool.probe()
    return Health(
        state=max((state for state, _ in judged.values()), key=STATES.index),
        reasons=tuple(reason for _, reason in judged.values() if reason),
        pools=found,
    )


def _judge(stats: PoolStats) -> tuple[str, str]:
    """Return the state of a pool and, unless it is ``ok``, the reason."""
    name = stats.name
    if stats.paused:
        return PAUSED, f"{name}: paused"
    if stats.failing or stats.closed:
        return DOWN, f"{name}: {stats.connect_error or 'the pool has been closed'}"
    if stats.waiting or stats.in_use >= stats.limit:
        return SATURATED, (
            f"{name}: in use {stats.in_use}/{stats.max_size},"
            f" waiting {stats.waiting}, for up to {stats.waited:.2f} s"
        )
    if stats.idle + stats.in_use:
        return OK, ""
    return UNKNOWN, f"{name}: no connection is open yet"
