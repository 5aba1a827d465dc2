"""Many threads and few connections, over a driver that costs nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

from ..bench import Bench, say
from ..results import Column, Table
from .clock import durations, now, one_cpu, quiet, take_turns, together
from .stubs import Stub

#: Fairness: threads, connections and the seconds that each holds one.
CROWD, FEW, HOLD = 40, 4, 0.001
#: Spike: requests at once, warm connections, seconds of a connect and of the work.
SPIKE, WARM, CONNECT, WORK = 50, 5, 0.15, 0.002
#: Throughput: threads on connections.
THREADS, SHARED = 32, 16
#: Cycles between two looks at the clock.
BATCH = 20

COLUMNS = (
    Column("one_per_second", "1 thread:\ncycles/s"),
    Column("many_per_second", "32 threads\non 16:\ncycles/s"),
    Column("jain", "40 threads\non 4:\nJain index", 3),
    Column("worst_ms", "worst\nwait ms", 1),
    Column("spike_ms", "spike of 50:\nmakespan ms", 1),
    Column("spike_opened", "new\nconnections"),
)


def measure(bench: Bench) -> Table:
    table = bench.table("sharing", "On a stub driver", bench.stub_kinds, *COLUMNS)
    say("stub driver: one thread")
    pools = {name: kind(1) for name, kind in bench.stubs.items()}
    cycles = {name: pool.cycle for name, pool in pools.items()}
    with one_cpu():
        turns = take_turns(cycles, bench.effort.rounds, bench.effort.turn)
    table.raw["cycle_seconds"] = turns
    for name, kind in bench.stubs.items():
        say(f"stub driver: {kind.label}")
        table.add({name: {"one_per_second": 1 / quiet(turns[name]).wall}})
        table.add({name: _throughput(kind, bench.effort.run)})
        table.add({name: _fairness(kind, bench.effort.fight)})
        table.add({name: _spike(kind, bench.effort.spikes)})
    return table


def _throughput(kind: type[Stub], seconds: float) -> dict[str, float]:
    pool = kind(SHARED)
    pool.warm(SHARED)

    def batch() -> None:
        for _ in range(BATCH):
            pool.cycle()

    done = together(THREADS, lambda: len(durations(batch, seconds)))
    return {"many_per_second": sum(done) * BATCH / seconds}


def _fairness(kind: type[Stub], seconds: float) -> dict[str, float]:
    """All threads take a connection again at once: how many each, after which wait."""
    pool = kind(FEW)
    pool.warm(FEW)

    def insist() -> list[float]:
        waits = []
        end = now() + seconds
        while (start := now()) < end:
            connection = pool.get()
            waits.append(now() - start)
            time.sleep(HOLD)
            connection.close()
        return waits

    waits = together(CROWD, insist)
    shares = [len(own) for own in waits]
    return {"jain": jain(shares), "worst_ms": max(map(max, waits)) * 1e3}


def jain(shares: Sequence[float]) -> float:
    """1 if all have the same, 1/n if one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share**2 for share in shares))


def _spike(kind: type[Stub], count: int) -> dict[str, float]:
    """Requests come all at once to a pool that is warm, but not that warm."""
    spikes = [_one_spike(kind) for _ in range(count)]
    makespan, opened = zip(*spikes, strict=True)
    return {"spike_ms": median(makespan) * 1e3, "spike_opened": median(opened)}


def _one_spike(kind: type[Stub]) -> tuple[float, int]:
    pool = kind(SPIKE, CONNECT)
    pool.warm(WARM)
    before = pool.opened

    def request() -> tuple[float, float]:
        start = now()
        connection = pool.get()
        time.sleep(WORK)
        connection.close()
        return start, now()

    starts, ends = zip(*together(SPIKE, request), strict=True)
    return max(ends) - min(starts), pool.opened - before
