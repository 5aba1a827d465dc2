"""What a pool looks like at one instant, and who is told of every event in it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pool import Pool

#: Upper bounds of what durations are sorted into, in seconds; the last has none.
BOUNDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Times:
    """Durations, counted by how long they were: a histogram."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        #: How many there were up to each of :data:`BOUNDS`, and how many longer.
        self.counts = [0] * (len(BOUNDS) + 1)
        #: All of them together.
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def merge(self, other: Times) -> None:
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        self.seconds += other.seconds

    def snapshot(self) -> tuple[float, ...]:
        """The counts and then the seconds; immutable."""
        return (*self.counts, self.seconds)


class Observer:
    """What a pool tells of each event, outside its lock; here, to nobody.

    A subclass is given to :meth:`Pool.add_observer() <flask_mysqlpool.Pool>`. It runs
    within checkouts and returns, so it should be quick, and take no connection from the
    same pool. One that raises is told nothing
    any more, and that is logged. Durations are in seconds.
    """

    def created(self, pool: Any, thread_id: int, seconds: float) -> None:
        """A connection was opened, which took so long."""

    def checked_out(self, pool: Any, connection: Any, waited: float) -> None:
        """A connection was handed out, after so long."""

    def checked_in(self, pool: Any, thread_id: int, used: float) -> None:
        """A connection was returned that was in use for so long."""

    def discarded(self, pool: Any, thread_id: int, reason: str) -> None:
        """A connection was closed."""

    def timed_out(self, pool: Any, error: Exception) -> None:
        """A checkout was given up."""

    def connect_failed(self, pool: Any, error: BaseException) -> None:
        """A connection could not be opened."""

    def was_reset(self, pool: Any) -> None:
        """All connections are being replaced."""

    def leaked(self, pool: Any, endpoint: str | None, report: str) -> None:
        """A holder keeps its connection for too long, or has dropped it."""


@dataclass(frozen=True)
class PoolStats:
    """One immutable snapshot of a pool, taken under its lock.

    ``size = connecting + idle + in_use``. The counters at the end only grow,
    from the moment this process first used the pool.
    """

    name: str
    min_size: int
    max_size: int
    #: The most at present, which another process may need lower; and whether there are
    #: to be none any more.
    limit: int
    closed: bool
    size: int
    #: Open and ready to be handed out.
    idle: int
    #: Handed out and not yet returned.
    in_use: int
    #: Being opened; they count against ``max_size`` from the first packet.
    connecting: int
    #: Checkouts blocked right now.
    waiting: int
    #: How many seconds the first of them has been waiting.
    waited: float
    #: Raised by a reset and by a disconnect; older connections are replaced.
    generation: int
    #: Of ``size``, those that are older and were not replaced yet.
    outdated: int
    #: Whether checkouts wait until the pool is resumed.
    paused: bool
    #: Whether somebody waits since all connections that this host may have are taken.
    short: bool
    checkouts: int
    timeouts: int
    #: When the last of them was, in `time.time()` seconds; None if there was none.
    last_timeout: float | None
    #: The same for connects that failed, and what the server said to the last of them.
    last_connect_failure: float | None
    connect_error: str | None
    #: Whether the server could not be reached the last time that this was tried.
    failing: bool
    opened: int
    #: Connections closed, and how many for which reason.
    discarded: int
    discarded_by_reason: Mapping[str, int]
    #: How long checkouts took, connections were in use, and connects took: so many for
    #: each of :data:`BOUNDS`, so many that were longer, and the sum in seconds.
    wait_seconds: tuple[float, ...]
    use_seconds: tuple[float, ...]
    create_seconds: tuple[float, ...]


@dataclass(frozen=True)
class ConnectionStats:
    """One open connection at that instant; durations in seconds."""

    #: The server's number for it.
    thread_id: int
    #: ``in_use`` or ``idle``; and for how long it has been so.
    state: str
    since: float
    #: Who holds it: an endpoint or, outside of requests, the name of a thread.
    endpoint: str | None
    age: float


#: From the best to the worst.
OK, UNKNOWN, SATURATED, PAUSED, DOWN = "ok", "unknown", "saturated", "paused", "down"
STATES = (OK, UNKNOWN, SATURATED, PAUSED, DOWN)


@dataclass(frozen=True)
class Health:
    """How the pools of this process are; :attr:`state` is that of the worst.

    ``ok``: connections are there. ``unknown``: none is open; one is being opened now,
    so ask again. ``saturated``: all are in use, or somebody waits.
    ``paused``: by ``flask mysqlpool pause``. ``down``: the server could not be reached
    the last time that this was tried; asking makes it try again, at growing intervals.
    """

    state: str
    #: One sentence for each pool that is not ok.
    reasons: tuple[str, ...]
    pools: Mapping[str, PoolStats]

    @property
    def ok(self) -> bool:
        """Whether requests that need a connection can be expected to get one."""
        return self.state in (OK, UNKNOWN)


def examine(pools: Mapping[str, Pool]) -> Health:
    """The health of these pools. Waits for nothing."""
    for pool in pools.values():
        pool.discard_dead()
    found = {bind: pool.stats() for bind, pool in pools.items()}
    states = {bind: _state(stats) for bind, stats in found.items()}
    for bind, pool in pools.items():
        if states[bind] in (UNKNOWN, DOWN):
            pool.probe()
    reasons = [_reason(found[bind], state) for bind, state in states.items()]
    return Health(
        state=max(states.values(), key=STATES.index),
        reasons=tuple(filter(None, reasons)),
        pools=found,
    )


def _state(stats: PoolStats) -> str:
    if stats.paused:
        return PAUSED
    if stats.failing or stats.closed:
        return DOWN
    if stats.waiting or stats.in_use >= stats.limit:
        return SATURATED
    return OK if stats.idle + stats.in_use else UNKNOWN


def _reason(stats: PoolStats, state: str) -> str:
    if state == DOWN:
        return f"{stats.name}: {stats.connect_error or 'the pool has been closed'}"
    if state == SATURATED:
        return (
            f"{stats.name}: in use {stats.in_use}/{stats.max_size},"
            f" waiting {stats.waiting}, for up to {stats.waited:.2f} s"
        )
    if state == UNKNOWN:
        return f"{stats.name}: no connection is open yet"
    return "" if state == OK else f"{stats.name}: {state}"
