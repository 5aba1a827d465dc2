"""Timing: rounds that take turns, on one CPU; threads that start at once."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import NamedTuple, TypeVar

T = TypeVar("T")
K = TypeVar("K")
Action = Callable[[], object]

now = time.perf_counter

#: Seconds until threads that start together must all be there.
ASSEMBLY = 60.0


class Turn(NamedTuple):
    """Seconds that an action took: by the clock, and of them this process' CPU time."""

    wall: float
    cpu: float


def durations(action: Action, seconds: float) -> list[float]:
    """Repeat an action, at least once; return the seconds that each call took."""
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


def timed(action: Action, seconds: float) -> Turn:
    """Repeat an action; return the median by the clock, and the mean CPU time."""
    cpu = time.process_time()
    times = durations(action, seconds)
    return Turn(median(times), (time.process_time() - cpu) / len(times))


def alternate(
    turns: Mapping[K, Callable[[], Turn]], rounds: int
) -> dict[K, list[Turn]]:
    """Take each turn once in each round, in random order.

    So a machine that is busy for a while hits all of them equally.
    """
    taken: dict[K, list[Turn]] = {key: [] for key in turns}
    for _ in range(rounds):
        for key in random.sample(list(turns), len(turns)):
            taken[key].append(turns[key]())
    return taken


def take_turns(
    actions: Mapping[K, Action], rounds: int, seconds: float
) -> dict[K, list[Turn]]:
    """Time actions in rounds in which each has a turn of ``seconds``."""
    turns = {key: partial(timed, action, seconds) for key, action in actions.items()}
    return alternate(turns, rounds)


def quiet(rounds: Sequence[Turn]) -> Turn:
    """Return what an action took in the quietest tenth of the rounds.

    Whatever else runs on a machine only ever adds to a time.
    """
    return Turn(*(quantile(values, 0.1) for values in zip(*rounds, strict=True)))


@contextmanager
def one_cpu() -> Iterator[None]:
    """Pin this thread, and the threads and processes that it starts, to one CPU.

    On two, the same code takes half as long again, depending on which core wakes which.
    Without effect where the system has no such call.
    """
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def together(count: int, work: Callable[[], T]) -> list[T]:
    """Call a function in ``count`` threads, from the same moment on."""
    barrier = threading.Barrier(count)

    def run() -> T:
        barrier.wait(ASSEMBLY)
        return work()

    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(run) for _ in range(count)]
        return [future.result() for future in futures]


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that so large a share of them does not exceed."""
    ranked = sorted(values)
    return ranked[min(int(len(ranked) * share), len(ranked) - 1)]
