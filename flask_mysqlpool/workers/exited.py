"""Counters of exited workers, kept so that site totals never decrease.

They are kept for each process group: the workers that one process has started, such as
gunicorn's master. Counters of a group without live workers are dropped when a worker
of another group is reaped.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from ..config import PoolConfig
from ..pool.stats import BOUNDS

_TIMES = "wait", "use", "create"
#: The fields of a worker's record that never decrease.
COUNTED = (
    *("checkouts", "timeouts", "opened", "discarded", "discarded_by_reason"),
    *_TIMES,
)

Counts = dict[str, Any]


def identity(app: str, bind: str, config: PoolConfig) -> dict[str, str | None]:
    """Return what identifies a pool on this host, the same in all its workers.

    Several sites may run from one source tree, with one app name: so the server, the
    database and the account are part of it.
    """
    user, server = config.user, config.server
    return {"app": app, "bind": bind, "user": user, "server": server}


def key_of(pool: Mapping[str, Any]) -> str:
    """Return the key of a pool's desired state, counters and limit."""
    user = pool.get("user") or ""
    return f"{pool.get('app')}/{pool.get('bind')} {user}@{pool.get('server')}"


def process_group_id() -> str:
    """Identify the process that has started this one, and so all workers of a site."""
    parent = os.getppid()
    start = space = ""
    with suppress(OSError):
        # Each container has process ids of its own.
        space = os.readlink("/proc/self/ns/pid")
        # Process ids are used again, but not with the same start time.
        with open(f"/proc/{parent}/stat", "rb") as file:
            start = file.read().rpartition(b")")[2].split()[19].decode()
    return f"{parent}:{start}:{space}"


class ExitedCounters:
    """Counters by process group and pool.

    As JSON: ``{"buried": [id], "sites": {group: {pool: counters}}}``.
    """

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        content = content or {}
        self._reaped: list[str] = list(content.get("buried", ()))
        self._groups: dict[str, dict[str, Counts]] = {
            group: {pool: counts(counted) for pool, counted in pools.items()}
            for group, pools in content.get("sites", {}).items()
        }

    def content(self) -> dict[str, Any]:
        return {"buried": self._reaped, "sites": self._groups}

    def reap(self, id: str, record: Mapping[str, Any]) -> None:
        """Add the counters of an exited worker; idempotent."""
        if id in self._reaped:
            return
        self._reaped.append(id)
        pools = self._groups.setdefault(str(record.get("site", "")), {})
        key = key_of(record)
        pools[key] = total([pools.get(key, {}), counts(record)])

    def forget(self, groups: Collection[str], ids: Collection[str]) -> None:
        """Drop all groups but these, and reaped ids whose files have been removed."""
        self._groups = {g: pools for g, pools in self._groups.items() if g in groups}
        self._reaped = [id for id in self._reaped if id in ids]

    def counts(self, pool: str, groups: Iterable[str]) -> Counts:
        """Add up the counters of this pool over these groups."""
        return total([self._groups.get(each, {}).get(pool, {}) for each in set(groups)])


def counts(record: Mapping[str, Any]) -> Counts:
    """Return the counters of a record, without those that another version changed."""
    return {name: record[name] for name in COUNTED if is_count(name, record.get(name))}


def is_count(name: str, value: Any) -> bool:
    """Tell whether the value has the type of the counter of this name."""
    if name in _TIMES:
        is_list = isinstance(value, list) and len(value) == len(BOUNDS) + 2
        return is_list and all(map(_is_number, value))
    if name == "discarded_by_reason":
        return isinstance(value, Mapping) and all(map(_is_number, value.values()))
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1 << 64


def total(all_counts: Iterable[Counts]) -> Counts:
    """Add up counters, which are numbers, lists of numbers or mappings to numbers."""
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
