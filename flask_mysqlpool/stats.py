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
    #: Raised by a reset and by a disconnect; older connections are replaced.
    generation: int
    checkouts: int
    timeouts: int
    opened: int
    #: Connections closed, and how many for which reason.
    discarded: int
    discarded_by_reason: Mapping[str, int]
