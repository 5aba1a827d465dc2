"""A statement through the pool: its cost, and what happens under load and faults."""

from __future__ import annotations

import threading
from contextlib import ExitStack, suppress
from statistics import median
from typing import Any

from ..adapters import Adapter, select
from ..bench import FLOOR, Bench, say
from ..results import Column, Table
from .clock import now, quantile, quiet, take_turns, together

SIZE, THREADS = 8, 16

COLUMNS = (
    Column("idle_us", "µs:\ntake,\nreturn", 1),
    Column("query_us", "µs:\ntake, query,\nreturn", 1),
    Column("query_cpu_us", "µs of\nCPU", 1),
    Column("ratio", "of the\nfloor", 2),
    Column("commands", "commands\nper query", 2),
    Column("per_second", "16 threads\non 8:\nqueries/s"),
    Column("p99_ms", "99 %\nms", 1),
    Column("longest_ms", "longest\nms", 1),
    Column("failed", "failed", 0),
    Column("hang_ms", "wait while\na connect\nhangs, ms", 1),
    Column("killed", "errors\nafter\nKILL of 8"),
)

Figures = dict[str, dict[str, float]]


def measure(bench: Bench) -> Table:
    title = "A statement through the pool"
    table = bench.table("statement", title, bench.kinds, *COLUMNS)
    for part in (_speed, _commands, _contention, _hang, _killed):
        say(f"statement: {part.__name__.strip('_')}")
        table.add(part(bench, table))
    return table


def _speed(bench: Bench, table: Table) -> Figures:
    """Cost of a cycle, without and with a statement; client and server on one CPU."""
    effort = bench.effort
    with ExitStack() as stack:
        pinned = stack.enter_context(bench.on_one_cpu())
        pools = {n: stack.enter_context(pinned.pool(n, SIZE)) for n in bench.adapters}
        for pool in pools.values():
            pool.query()
        cycles = {name: pool.cycle for name, pool in pools.items()}
        idle = take_turns(cycles, effort.rounds, effort.turn / 2)
        queries = {name: pool.query for name, pool in pools.items()}
        asked = take_turns(queries, effort.rounds, effort.turn)
    table.raw.update(idle_seconds=idle, query_seconds=asked)
    figures: Figures = {}
    for name, turns in asked.items():
        wall, cpu = quiet(turns)
        figures[name] = {
            "idle_us": quiet(idle[name]).wall * 1e6,
            "query_us": wall * 1e6,
            "query_cpu_us": cpu * 1e6,
        }
        if FLOOR in asked:
            figures[name]["ratio"] = wall / quiet(asked[FLOOR]).wall
    if FLOOR in asked:
        table.check_floor([turn.wall for turn in asked[FLOOR]])
    return figures


def _commands(bench: Bench, table: Table) -> Figures:
    """What a query costs the server, from its own counters."""
    figures: Figures = {}
    count = bench.effort.counted
    with bench.server.counting() as server:
        for name, pool in bench.pools(SIZE, server.target):
            for _ in range(SIZE + 1):
                pool.query()
            before = server.commands()
            for _ in range(count):
                pool.query()
            spent = server.commands() - before - 1
            figures[name] = {"commands": spent / count}
    return figures


def _contention(bench: Bench, table: Table) -> Figures:
    """Twice as many threads as connections, all of them in a hurry."""
    runs: dict[str, list[list[float]]] = {name: [] for name in bench.adapters}
    failed = dict.fromkeys(runs, 0)
    for _ in range(bench.effort.runs):
        for name, pool in bench.pools(SIZE):
            times, failures = _contend(pool, bench.effort.run)
            runs[name].append(times)
            failed[name] += failures
    contention = table.raw["contention"] = {
        name: [_summary(times, bench.effort.run) for times in several]
        for name, several in runs.items()
    }
    return {
        name: _figures(several) | {"failed": failed[name]}
        for name, several in contention.items()
    }


def _contend(pool: Adapter, seconds: float) -> tuple[list[float], int]:
    warm = threading.Barrier(THREADS)

    def hurry() -> tuple[list[float], int]:
        times, failures = [], 0
        # Connecting is measured elsewhere.
        with suppress(Exception):
            pool.query()
        warm.wait()
        end = now() + seconds
        while (start := now()) < end:
            try:
                pool.query()
            except Exception:
                failures += 1
            times.append(now() - start)
        return times, failures

    for connection in [pool.get() for _ in range(SIZE)]:
        pool.put(connection)
    done = together(THREADS, hurry)
    return [time for times, _ in done for time in times], sum(n for _, n in done)


def _summary(times: list[float], seconds: float) -> dict[str, float]:
    return {
        "per_second": len(times) / seconds,
        "p99_ms": quantile(times, 0.99) * 1e3,
        "longest_ms": max(times) * 1e3,
    }


def _figures(runs: list[dict[str, float]]) -> dict[str, float]:
    """Throughput and percentile as usual; of the longest cycles the longest."""
    figures = {key: median(run[key] for run in runs) for key in runs[0]}
    return figures | {"longest_ms": max(run["longest_ms"] for run in runs)}


def _hang(bench: Bench, table: Table) -> Figures:
    """What a thread whose connection is there notices of another's connect."""
    figures: Figures = {}
    for name, kind in bench.adapters.items():
        if kind.grows:
            waited = _worst_beside_a_hanging_connect(bench, name)
            figures[name] = {"hang_ms": waited * 1e3}
    return figures


def _worst_beside_a_hanging_connect(bench: Bench, name: str) -> float:
    with bench.server.detour() as way, bench.pool(name, SIZE, way.target) as pool:
        pool.query()
        mine = pool.get()
        way.hang()
        other = threading.Thread(target=pool.cycle)
        other.start()
        end = threading.Timer(bench.effort.hang, way.resume)
        end.start()
        threading.Event().wait(0.1)
        worst = _worst_until(end, pool, mine)
        other.join()
        end.join()
    return worst


def _worst_until(end: threading.Timer, pool: Adapter, mine: Any) -> float:
    """The longest return or checkout, as long as the connect hangs."""
    start = now()
    pool.put(mine)
    worst = now() - start
    while end.is_alive():
        start = now()
        pool.cycle()
        worst = max(worst, now() - start)
    return worst


def _killed(bench: Bench, table: Table) -> Figures:
    """Statements that fail of as many as there were connections."""
    figures: Figures = {}
    for name, pool in bench.pools(SIZE):
        taken = [pool.get() for _ in range(SIZE)]
        threads = [_thread_of(connection) for connection in taken]
        for connection in taken:
            pool.put(connection)
        bench.server.kill(threads)
        figures[name] = {"killed": sum(_fails(pool) for _ in range(SIZE))}
    return figures


def _thread_of(connection: Any) -> int:
    cursor = connection.cursor()
    cursor.execute("SELECT CONNECTION_ID()")
    [(thread,)] = cursor.fetchall()
    cursor.close()
    return int(thread)


def _fails(pool: Adapter) -> bool:
    try:
        connection = pool.get()
    except Exception:
        return True
    try:
        select(connection)
    except Exception:
        return True
    finally:
        with suppress(Exception):
            pool.put(connection)
    return False
