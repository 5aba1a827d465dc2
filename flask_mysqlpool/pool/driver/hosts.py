"""The order in which several hosts are tried.

A host that failed is avoided for a while. Then one connect tries it again, while others
still go to hosts that work. If all hosts have failed, all are tried.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

from ...config.addresses import Place

#: Back-off after a failure: seconds, doubling from the first to the longest, jittered.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Seconds until a host is tried again whose role is not the one that TARGET requires.
ANOTHER_ROLE = 0.25

monotonic = time.monotonic


class Hosts:
    """Hosts and their recent failures. Thread-safe: each step is atomic."""

    def __init__(self, places: Sequence[Place], *, in_random_order: bool) -> None:
        self._places = tuple(places)
        self._in_random_order = in_random_order
        #: For each host that failed: until when to avoid it, and the failures in a row.
        self._bad: dict[Place, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        """Yield all hosts in the order in which to try them."""
        places = list(self._places)
        if self._in_random_order:
            random.shuffle(places)
        now = monotonic()
        yield from sorted(places, key=lambda place: self._turn(place, now))

    def _turn(self, place: Place, now: float) -> float:
        """Return the sort key: 0 to try a host now, or until when to avoid it."""
        until, failures = self._bad.get(place, (0.0, 0))
        if until > now:
            return until
        if failures:
            # Until this connect has an outcome, others avoid the host.
            self._bad[place] = now + FIRST_PAUSE, failures
        return 0.0

    def works(self, place: Place) -> None:
        """Record a success."""
        self._bad.pop(place, None)

    def failed(self, place: Place) -> None:
        """Record a failure, and avoid the host for a while."""
        failures = self._bad.get(place, (0.0, 0))[1]
        pause = min(FIRST_PAUSE * 2.0**failures, LONGEST_PAUSE)
        until = monotonic() + pause * random.uniform(0.5, 1.0)
        self._bad[place] = until, failures + 1

    def has_another_role(self, place: Place) -> None:
        """Avoid a host for a moment, until its role may have changed."""
        self._bad[place] = monotonic() + ANOTHER_ROLE, 0
