"""Counters of exited workers, kept so that site totals never decrease."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .status import Counts, counts, key_of

#: Maximum number of pools, so that the file stays small where settings often change.
KEPT = 100


class ExitedCounters:
    """Counters by pool; the pool whose worker has exited last is at the end.

    As JSON: ``{"buried": [id], "pools": {pool: counters}}``.
    """

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        content = content or {}
        #: In their order, as keys.
        self._reaped = dict.fromkeys(content.get("buried", ()))
        self._pools: dict[str, Counts] = {
            pool: counts(counted) for pool, counted in content.get("pools", {}).items()
        }

    def content(self) -> dict[str, Any]:
        return {"buried": list(self._reaped), "pools": self._pools}

    def reap(self, id: str, record: Mapping[str, Any]) -> None:
        """Add the counters of an exited worker; idempotent."""
        if id in self._reaped:
            return
        self._reaped[id] = None
        key = key_of(record)
        self._pools[key] = total([self._pools.pop(key, {}), counts(record)])

    def forget(self, ids: Collection[str]) -> None:
        """Drop the first pools above the limit, and reaped ids except these."""
        there = set(ids)
        self._reaped = dict.fromkeys(id for id in self._reaped if id in there)
        self._pools = dict(list(self._pools.items())[-KEPT:])

    def counts(self, pool: str) -> Counts:
        return self._pools.get(pool, {})


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
