"""Sums over workers, and percentiles of histograms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ..pool.stats import BOUNDS
from ..workers.status import WorkerStatus

_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def histogram(worker: WorkerStatus, name: str) -> list[float]:
    """Return the counts, then the sum in seconds; zeros if the worker has none."""
    return getattr(worker, name) or [0] * (len(BOUNDS) + 2)


def summary(workers: Iterable[WorkerStatus], name: str) -> dict[str, float | None]:
    """Return count, mean and percentiles over all workers, in seconds."""
    found = [histogram(worker, name) for worker in workers]
    *counts, seconds = map(sum, zip(*found, [0] * (len(BOUNDS) + 2), strict=True))
    count = sum(counts)
    return {
        "count": count,
        "mean": seconds / count if count else None,
        **{label: percentile(counts, part) for label, part in _PERCENTILES.items()},
    }


def percentile(counts: Sequence[float], part: float) -> float | None:
    """Return the duration that this part of all durations does not exceed, or None.

    Durations are assumed to be spread evenly within a bucket. Those beyond all bounds
    are not known more precisely: the result is then the last bound.
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


def reasons(workers: Iterable[WorkerStatus]) -> dict[str, int]:
    """Count the closed connections by reason, over all workers."""
    total: Counter[str] = Counter()
    for worker in workers:
        total.update(worker.discarded_by_reason or {})
    return dict(total)
