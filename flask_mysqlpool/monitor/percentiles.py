"""Numbers out of numbers: sums over workers, and percentiles of histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from ..pool.stats import BOUNDS
from ..workers.exited import is_count

#: What of a sheet is a histogram: how long checkouts took, connections were in use,
#: and connects took.
TIMES = "wait", "use", "create"

_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

Histogram = Sequence[float]
Worker = dict[str, Any]


def histogram(worker: Worker, name: str) -> list[float]:
    """The counts, and then the sum in seconds; nothing but zeros if it has none."""
    found: Any = worker.get(name)
    if isinstance(found, tuple):  # this process's own
        found = list(found)
    return found if is_count(name, found) else [0] * (len(BOUNDS) + 2)


def summary(workers: Iterable[Worker], name: str) -> dict[str, float | None]:
    """Number, mean and percentiles of all workers' durations together, in seconds."""
    found = [histogram(worker, name) for worker in workers]
    *counts, seconds = map(sum, zip(*found, [0] * (len(BOUNDS) + 2), strict=True))
    count = sum(counts)
    return {
        "count": count,
        "mean": seconds / count if count else None,
        **{label: percentile(counts, part) for label, part in _PERCENTILES.items()},
    }


def percentile(counts: Sequence[float], part: float) -> float | None:
    """The duration that this part of all does not exceed; None if there were none.

    Within a bucket they are taken to be spread evenly. Of those that are longer than
    all bounds no more is known, so the last bound is given.
    """
    rank, seen = part * sum(counts), 0.0
    if not rank:
        return None
    lower = 0.0
    for bound, count in zip(BOUNDS, counts, strict=False):
        if seen + count >= rank:
            return lower + (bound - lower) * (rank - seen) / count
        seen += count
        lower = bound
    return float(BOUNDS[-1])


def reasons(workers: Iterable[Worker]) -> dict[str, int]:
    """How many connections were closed for which reason."""
    total: Counter[str] = Counter()
    for worker in workers:
        found = worker.get("discarded_by_reason")
        if is_count("discarded_by_reason", found):
            total.update(found)
    return dict(total)
