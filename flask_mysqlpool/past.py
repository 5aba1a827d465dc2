"""What workers have counted that are dead, so that no total goes back when one dies.

Counts are kept for each *site*: workers that were started by the same process, such as
gunicorn's master. Those of a site that has no live worker any more are forgotten as
soon as a worker of another one is buried.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

#: What only grows, by what a sheet calls it.
COUNTED = (
    *("checkouts", "timeouts", "opened", "discarded", "discarded_by_reason"),
    *("wait", "use", "create"),
)

Counts = dict[str, Any]


def site() -> str:
    """What the workers of one site have in common: the process that started them."""
    parent = os.getppid()
    try:
        # Process ids are used again; not with the same moment of the start.
        with open(f"/proc/{parent}/stat", "rb") as file:
            return f"{parent}:{file.read().rpartition(b')')[2].split()[19].decode()}"
    except OSError:
        return str(parent)


class Past:
    """What the file holds: ``{"buried": [id], "sites": {site: {pool: counts}}}``."""

    def __init__(self, content: Mapping[str, Any] | None = None) -> None:
        content = content or {}
        self._buried: list[str] = list(content.get("buried", ()))
        self._sites: dict[str, dict[str, Counts]] = dict(content.get("sites", {}))

    def content(self) -> dict[str, Any]:
        return {"buried": self._buried, "sites": self._sites}

    def bury(self, id: str, sheet: Mapping[str, Any]) -> None:
        """Add what this worker has counted; once, however often it is tried."""
        if id in self._buried:
            return
        self._buried.append(id)
        pools = self._sites.setdefault(str(sheet.get("site", "")), {})
        key = f"{sheet.get('app')}/{sheet.get('bind')}"
        pools[key] = total([pools.get(key, {}), counts(sheet)])

    def forget(self, sites: Collection[str], ids: Collection[str]) -> None:
        """Keep these sites, and of the buried those whose sheets are still there."""
        self._sites = {s: pools for s, pools in self._sites.items() if s in sites}
        self._buried = [id for id in self._buried if id in ids]

    def pools(self) -> set[str]:
        return {pool for pools in self._sites.values() for pool in pools}

    def counts(self, pool: str, sites: Iterable[str]) -> Counts:
        """What the dead of these sites have counted for this pool."""
        return total([self._sites.get(site, {}).get(pool, {}) for site in set(sites)])


def counts(sheet: Mapping[str, Any]) -> Counts:
    return {name: sheet[name] for name in COUNTED if name in sheet}


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
