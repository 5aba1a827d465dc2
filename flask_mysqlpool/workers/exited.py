"""What workers have counted that are dead, so that no total goes back when one dies.

Counts are kept for each *site*: workers that were started by the same process, such as
gunicorn's master. Those of a site that has no live worker any more are forgotten as
soon as a worker of another one is buried.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from ..config import PoolConfig
from ..pool.stats import BOUNDS

_TIMES = "wait", "use", "create"
#: What only grows, by what a sheet calls it.
COUNTED = (
    *("checkouts", "timeouts", "opened", "discarded", "discarded_by_reason"),
    *_TIMES,
)

Counts = dict[str, Any]


def identity(app: str, bind: str, config: PoolConfig) -> dict[str, str | None]:
    """Tell a pool from all others of the host, in all its workers.

    One checkout may serve several sites, whose apps have one name; so the server, the
    database and the account are part of it.
    """
    user, server = config.user, config.server
    return {"app": app, "bind": bind, "user": user, "server": server}


def key_of(pool: Mapping[str, Any]) -> str:
    """Name what its orders, counts and limit are kept under."""
    user = pool.get("user") or ""
    return f"{pool.get('app')}/{pool.get('bind')} {user}@{pool.get('server')}"


def process_group_id() -> str:
    """What the workers of one site have in common: the process that started them."""
    parent = os.getppid()
    start = space = ""
    with suppress(OSError):
        # Each container has process ids of its own.
        space = os.readlink("/proc/self/ns/pid")
        # They are used again; not with the same moment of the start.
        with open(f"/proc/{parent}/stat", "rb") as file:
            start = file.read().rpartition(b")")[2].split()[19].decode()
    return f"{parent}:{start}:{space}"


class ExitedCounters:
    """What the file holds: ``{"buried": [id], "sites": {site: {pool: counts}}}``."""

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        content = content or {}
        self._buried: list[str] = list(content.get("buried", ()))
        self._sites: dict[str, dict[str, Counts]] = {
            site: {pool: counts(counted) for pool, counted in pools.items()}
            for site, pools in content.get("sites", {}).items()
        }

    def content(self) -> dict[str, Any]:
        return {"buried": self._buried, "sites": self._sites}

    def reap(self, id: str, sheet: Mapping[str, Any]) -> None:
        """Add what this worker has counted; once, however often it is tried."""
        if id in self._buried:
            return
        self._buried.append(id)
        pools = self._sites.setdefault(str(sheet.get("site", "")), {})
        key = key_of(sheet)
        pools[key] = total([pools.get(key, {}), counts(sheet)])

    def forget(self, sites: Collection[str], ids: Collection[str]) -> None:
        """Keep these sites, and of the buried those whose sheets are still there."""
        self._sites = {s: pools for s, pools in self._sites.items() if s in sites}
        self._buried = [id for id in self._buried if id in ids]

    def counts(self, pool: str, sites: Iterable[str]) -> Counts:
        """What the dead of these sites have counted for this pool."""
        return total([self._sites.get(site, {}).get(pool, {}) for site in set(sites)])


def counts(sheet: Mapping[str, Any]) -> Counts:
    """What a worker has counted, but for what another version counts otherwise."""
    return {name: sheet[name] for name in COUNTED if is_count(name, sheet.get(name))}


def is_count(name: str, value: Any) -> bool:
    """Whether it is what is counted under this name."""
    if name in _TIMES:
        is_list = isinstance(value, list) and len(value) == len(BOUNDS) + 2
        return is_list and all(map(_is_number, value))
    if name == "discarded_by_reason":
        return isinstance(value, Mapping) and all(map(_is_number, value.values()))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1 << 64


def total(all_counts: Iterable[Counts]) -> Counts:
    """Added up: numbers, lists of them, and mappings to them."""
    result: Counts = {}
    for one in all_counts:
        for name, value in one.items():
            result[name] = _sum(result[name], value) if name in result else value
    return result


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return total([dict(one), dict(other)])
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    return one + other
