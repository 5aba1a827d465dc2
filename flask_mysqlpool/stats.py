"""What a pool looks like at one instant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PoolStats:
    """One immutable snapshot of a pool, taken under its lock.

    ``size = connecting + idle + in_use``. The counters at the end only grow,
    from the moment this process first used the pool.
    """

    name: str
    max_size: int
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
    opened: int
    #: Connections closed, and how many for which reason.
    discarded: int
    discarded_by_reason: Mapping[str, int]


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
