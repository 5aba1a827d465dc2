"""Percentiles of histograms."""

from __future__ import annotations

from collections.abc import Sequence

from ..pool.stats import BOUNDS

#: A histogram of nothing: the counts, then the sum in seconds.
EMPTY = [0] * (len(BOUNDS) + 2)

_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


def summary(histogram: Sequence[float]) -> dict[str, float | None]:
    """Return count, mean and percentiles, in seconds."""
    *counts, seconds = histogram
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
