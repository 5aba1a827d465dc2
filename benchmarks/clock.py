"""How things are timed: in rounds that take turns; by threads that start at once."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import TypeVar

T = TypeVar("T")
Action = Callable[[], object]

now = time.perf_counter

#: Seconds until threads that are to start together must all be there.
ASSEMBLY = 60.0


def durations(action: Action, seconds: float) -> list[float]:
    """Do it again and again, at least once: seconds that each time took."""
    times = []
    start = now()
    end = start + seconds
    while True:
        action()
        stop = now()
        times.append(stop - start)
        if stop >= end:
            return times
        start = now()


def take_turns(
    actions: Mapping[str, Action], rounds: int, seconds: float
) -> dict[str, list[float]]:
    """The median of each round in seconds, for each action.

    So a machine that is busy for a while hits all of them equally.
    """
    medians: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name in random.sample(list(actions), len(actions)):
            medians[name].append(median(durations(actions[name], seconds)))
    return medians


def quiet(rounds: Sequence[float]) -> float:
    """What it took in the quietest tenth of the rounds.

    Whatever else runs on a machine only ever adds to a time.
    """
    return quantile(rounds, 0.1)


def together(count: int, work: Callable[[], T]) -> list[T]:
    """Let so many threads do it, all from the same moment on."""
    barrier = threading.Barrier(count)

    def run() -> T:
        barrier.wait(ASSEMBLY)
        return work()

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run) for _ in range(count)]
        return [future.result() for future in futures]


def quantile(values: Sequence[float], share: float) -> float:
    """The value that so large a share of them does not exceed."""
    ranked = sorted(values)
    return ranked[min(int(len(ranked) * share), len(ranked) - 1)]
