"""Whether a pool can serve, told from its counters at once, without a connection."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import Pool
from .stats import PoolStats

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
