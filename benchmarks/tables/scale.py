"""Whether a checkout costs more where there is more of everything."""

from __future__ import annotations

import gc
import os
import sys
import threading
from pathlib import Path

from ..bench import OURS, Bench, say
from ..results import Column, Table
from .clock import durations, one_cpu, quiet, take_turns, together
from .stubs import Stub

CONNECTIONS = 1, 10, 100, 1000
WAITERS = 0, 1, 10, 100, 1000
#: A thousand threads need no more than this, in bytes.
STACK = 256 * 1024
#: Seconds for one number of waiters, as a share of a run.
SHARE = 0.3


def connections(bench: Bench) -> Table:
    columns = [Column(str(n), f"{n}\nidle", 2) for n in CONNECTIONS]
    title = "µs for a checkout, by the number of idle connections (stub driver)"
    table = bench.table("connections", title, bench.stub_kinds, *columns)
    for name, kind in bench.stubs.items():
        say(f"idle connections: {kind.label}")
        pools = {str(n): kind(n) for n in CONNECTIONS}
        for n, pool in pools.items():
            pool.warm(int(n))
        cycles = {n: pool.cycle for n, pool in pools.items()}
        with one_cpu():
            turns = take_turns(cycles, bench.effort.rounds, bench.effort.turn / 2)
        table.raw[name] = turns
        table.add({name: {n: quiet(taken).wall * 1e6 for n, taken in turns.items()}})
    return table


def waiters(bench: Bench) -> Table:
    columns = [Column(str(n), f"{n}\nwaiting", 1) for n in WAITERS]
    title = "µs for a checkout, by the number of waiting threads (stub driver)"
    table = bench.table("waiters", title, bench.stub_kinds, *columns)
    before = threading.stack_size(STACK)
    try:
        for name, kind in bench.stubs.items():
            say(f"waiters: {kind.label}")
            seconds = bench.effort.run * SHARE
            table.add({name: {str(n): _hand_off(kind, n, seconds) for n in WAITERS}})
    finally:
        threading.stack_size(before)
    return table


def _hand_off(kind: type[Stub], waiting: int, seconds: float) -> float:
    """µs from one checkout to the next, of one connection that all want."""
    pool = kind(1)
    pool.warm(1)
    done = together(waiting + 1, lambda: len(durations(pool.cycle, seconds)))
    return seconds / sum(done) * 1e6


def memory(bench: Bench) -> Table:
    columns = (
        Column("checkouts", "checkouts"),
        Column("blocks", "blocks of\nmemory more"),
        Column("resident_kb", "resident\nKB more"),
    )
    say("memory")
    ours = {name: kind for name, kind in bench.stubs.items() if name == OURS}
    table = bench.table("memory", "Memory after many checkouts (stub)", ours, *columns)
    for name, kind in ours.items():
        table.add({name: _growth(kind, bench.effort.checkouts)})
    return table


def _growth(kind: type[Stub], checkouts: int) -> dict[str, float]:
    pool = kind(10)
    _repeat(pool, checkouts // 10)
    blocks, resident = _blocks(), _resident()
    _repeat(pool, checkouts)
    return {
        "checkouts": checkouts,
        "blocks": _blocks() - blocks,
        "resident_kb": (_resident() - resident) / 1024,
    }


def _repeat(pool: Stub, checkouts: int) -> None:
    for _ in range(checkouts):
        pool.cycle()


def _blocks() -> int:
    gc.collect()
    return sys.getallocatedblocks()


def _resident() -> int:
    """Bytes of memory that this process has; its peak where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
