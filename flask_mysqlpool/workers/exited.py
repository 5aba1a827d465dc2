"""Counters of exited workers, kept so that site totals never decrease.

They are kept for each process group: the workers that one process has started, such as
gunicorn's master. Counters of a group without live workers are dropped when a worker
of another group is reaped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .status import Counts, counts, key_of


class ExitedCounters:
    """Counters by process group and pool.

    As JSON: ``{"buried": [id], "sites": {group: {pool: counters}}}``.
    """

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        content = content or {}
        #: In their order, as keys.
        self._reaped = dict.fromkeys(content.get("buried", ()))
        self._groups: dict[str, dict[str, Counts]] = {
            group: {pool: counts(counted) for pool, counted in pools.items()}
            for group, pools in content.get("sites", {}).items()
        }

    def content(self) -> dict[str, Any]:
        return {"buried": list(self._reaped), "sites": self._groups}

    def reap(self, id: str, record: Mapping[str, Any]) -> None:
        """Add the counters of an exited worker; idempotent."""
        if id in self._reaped:
            return
        self._reaped[id] = None
        pools = self._groups.setdefault(str(record.get("site", "")), {})
        key = key_of(record)
        pools[key] = total([pools.get(key, {}), counts(record)])

    def forget(self, groups: Collection[str], ids: Collection[str]) -> None:
        """Drop all groups but these, and reaped ids whose files have been removed."""
        self._groups = {g: pools for g, pools in self._groups.items() if g in groups}
        there = set(ids)
        self._reaped = dict.fromkeys(id for id in self._reaped if id in there)

    def counts(self, pool: str, groups: Iterable[str]) -> Counts:
        """Add up the counters of this pool over these groups."""
        return total([self._groups.get(each, {}).get(pool, {}) for each in set(groups)])


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
