"""Which of several hosts to try, and in which order.

A host that failed is avoided for a while, and then tried again by one connect; the
others go where it works. None is given up for good: who finds none better tries it too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence

from ...config.addresses import Place

#: Seconds until a host that failed is tried again: doubling, jittered.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
#: Seconds until one is tried again that has another role than the one that is wanted.
ANOTHER_ROLE = 0.25

monotonic = time.monotonic


class Hosts:
    """What is known of some hosts. Threads may use it at once: each step is atomic."""

    def __init__(self, places: Sequence[Place], *, in_random_order: bool) -> None:
        self._places = tuple(places)
        self._in_random_order = in_random_order
        #: For those that failed: until when they are avoided, and how often they did.
        self._bad: dict[Place, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        """All of them, the one to try first first."""
        places = list(self._places)
        if self._in_random_order:
            random.shuffle(places)
        now = monotonic()
        yield from sorted(places, key=lambda place: self._turn(place, now))

    def _turn(self, place: Place, now: float) -> float:
        until, failures = self._bad.get(place, (0.0, 0))
        if until > now:
            return until
        if failures:
            # Whoever comes meanwhile leaves it alone.
            self._bad[place] = now + FIRST_PAUSE, failures
        return 0.0

    def works(self, place: Place) -> None:
        self._bad.pop(place, None)

    def failed(self, place: Place) -> None:
        failures = self._bad.get(place, (0.0, 0))[1]
        pause = min(FIRST_PAUSE * 2.0**failures, LONGEST_PAUSE)
        until = monotonic() + pause * random.uniform(0.5, 1.0)
        self._bad[place] = until, failures + 1

    def has_another_role(self, place: Place) -> None:
        self._bad[place] = monotonic() + ANOTHER_ROLE, 0
